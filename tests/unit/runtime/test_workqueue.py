"""The work queue: one reconcile an object, back-off, a share for each namespace, and nothing that ends it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest

from dbranch.api.errors import ClusterUnreachable
from dbranch.runtime import workqueue
from dbranch.runtime.result import DONE, GONE, Key, Result
from dbranch.runtime.workqueue import WorkQueue

SHOP, MILL = Key("DBProject", "team", "shop"), Key("DBProject", "team", "mill")
OTHER = Key("DBProject", "other", "shop")
CONTEXT: ContextVar[str] = ContextVar("context", default="")


class Reconciles:
    """What the queue calls: `calls` are (name of the object, resync); `act` is what a call does."""

    def __init__(self, act: Callable[[Key], Result] = lambda key: DONE) -> None:
        self.act, self.calls, self.failures = act, [], []  # type: ignore[var-annotated]

    def __call__(self, key: Key, resync: bool) -> Result:
        self.calls.append((key, resync))
        return self.act(key)

    def failed(self, key: Key, error: Exception) -> None:
        self.failures.append(error)


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def within_ten_seconds() -> None:
        async with asyncio.timeout(10):
            await scenario()

    asyncio.run(within_ten_seconds())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def started(*args: Any, **options: Any) -> WorkQueue:
    queue = WorkQueue(*args, **options)
    queue.start()
    return queue


async def until_idle(queue: WorkQueue) -> None:
    await until(lambda: not queue._tasks and not queue._ready)


def delay_of(queue: WorkQueue, key: Key) -> float | None:
    """Return the seconds until the object is reconciled without an event; None if it is not known."""
    entry = queue._entries.get(key)
    return None if entry is None or entry.due is None else entry.due - time.monotonic()


def test_requests_during_a_reconcile_are_served_by_one_more_behind_it() -> None:
    proceed = threading.Event()
    seen, versions = [], [1]

    def act(key: Key) -> Result:
        seen.append(versions[-1])
        assert proceed.wait(5)
        return DONE

    async def scenario() -> None:
        queue = started(Reconciles(act), 300)
        queue.add(SHOP)
        await until(lambda: len(seen) == 1)
        for n in range(2, 50):
            versions.append(n)
            queue.add(SHOP)
        proceed.set()
        await until_idle(queue)
        assert seen == [1, 49]
        queue.add(SHOP)
        await until(lambda: len(seen) == 3)

    run(scenario)


def test_one_object_does_not_wait_for_another() -> None:
    proceed, seen = threading.Event(), threading.Event()

    def act(key: Key) -> Result:
        if key == SHOP:
            assert proceed.wait(5)
        else:
            seen.set()
        return DONE

    async def scenario() -> None:
        queue = started(Reconciles(act), 300)
        queue.add(SHOP)
        queue.add(MILL)
        await until(seen.is_set)
        proceed.set()

    run(scenario)


@pytest.mark.parametrize("error", [ClusterUnreachable("no answer"), OSError("disk"), KeyError("a fault")])
def test_an_exception_of_any_kind_is_reported_and_retried_until_it_succeeds(error: Exception) -> None:
    def act(key: Key) -> Result:
        if len(reconciles.calls) < 4:
            raise error
        return DONE

    reconciles = Reconciles(act)

    async def scenario() -> None:
        queue = started(reconciles, 300, reconciles.failed, first_retry_seconds=0.001)
        queue.add(SHOP)
        await until(lambda: len(reconciles.calls) == 4)
        await until_idle(queue)
        assert reconciles.failures == [error] * 3
        assert [resync for _, resync in reconciles.calls] == [False, True, True, True]
        delay = delay_of(queue, SHOP)
        assert delay and delay > 200

    run(scenario)


def test_a_failure_that_cannot_be_reported_is_retried_too() -> None:
    def act(key: Key) -> Result:
        if len(reconciles.calls) < 3:
            raise ClusterUnreachable("no answer")
        return DONE

    reconciles = Reconciles(act)

    def report(key: Key, error: Exception) -> None:
        raise RuntimeError("no answer either")

    async def scenario() -> None:
        queue = started(reconciles, 300, report, first_retry_seconds=0.001)
        queue.add(SHOP)
        await until(lambda: len(reconciles.calls) == 3)

    run(scenario)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyError("a fault"), [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]),
        (ClusterUnreachable("no answer"), [2, 4, 8, 10, 10, 10, 10, 10, 10, 10]),
    ],
)
def test_delays_double_to_five_minutes_and_start_over_with_an_event(
    error: Exception, expected: list[int]
) -> None:
    def act(key: Key) -> Result:
        raise error

    reconciles = Reconciles(act)

    async def scenario() -> None:
        queue = started(reconciles, 300)
        delays = []
        for attempt in range(10):
            queue._entries.setdefault(SHOP, workqueue._Entry(workqueue.contextvars.copy_context()))
            queue._entries[SHOP].attempts = attempt
            # As the timer does.
            queue._ready[SHOP] = None
            queue._start()
            await until(lambda count=attempt + 1: len(reconciles.calls) == count)  # type: ignore[misc]
            await until_idle(queue)
            delays.append(round(delay_of(queue, SHOP) or 0))
        assert delays == expected
        queue.add(SHOP)
        await until_idle(queue)
        assert round(delay_of(queue, SHOP) or 0) == 2

    run(scenario)


def test_what_is_unfinished_waits_longer_each_time_and_a_success_ends_that() -> None:
    results = [Result(0.01, unfinished=True)] * 3 + [DONE]
    reconciles = Reconciles(lambda key: results.pop(0))

    async def scenario() -> None:
        queue = started(reconciles, 300)
        queue.add(SHOP)
        await until(lambda: not results)
        await until_idle(queue)
        assert [resync for _, resync in reconciles.calls] == [False, True, True, True]
        delay = delay_of(queue, SHOP)
        assert delay and 269 < delay < 331

    run(scenario)


def test_a_reconcile_says_when_it_is_to_be_called_next() -> None:
    reconciles = Reconciles(lambda key: Result(30.0))

    async def scenario() -> None:
        queue = started(reconciles, 300)
        queue.add(SHOP)
        await until(lambda: reconciles.calls)
        await until_idle(queue)
        delay = delay_of(queue, SHOP)
        assert delay and 29 < delay <= 30

    run(scenario)


def test_no_namespace_takes_all_workers() -> None:
    proceed = threading.Event()

    def act(key: Key) -> Result:
        if key.namespace == "team":
            assert proceed.wait(5)
        return DONE

    reconciles = Reconciles(act)

    async def scenario() -> None:
        queue = started(reconciles, 300, workers=4, workers_per_namespace=3)
        for number in range(10):
            queue.add(SHOP._replace(name=f"shop-{number}"))
        queue.add(OTHER)
        await until(lambda: (OTHER, False) in reconciles.calls)
        assert len(reconciles.calls) == 4
        proceed.set()
        await until_idle(queue)
        assert len(reconciles.calls) == 11

    run(scenario)


def test_an_object_that_is_gone_is_forgotten() -> None:
    proceed = threading.Event()

    def act(key: Key) -> Result:
        assert proceed.wait(5)
        return DONE

    reconciles = Reconciles(act)

    async def scenario() -> None:
        queue = started(reconciles, 300)
        queue.add(SHOP)
        await until(lambda: reconciles.calls)
        queue.forget(SHOP)
        queue.forget(MILL)
        proceed.set()
        await until_idle(queue)
        assert queue._entries == {} and delay_of(queue, SHOP) is None

    run(scenario)


def test_an_object_that_a_reconcile_does_not_find_is_forgotten() -> None:
    reconciles = Reconciles(lambda key: GONE)

    async def scenario() -> None:
        queue = started(reconciles, 300)
        queue.add(SHOP)
        await until(lambda: reconciles.calls)
        await until_idle(queue)
        assert queue._entries == {}

    run(scenario)


def test_a_reconcile_that_hangs_is_trouble() -> None:
    proceed = threading.Event()

    def act(key: Key) -> Result:
        assert proceed.wait(5)
        return DONE

    async def scenario() -> None:
        queue = started(Reconciles(act), 300, workers=1)
        queue.add(SHOP)
        queue.add(MILL)
        assert queue.trouble() is None
        entry = queue._entries[SHOP]
        assert entry.started is not None
        entry.started -= 1000
        assert "DBProject/team/shop has run for 1000 s" in (queue.trouble() or "")
        entry.started, queue._progress = time.monotonic(), queue._progress - 1000
        assert "1 objects wait" in (queue.trouble() or "")
        proceed.set()
        await until_idle(queue)
        assert queue.trouble() is None

    run(scenario)


def test_a_reconcile_runs_in_the_context_of_its_request() -> None:
    seen: list[str] = []

    def act(key: Key) -> Result:
        seen.append(CONTEXT.get())
        return Result(0.001) if len(seen) < 3 else DONE

    async def scenario() -> None:
        queue = started(Reconciles(act), 300)
        CONTEXT.set("a handler's")
        queue.add(SHOP)
        await until(lambda: len(seen) == 3)
        assert seen == ["a handler's"] * 3

    run(scenario)


def test_other_threads_may_add_also_before_the_loop_runs() -> None:
    seen: list[tuple[Key, str]] = []

    def act(key: Key) -> Result:
        seen.append((key, CONTEXT.get()))
        return DONE

    queue = WorkQueue(Reconciles(act), 300)
    queue.add(MILL)

    def add() -> None:
        CONTEXT.set("another object's")
        queue.add(SHOP)

    async def scenario() -> None:
        assert not seen
        queue.start()
        await until(lambda: len(seen) == 1)
        thread = threading.Thread(target=add)
        thread.start()
        await until(lambda: len(seen) == 2)
        thread.join()
        assert seen == [(MILL, ""), (SHOP, "")]

    run(scenario)
    # The loop has ended.
    queue.add(OTHER)
    queue.wait_idle(OTHER.kind, 5)
    assert len(seen) == 2


def test_it_is_idle_unless_an_object_of_the_kind_is_reconciled_or_due_soon() -> None:
    proceed = threading.Event()
    delays = {SHOP: 0.1, MILL: 60.0}

    def act(key: Key) -> Result:
        if key == SHOP:
            assert proceed.wait(5)
        return Result(delays.pop(key, None))

    reconciles = Reconciles(act)

    async def scenario() -> None:
        queue = started(reconciles, 300)
        queue.add(SHOP)
        queue.add(MILL)
        await asyncio.to_thread(queue.wait_idle, "DBBranch", 5)
        await until(lambda: len(reconciles.calls) == 2)
        await asyncio.to_thread(queue.wait_idle, SHOP.kind, 0.05)
        assert len(reconciles.calls) == 2
        proceed.set()
        await asyncio.to_thread(queue.wait_idle, SHOP.kind, 5)
        assert [key for key, _ in reconciles.calls].count(SHOP) == 2
        delay = delay_of(queue, MILL)
        assert delay and delay > 50

    run(scenario)
