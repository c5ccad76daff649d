"""Visits that are asked for: one at a time for each object, none lost, those of a burst together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from dbranch.api.errors import ClusterUnreachable
from dbranch.runtime.workqueue import WorkQueue

SHOP, MILL = ("team", "shop"), ("team", "mill")


def run(scene: Callable[[WorkQueue], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(10):
            await scene(WorkQueue(pause=0.01))

    asyncio.run(whole())


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.005)


def test_what_asks_while_a_visit_runs_is_served_by_one_more_behind_it() -> None:
    seen: list[int] = []
    news, go = [1], threading.Event()

    def visit() -> None:
        seen.append(news[-1])
        assert go.wait(5)

    async def scene(asked: WorkQueue) -> None:
        asked.ask(SHOP, visit)
        await until(lambda: len(seen) == 1)
        for n in range(2, 50):
            news.append(n)
            asked.ask(SHOP, visit)
        go.set()
        await until(lambda: len(seen) == 2)
        await asyncio.sleep(0.05)
        assert seen == [1, 49]
        asked.ask(SHOP, visit)
        await until(lambda: len(seen) == 3)

    run(scene)


def test_one_object_does_not_wait_for_another() -> None:
    go, seen = threading.Event(), threading.Event()

    async def scene(asked: WorkQueue) -> None:
        asked.ask(SHOP, go.wait, 5)
        asked.ask(MILL, seen.set)
        await until(seen.is_set)
        go.set()

    run(scene)


def test_one_that_fails_is_made_again_until_it_does_not() -> None:
    tries: list[str] = []

    def visit(word: str) -> None:
        tries.append(word)
        if len(tries) < 4:
            raise ClusterUnreachable("no answer") if len(tries) % 2 else OSError("no answer")

    async def scene(asked: WorkQueue) -> None:
        asked.ask(SHOP, visit, "look")
        await until(lambda: len(tries) == 4)
        await asyncio.sleep(0.05)
        assert tries == ["look"] * 4

    run(scene)
