"""Restores: who may begin, what its branch is ordered, and how it ends, from every state that a cut can leave."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.factories import NAMESPACE, NODE, Json, ago, branch, project, restore, snapshot
from tests.unit.controller.rig import PROJECTS, RESTORES, SNAPSHOTS, Rig, conditions_of

from dbranch.api import names
from dbranch.api.conditions import MESSAGE_LIMIT, Finding, Reason
from dbranch.api.enums import Undo
from dbranch.api.errors import ClusterUnreachable
from dbranch.api.project import UndoPolicy
from dbranch.api.restore import RestoreRecord
from dbranch.controller.restore.admission import Admitted, Rejected, Waiting, admit
from dbranch.controller.restore.facts import RestoreFacts
from dbranch.controller.restore.plan import Step, plan_restore
from dbranch.controller.scheduling import NodeFacts
from dbranch.kube.client import branch_path, restore_path, snapshot_path

NOW = datetime.now(UTC)
FEATURES = frozenset({names.FEATURE_SNAPSHOTS, names.FEATURE_RESTORES})
UP = NodeFacts(NODE, has_agent=True, agent_ready=True, features=FEATURES)
SHOP = project().bound().up().parsed()
MAIN = branch().bound().accepting().parsed()
FEATURE = branch("feature-x").bound().accepting("10.0.0.2").parsed()
KEPT = snapshot("kept").taken_of(MAIN.uid).parsed()
AGAIN = restore().parsed()


def facts(**changes: Any) -> RestoreFacts:
    return replace(RestoreFacts(AGAIN, SHOP, FEATURE, MAIN, node=UP, queue=[AGAIN]), **changes)


# Admission.


def test_without_a_source_a_branch_gets_that_of_its_own_origin() -> None:
    decision = admit(facts(), NOW)
    assert isinstance(decision, Admitted) and decision.undo == Undo.KEEP
    assert decision.source.as_dict() == {"kind": "Branch", "name": "main", "uid": MAIN.uid}
    of_snapshot = replace(FEATURE, source=None, source_snapshot="shop-kept")
    decision = admit(facts(branch=of_snapshot, source=None, snapshot=KEPT), NOW)
    assert isinstance(decision, Admitted) and decision.source.text == "snapshot/shop-kept"
    # What is named wins.
    named = replace(AGAIN, source_snapshot="shop-kept")
    decision = admit(facts(restore=named, snapshot=KEPT), NOW)
    assert isinstance(decision, Admitted) and decision.source.uid == KEPT.uid


@pytest.mark.parametrize(
    ("of_restore", "of_branch", "keep", "expected"),
    [
        (None, None, "24h", Undo.KEEP),
        (None, None, "0s", Undo.DISCARD),
        (None, Undo.DISCARD, "24h", Undo.DISCARD),
        (Undo.KEEP, Undo.DISCARD, "0s", Undo.KEEP),
        (Undo.DISCARD, Undo.KEEP, "24h", Undo.DISCARD),
    ],
)
def test_who_says_what_becomes_of_the_old_data(
    of_restore: Undo | None, of_branch: Undo | None, keep: str, expected: Undo
) -> None:
    decision = admit(
        facts(
            restore=replace(AGAIN, undo=of_restore),
            branch=replace(FEATURE, undo=of_branch),
            project=replace(SHOP, undo=UndoPolicy(keep)),
        ),
        NOW,
    )
    assert isinstance(decision, Admitted) and decision.undo == expected


LOW = replace(SHOP, node=replace(SHOP.node, storage=Finding(Reason.POOL_LOW, "low")))
EARLIER = [restore(f"r{n}").changed(metadata={"creationTimestamp": ago(60 - n)}).parsed() for n in range(5)]


@pytest.mark.parametrize(
    ("change", "kind", "reason"),
    [
        ({"project": None}, Waiting, Reason.BRANCH_NOT_FOUND),
        ({"project": project().deleting().parsed()}, Waiting, Reason.BRANCH_NOT_FOUND),
        ({"branch": None}, Waiting, Reason.BRANCH_NOT_FOUND),
        ({"branch": replace(FEATURE, deleted=ago())}, Waiting, Reason.BRANCH_NOT_FOUND),
        ({"branch": replace(FEATURE, protected=True)}, Rejected, Reason.PROTECTED),
        ({"branch": replace(FEATURE, source=None)}, Rejected, Reason.NO_SOURCE),
        ({"queue": [*EARLIER, AGAIN]}, Rejected, Reason.QUEUE_FULL),
        ({"queue": [EARLIER[0], AGAIN]}, Waiting, Reason.QUEUED),
        ({"busy": 2}, Waiting, Reason.QUEUED),
        ({"project": replace(SHOP, state="Stopped")}, Waiting, Reason.PROJECT_STOPPED),
        ({"branch": branch("feature-x").bound().parsed()}, Waiting, Reason.BRANCH_NOT_READY),
        ({"node": replace(UP, agent_ready=False)}, Waiting, Reason.NODE_NOT_READY),
        ({"node": NodeFacts(NODE, exists=False)}, Waiting, Reason.NODE_NOT_READY),
        ({"node": replace(UP, features=frozenset({names.FEATURE_SNAPSHOTS}))}, Waiting, Reason.AGENT_TOO_OLD),
        ({"source": None}, Waiting, Reason.SOURCE_NOT_FOUND),
        ({"source": replace(MAIN, deleted=ago())}, Waiting, Reason.SOURCE_NOT_FOUND),
        ({"source": branch().bound().parsed()}, Waiting, Reason.SOURCE_NOT_READY),
        ({"restore": replace(AGAIN, source_snapshot="x")}, Waiting, Reason.SOURCE_NOT_FOUND),
        (
            {"restore": replace(AGAIN, source_snapshot="x"), "snapshot": snapshot("x").bound().parsed()},
            Waiting,
            Reason.SOURCE_NOT_READY,
        ),
        ({"project": LOW}, Rejected, Reason.POOL_LOW),
        ({"undo": KEPT}, Waiting, Reason.OBJECT_REFUSED),
    ],
)
def test_what_a_restore_waits_for_and_why_it_never_begins(
    change: dict[str, Any], kind: type, reason: Reason
) -> None:
    decision = admit(facts(**change), NOW)
    assert isinstance(decision, kind), decision
    assert isinstance(decision, Waiting | Rejected) and decision.finding.reason == reason
    assert len(decision.finding.message) <= MESSAGE_LIMIT and ";" in decision.finding.message
    # What waits is rejected in the end, and what was missing is said.
    late = admit(facts(**change), NOW + timedelta(minutes=11))
    assert isinstance(late, Rejected)
    if kind is Waiting:
        assert late.finding.reason == Reason.STARTING_DEADLINE_EXCEEDED
        assert decision.finding.message.partition(";")[0] in late.finding.message
    else:
        assert late.finding.reason == reason


def test_a_pool_that_is_low_takes_a_restore_that_keeps_nothing() -> None:
    decision = admit(facts(project=LOW, restore=replace(AGAIN, undo=Undo.DISCARD)), NOW)
    assert isinstance(decision, Admitted) and decision.undo == Undo.DISCARD


def test_restores_of_one_second_are_done_in_the_order_of_their_uids() -> None:
    twins = [replace(AGAIN, uid=uid, object_name=uid) for uid in ("b", "a")]
    decisions = [admit(facts(restore=one, queue=twins), NOW) for one in twins]
    assert isinstance(decisions[0], Waiting) and isinstance(decisions[1], Admitted)
    # One that runs is not among those that wait.
    running = replace(FEATURE, restore=branch().restoring(MAIN.uid, uid="a").parsed().restore)
    decision = admit(facts(restore=twins[0], queue=[*EARLIER[:4], *twins], branch=running), NOW)
    assert isinstance(decision, Waiting) and decision.finding.reason == Reason.QUEUED


# The memory.


def test_a_name_is_done_once_a_branch() -> None:
    record = RestoreRecord("again", "earlier", "main", ago(), "shop-feature-x-undo-abcde")
    plan = plan_restore(facts(branch=replace(FEATURE, restores=(record,))), NOW)
    assert plan.step is None and plan.status["phase"] == "Complete"
    assert conditions_of({"status": plan.status}) == {"Complete": "AlreadyApplied"}
    # Neither a deadline nor a queue nor a protection says anything else.
    for change in ({"busy": 9}, {"queue": [*EARLIER, AGAIN]}):
        done = plan_restore(facts(branch=replace(FEATURE, restores=(record,)), **change), NOW)
        assert conditions_of({"status": done.status}) == {"Complete": "AlreadyApplied"}
    other = replace(record, name="first")
    assert plan_restore(facts(branch=replace(FEATURE, restores=(other,))), NOW).step == Step.MAKE_UNDO


def test_a_branch_made_again_under_its_name_is_not_restored() -> None:
    pinned = replace(AGAIN, branch_uid="earlier")
    plan = plan_restore(facts(restore=pinned), NOW)
    assert plan.status["phase"] == "Rejected"
    assert conditions_of({"status": plan.status}) == {"Failed": "BranchReplaced", "Stalled": "BranchReplaced"}
    assert plan_restore(facts(restore=pinned, branch=None), NOW).status["phase"] == "Rejected"


def test_it_is_bound_to_one_very_branch_while_it_waits() -> None:
    plan = plan_restore(facts(source=None), NOW)
    assert plan.status["branchUID"] == FEATURE.uid and plan.status["phase"] == "Pending"
    assert plan.requeue_after and plan.requeue_after < 20


# A whole restore, with the agent and the proxies played.


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
    """The project's proxy: it holds as it is told, and says so."""

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


def settle(rig: Rig, agent: Agent, *restores: str, interrupted: bool = False) -> None:
    """Reconcile until nobody writes any more. `interrupted`: an exception is a controller that starts again."""
    proxy = Proxy(rig)
    for _ in range(60):
        version = rig.api.list_at(RESTORES)[1]
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
                rig.start()
        proxy.act()
        agent.act()
        if rig.api.list_at(RESTORES)[1] == version:
            return
    raise AssertionError("it never comes to rest")


def test_a_restore_from_the_order_to_its_record() -> None:
    rig = shop()
    agent = Agent(rig)
    rig.put(restore())
    rig.reconcile_restore()
    order = rig.branch("feature-x")["status"]["restore"]
    assert order["state"] == "Preparing" and order["source"]["name"] == "main" and order["undo"] == "Keep"
    undo = rig.existing(snapshot_path(NAMESPACE, order["undoSnapshot"]))
    assert undo["metadata"]["uid"] == order["undoUID"] and undo["spec"]["ttl"] == "24h"
    owners = undo["metadata"]["ownerReferences"]
    assert [owner["kind"] for owner in owners] == ["DBProject"] and owners[0]["controller"]
    assert undo["status"]["branchUID"] == rig.branch("feature-x")["metadata"]["uid"]
    body = rig.restore()
    assert conditions_of(body) == {"Reconciling": "Snapshotting"} and body["status"]["phase"] == "Running"
    assert body["metadata"]["labels"][names.LABEL_BRANCH] == "feature-x"
    assert "finalizers" not in body["metadata"]
    # The branch says nothing of it yet, and its route stands.
    before = rig.branch("feature-x")["status"]
    rig.reconcile_branch("feature-x")
    assert rig.branch("feature-x")["status"] == before
    agent.act()
    # Sessions are held before anything is switched.
    rig.reconcile_restore()
    assert rig.branch("feature-x")["status"]["restore"]["state"] == "Preparing"
    rig.reconcile_branch("feature-x")
    status = rig.branch("feature-x")["status"]
    assert status["route"]["state"] == "Starting" and status["route"]["restore"] == "again-uid"
    assert conditions_of({"status": status})["Ready"] == "Restoring"
    rig.reconcile_restore()
    assert rig.branch("feature-x")["status"]["restore"]["state"] == "Preparing"
    assert conditions_of(rig.restore()) == {"Reconciling": "Switching"}
    Proxy(rig).act()
    rig.reconcile_restore()
    assert rig.branch("feature-x")["status"]["restore"]["state"] == "Switching"
    assert rig.restore()["metadata"]["finalizers"] == [names.CONTROLLER_FINALIZER]
    agent.act()
    # Not complete before the branch remembers it, in one write with the route.
    rig.reconcile_restore()
    assert rig.restore()["status"]["phase"] == "Running"
    writes = rig.writes_of(lambda: rig.reconcile_branch("feature-x"))
    assert [w for w in writes if "dbbranches" in w] == ["merge dbbranches/shop-feature-x/status"]
    status = rig.branch("feature-x")["status"]
    assert status["route"]["state"] == "Ready" and "restore" not in status["route"]
    assert status["route"]["address"] == "10.0.1.2"
    assert [record["uid"] for record in status["restores"]] == ["again-uid"]
    assert status["data"]["source"] == "main" and status["data"]["time"] == "2026-01-02T00:00:00Z"
    assert conditions_of({"status": status})["Ready"] == "Available" and "restore" in status
    rig.reconcile_restore()
    body = rig.restore()
    assert body["status"]["phase"] == "Complete" and conditions_of(body) == {"Complete": "Restored"}
    assert body["status"]["undoSnapshot"] == order["undoSnapshot"] and body["status"]["heldSeconds"] >= 0
    assert body["status"]["dataTime"] == "2026-01-02T00:00:00Z" and not body["metadata"].get("finalizers")
    settle(rig, agent)
    assert "restore" not in rig.branch("feature-x")["status"]
    assert agent.exchanges == ["again-uid"] and ("Normal", "Restored") in rig.events
    kept = rig.existing(snapshot_path(NAMESPACE, order["undoSnapshot"]))
    assert conditions_of(kept)["Ready"] == "Available" and kept["status"]["expirationTime"]
    # At rest nobody writes.
    assert rig.writes_of(lambda: settle(rig, agent)) == []


def final_state(rig: Rig) -> Json:
    """Return what counts in the end, without times and versions."""
    status, body = rig.branch("feature-x")["status"], rig.api.peek(restore_path(NAMESPACE, "again"))
    return {
        "restore": body and (body["status"]["phase"], conditions_of(body)),
        "finalizers": body and body["metadata"].get("finalizers"),
        "order": status.get("restore"),
        "records": [record["uid"] for record in status.get("restores") or ()],
        "route": {key: status["route"].get(key) for key in ("state", "address", "restore")},
        "snapshots": [body["metadata"]["name"] for body in rig.api.find(SNAPSHOTS)],
        "ready": conditions_of({"status": status})["Ready"],
    }


class CutOff:
    """Lets a number of the controller's writes through; the next one is lost, before or behind it."""

    def __init__(self, rig: Rig, at: int, is_lost: bool) -> None:
        self.at, self.count, self.done = at, 0, False
        self.is_lost = is_lost
        for verb in ("create", "merge", "apply", "delete", "json_patch"):
            self._wrap(rig, verb)

    def _wrap(self, rig: Rig, verb: str) -> None:
        original = getattr(rig.api, verb)

        def call(path: str, *args: Any, **kwargs: Any) -> Any:
            is_own = kwargs.pop("manager", None) is None and not self._is_others(path, args)
            if is_own and not self.done:
                self.count += 1
                if self.count > self.at:
                    self.done = True
                    if not self.is_lost:
                        original(path, *args, **kwargs)
                    raise ClusterUnreachable(f"{verb} {path}: cut off")
            return original(path, *args, **kwargs)

        setattr(rig.api, verb, call)

    @staticmethod
    def _is_others(path: str, args: tuple[Any, ...]) -> bool:
        body = args[0] if args and isinstance(args[0], dict) else {}
        written = body.get("status") or {}
        return "node" in written or "proxies" in written


@pytest.mark.parametrize("ends", ["done", "failed", "canceled"])
@pytest.mark.parametrize("is_lost", [True, False])
def test_a_controller_cut_off_at_any_write_is_followed_by_one_that_ends_the_restore(
    ends: str, is_lost: bool
) -> None:
    def play(at: int | None) -> tuple[Json, Agent, bool]:
        rig = shop()
        agent = Agent(rig, fails="Switching" if ends == "failed" else "")
        rig.put(restore())
        cut = None if at is None else CutOff(rig, at, is_lost)
        if ends == "canceled":
            try:
                rig.reconcile_restore()
            except ClusterUnreachable:
                rig.start()
            rig.api.put(RESTORES, {"metadata": {"name": "other"}, **restore("other").spec(source="x").body()})
            rig.api.delete(restore_path(NAMESPACE, "again"))
        settle(rig, agent, interrupted=True)
        return final_state(rig), agent, cut is None or cut.done

    expected, agent, _ = play(None)
    assert len(agent.exchanges) == (1 if ends == "done" else 0)
    assert expected["order"] is None and expected["ready"] == "Available"
    assert len(expected["snapshots"]) == (1 if ends == "done" else 0)
    at, cuts = 0, 0
    while True:
        state, agent, was_cut = play(at)
        if not was_cut:
            break
        assert state == expected, f"cut at write {at}"
        assert len(agent.exchanges) == (1 if ends == "done" else 0), f"cut at write {at}"
        at, cuts = at + 1, cuts + 1
    assert cuts > 5
