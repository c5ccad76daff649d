"""The threads that wait for a branch's Postgres: they request reconciles, whatever happens."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.unit.agent.branch_model import COPY

from dbranch.agent.branch import start_watch
from dbranch.agent.branch.start_watch import StartWatcher
from dbranch.agent.layout import Layout
from dbranch.agent.postgres.answer import Answer, ServerFacts
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.slot.observe import SlotFacts

ENDPOINT = Endpoint("slot-a", 20001, "postgres", 17)


class Watch:
    """A watcher whose wait for the socket and whose look at the slot are given."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        answer: object,
        slot: SlotFacts,
        server: ServerFacts = ServerFacts(),  # noqa: B008
    ) -> None:
        self.requests: list[tuple[str, str]] = []
        self.watcher = StartWatcher(Layout(Path("/none")), lambda *request: self.requests.append(request))

        def await_accepting(*_: object) -> object:
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(start_watch.session, "await_accepting", await_accepting)
        monkeypatch.setattr(start_watch, "observe_slot", lambda *_: slot)

        monkeypatch.setattr(start_watch, "observe_server", lambda *_: server)

    def run(self, blocked_by: str | None = None) -> list[tuple[str, str]]:
        self.watcher.start(COPY, ENDPOINT, blocked_by)
        assert self.watcher.wait_idle(10)
        return self.requests


BOUND = SlotFacts(exists=True, bound=True, branch_uid=COPY.uid)


def test_a_reconcile_is_requested_when_postgres_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Watch(monkeypatch, "17.6", BOUND).run() == [("team", "shop-x")]


@pytest.mark.parametrize("slot", [SlotFacts(False), SlotFacts(True), SlotFacts(True, True, "p-uid", "y-uid")])
def test_a_branch_that_is_not_bound_there_any_more_is_waited_for_no_longer(
    monkeypatch: pytest.MonkeyPatch, slot: SlotFacts
) -> None:
    assert Watch(monkeypatch, None, slot).run() == []


@pytest.mark.parametrize(
    "slot",
    [
        SlotFacts(True, True, "p-uid", COPY.uid, start_blocked_by="data is of PostgreSQL 16, image is 17"),
        SlotFacts(True, True, "p-uid", COPY.uid, start_blocked_by="no lock file"),
        SlotFacts(True, True, "p-uid", COPY.uid, bind_not_propagated=True),
    ],
)
def test_what_does_not_change_by_itself_is_reported_by_a_reconcile(
    monkeypatch: pytest.MonkeyPatch, slot: SlotFacts
) -> None:
    assert Watch(monkeypatch, None, slot).run() == [("team", "shop-x")]


def test_a_reason_that_is_gone_or_a_role_that_is_missing_is_reported_by_a_reconcile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Watch(monkeypatch, None, BOUND).run("no lock file") == [("team", "shop-x")]
    server = ServerFacts(answer=Answer.REFUSES, missing_superuser=True)
    assert Watch(monkeypatch, None, BOUND, server).run() == [("team", "shop-x")]


def test_a_reason_that_is_reported_already_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = SlotFacts(True, True, "p-uid", COPY.uid, start_blocked_by="no lock file")
    watch = Watch(monkeypatch, None, blocked)
    watch.watcher.start(COPY, ENDPOINT, "no lock file")
    assert not watch.watcher.wait_idle(0.2) and watch.requests == []
    watch.watcher.stop(COPY)


def test_an_exception_of_any_kind_becomes_a_request_after_a_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch, ZeroDivisionError("a bug"), BOUND)
    # A branch that waits for another try is not starting.
    assert watch.run() == []
    deadline = time.monotonic() + 10
    while watch.requests != [("team", "shop-x")]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_reconcile_before_the_delay_has_passed_waits_for_postgres_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(start_watch, "START_FAILED_RETRY_SECONDS", 300.0)
    watch = Watch(monkeypatch, ZeroDivisionError("a bug"), BOUND)
    assert watch.run() == []
    monkeypatch.setattr(start_watch.session, "await_accepting", lambda *_: "17.6")
    assert watch.run() == [("team", "shop-x")]


def test_a_watch_ends_with_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the mount of the slot, and nothing will accept there any more once the pod is gone."""
    watch = Watch(monkeypatch, None, BOUND)
    watch.watcher.start(COPY, ENDPOINT)
    watch.watcher.keep_only(COPY, ENDPOINT.slot)
    assert not watch.watcher.wait_idle(0.05)
    watch.watcher.keep_only(COPY, None)
    assert watch.watcher.wait_idle(10) and watch.requests == []
