"""`dbranch schedule`: what it writes, and nothing that others own; and its texts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.factories import BranchBuilder, Json, branch, project

from dbranch.api import names
from dbranch.api.errors import InvalidInput
from dbranch_cli import invocation
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.main import cli
from dbranch_cli.objects import Body, Store
from dbranch_cli.schedule_view import refresh_line, schedule_block

NOW = datetime(2030, 1, 13, 12, tzinfo=UTC)
HOURLY: Json = {
    "name": "hourly",
    "schedule": "0 * * * *",
    "timeZone": "Etc/UTC",
    "keep": 24,
    "state": "Active",
}
NIGHTLY: Json = {**HOURLY, "name": "nightly", "schedule": "0 3 * * *"}


class RecordingStore(Store):
    """A branch with schedules, and what is requested of it. The answer is the branch as it was."""

    def __init__(self, live: BranchBuilder) -> None:
        super().__init__(self, "team")  # type: ignore[arg-type]
        self.live = live.body()
        self.requests: list[tuple[str, Any]] = []

    def find(self, plural: str, name: str) -> Body | None:
        bodies = {names.PROJECTS: project().body(), names.BRANCHES: self.live}
        return bodies[plural] if bodies[plural]["metadata"]["name"] == name else None

    def _list(self, plural: str, **params: str) -> list[Body]:
        return [self.live]

    def request(
        self, method: str, path: str, params: Json, body: Any, content_type: str = "application/json"
    ) -> Body:
        """Play the connection."""
        assert method == "PATCH" and path.endswith("/dbbranches/shop-main")
        self.requests.append((content_type, body))
        return self.live


def managed(manager: str, *entries: Json, **fields: Any) -> Json:
    """Return an entry of managedFields: of whole entries of spec.snapshots, and of other fields of the spec."""
    keys: Json = {
        f'k:{{"name":"{entry["name"]}"}}': {".": {}, **{f"f:{key}": {} for key in entry}} for entry in entries
    }
    spec = {"f:snapshots": keys} if entries else {}
    spec |= {f"f:{key}": {} for key in fields}
    return {"manager": manager, "operation": "Apply", "fieldsV1": {"f:spec": spec}}


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs `dbranch schedule main` over a store and returns its result."""
    monkeypatch.delenv("DBRANCH_PROJECT", raising=False)

    def run(store: RecordingStore, *arguments: str) -> Result:
        monkeypatch.setattr(invocation.Invocation, "store", store)
        monkeypatch.setattr(invocation.Invocation, "namespace", "team")
        return CliRunner().invoke(cli, ["schedule", "main", *arguments, "-p", "shop"])

    return run


def store(*entries: Json, managers: tuple[Json, ...] = (), **spec: Any) -> RecordingStore:
    builder = branch().spec(**({"snapshots": list(entries)} if entries else {}), **spec)
    return RecordingStore(builder.changed(metadata={"managedFields": list(managers)}))


def applied(kept: RecordingStore) -> Json:
    """Return the spec of the one request, which is a server-side apply to this very object."""
    ((content_type, body),) = kept.requests
    assert content_type == "application/apply-patch+yaml" and body["metadata"]["uid"] == "shop-main-uid"
    spec: Json = body["spec"]
    return spec


@pytest.mark.parametrize(
    ("arguments", "spec"),
    [
        (
            ["--snapshots", "0  *  * * *", "--keep", "24"],
            {"snapshots": [{"name": "default", "schedule": "0 * * * *", "keep": 24}]},
        ),
        (
            ["--snapshots", "0 3 * * *", "--name", "nightly", "--time-zone", "Europe/Berlin"],
            {"snapshots": [{"name": "nightly", "schedule": "0 3 * * *", "timeZone": "Europe/Berlin"}]},
        ),
        (["--refresh", "0 3 * * *"], {"refresh": {"schedule": "0 3 * * *"}}),
        (
            ["--refresh", "0 3 * * *", "--when-in-use", "skip", "--time-zone", "Europe/Berlin"],
            {"refresh": {"schedule": "0 3 * * *", "whenInUse": "Skip", "timeZone": "Europe/Berlin"}},
        ),
    ],
)
def test_a_new_schedule_is_what_was_named_and_no_more(run: Run, arguments: list[str], spec: Json) -> None:
    new = store()
    assert run(new, *arguments).exit_code == 0
    assert applied(new) == spec


def test_of_a_schedule_that_exists_only_what_was_named_changes(run: Run) -> None:
    one = store(HOURLY)
    assert run(one, "--keep", "48").exit_code == 0
    assert applied(one) == {"snapshots": [{"name": "hourly", "keep": 48}]}
    refreshed = store(refresh={"schedule": "0 3 * * *"})
    assert run(refreshed, "--when-in-use", "replace").exit_code == 0
    assert applied(refreshed) == {"refresh": {"whenInUse": "Replace"}}


def test_what_this_command_line_owns_stays_and_what_others_own_stays_theirs(run: Run) -> None:
    """Server-side apply removes what its manager leaves out, and takes over what it names."""
    mine = managed("dbranch-cli", {"name": "nightly", "schedule": ""}, protection="Enabled")
    theirs = managed("kubectl", HOURLY)
    both = store(HOURLY, NIGHTLY, managers=(mine, theirs), protection="Enabled")
    assert run(both, "--name", "hourly", "--pause").exit_code == 0
    assert applied(both) == {
        "protection": "Enabled",
        "snapshots": [
            {"name": "nightly", "schedule": "0 3 * * *"},
            {"name": "hourly", "state": "Paused"},
        ],
    }


def test_pause_and_resume_are_of_all_schedules_or_one(run: Run) -> None:
    all_kinds = store(HOURLY, NIGHTLY, refresh={"schedule": "0 3 * * *"})
    assert run(all_kinds, "--pause").exit_code == 0
    assert applied(all_kinds) == {
        "snapshots": [{"name": "hourly", "state": "Paused"}, {"name": "nightly", "state": "Paused"}],
        "refresh": {"state": "Paused"},
    }
    one = store(HOURLY, NIGHTLY)
    assert run(one, "--resume", "--name", "nightly").exit_code == 0
    assert applied(one) == {"snapshots": [{"name": "nightly", "state": "Active"}]}


def test_off_removes_them_whoever_has_set_them_if_they_are_still_the_same(run: Run) -> None:
    all_kinds = store(HOURLY, NIGHTLY, refresh={"schedule": "0 3 * * *"})
    assert run(all_kinds, "--off", "--name", "nightly").exit_code == 0
    assert run(all_kinds, "--off").exit_code == 0
    same: list[Json] = [
        {"op": "test", "path": "/metadata/uid", "value": "shop-main-uid"},
        {"op": "test", "path": "/spec/snapshots", "value": [HOURLY, NIGHTLY]},
    ]
    assert all_kinds.requests == [
        (
            "application/json-patch+json",
            [*same, {"path": "/spec/snapshots", "op": "replace", "value": [HOURLY]}],
        ),
        (
            "application/json-patch+json",
            [*same, {"path": "/spec/snapshots", "op": "remove"}, {"op": "remove", "path": "/spec/refresh"}],
        ),
    ]


def test_what_git_owns_is_changed_in_git(run: Run) -> None:
    of_git = store(HOURLY, managers=(managed("argocd-controller", HOURLY),))
    for arguments in (["--keep", "1"], ["--pause"], ["--off"]):
        refused = run(of_git, *arguments)
        assert isinstance(refused.exception, Failure) and refused.exception.reason == "ManagedByGit"
    assert of_git.requests == [] and run(of_git, "--keep", "1", "--force").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--snapshots", "@daily"], "five fields"),
        (["--snapshots", "0 * * * * *"], "five fields"),
        (["--refresh", "0 3 * *"], "--refresh"),
        (["--keep", "3"], "say when with --snapshots"),
        (["--when-in-use", "skip"], "say when with --refresh"),
        (["--off", "--keep", "3"], "changes no schedule"),
        (["--name", "x"], "goes with"),
        (["--snapshots", "0 * * * *", "--name", "X!"], "invalid --name"),
    ],
)
def test_what_is_refused_before_anything_is_written(run: Run, arguments: list[str], part: str) -> None:
    empty = store()
    refused = run(empty, *arguments)
    assert isinstance(refused.exception, InvalidInput) and part in str(refused.exception)
    assert empty.requests == []


def test_schedules_that_are_not_there(run: Run) -> None:
    assert "has no schedules; make one" in run(store()).output
    for arguments in (["--off"], ["--pause", "--name", "x"]):
        missing = run(store(), *arguments)
        assert isinstance(missing.exception, Failure) and missing.exception.code == ExitCode.NOT_FOUND


def test_the_text_has_the_last_and_the_next_run() -> None:
    runs = {
        "lastScheduleTime": "2030-01-13T11:00:00Z",
        "lastSuccessfulTime": "2030-01-13T11:02:00Z",
        "nextScheduleTime": "2030-01-13T12:00:00Z",
        "keep": [{"name": "hourly", "count": 24, "nextCount": 3, "nextTime": "2030-01-14T09:00:00Z"}],
    }
    times = {"lastScheduleTime": "2030-01-13T03:00:00Z", "nextScheduleTime": "2030-01-14T03:00:00Z"}
    body = branch("x").spec(snapshots=[HOURLY], refresh={"schedule": "0 3 * * *", "state": "Paused"})
    body = body.status(snapshots=runs, refresh=times)
    assert schedule_block(body.body(), NOW).splitlines() == [
        "MAKES      NAME    SCHEDULE   TIME ZONE  KEEP  STATE",
        "snapshots  hourly  0 * * * *  Etc/UTC    24    Active",
        "refresh    -       0 3 * * *  Etc/UTC    -     Paused",
        "",
        "Last snapshot  2030-01-13 11:02 UTC (58m ago)",
        "Next snapshot  2030-01-13 12:00 UTC",
        "Keep           24 of hourly until 2030-01-14 09:00 UTC, then 3",
        "Last refresh   2030-01-13 03:00 UTC (9h ago)",
        "Next refresh   2030-01-14 03:00 UTC",
    ]
    idle = body.status(snapshots={**runs, "nextScheduleTime": "2030-01-13T11:00:00Z"}).body()
    assert "at the next run after something is written" in schedule_block(idle, NOW)
    assert refresh_line(body.body()) is None
