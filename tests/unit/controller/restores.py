"""Restores of a branch: the facts that decide them, and the agent and the proxy as far as restores go."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from tests.factories import NAMESPACE, NODE, Json, ago, branch, project, restore, snapshot
from tests.unit.controller.rig import PROJECTS, RESTORES, SNAPSHOTS, Rig

from dbranch.api import names
from dbranch.api.conditions import Finding, Reason
from dbranch.api.errors import ClusterUnreachable
from dbranch.controller.restore.facts import RestoreFacts
from dbranch.controller.scheduling import NodeFacts
from dbranch.kube.client import branch_path, snapshot_path

NOW = datetime.now(UTC)
FEATURES = frozenset({names.FEATURE_SNAPSHOTS, names.FEATURE_RESTORES})
UP = NodeFacts(NODE, has_agent=True, agent_ready=True, features=FEATURES)
SHOP = project().bound().up().parsed()
MAIN = branch().bound().accepting().parsed()
FEATURE = branch("feature-x").bound().accepting("10.0.0.2").parsed()
KEPT = snapshot("kept").taken_of(MAIN.uid).parsed()
RESTORE = restore().parsed()


def facts(**changes: Any) -> RestoreFacts:
    return replace(RestoreFacts(RESTORE, SHOP, FEATURE, MAIN, node=UP, queue=[RESTORE]), **changes)


def answer(rig: Rig, **fields: Any) -> None:
    rig.api.merge(branch_path(NAMESPACE, "shop-feature-x", "status"), {"status": {"node": fields}})


class Agent:
    """The agent of branch feature-x, as far as restores go. `fails`: it reports that at this state of the order.

    `exchanges`: the UIDs of the restores whose data the branch got, each as often as it did.
    """

    def __init__(self, rig: Rig, fails: str = "") -> None:
        self.rig, self.fails = rig, fails
        self.exchanges: list[str] = []

    def act(self) -> None:
        """Go one step on with what is ordered."""
        self._let_go_of_snapshots()
        body = self.rig.api.peek(branch_path(NAMESPACE, "shop-feature-x"))
        assert body is not None
        order, node = body["status"].get("restore"), body["status"]["node"]
        said = node.get("restore") or {}
        if order is None:
            if said:
                answer(self.rig, restore=None)
            return
        state = said.get("state") if said.get("uid") == order["uid"] else None
        if state in ("Failed", "Canceled", "Done"):
            return
        if state == "Exchanged":
            if order.get("undoSnapshot"):
                self._keep(order)
            self._say(order, "Done")
        elif self.fails == order["state"]:
            self._say(order, "Failed", reason="StartFailed", message="Postgres did not start; the old serves")
        elif order["state"] == "Canceling":
            self._say(order, "Canceled")
        elif order["state"] == "Preparing":
            self._say(order, "Prepared", dataTime="2026-01-02T00:00:00Z")
        elif order["state"] == "Switching":
            self.exchanges.append(order["uid"])
            generation = node.get("generation", 1) + 1
            answer(self.rig, generation=generation, address=f"10.0.1.{generation}")
            self._say(order, "Exchanged", dataTime="2026-01-02T00:00:00Z")

    def _say(self, order: Json, state: str, **fields: str) -> None:
        answer(self.rig, restore={"uid": order["uid"], "state": state, **fields})

    def _let_go_of_snapshots(self) -> None:
        for body in self.rig.api.list_at(SNAPSHOTS)[0]:
            meta = body["metadata"]
            if meta.get("deletionTimestamp") and names.AGENT_FINALIZER in meta["finalizers"]:
                path = snapshot_path(NAMESPACE, meta["name"])
                self.rig.api.merge(path, {"metadata": {"finalizers": []}})

    def _keep(self, order: Json) -> None:
        path = snapshot_path(NAMESPACE, order["undoSnapshot"])
        kept = self.rig.api.peek(path)
        # Under this name there is the data of this very object, or none.
        assert kept is not None and kept["metadata"]["uid"] == order["undoUID"]
        assert names.AGENT_FINALIZER in kept["metadata"]["finalizers"]
        assert kept["status"]["nodeName"] == NODE
        stored = Finding(Reason.STORED, "stored").as_dict()
        body = self.rig.api.peek(branch_path(NAMESPACE, "shop-feature-x"))
        assert body is not None
        generation = body["status"]["node"]["generation"] - 1
        node = {"snapshotTime": ago(), "storage": stored, "generation": generation}
        self.rig.api.merge(f"{path}/status", {"status": {"node": node}})


class Proxy:
    """The project's proxy: it holds sessions as the route says, and acknowledges that."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig

    def act(self) -> None:
        body = self.rig.branch("feature-x")
        route = body["status"].get("route") or {}
        said = {e["pod"]: e["generation"] for e in body["status"].get("proxies") or ()}
        if route.get("restore") and said.get("p1") != route["generation"]:
            self.rig.proxy_acknowledges("feature-x")


def shop(**spec: Any) -> Rig:
    """Return a project with a branch feature-x, whose proxy holds sessions for restores."""
    rig = Rig().ready()
    rig.branch_up("feature-x", "10.0.0.2")
    rig.api.merge(f"{PROJECTS}/shop", {"spec": spec})
    features = [names.PROXY_FOLLOWS_BRANCHES, names.PROXY_RESTORES]
    rig.proxy_obeys(features=features)
    rig.run()
    rig.events.clear()
    return rig


def finish(rig: Rig, agent: Agent, *restores: str, interrupted: bool = False) -> None:
    """Reconcile until nobody writes any more. `interrupted`: an exception is a controller that starts again."""
    proxy = Proxy(rig)
    for _ in range(60):
        version, was_cut = rig.api.list_at(RESTORES)[1], False
        for call in (
            *(lambda name=name: rig.reconcile_restore(name) for name in restores or ("again",)),
            lambda: rig.reconcile_branch("feature-x"),
            *(
                lambda name=body["metadata"]["name"]: rig.snapshots.reconcile(NAMESPACE, name, rig.cache())
                for body in rig.api.find(SNAPSHOTS)
            ),
        ):
            try:
                call()
            except ClusterUnreachable:
                assert interrupted
                was_cut = True
                rig.start()
        proxy.act()
        agent.act()
        if rig.api.list_at(RESTORES)[1] == version and not was_cut:
            return
    raise AssertionError("it never comes to rest")


def switching(rig: Rig, agent: Agent) -> None:
    """Bring restore `again` to the order to exchange."""
    rig.put(restore())
    rig.reconcile_restore()
    agent.act()
    rig.reconcile_branch("feature-x")
    Proxy(rig).act()
    rig.reconcile_restore()
    assert rig.branch("feature-x")["status"]["restore"]["state"] == "Switching"
