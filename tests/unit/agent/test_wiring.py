"""The agent's handlers run by kopf against the fake API server over HTTP; what they reconcile is given."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
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
from dbranch.agent.warm.sizing import WarmLimits
from dbranch.api import names
from dbranch.kube.client import Cluster, branch_path, path_of, project_path
from dbranch.runtime.heartbeats import Heartbeats
from dbranch.runtime.locks import KeyedLocks
from dbranch.runtime.result import Result

PROJECTS = path_of(names.API_VERSION, names.PROJECTS, NAMESPACE)
BRANCHES = path_of(names.API_VERSION, names.BRANCHES, NAMESPACE)


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
        self.dispatcher = Dispatcher(cluster, layout, context, KeyedLocks(), WarmLimits(0), AgentMetrics())
        monkeypatch.setattr("dbranch.agent.project.reconciler.ensure_pool_removed", lambda *_: None)
        reconcilers: Any = {PROJECTS: self.dispatcher.projects, BRANCHES: self.dispatcher.branches}
        for path, reconciler in reconcilers.items():
            monkeypatch.setattr(reconciler, "reconcile", partial(self._reconcile, reconciler.reconcile, path))

    def _reconcile(
        self, reconcile: Callable[[str, str], Result], path: str, namespace: str, name: str
    ) -> Result:
        self.seen.append(name)
        # Only what needs no disk.
        body = self.api.get(f"{path}/{name}") or {"metadata": {}}
        return reconcile(namespace, name) if body["metadata"].get("deletionTimestamp") else Result()

    def probe(self) -> int:
        try:
            with urllib.request.urlopen(self.liveness, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def existing(self, path: str) -> Any:
        body = self.api.get(path)
        assert body is not None
        return body

    def finalizers(self, path: str) -> list[str]:
        return list((self.api.get(path) or {"metadata": {}})["metadata"].get("finalizers") or ())

    def take_seen(self) -> list[str]:
        seen, self.seen[:] = list(self.seen), []
        return seen


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    running = Running(tmp_path, monkeypatch)
    registry = kopf.OperatorRegistry()
    register(registry, running.dispatcher, NODE, running.heartbeats)
    for path, builder in ((PROJECTS, project()), (BRANCHES, branch("x"))):
        body: Any = builder.body()
        body["metadata"]["finalizers"] = (
            [names.AGENT_FINALIZER] if path == BRANCHES else [names.CONTROLLER_FINALIZER]
        )
        running.api.create(path, body)
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
    for annotation in (names.AGENT_REQUESTED_AT, names.RESTARTED_AT, names.ALTER_SYSTEM_RESET_AT):
        running.api.merge(branch_path(NAMESPACE, "shop-x"), {"metadata": {"annotations": {annotation: "1"}}})
        wait_until(lambda: running.take_seen() == ["shop-x"])


def test_the_liveness_probe_succeeds_while_every_loop_goes_on(running: Running) -> None:
    assert running.probe() == 200


def test_the_liveness_probe_fails_with_a_loop_that_has_ended(running: Running) -> None:
    # Before the first probe: kopf answers those of the next ten seconds with what it has found once.
    running.heartbeats.run("warm slots", lambda beat: None)
    assert running.probe() == 500


def test_a_deletion_goes_on_with_the_events_that_it_waits_for_and_writes_nothing_else(
    running: Running,
) -> None:
    for path in (f"{BRANCHES}/shop-x", f"{PROJECTS}/shop"):
        running.take_seen()
        wait_until(lambda path=path: names.AGENT_FINALIZER in running.finalizers(path))  # type: ignore[misc]
        running.api.take_requests()
        running.api.delete(path)
        wait_until(lambda: running.seen)
        time.sleep(0.2)
        assert names.AGENT_FINALIZER in running.finalizers(path)
        short = "/".join(path.split("/")[-2:])
        let_go = f"merge {short}"
        if path.startswith(PROJECTS):
            running.api.merge(path, {"metadata": {"finalizers": [names.AGENT_FINALIZER]}})
        else:
            deleted = running.existing(path)["metadata"]["deletionTimestamp"]
            running.api.merge(f"{path}/status", {"status": {"release": deleted}})
            let_go += "/status"
        wait_until(lambda path=path: running.api.get(path) is None)  # type: ignore[misc]
        assert running.api.take_writes() == [f"delete {short}", let_go, f"merge {short}"]


def test_a_branch_that_comes_with_the_agents_finalizer_is_new_to_the_agent(running: Running) -> None:
    """The controller puts it on the branch, so that the agent's kopf has nothing to write."""
    body: Any = branch("y").finalizers(names.AGENT_FINALIZER).body()
    running.api.create(BRANCHES, body)
    running.api.take_requests()
    running.api.merge(branch_path(NAMESPACE, "shop-y", "status"), {"status": {"nodeName": NODE}})
    wait_until(lambda: "shop-y" in running.seen)
    assert running.api.take_writes() == ["merge dbbranches/shop-y/status"]


def test_a_removal_that_fails_is_reported_in_the_status(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError("a bug")

    path = f"{BRANCHES}/shop-x"
    wait_until(lambda: names.AGENT_FINALIZER in running.finalizers(path))
    with monkeypatch.context() as patched:
        patched.setattr(running.dispatcher.branches._removal, "remove", fail)
        running.api.delete(path)
        wait_until(lambda: "a bug" in str((running.api.get(path) or {})["status"].get("node")))
    deleted = running.existing(path)["metadata"]["deletionTimestamp"]
    running.api.merge(f"{path}/status", {"status": {"release": deleted}})
    wait_until(lambda: running.api.get(path) is None)
