"""`dbranch reset`, `undo` and `history`, and what `list` and `show` say of a restore."""

from __future__ import annotations

import io
import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import Result
from tests.factories import BranchBuilder, RestoreBuilder, SnapshotBuilder, branch, project, restore, snapshot
from tests.unit.cli.store import FakeStore

from dbranch.api import names
from dbranch.api.conditions import Condition, Reason
from dbranch.api.enums import ConditionStatus
from dbranch_cli import restore_progress, restores
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.main import cli
from dbranch_cli.objects import Body
from dbranch_cli.restore_progress import StepPrinter
from dbranch_cli.restore_view import clock_time, history_of, history_table, restore_result, undo_target
from dbranch_cli.restores import next_number
from dbranch_cli.view import branch_block, branch_header, branch_row, state_of

NOW = datetime(2030, 1, 13, 12, tzinfo=UTC)
UID = "shop-x-uid"


def at(ago: timedelta) -> str:
    return (NOW - ago).strftime("%Y-%m-%dT%H:%M:%SZ")


def undo_copy(name: str, generation: int, ago: timedelta, uid: str = UID) -> SnapshotBuilder:
    """Return a snapshot with the data that a restore has replaced."""
    origin = {"reason": "Restore", "restoreUID": "r", "branchUID": uid}
    body = snapshot(name, "x", origin=origin, ttl="24h").taken_of(uid, at(ago)).node(generation=generation)
    return body.reported(Condition.READY, Reason.AVAILABLE, "it is stored")


def done(name: str, ago: timedelta, **status: Any) -> RestoreBuilder:
    """Return a restore of branch x that is complete."""
    made = restore(name, "x").status(phase="Complete", source="main", completionTime=at(ago), **status)
    return made.reported(Condition.COMPLETE, Reason.RESTORED, "it has the data")


def x(**spec: Any) -> BranchBuilder:
    return branch("x").changed(spec=spec) if spec else branch("x")


def created(store: FakeStore) -> list[Body]:
    return store.restores("shop")


def failure(result: Result) -> Failure:
    assert isinstance(result.exception, Failure), result.output
    return result.exception


# reset


@pytest.mark.parametrize(
    ("options", "spec", "said"),
    [
        ((), {}, "to the present data of main"),
        (("--to-branch", "y"), {"source": "y"}, "to the present data of y"),
        (("--to-snapshot", "before"), {"sourceSnapshot": "shop-before"}, "to snapshot before"),
        (("--discard", "--yes"), {"undo": "Discard"}, "to the present data of main"),
    ],
)
def test_a_reset_is_a_restore_with_the_next_name_and_an_end(
    run: Any, options: tuple[str, ...], spec: dict[str, str], said: str
) -> None:
    store = FakeStore(x(), branch("y"), snapshot("before"))
    result = run(store, "reset", "x", *options, "--no-wait")
    assert result.exit_code == 0 and f"reset of branch x {said} requested" in result.output
    (body,) = created(store)
    assert body["metadata"]["name"] == "shop-x-1"
    assert body["spec"] == {"project": "shop", "branch": "x", "ttlAfterFinished": "24h", **spec}


def test_a_branch_that_was_made_from_a_snapshot_goes_back_to_that(run: Any) -> None:
    made = branch("x").changed(spec={"source": None, "sourceSnapshot": "shop-before"})
    store = FakeStore(made, snapshot("before"))
    assert "to snapshot before requested" in run(store, "reset", "x", "--no-wait").output
    assert "source" not in created(store)[0]["spec"]
    assert failure(run(FakeStore(made), "reset", "x", "--no-wait")).code == ExitCode.NOT_FOUND


def test_a_time_is_the_branchs_own_newest_snapshot_by_then_and_said(run: Any) -> None:
    own = undo_copy("x-undo-abcde", 1, timedelta(hours=3))
    other = snapshot("other", "y").taken_of("u", at(timedelta(hours=2)))
    store = FakeStore(x(), own, other)
    result = run(store, "reset", "x", "--to-time", NOW.isoformat(), "--no-wait")
    assert "snapshot x-undo-abcde of branch x, taken" in result.output
    assert created(store)[0]["spec"]["sourceSnapshot"] == "shop-x-undo-abcde"
    early = failure(run(store, "reset", "x", "--to-time", "2030-01-01T00:00:00Z", "--no-wait"))
    assert early.code == ExitCode.NOT_FOUND and "nothing was changed" in str(early)
    assert len(created(store)) == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("main",), ExitCode.USAGE),
        (("x", "--to-branch", "x"), ExitCode.USAGE),
        (("x", "--to-branch", "main", "--to-time", "2h ago"), ExitCode.USAGE),
        (("x", "--to-branch", "z"), ExitCode.NOT_FOUND),
        (("x", "--to-snapshot", "z"), ExitCode.NOT_FOUND),
        (("z",), ExitCode.NOT_FOUND),
    ],
)
def test_a_reset_that_cannot_be_meant_makes_no_object(run: Any, words: tuple[str, ...], code: int) -> None:
    store = FakeStore(x())
    assert failure(run(store, "reset", *words, "--yes", "--no-wait")).code == code
    assert created(store) == []


def test_a_branch_without_its_source_is_not_reset_to_it(run: Any) -> None:
    store = FakeStore(branch("x", "gone"))
    assert failure(run(store, "reset", "x", "--no-wait")).code == ExitCode.NOT_FOUND
    assert created(store) == []


@pytest.mark.parametrize(
    ("project_fields", "branch_fields", "options", "words"),
    [
        ({"spec": {"activeBranch": "x"}}, {}, (), "it is the active branch"),
        (
            {"status": {"proxies": [{"pod": "p", "branches": [{"branch": "x", "sessions": 3}]}]}},
            {},
            (),
            "3 sessions on it end",
        ),
        ({}, {}, ("--discard",), "deleted for good"),
        ({}, {"undo": "Discard"}, (), "deleted for good"),
        ({"spec": {"undo": {"keep": "0s"}}}, {}, (), "deleted for good"),
    ],
)
def test_what_others_notice_or_nobody_can_undo_is_asked_first(
    run: Any,
    project_fields: dict[str, Any],
    branch_fields: dict[str, Any],
    options: tuple[str, ...],
    words: str,
) -> None:
    store = FakeStore(x(**branch_fields))
    store.put(project().changed(**project_fields).body())
    refused = failure(run(store, "reset", "x", *options, "--no-wait"))
    assert refused.code == ExitCode.USAGE and words in str(refused) and "--yes" in str(refused)
    assert created(store) == []
    assert run(store, "reset", "x", *options, "--no-wait", "--yes").exit_code == 0
    assert len(created(store)) == 1


def test_a_branch_that_keeps_its_data_though_the_project_does_not_is_not_asked_about(run: Any) -> None:
    store = FakeStore(x(undo="Keep"))
    store.put(project().changed(spec={"undo": {"keep": "0s"}}).body())
    assert run(store, "reset", "x", "--no-wait").exit_code == 0


def test_a_name_is_never_used_twice_for_a_branch(run: Any) -> None:
    """Not that of an object that exists, nor one that the branch remembers; somebody else may take the next one."""
    remembered = x().status(restores=[{"name": "shop-x-7", "uid": "r"}, {"name": "nightly-99", "uid": "s"}])
    others = [restore("shop-x-3", "x").body(), restore("shop-x-y-12", "x-y").body()]
    assert next_number(remembered.body(), others) == 8
    assert next_number(x().body(), others) == 4
    assert next_number(x().body(), []) == 1
    store = FakeStore(remembered)
    listed = store.restores("shop")
    store.put(restore("shop-x-8", "x").body())
    store.restores = lambda project: listed  # type: ignore[method-assign]
    run(store, "reset", "x", "--no-wait")
    assert store.find(names.RESTORES, "shop-x-9") is not None


def test_a_reset_that_is_waited_for_says_how_it_is_undone(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = done("shop-x-1", timedelta(0), undoSnapshot="shop-x-undo-abcde", dataTime=at(timedelta(0)))
    monkeypatch.setattr(restores, "wait_for", lambda *_, **__: complete.body())
    store = FakeStore(x(), undo_copy("x-undo-abcde", 1, timedelta(0)))
    printed = run(store, "reset", "x").stdout
    assert printed.startswith("branch x has the data of main as of ")
    assert "'dbranch undo x' takes this back, for 24h" in printed
    store = FakeStore(x(), undo_copy("x-undo-abcde", 1, timedelta(0)))
    shown = json.loads(run(store, "reset", "x", "-o", "json").stdout)
    assert shown["kind"] == names.RESTORE_KIND and shown["status"]["phase"] == "Complete"


def test_the_result_without_a_copy() -> None:
    text = restore_result(done("a", timedelta(0)).body(), None)
    assert text == "branch x has the data of main; what it had before is deleted"


# undo


def restored(generation: int) -> BranchBuilder:
    return x().node(generation=generation)


def test_undo_takes_the_copy_of_the_generation_before_of_this_very_branch() -> None:
    copies = [
        undo_copy("first", 1, timedelta(hours=5)).body(),
        undo_copy("second", 2, timedelta(hours=3)).body(),
        undo_copy("of-another", 2, timedelta(hours=1), "earlier-uid").body(),
        undo_copy("going", 2, timedelta(hours=1)).deleting().body(),
        snapshot("mine", "x").taken_of(UID).node(generation=2).body(),
    ]

    def target(generation: int) -> str | None:
        body = undo_target(restored(generation).body(), copies)
        return body["metadata"]["name"] if body else None

    assert [target(generation) for generation in (1, 2, 3, 4)] == [None, "shop-first", "shop-second", None]


def test_undo_is_a_restore_from_that_copy(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = undo_copy("x-undo-abcde", 1, timedelta(hours=5))
    complete = done("shop-x-1", timedelta(0), undoSnapshot="shop-x-undo-fghij")
    monkeypatch.setattr(restores, "wait_for", lambda *_, **__: complete.body())
    store = FakeStore(restored(2), copy)
    printed = run(store, "undo", "x").stdout
    (body,) = created(store)
    expected = {"sourceSnapshot": "shop-x-undo-abcde", "ttlAfterFinished": "24h"}
    assert body["spec"] == {"project": "shop", "branch": "x", **expected}
    data = clock_time(at(timedelta(hours=5)))
    offer = "'undo' again takes this back; older: dbranch history x"
    assert printed == f"branch x is back to the data of {data}; {offer}\n"


def test_undo_without_the_copy_of_the_last_restore_names_the_older_ones(run: Any) -> None:
    store = FakeStore(restored(4), undo_copy("first", 1, timedelta(hours=5)))
    refused = failure(run(store, "undo", "x"))
    assert refused.code == ExitCode.USAGE and "first (" in str(refused)
    assert "dbranch reset x --to-snapshot NAME" in str(refused) and created(store) == []
    nothing = failure(run(FakeStore(x()), "undo", "x"))
    assert nothing.code == ExitCode.NOT_FOUND


def test_undo_on_a_terminal_lets_a_person_choose(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FakeStore(
        restored(5), undo_copy("first", 1, timedelta(hours=5)), undo_copy("second", 2, timedelta(hours=3))
    )
    monkeypatch.setattr(restores.sys, "stdin", Terminal("first\n"))
    monkeypatch.setattr(restores.sys, "stderr", Terminal())
    monkeypatch.setattr(restores.click, "prompt", lambda *_, **__: "first")
    from dbranch_cli.restore_view import copies_of

    chosen = restores._chosen_copy("x", copies_of(restored(5).body(), store.snapshots("shop")))
    assert chosen["metadata"]["name"] == "shop-first"


# history


def test_history_shows_restores_and_snapshots_and_what_the_branch_remembers() -> None:
    live = restored(3).status(
        restores=[
            {"name": "shop-x-1", "uid": "gone", "source": "main", "completionTime": at(timedelta(hours=30))},
            {"name": "shop-x-2", "uid": "shop-x-2-uid"},
        ]
    )
    kept = undo_copy("x-undo-abcde", 2, timedelta(hours=2)).status(
        expirationTime=(NOW + timedelta(hours=22)).isoformat()
    )
    failed = restore("shop-x-3", "x").status(phase="Failed", completionTime=at(timedelta(minutes=5)))
    failed = failed.reported(Condition.FAILED, Reason.POOL_FULL, "the pool is full")
    bodies = [
        done("shop-x-2", timedelta(hours=1, minutes=59), undoSnapshot="shop-x-undo-abcde").body(),
        conditioned(failed.body()),
        restore("other", "y").body(),
    ]
    snapshots = [kept.body(), undo_copy("old", 1, timedelta(days=9), "earlier").body()]
    entries = history_of("x", live.body(), bodies, snapshots)
    assert history_table(entries, live.body(), wide=False, now=NOW).splitlines() == [
        "WHEN    WHAT      NAME          STATE     DETAILS",
        "5m ago  restore   x-3           Failed    PoolFull: the pool is full",
        "1h ago  restore   x-2           Complete  data of main; before: x-undo-abcde",
        "2h ago  snapshot  x-undo-abcde  Ready     Restore; expires in 22h",
        "1d ago  restore   x-1           Complete  data of main",
        "9d ago  snapshot  old           Ready     Restore; of an earlier branch of this name",
    ]
    wide = history_table(entries, live.body(), wide=True, now=NOW).splitlines()
    assert wide[1].split()[-3:] == ["PoolFull", at(timedelta(minutes=5)), "shop-x-3"]


def test_history_of_a_branch_that_is_gone_and_of_one_without(run: Any) -> None:
    store = FakeStore(undo_copy("old", 1, timedelta(days=9), "earlier"))
    listed = json.loads(run(store, "history", "x", "-o", "json").stdout)
    assert [item["metadata"]["name"] for item in listed["items"]] == ["shop-old"]
    assert failure(run(FakeStore(), "history", "x")).code == ExitCode.NOT_FOUND
    assert "never restored" in run(FakeStore(x()), "history", "x").output
    assert json.loads(run(FakeStore(x()), "history", "x", "-o", "json").stdout)["items"] == []


# The steps


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def at_step(reason: Reason, message: str = "") -> Body:
    return restore("a", "x").reported(Condition.RECONCILING, reason, message).body()


def conditioned(body: Body, status: ConditionStatus = ConditionStatus.TRUE) -> Body:
    """Return a restore whose conditions hold, whatever their reasons say."""
    for condition in body["status"]["conditions"]:
        condition["status"] = status.value
    return body


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_each_step_is_printed_with_its_seconds_and_what_waits_for_somebody_at_once(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO]
) -> None:
    output, clock = stream(), iter(range(100))
    monkeypatch.setattr(restore_progress.sys, "stderr", output)
    monkeypatch.setattr(restore_progress.time, "monotonic", lambda: float(next(clock)))
    printer = StepPrinter(quiet=False)
    printer.print_changes(conditioned(at_step(Reason.PROJECT_STOPPED, "project shop is stopped")))
    for _ in range(2):
        printer.print_changes(conditioned(at_step(Reason.SNAPSHOTTING)))
    printer.print_changes(conditioned(done("a", timedelta(0)).body()))
    printer.clear()
    text = output.getvalue()
    # A line that is drawn anew ends with no line feed.
    lines = [line.rpartition("\x1b[K")[2] for line in text.split("\n")[:-1]]
    assert [line.split()[1] for line in lines] == [
        "ProjectStopped",
        "ProjectStopped",
        "Snapshotting",
        "Restored",
    ]
    assert "project shop is stopped" in lines[0] and lines[1].endswith(" s")
    assert lines[3].endswith("s in all")
    assert (stream is Terminal) == ("…" in text)


def test_a_restore_for_a_program_prints_no_steps(capsys: pytest.CaptureFixture[str]) -> None:
    StepPrinter(quiet=True).print_changes(conditioned(at_step(Reason.PROJECT_STOPPED, "stopped")))
    assert capsys.readouterr().err == ""


# list and show


def test_list_and_show_say_that_a_restore_goes_on_and_what_the_data_is_of() -> None:
    ready = branch("x").reported(Condition.READY, Reason.AVAILABLE, "").stored()
    assert state_of(ready.body()) == "Ready"
    going_on = ready.restoring("u").answered("Preparing", reason="Cleaning", message="it is cleaned")
    assert state_of(going_on.body()) == state_of(ready.restoring("u").body()) == "Restoring"
    assert "Restore   again from main: Cleaning, it is cleaned" in branch_block(going_on.body(), False, [])
    # From the exchange on it has the new data, though the old is still being put away.
    for state in ("Exchanged", "Done", "Failed", "Canceled"):
        assert state_of(ready.restoring("u").answered(state).body()) == "Ready"
    of_another = ready.restoring("u").answered("Done", uid="the one before")
    assert state_of(of_another.body()) == "Restoring"
    data = {"source": "snapshot/shop-before", "time": at(timedelta(hours=2)), "restore": "shop-x-1"}
    body = ready.status(data=data).body()
    row = dict(zip(branch_header(True), branch_row(project().body(), body, True, NOW), strict=True))
    assert (row["BRANCH"], row["SOURCE"], row["DATA"]) == ("x", "snapshot/shop-before", "2h")
    shown = branch_block(body, False, [], NOW)
    assert "Source    main" in shown
    assert f"of snapshot/shop-before as of {data['time']} (2h ago), by restore shop-x-1" in shown


def test_the_names_of_the_commands_lead_to_them() -> None:
    assert {"reset", "undo", "history"} <= {*cli.commands}
    assert sys.modules["dbranch_cli.restores"] is restores
