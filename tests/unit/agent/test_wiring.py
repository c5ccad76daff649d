"""The agent's handlers run by kopf against the fake API server over HTTP; what they reconcile is given."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import kopf
import pytest
from tests.factories import NAMESPACE, NODE, branch, project
from tests.fakes.api import FakeApi
from tests.unit.kopf_thread import running_kopf

from dbranch.agent.context import NodeContext
from dbranch.agent.dispatch import Dispatcher
from dbranch.agent.handlers import register
from dbranch.agent.layout import Layout
from dbranch.agent.metrics import AgentMetrics
from dbranch.api import names
from dbranch.kube.client import Cluster, branch_path, path_of, project_path
from dbranch.runtime.heartbeats import Heartbeats
from dbranch.runtime.locks import KeyedLocks
from dbranch.runtime.result import Result


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "not within the time limit"
        time.sleep(0.01)


class Running:
    """The handlers over a fake API server. `seen`: the names of what was reconciled, in order."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.api = FakeApi()
        self.seen: list[str] = []
        self.heartbeats = Heartbeats()
        self.liveness = ""
        context = NodeContext(NODE, "node-uid", "dbranch-nodes", "dbranch")
        cluster, layout = cast(Cluster, self.api), Layout(directory)
        self.dispatcher = Dispatcher(cluster, layout, context, KeyedLocks(), 0, AgentMetrics())
        for reconciler in (self.dispatcher.projects, self.dispatcher.branches):
            monkeypatch.setattr(reconciler, "reconcile", self._reconcile)

    def _reconcile(self, namespace: str, name: str) -> Result:
        self.seen.append(name)
        return Result()

    def probe(self) -> int:
        try:
            with urllib.request.urlopen(self.liveness, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def take_seen(self) -> list[str]:
        seen, self.seen[:] = list(self.seen), []
        return seen


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    running = Running(tmp_path, monkeypatch)
    registry = kopf.OperatorRegistry()
    register(registry, running.dispatcher, NODE, running.heartbeats)
    for plural, builder in ((names.PROJECTS, project()), (names.BRANCHES, branch("x"))):
        body: Any = builder.body()
        del body["metadata"]["finalizers"]
        running.api.create(path_of(names.API_VERSION, plural, NAMESPACE), body)
    for path in (project_path(NAMESPACE, "shop", "status"), branch_path(NAMESPACE, "shop-x", "status")):
        running.api.merge(path, {"status": {"nodeName": NODE}})
    with running_kopf(registry, running.api, tmp_path / "config") as running.liveness:
        wait_until(lambda: {"shop", "shop-x"} <= set(running.seen))
        yield running


def test_changes_that_matter_request_reconciles(running: Running) -> None:
    time.sleep(0.2)
    running.take_seen()
    running.api.merge(project_path(NAMESPACE, "shop"), {"spec": {"activeBranch": "x"}})
    running.api.merge(branch_path(NAMESPACE, "shop-x"), {"spec": {"state": "Stopped"}})
    wait_until(lambda: running.seen)
    running.api.merge(project_path(NAMESPACE, "shop"), {"spec": {"state": "Stopped"}})
    wait_until(lambda: "shop" in running.seen)
    assert running.take_seen() == ["shop-x", "shop"]
    for annotation in (names.AGENT_REQUESTED_AT, names.RESTARTED_AT):
        running.api.merge(branch_path(NAMESPACE, "shop-x"), {"metadata": {"annotations": {annotation: "1"}}})
        wait_until(lambda: running.take_seen() == ["shop-x"])


def test_the_liveness_probe_fails_with_a_loop_that_has_ended(running: Running) -> None:
    assert running.probe() == 200
    running.heartbeats.run("warm slots", lambda beat: None)
    wait_until(lambda: running.probe() == 500)
