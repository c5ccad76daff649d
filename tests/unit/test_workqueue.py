"""The work queue: one reconcile at a time for each object, none lost, those of a burst joined."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from dbranch.api.errors import ClusterUnreachable
from dbranch.runtime.workqueue import WorkQueue

SHOP, MILL = ("team", "shop"), ("team", "mill")


def run(scenario: Callable[[WorkQueue], Coroutine[Any, Any, None]]) -> None:
    async def within_ten_seconds() -> None:
        async with asyncio.timeout(10):
            await scenario(WorkQueue(retry_seconds=0.01))

    asyncio.run(within_ten_seconds())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_requests_during_a_reconcile_are_served_by_one_more_behind_it() -> None:
    seen: list[int] = []
    versions, proceed = [1], threading.Event()

    def reconcile() -> None:
        seen.append(versions[-1])
        assert proceed.wait(5)

    async def scenario(queue: WorkQueue) -> None:
        queue.add(SHOP, reconcile)
        await until(lambda: len(seen) == 1)
        for n in range(2, 50):
            versions.append(n)
            queue.add(SHOP, reconcile)
        proceed.set()
        await until(lambda: len(seen) == 2)
        await asyncio.sleep(0.05)
        assert seen == [1, 49]
        queue.add(SHOP, reconcile)
        await until(lambda: len(seen) == 3)

    run(scenario)


def test_one_object_does_not_wait_for_another() -> None:
    proceed, seen = threading.Event(), threading.Event()

    async def scenario(queue: WorkQueue) -> None:
        queue.add(SHOP, proceed.wait, 5)
        queue.add(MILL, seen.set)
        await until(seen.is_set)
        proceed.set()

    run(scenario)


def test_a_reconcile_that_fails_is_retried_until_it_succeeds() -> None:
    attempts: list[str] = []

    def reconcile(argument: str) -> None:
        attempts.append(argument)
        if len(attempts) < 4:
            raise ClusterUnreachable("no answer") if len(attempts) % 2 else OSError("no answer")

    async def scenario(queue: WorkQueue) -> None:
        queue.add(SHOP, reconcile, "argument")
        await until(lambda: len(attempts) == 4)
        await asyncio.sleep(0.05)
        assert attempts == ["argument"] * 4

    run(scenario)
