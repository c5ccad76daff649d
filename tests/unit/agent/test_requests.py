"""Reconciles that are requested in the agent's process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from dbranch.agent.requests import ReconcileRequests
from dbranch.api.errors import Busy, DbranchError
from dbranch.runtime.result import Result


class Calls:
    """A reconciler: `answers` are its results or exceptions, in order; after them it has nothing more to do."""

    def __init__(self, *answers: Result | Exception) -> None:
        self._answers, self.times = list(answers), []
        self.times: list[float]
        self.at_once = self.most_at_once = 0

    def reconcile(self, namespace: str, name: str) -> Result:
        assert (namespace, name) == ("team", "shop-x")
        self.times.append(time.monotonic())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(0.01)
        self.at_once -= 1
        answer = self._answers.pop(0) if self._answers else Result()
        if isinstance(answer, Exception):
            raise answer
        return answer


def eventually(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_many_requests_of_one_object_are_served_one_after_the_other_and_share_reconciles() -> None:
    calls = Calls()
    requests = ReconcileRequests(calls.reconcile, "branch")
    for _ in range(50):
        requests.add("team", "shop-x")
    requests.wait_idle(10)
    assert 1 <= len(calls.times) < 25 and calls.most_at_once == 1


def test_a_result_asks_for_the_next_reconcile() -> None:
    calls = Calls(Result(0.2), Result(0.01))
    requests = ReconcileRequests(calls.reconcile, "branch")
    requests.run("team", "shop-x")
    assert len(calls.times) == 1
    requests.wait_idle(10)
    assert len(calls.times) == 3 and calls.times[1] - calls.times[0] >= 0.2


def test_an_earlier_request_comes_before_one_with_a_delay() -> None:
    calls = Calls()
    requests = ReconcileRequests(calls.reconcile, "branch")
    requests.add("team", "shop-x", 300.0)
    requests.add("team", "shop-x", 0.0)
    eventually(lambda: len(calls.times) == 1)
    # The one with the delay shares it.
    requests.wait_idle(10)
    assert len(calls.times) == 1


def test_an_exception_of_any_kind_is_retried_and_ends_no_thread() -> None:
    calls = Calls(Busy("in use"), Busy("in use"))
    requests = ReconcileRequests(calls.reconcile, "branch")
    requests.add("team", "shop-x")
    eventually(lambda: len(calls.times) == 3)
    threads = threading.active_count()
    for error in (ValueError("a bug"), DbranchError("known"), OSError("disk"), KeyError("x")):
        broken = Calls(error)
        others = ReconcileRequests(broken.reconcile, "branch")
        others.run("team", "shop-x")
        assert len(broken.times) == 1
        assert others._due, "no further reconcile is requested"
    assert threading.active_count() >= threads


def test_it_is_idle_while_a_request_has_a_long_delay() -> None:
    requests = ReconcileRequests(Calls().reconcile, "branch")
    requests.add("team", "shop-x", 60.0)
    started = time.monotonic()
    requests.wait_idle(10)
    assert time.monotonic() - started < 5
