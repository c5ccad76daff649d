"""A restart into settings that Postgres does not take is refused: it would not start."""

from __future__ import annotations

from typing import Any, cast

import pytest

from dbranch.api import names
from dbranch.api.conditions import Reason
from dbranch_cli import waiting
from dbranch_cli.connection import Connection
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.lifecycle import check_restart
from dbranch_cli.objects import Store
from dbranch_cli.waiting import is_restarted, wait_for


def branch(reason: Reason, message: str = "no x; correct it") -> dict[str, Any]:
    condition = {
        "type": "PostgresReady",
        "status": "True",
        "reason": reason.value,
        "message": message,
    }
    return {"status": {"conditions": [condition]}}


def test_a_restart_into_rejected_settings_is_refused() -> None:
    with pytest.raises(Failure, match="no x; correct it; --force") as failure:
        check_restart(branch(Reason.SETTINGS_REJECTED))
    assert failure.value.code == ExitCode.REFUSED


def test_any_other_restart_is_not() -> None:
    for body in (branch(Reason.ACCEPTING), branch(Reason.RESTART_PENDING), {}):
        check_restart(body)


def test_a_restart_that_undoes_what_is_rejected_is_not_refused() -> None:
    altered = branch(Reason.SETTINGS_REJECTED, "no x; run dbranch restart x --reset-alter-system")
    check_restart(altered, reset_alter_system=True)
    with pytest.raises(Failure):
        check_restart(altered)
    # A value of the spec would still keep it from starting.
    with pytest.raises(Failure):
        check_restart(branch(Reason.SETTINGS_REJECTED), reset_alter_system=True)


def reported(stalled: str | None = None, ready: str = "False", **node: str) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": ready, "reason": "R", "message": ""}]
    if stalled:
        conditions.append(
            {"type": "Stalled", "status": "True", "reason": "InvalidParameters", "message": stalled}
        )
    meta = {"name": "shop-x", "generation": 1, "uid": "u"}
    return {
        "kind": names.BRANCH_KIND,
        "metadata": meta,
        "spec": {"project": "shop"},
        "status": {"conditions": conditions, "node": node},
    }


BROKEN = reported("x contains errors")
HEALED = reported(ready="True", restartedAt="1", alterSystemResetAt="1")


def waited(monkeypatch: pytest.MonkeyPatch, *versions: dict[str, Any]) -> dict[str, Any]:
    """Wait for a restart of a branch that is stalled, which is then seen in these versions."""
    monkeypatch.setattr(waiting, "_watch_versions", lambda *args: iter(versions))
    store = Store(cast(Connection, None), "team")
    goal = is_restarted("1", reset_alter_system=True)
    return wait_for(store, BROKEN, goal, "branch x is Ready", 1, quiet=True, since=BROKEN)


def test_what_a_branch_was_stalled_by_before_its_restart_ends_no_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert waited(monkeypatch, BROKEN, reported(), HEALED) is HEALED
    # By the same again, or by something else: then it is an answer.
    for versions in ((BROKEN, reported(), BROKEN), (BROKEN, reported("y contains errors"))):
        with pytest.raises(Failure) as failure:
            waited(monkeypatch, *versions)
        assert failure.value.code == ExitCode.STALLED


def test_an_agent_that_only_restarts_the_branch_is_waited_for_in_vain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(Failure) as failure:
        waited(monkeypatch, BROKEN, reported(ready="True", restartedAt="1"))
    assert failure.value.code == ExitCode.TIMED_OUT


class Recorder:
    """A connection that keeps the body of the last request."""

    body: Any = None

    def request(
        self, method: str, path: str, params: Any = None, body: Any = None, content_type: str = ""
    ) -> Any:
        self.body = body
        return body


def test_a_request_in_an_annotation_outlives_the_next_command() -> None:
    connection = Recorder()
    store = Store(cast(Connection, connection), "team")
    store.request_restart(reported(), "1", reset_alter_system=True)
    annotations = {names.RESTARTED_AT: "1", names.ALTER_SYSTEM_RESET_AT: "1"}
    assert connection.body["metadata"]["annotations"] == annotations
    live = reported()
    live["metadata"]["annotations"] = {**annotations, "other": "2"}
    fields = {"f:metadata": {"f:annotations": {f"f:{key}": {} for key in annotations}}}
    entry = {"manager": names.CLI_MANAGER, "operation": "Apply", "fieldsV1": fields}
    live["metadata"]["managedFields"] = [entry]
    store.set_field(live, "state", "Stopped", force=False)
    assert connection.body["metadata"]["annotations"] == annotations
    assert connection.body["metadata"]["uid"] == "u" and connection.body["spec"] == {"state": "Stopped"}
    # A restart without a reset asks for none.
    store.request_restart(reported(), "2", reset_alter_system=False)
    assert connection.body["metadata"]["annotations"] == {names.RESTARTED_AT: "2"}
