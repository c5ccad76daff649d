"""The branch's reconciler over a fake API server and given facts: what it writes, and when it tries again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.factories import branch as branch_object
from tests.fakes.api import FakeApi, Json
from tests.unit.agent.branch_model import COPY, INITDB, PROJECT, ROOMY, ROOT, VERSION, marker

from dbranch.agent.branch import applying, backoffs, reconciler
from dbranch.agent.branch.actions import (
    Action,
    Claim,
    Clean,
    CreateInitdbPod,
    CreatePod,
    DeletePod,
    Open,
    SetOwnVerifiers,
    SetPasswords,
    TakeSnapshot,
)
from dbranch.agent.branch.beside import RestorePart
from dbranch.agent.branch.effect import BranchEffects, Outcome
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.reconciler import BranchReconciler
from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.pool.space import Space
from dbranch.agent.postgres import session
from dbranch.agent.postgres.answer import Answer
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.timing import BRANCH_RESYNC_SECONDS, OWN_VERIFIERS_DELAY_SECONDS
from dbranch.agent.volume.marker import NewerMarker
from dbranch.agent.warm.reconciler import WarmReconciler
from dbranch.agent.warm.sizing import WarmLimits
from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.conditions import Finding, Reason
from dbranch.api.enums import NodeRestoreState
from dbranch.api.errors import ApiError, NotAccepting, PodRejected
from dbranch.api.restore import NodeRestore
from dbranch.kube.client import Cluster, branch_path, path_of, project_path
from dbranch.runtime.locks import KeyedLocks
from dbranch.runtime.result import Result
from dbranch.runtime.timings import StepTimer

NAMESPACE, NAME = COPY.namespace, COPY.object_name
FREE = PodFacts("warm-1", "w1", running=True, address="10.0.0.9")
MOUNTED = BranchFacts(pool_mounted=True, space=ROOMY, warm_pods=(FREE,))
STARTED = replace(
    MOUNTED,
    warm_pods=(),
    marker=marker(COPY, cleaned=False),
    pods=(FREE,),
    bound_slots=("warm-1",),
    server_version="17.6",
)


class Api(FakeApi):
    """Records the writes to the branch."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.writes: list[Mapping[str, Any]] = []

    def merge(self, path: str, body: Mapping[str, Any]) -> Json:
        if path.startswith(branch_path(NAMESPACE, NAME)):
            self.writes.append(body)
        return super().merge(path, body)


class Beside:
    """The restore's reconciler, whose part is given."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def begin(self, desired: Desired, timer: StepTimer) -> RestorePart:
        return self._bench.part

    def forget(self, branch: Branch) -> None:
        pass

    def finish(self, desired: Desired, part: RestorePart, result: Result) -> Result:
        return result


class Bench:
    """A reconciler whose facts, effects and clock are given."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_root: bool = False) -> None:
        self.api = Api(tmp_path / "api.json")
        self.name = ROOT.object_name if is_root else NAME
        self.facts: BranchFacts | Exception = MOUNTED
        self.accepts: str | None = None
        self.failing: dict[type, Exception] = {}
        self.actions: list[Action] = []
        self.now = 0.0
        spec: Json = {"postgres": {"image": PROJECT.postgres.image}}
        status: Json = {"nodeName": "n1", "passwordVersion": VERSION, "node": {"initialized": True}}
        meta = {"name": PROJECT.name, "namespace": NAMESPACE}
        self.api.create(
            path_of(names.API_VERSION, names.PROJECTS, NAMESPACE),
            {"metadata": meta, "spec": spec},
        )
        self.api.merge(project_path(NAMESPACE, PROJECT.name, "status"), {"status": status})
        meta = {"name": self.name, "namespace": NAMESPACE}
        body = {
            "metadata": meta,
            "spec": {"project": PROJECT.name, **({} if is_root else {"source": "main"})},
        }
        created = self.api.create(path_of(names.API_VERSION, names.BRANCHES, NAMESPACE), body)
        self.uid = created["metadata"]["uid"]
        status = {"nodeName": "n1", **({} if is_root else {"sourceUID": "r-uid"})}
        self.api.merge(branch_path(NAMESPACE, self.name, "status"), {"status": status})
        if is_root:
            new = {"status": {"node": {"initialized": False}}}
            self.api.merge(project_path(NAMESPACE, PROJECT.name, "status"), new)
        self.api.writes.clear()
        cluster, layout = cast(Cluster, self.api), Layout(tmp_path)
        context, metrics = NodeContext("n1", "node-uid", "dbranch-nodes", "dbranch"), AgentMetrics()
        warm = WarmReconciler(cluster, layout, context, WarmLimits(), metrics)
        self.part = RestorePart(is_idle=True)
        self.reconciler = BranchReconciler(
            *(cluster, layout, context, KeyedLocks(), warm, metrics, lambda *_: None, Beside(self))
        )
        monkeypatch.setattr(reconciler, "observe_branch", lambda *_: self._observe())
        monkeypatch.setattr(reconciler, "observe_postgres", lambda _, __, facts: facts)
        monkeypatch.setattr(applying, "observe_started", lambda *_: STARTED)
        self.measured = 0
        monkeypatch.setattr(reconciler, "patch_sizes", self._measure)
        monkeypatch.setattr(session, "await_accepting", lambda *_: self.accepts)
        monkeypatch.setattr(BranchEffects, "apply", lambda _, *args: self._apply(*args))
        monkeypatch.setattr(backoffs, "time", SimpleNamespace(monotonic=lambda: self.now))

    def _measure(self, *_: object) -> None:
        self.measured += 1

    def _observe(self) -> BranchFacts:
        if isinstance(self.facts, Exception):
            raise self.facts
        return self.facts

    def _apply(self, desired: Desired, action: Action, outcome: Outcome) -> None:
        self.actions.append(action)
        if type(action) in self.failing:
            raise self.failing[type(action)]
        match action:
            case Claim(pod):
                outcome.claimed_pod, outcome.slot = pod, pod.name
            case CreatePod(slot):
                outcome.slot = slot
            case TakeSnapshot():
                outcome.marker = marker(COPY, cleaned=False)
            case Clean():
                assert outcome.marker
                outcome.marker = outcome.marker.with_cleaned()
            case Open():
                assert outcome.marker
                outcome.marker = outcome.marker.with_opened()

    def reconcile(self) -> Result:
        return self.reconciler.reconcile(NAMESPACE, self.name)

    def run_for(self, seconds: float) -> int:
        """Reconcile whenever that is due, for so many seconds; return how often."""
        reconciles, end = 0, self.now + seconds
        while self.now < end:
            self.now += self.reconcile().requeue_after or BRANCH_RESYNC_SECONDS
            reconciles += 1
        return reconciles

    def node(self) -> Json:
        body = self.api.get(branch_path(NAMESPACE, self.name))
        assert body
        return dict(body["status"].get("node") or {})


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_a_branch_with_a_warm_slot_is_ready_with_one_write(bench: Bench) -> None:
    bench.accepts = "17.6"
    assert bench.reconcile() == Result(OWN_VERIFIERS_DELAY_SECONDS)
    assert [type(action).__name__ for action in bench.actions] == [
        *("Claim", "TakeSnapshot", "Bind"),
        *("Clean", "SetPasswords", "Open"),
    ]
    assert len(bench.api.writes) == 1
    node = bench.node()
    assert node["postgres"]["reason"] == "Accepting" and node["storage"]["reason"] == "Stored"
    assert (node["slot"], node["pod"], node["address"]) == ("warm-1", "warm-1", "10.0.0.9")
    assert node["postgresVersion"] == "17.6" and node["port"] == names.branch_port(bench.uid)


def test_a_new_branch_is_measured_once_when_its_users_have_it(bench: Bench) -> None:
    """Its sizes were written right behind its first report, and once more behind its verifiers."""
    bench.accepts = "17.6"
    bench.reconcile()
    assert bench.measured == 0
    bench.facts = replace(STARTED, marker=replace(marker(COPY), password=VERSION, opened=True))
    bench.reconcile()
    assert bench.measured == 1


def test_a_branch_in_a_new_pod_is_not_measured_while_its_postgres_starts(bench: Bench) -> None:
    bench.facts = replace(MOUNTED, warm_pods=())
    assert bench.reconcile() == Result() and bench.measured == 0
    # It has none, so that nobody waits for anything.
    bench.api.merge(branch_path(NAMESPACE, NAME), {"spec": {"state": "Stopped"}})
    bench.facts = replace(MOUNTED, warm_pods=(), marker=marker(COPY))
    assert bench.reconcile() == Result() and bench.measured == 1


@pytest.mark.parametrize("action", [Clean, SetPasswords, Open])
def test_nobody_is_sent_to_a_branch_that_is_not_open(bench: Bench, action: type) -> None:
    bench.accepts, bench.failing = "17.6", {action: NotAccepting("Postgres in slot warm-1: gone")}
    assert bench.reconcile().requeue_after
    node = bench.node()
    assert node["postgres"]["reason"] == "Recovering" and "gone" in node["postgres"]["message"]
    assert node.get("address") is None and len(bench.api.writes) == 1


def test_a_pod_without_an_address_is_asked_for_again_soon(bench: Bench) -> None:
    open_marker = replace(marker(COPY), password=VERSION, opened=True)
    bench.facts = replace(STARTED, marker=open_marker, pods=(replace(FREE, address=None),))
    result = bench.reconcile()
    assert result.requeue_after and result.requeue_after < 1
    assert bench.node()["postgres"]["reason"] == "Recovering"
    assert bench.reconcile() == result and len(bench.api.writes) == 1
    bench.facts = replace(bench.facts, pods=(FREE,))
    assert bench.reconcile() == Result(OWN_VERIFIERS_DELAY_SECONDS)
    assert bench.node()["address"] == "10.0.0.9"
    # Verifiers of its own come when users are there already, and cost the status nothing.
    bench.actions.clear()
    assert bench.reconcile() == Result() and bench.actions == [SetOwnVerifiers("warm-1")]
    assert len(bench.api.writes) == 2


def test_a_branch_in_a_new_pod_is_ready_with_two_writes(bench: Bench) -> None:
    bench.facts = replace(MOUNTED, warm_pods=())
    assert bench.reconcile() == Result()
    assert bench.node()["postgres"]["reason"] == "WaitingForSlot"
    slot = bench.node()["slot"]
    pod = PodFacts(slot, running=True)
    accepting = replace(STARTED, marker=marker(COPY), pods=(pod,), bound_slots=(slot,))
    for address in (None, None, "10.0.0.9"):
        bench.facts = replace(accepting, pods=(replace(pod, address=address),))
        bench.reconcile()
    assert bench.node()["postgres"]["reason"] == "Accepting" and len(bench.api.writes) == 2


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), OSError(5, "I/O error"), RuntimeError("odd")])
def test_an_exception_of_any_kind_ends_in_a_condition(bench: Bench, error: Exception) -> None:
    bench.facts = error
    assert bench.reconcile().requeue_after == 2.0
    storage = bench.node()["storage"]
    assert storage["reason"] == "SnapshotFailed" and str(error) in storage["message"]
    # Of a branch that is stored it is said about Postgres.
    bench.facts, bench.failing = replace(MOUNTED, marker=marker(COPY)), {Claim: error}
    bench.reconcile()
    postgres = bench.node()["postgres"]
    assert postgres["reason"] == "WaitingForSlot" and str(error) in postgres["message"]
    assert bench.node()["storage"]["reason"] == "Stored"
    bench.facts = error
    bench.reconcile()
    assert bench.node()["storage"]["reason"] == "Stored"


def test_an_api_server_that_does_not_answer_says_nothing_about_the_branch(bench: Bench) -> None:
    bench.facts = ApiError(500, "InternalError", "etcd")
    with pytest.raises(ApiError):
        bench.reconcile()
    assert bench.api.writes == []


def test_what_fails_again_and_again_is_tried_less_and_less_often(bench: Bench) -> None:
    bench.failing = {TakeSnapshot: OSError(5, "I/O error")}
    delays = []
    for _ in range(9):
        delay = bench.reconcile().requeue_after
        assert delay is not None
        delays.append(delay)
        bench.now += delay
    assert delays == [2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert len(bench.api.writes) == 1, "the same message is written again"
    # Somebody asks for another try.
    request = {"metadata": {"annotations": {names.AGENT_REQUESTED_AT: "1"}}}
    bench.api.merge(branch_path(NAMESPACE, NAME), request)
    assert bench.reconcile().requeue_after == 2.0


def test_a_pod_that_fails_is_made_again_only_after_a_delay_that_grows(bench: Bench) -> None:
    rejected = PodFacts("slot-a", terminated=True, reason="OutOfcpu")
    stored = replace(MOUNTED, marker=marker(COPY), warm_pods=())
    for expected in (10.0, 20.0, 40.0):
        bench.facts = replace(stored, pods=(rejected,))
        assert bench.reconcile().requeue_after == expected
        assert bench.node()["postgres"]["reason"] == "PodRejected"
        # The event of its deletion starts a reconcile at once: no pod is created, and the reason stays.
        bench.facts, bench.actions = stored, []
        bench.now += 1.0
        assert bench.reconcile().requeue_after == expected - 1.0
        assert bench.actions == [] and bench.node()["postgres"]["reason"] == "PodRejected"
        bench.now += expected - 1.0
        bench.reconcile()
        assert [type(action).__name__ for action in bench.actions] == ["CreatePod", "Bind"]


UNSAFE = Finding(Reason.SOURCE_UNSAFE, "branch x: pg_tblspc/16999 is a tablespace outside PGDATA")
WITH_POD = replace(MOUNTED, warm_pods=(), marker=marker(COPY), pods=(FREE,), bound_slots=("warm-1",))


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (replace(MOUNTED, source_problem=UNSAFE), Reason.SOURCE_UNSAFE),
        (replace(MOUNTED, space=Space(2**30, 2**20, 2**40, 2**39)), Reason.POOL_FULL),
        (replace(MOUNTED, space=Space(2**30, 2**29, 2**40, 2**20)), Reason.NODE_DISK_LOW),
        (replace(MOUNTED, newer=NewerMarker(3)), Reason.STORAGE_UNCLEAR),
        (
            replace(WITH_POD, start_blocked_by="data is of PostgreSQL 16, image is 17"),
            Reason.IMAGE_INCOMPATIBLE,
        ),
        (replace(WITH_POD, start_blocked_by="no lock file"), Reason.START_BLOCKED),
        (replace(WITH_POD, refusal=Answer.REFUSES, missing_superuser=True), Reason.START_BLOCKED),
    ],
    ids=lambda value: value.value if isinstance(value, Reason) else "",
)
def test_a_request_that_cannot_succeed_has_no_effect_however_often_it_is_tried(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, facts: BranchFacts, reason: Reason
) -> None:
    monkeypatch.setattr(bench.reconciler._start_watcher, "start", lambda *_: None)
    bench.facts = facts
    reconciles = bench.run_for(7_200.0)
    assert bench.actions == [], "its source, the node or the API server pays for it"
    assert len(bench.api.writes) == 1
    node = bench.node()
    assert reason in (node["storage"]["reason"], (node.get("postgres") or {}).get("reason"))
    # Room comes back without an event, so it is looked for every half a minute; else every five minutes at last.
    assert reconciles <= (7_200 / 30 if reason in (Reason.POOL_FULL, Reason.NODE_DISK_LOW) else 60)


def test_a_pod_that_the_api_server_rejects_is_tried_ever_more_rarely(bench: Bench) -> None:
    bench.facts = replace(MOUNTED, marker=marker(COPY), warm_pods=())
    bench.failing = {CreatePod: PodRejected("the API server rejects its pod: exceeded quota: small")}
    bench.run_for(7_200.0)
    attempts = sum(isinstance(action, CreatePod) for action in bench.actions)
    assert 5 < attempts < 60 and len(bench.api.writes) == 1
    postgres = bench.node()["postgres"]
    assert postgres["reason"] == "PodRejected" and "exceeded quota: small" in postgres["message"]


def test_initdb_that_fails_is_tried_ever_more_rarely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, monkeypatch, is_root=True)
    failed = PodFacts(INITDB, terminated=True, message="initdb: error: no")
    bench.facts = gone = replace(MOUNTED, warm_pods=())
    end = 7_200.0
    while bench.now < end:
        before = len(bench.actions)
        delay = bench.reconcile().requeue_after
        for action in bench.actions[before:]:
            # The pod fails at once, and is gone as soon as it is deleted: both are events.
            if isinstance(action, CreateInitdbPod):
                bench.facts, delay = replace(gone, initdb_pod=failed), 1.0
            elif isinstance(action, DeletePod):
                bench.facts, delay = gone, 1.0
        bench.now += delay or BRANCH_RESYNC_SECONDS
    attempts = sum(isinstance(action, CreateInitdbPod) for action in bench.actions)
    assert 5 < attempts < 60
    assert bench.node()["storage"]["reason"] == "InitdbFailed" and len(bench.api.writes) < 5


def test_an_exchange_is_said_together_with_the_address_of_the_new_data(bench: Bench) -> None:
    """Nobody is sent to data that is not open to users yet."""
    bench.part = RestorePart(NodeRestore("r", NodeRestoreState.EXCHANGED), is_answered=True)
    bench.facts = replace(STARTED, marker=replace(marker(COPY), password=VERSION))
    bench.failing = {Open: NotAccepting("Postgres in slot warm-1: gone")}
    bench.reconcile()
    assert "restore" not in bench.node() and not bench.part.serves
    bench.failing, before = {}, len(bench.api.writes)
    bench.reconcile()
    assert len(bench.api.writes) == before + 1
    assert bench.node()["restore"] == {"uid": "r", "state": "Exchanged"}
    assert bench.node()["address"] == "10.0.0.9" and bench.part.serves


def test_a_branch_is_not_touched_otherwise_while_its_sessions_end_for_a_restore(bench: Bench) -> None:
    bench.part = RestorePart(holds=True)
    bench.facts = replace(STARTED, settings_outdated=True)
    bench.reconcile()
    assert bench.actions == [] and bench.api.writes == []


def test_a_branch_is_not_measured_while_a_restore_of_it_goes_on(bench: Bench) -> None:
    """Its next step would wait until the measuring is over, and new sessions with it."""
    order = branch_object("x").restoring("r-uid").body()["status"]["restore"]
    path = branch_path(NAMESPACE, NAME, "status")
    bench.api.merge(path, {"status": {"restore": order}})
    for part in (RestorePart(holds=True), RestorePart()):
        bench.part = part
        bench.reconcile()
    assert bench.measured == 0
    bench.api.merge(path, {"status": {"restore": None}})
    bench.reconcile()
    assert bench.measured == 1
