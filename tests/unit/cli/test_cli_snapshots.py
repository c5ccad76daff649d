"""`dbranch snapshot`, and which snapshot `dbranch create` starts from."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.factories import SnapshotBuilder, snapshot
from tests.unit.cli.store import PATHS, FakeStore

from dbranch.api import names
from dbranch.api.conditions import Condition, Reason
from dbranch.api.errors import InvalidInput
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.snapshot_view import snapshot_block, snapshot_table
from dbranch_cli.snapshots import newest_not_younger, parse_moment, parse_ttl

NOW = datetime(2030, 1, 13, 12, tzinfo=UTC)


def taken(name: str, ago: timedelta, of: str = "main", **spec: Any) -> SnapshotBuilder:
    time = (NOW - ago).strftime("%Y-%m-%dT%H:%M:%SZ")
    stored = snapshot(name, of, **spec).taken_of("u", time).node(uniqueSize="37Mi", logicalSize="41Gi")
    return stored.reported(Condition.READY, Reason.AVAILABLE, "it is stored")


def test_the_table_and_the_block() -> None:
    expiring = taken("before", timedelta(hours=3), ttl="168h").status(expirationTime="2030-01-20T09:00:00Z")
    bodies = [expiring.body(), snapshot("new", "feature-x").body()]
    assert snapshot_table(bodies, wide=False, now=NOW).splitlines() == [
        "SNAPSHOT  BRANCH     STATE    ORIGIN     TAKEN   SIZE  UNIQUE  EXPIRES",
        "before    main       Ready    Requested  3h ago  41Gi  37Mi    in 6d",
        "new       feature-x  Pending  Requested  -       -     -       -",
    ]
    assert snapshot_table(bodies[:1], wide=True, now=NOW).splitlines()[1].split()[-3:] == [
        "Available",
        "n1",
        "shop-before",
    ]
    lines = snapshot_block(bodies[0], [], NOW).splitlines()
    assert lines[0] == "Snapshot  before"
    assert "Taken     2030-01-13T09:00:00Z (3h ago)" in lines
    assert "Expires   2030-01-20T09:00:00Z (in 6d)" in lines
    assert lines[-1] == "No Events."


@pytest.mark.parametrize(
    ("text", "ttl"), [("7d", "168h"), ("2w", "336h"), ("90m", "90m"), ("never", "Never")]
)
def test_a_ttl_as_people_write_it(text: str, ttl: str) -> None:
    assert parse_ttl(text) == ttl


@pytest.mark.parametrize("text", ["", "0h", "7", "7y", "-1h", "1d2h", "soon"])
def test_what_is_no_ttl(text: str) -> None:
    with pytest.raises(InvalidInput, match="--ttl"):
        parse_ttl(text)


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("2h ago", timedelta(hours=2)),
        ("90m ago", timedelta(minutes=90)),
        ("3d ago", timedelta(days=3)),
        ("2030-01-13T10:00:00Z", timedelta(hours=2)),
        ("2030-01-13T12:00:00+02:00", timedelta(hours=2)),
    ],
)
def test_a_moment_as_people_write_it(text: str, ago: timedelta) -> None:
    assert parse_moment(text, NOW) == NOW - ago


@pytest.mark.parametrize("text", ["", "ago", "yesterday", "2h", "x ago"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(InvalidInput, match="2h ago"):
        parse_moment(text, NOW)


def test_the_newest_that_was_taken_by_then() -> None:
    bodies = [
        taken("old", timedelta(hours=9)).body(),
        taken("right", timedelta(hours=3)).body(),
        taken("young", timedelta(hours=1)).body(),
        taken("other", timedelta(hours=2), "feature-x").body(),
        snapshot("pending").body(),
    ]

    def newest(hours: int) -> str | None:
        body = newest_not_younger(bodies, "main", NOW - timedelta(hours=hours))
        return body["metadata"]["name"] if body else None

    assert [newest(hours) for hours in (0, 1, 2, 3, 4, 9, 10)] == [
        "shop-young",
        "shop-young",
        "shop-right",
        "shop-right",
        "shop-old",
        "shop-old",
        None,
    ]


# The commands.


def test_a_snapshot_is_created_with_its_projects_name(run: Any) -> None:
    store = FakeStore()
    done = run(store, "snapshot", "create", "before", "--ttl", "7d", "--protect", "--no-wait")
    assert done.exit_code == 0 and "snapshot before of branch main requested" in done.output
    body = store.find(names.SNAPSHOTS, "shop-before")
    spec = {"project": "shop", "branch": "main", "ttl": "168h", "protection": "Enabled"}
    assert body is not None and body["spec"] == spec
    second = run(store, "snapshot", "create", "before", "--no-wait")
    assert isinstance(second.exception, Failure) and second.exception.code == ExitCode.REFUSED
    missing = run(store, "snapshot", "create", "x", "-b", "feature", "--no-wait")
    assert isinstance(missing.exception, Failure) and missing.exception.code == ExitCode.NOT_FOUND
    assert isinstance(run(store, "snapshot", "create", "A_b", "--no-wait").exception, InvalidInput)


def test_snapshots_are_listed_shown_and_deleted_by_either_name(run: Any) -> None:
    other = taken("x", timedelta(hours=1)).changed(metadata={"name": "nightly", "uid": "n"})
    store = FakeStore(taken("before", timedelta(hours=3)), taken("of-b", timedelta(hours=3), "b"), other)
    listed = run(store, "snapshot", "list", "-b", "main")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["SNAPSHOT", "nightly", "before"]
    names_only = run(store, "snapshot", "list", "-o", "name").stdout.splitlines()
    assert "dbsnapshot.dbranch.io/shop-of-b" in names_only and len(names_only) == 3
    for name in ("before", "shop-before", "nightly"):
        shown = json.loads(run(store, "snapshot", "show", name, "-o", "json").stdout)
        assert shown["metadata"]["name"].endswith(name.removeprefix("shop-"))
    near = run(store, "snapshot", "show", "befor")
    assert isinstance(near.exception, Failure) and "did you mean before?" in str(near.exception)
    run(store, "snapshot", "delete", "before", "nightly", "--yes", "--no-wait")
    deleted = [store.api.peek(f"{PATHS[names.SNAPSHOT_KIND]}/{name}") for name in ("shop-before", "nightly")]
    assert all(body is None or body["metadata"]["deletionTimestamp"] for body in deleted)
    assert isinstance(run(store, "snapshot", "delete", "of-b").exception, Failure)


def test_a_branch_is_created_from_a_snapshot(run: Any) -> None:
    store = FakeStore(taken("before", timedelta(hours=3)))
    done = run(store, "create", "again", "--from-snapshot", "before", "--no-wait")
    assert done.exit_code == 0 and "branch again created from snapshot/shop-before" in done.output
    body = store.find(names.BRANCHES, "shop-again")
    assert body is not None and body["spec"] == {"project": "shop", "sourceSnapshot": "shop-before"}
    # Repeated in CI: the same source is no error, another one is.
    reuse = ("--if-exists", "reuse", "--no-wait")
    assert run(store, "create", "again", "--from-snapshot", "before", *reuse).exit_code == 0
    assert run(store, "create", "again", *reuse).exit_code == 0
    assert isinstance(run(store, "create", "again", "-s", "main", *reuse).exception, Failure)
    both = run(store, "create", "b", "--from-snapshot", "before", "-s", "main")
    assert isinstance(both.exception, Failure) and both.exception.code == ExitCode.USAGE


def test_a_branch_is_created_as_of_a_time_and_which_snapshot_that_is_is_said(run: Any) -> None:
    store = FakeStore(taken("before", timedelta(hours=3)), taken("of-b", timedelta(hours=1), "b"))
    done = run(store, "create", "then", "--at", NOW.isoformat(), "--no-wait")
    assert done.exit_code == 0 and "snapshot before of branch main, taken" in done.output
    body = store.find(names.BRANCHES, "shop-then")
    assert body is not None and body["spec"]["sourceSnapshot"] == "shop-before"
    early = run(store, "create", "early", "--at", "2030-01-01T00:00:00Z", "--no-wait")
    assert isinstance(early.exception, Failure) and "nothing was created" in str(early.exception)
    assert store.find(names.BRANCHES, "shop-early") is None
    text = run(store, "create", "dry", "-s", "b", "--at", NOW.isoformat(), "--dry-run", "client").stdout
    assert "sourceSnapshot: shop-of-b" in text and store.find(names.BRANCHES, "shop-dry") is None
    assert "snapshot/shop-before" in run(store, "list").stdout
    assert "(of snapshot/shop-before)" in run(store, "tree").stdout
