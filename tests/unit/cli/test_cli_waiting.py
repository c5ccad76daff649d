"""What a command prints while it waits."""

from __future__ import annotations

from typing import Any

import pytest

from dbranch.api.conditions import Condition
from dbranch_cli import waiting
from dbranch_cli.failure import Failure
from dbranch_cli.waiting import ConditionPrinter, last_reason


def body(**reasons: tuple[str, str]) -> dict[str, Any]:
    conditions = [
        {"type": kind, "status": status, "reason": reason, "message": f"about {reason}"}
        for kind, (status, reason) in reasons.items()
    ]
    return {"metadata": {"generation": 1}, "status": {"conditions": conditions}}


def test_the_step_of_a_restore_is_what_a_time_out_quotes() -> None:
    waits = body(Reconciling=("True", "ProjectStopped"))
    assert last_reason(waits, Condition.RECONCILING) == "ProjectStopped: about ProjectStopped"
    # Of other objects Ready says more.
    branch = body(Ready=("False", "Starting"), Reconciling=("True", "Starting"))
    assert last_reason(branch) == "Starting: about Starting"


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> ConditionPrinter:
    monkeypatch.setenv("NO_COLOR", "1")
    printer = ConditionPrinter()
    printer.live = True
    return printer


def lines_of(text: str) -> list[str]:
    """Return the lines that stay on a terminal: what follows the last time that a line was cleared."""
    return [line.split("\x1b[K")[-1] for line in text.split("\n")[:-1]]


def test_what_somebody_has_to_mend_is_printed_at_once_and_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printer = on_a_terminal(monkeypatch)
    printer.print_changes(body(Scheduled=("True", "Bound"), PostgresReady=("False", "ImagePullFailed")))
    printer.print_changes(body(Scheduled=("True", "Bound"), PostgresReady=("False", "ImagePullFailed")))
    lines = lines_of(capsys.readouterr().err)
    assert [line.split()[:3] for line in lines] == [
        ["✓", "Scheduled", "Bound"],
        ["!", "PostgresReady", "ImagePullFailed"],
    ]
    assert lines[1].endswith("about ImagePullFailed")


def test_what_is_under_way_stays_on_the_line_that_is_drawn_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_terminal(monkeypatch).print_changes(body(StorageReady=("Unknown", "Snapshotting")))
    text = capsys.readouterr().err
    assert lines_of(text) == [] and "… StorageReady    Snapshotting" in text


def test_elsewhere_each_change_is_a_line_with_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    printer = ConditionPrinter()
    printer.print_changes(body(StorageReady=("Unknown", "Snapshotting")))
    printer.print_changes(body(StorageReady=("True", "Stored")))
    assert capsys.readouterr().err.splitlines() == [
        "- StorageReady    Snapshotting         about Snapshotting",
        "+ StorageReady    Stored               about Stored",
    ]


def test_an_interrupted_wait_says_what_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(waiting, "_watch_versions", interrupt)
    store: Any = None
    with pytest.raises(
        Failure, match="branch x is Ready; the object stays and is still reconciled"
    ) as failure:
        waiting.wait_for(store, {}, lambda _: False, "branch x is Ready", 1.0)
    assert failure.value.code == 130
    with pytest.raises(Failure, match="until branch x is deleted; the deletion continues") as failure:
        waiting.wait_deleted(store, {}, "branch x", 1.0)
    assert failure.value.code == 130
