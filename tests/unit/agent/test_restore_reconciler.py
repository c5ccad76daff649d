"""The restore's reconciler around the branch's: what is written when, and what new sessions do not wait for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from tests.factories import branch as branch_object
from tests.unit.agent.branch_model import COPY, VERSION, marker
from tests.unit.agent.test_branch_reconciler import FREE, MOUNTED, NAME, NAMESPACE, STARTED, Bench

from dbranch.agent.branch.applying import Applied
from dbranch.agent.branch.plan import BranchPlan
from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.restore import reconciler as module
from dbranch.agent.restore.actions import Exchange
from dbranch.agent.restore.effect import RestoreEffects
from dbranch.agent.restore.facts import RestoreFacts
from dbranch.agent.restore.reconciler import RestoreReconciler
from dbranch.agent.timing import RESTORE_START_POLL_SECONDS, RESTORE_SWITCH_RETRY_SECONDS
from dbranch.agent.volume.marker import RestoreRef
from dbranch.agent.volume.restore_rules import RestoreVolume, VolumeState
from dbranch.agent.warm.reconciler import WarmReconciler
from dbranch.agent.warm.sizing import WarmLimits
from dbranch.api.conditions import Finding, Reason
from dbranch.kube.client import Cluster, branch_path

ORDER = "again-uid"
OWN = replace(marker(COPY), password=VERSION, verifiers="own", verifiers_of=COPY.uid, opened=True)
SERVING = replace(STARTED, marker=OWN, pods=(replace(FREE, name="old"),), bound_slots=("old",))
COMING = replace(marker(COPY), password=VERSION, generation=2, restore=RestoreRef(ORDER, "Discard", ""))
BESIDE = replace(STARTED, marker=COMING, pods=(replace(FREE, restore=ORDER),))
STORED = Finding(Reason.STORED, "stored")


class Node:
    """A node whose branch serves, with an order to restore it: facts are given, and all that is done is logged."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bench, self.log = Bench(tmp_path, monkeypatch), list[str]()
        self.bench.facts = SERVING
        cluster, layout = cast(Cluster, self.bench.api), Layout(tmp_path)
        context, metrics = NodeContext("n1", "node-uid", "dbranch-nodes", "dbranch"), AgentMetrics()
        warm = WarmReconciler(cluster, layout, context, WarmLimits(), metrics)
        self.bench.reconciler._restores = RestoreReconciler(
            *(cluster, layout, context, warm, metrics, lambda *_: None, lambda *_: None)
        )
        self.facts = RestoreFacts(RestoreVolume(), OWN, MOUNTED, "old")
        observe_branch = self.bench._observe
        monkeypatch.setattr(self.bench, "_observe", lambda: self.log.append("own branch") or observe_branch())
        monkeypatch.setattr(module, "observe_restore_facts", lambda *_: self._seen("API"))
        monkeypatch.setattr(module, "observe_prepared_anew", lambda *_: self._seen("node"))
        monkeypatch.setattr(module, "apply_plan", self._prepare)
        monkeypatch.setattr(RestoreEffects, "apply", lambda _, __, action: self._apply(action))

    def order(self, state: str) -> None:
        order = branch_object("x").restoring("r-uid", state).body()["status"]["restore"]
        self.bench.api.merge(branch_path(NAMESPACE, NAME, "status"), {"status": {"restore": order}})
        self.bench.api.writes.clear()
        self.log.clear()

    def be_prepared(self) -> None:
        self.facts = RestoreFacts(RestoreVolume(VolumeState.COMING, COMING), OWN, BESIDE, "old")

    def _seen(self, where: str) -> RestoreFacts:
        self.log.append(where)
        return self.facts

    def _prepare(self, *arguments: object) -> Applied:
        self.log.append("prepare")
        outcome = arguments[-1]
        outcome.marker, outcome.slot, outcome.claimed_pod = COMING, FREE.name, BESIDE.pods[0]  # type: ignore[attr-defined]
        return Applied(BESIDE, BranchPlan((), STORED, complete=True), None)

    def _apply(self, action: object) -> None:
        self.log.append(type(action).__name__)
        if isinstance(action, Exchange):
            self.facts = RestoreFacts(RestoreVolume(VolumeState.OLD, OWN), COMING, SERVING, FREE.name)
            self.bench.facts = replace(BESIDE, marker=replace(COMING, opened=True))


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, monkeypatch)


def test_what_is_prepared_is_said_before_anything_else_is_looked_at(node: Node) -> None:
    node.order("Preparing")
    result = node.bench.reconcile()
    assert node.log == ["API", "prepare"]
    assert [write["status"]["node"].keys() for write in node.bench.api.writes] == [{"restore"}]
    assert node.bench.node()["restore"]["state"] == "Prepared"
    # What the branch itself needs is not forgotten, should no order follow.
    assert result.requeue_after == RESTORE_START_POLL_SECONDS
    node.be_prepared()
    node.log.clear()
    node.bench.reconcile()
    assert node.log == ["API", "own branch"]


def test_from_the_order_to_the_exchange_the_api_server_is_asked_once(node: Node) -> None:
    node.order("Preparing")
    node.bench.reconcile()
    node.be_prepared()
    node.order("Switching")
    node.bench.reconcile()
    steps = ["API", "Close", "EndSessions", "node", "Exchange", "own branch"]
    assert node.log[: len(steps)] == steps
    assert node.bench.node()["restore"]["state"] == "Exchanged" and len(node.bench.api.writes) == 1


def test_what_was_prepared_and_is_no_more_as_it_should_be_is_not_exchanged(node: Node) -> None:
    node.order("Preparing")
    node.bench.reconcile()
    node.be_prepared()
    node.order("Switching")
    seen = node._seen

    def changed(where: str) -> RestoreFacts:
        facts = seen(where)
        if where == "node":
            return replace(facts, beside=replace(facts.beside, settings_outdated=True))
        return facts

    node._seen = changed  # type: ignore[method-assign]
    result = node.bench.reconcile()
    assert node.log == ["API", "Close", "EndSessions", "node"]
    assert result.requeue_after == RESTORE_SWITCH_RETRY_SECONDS
