"""The agent's work queue: what each key leads to, when it is due again, and what does not stop what."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest
from tests.fakes.api import FakeApi

from dbranch.agent.context import NodeContext
from dbranch.agent.dispatch import Dispatcher
from dbranch.agent.layout import Layout
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.warm.sizing import WarmLimits
from dbranch.api import names
from dbranch.api.errors import Busy
from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.locks import KeyedLocks
from dbranch.runtime.result import GONE, Key, Result

SHOP, X = Key(names.PROJECT_KIND, "team", "shop"), Key(names.BRANCH_KIND, "team", "shop-x")


@pytest.fixture
def dispatcher(tmp_path: Path) -> Dispatcher:
    return make_dispatcher(tmp_path, FakeApi(tmp_path / "api.json"))


def make_dispatcher(base: Path, api: FakeApi) -> Dispatcher:
    context = NodeContext("here", "node-uid", "dbranch-nodes", "dbranch")
    return Dispatcher(cast(Cluster, api), Layout(base), context, KeyedLocks(), WarmLimits(0), AgentMetrics())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 10))


def test_what_does_not_exist_or_is_bound_elsewhere_is_not_reconciled_again(tmp_path: Path) -> None:
    api = FakeApi(tmp_path / "api.json")
    dispatcher = make_dispatcher(tmp_path, api)
    assert dispatcher.reconcile(SHOP, False) == GONE == dispatcher.reconcile(X, False)
    meta = {"name": "shop-x", "namespace": "team"}
    api.create(
        path_of(names.API_VERSION, names.BRANCHES, "team"), {"metadata": meta, "spec": {"project": "shop"}}
    )
    assert dispatcher.reconcile(X, False) == GONE


def test_a_project_is_measured_every_minute_and_its_trash_emptied_then(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(dispatcher.projects, "reconcile", lambda *_: calls.append("event") or Result())
    monkeypatch.setattr(
        dispatcher.projects, "collect_usage_and_trash", lambda *_: calls.append("resync") or Result(2.0)
    )
    assert dispatcher.reconcile(SHOP, False) == Result(60.0)
    assert dispatcher.reconcile(SHOP, True) == Result(2.0)
    assert calls == ["event", "resync"]


def test_what_is_busy_is_tried_again_soon_and_no_later_each_time(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> Result:
        raise Busy("in use")

    monkeypatch.setattr(dispatcher.branches, "reconcile", busy)
    assert [dispatcher.reconcile(X, True) for _ in range(3)] == [Result(0.5)] * 3


def test_branches_of_a_namespace_that_hang_do_not_stop_others(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    proceed, seen = threading.Event(), []

    def reconcile(namespace: str, name: str) -> Result:
        seen.append(namespace)
        if namespace == "team":
            assert proceed.wait(8)
        return Result()

    monkeypatch.setattr(dispatcher.branches, "reconcile", reconcile)

    async def scenario() -> None:
        for number in range(100):
            dispatcher.request_branch("team", f"shop-{number}")
        dispatcher.queue.start()
        dispatcher.request_branch("other", "shop-x")
        await until(lambda: "other" in seen)
        assert seen.count("team") < 100
        await asyncio.to_thread(dispatcher.wait_idle, 0.1)
        assert seen.count("team") < 100
        proceed.set()
        await asyncio.to_thread(dispatcher.wait_idle, 5)
        assert seen.count("team") == 100

    run(scenario())
