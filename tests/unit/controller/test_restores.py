"""Restores: who may begin, what its branch is ordered, and how it ends, from every state that a cut can leave."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.factories import NAMESPACE, NODE, Json, ago, branch, project, restore, snapshot
from tests.unit.controller.rig import PODS, PROJECTS, RESTORES, SNAPSHOTS, Rig, conditions_of, message_of

from dbranch.api import names
from dbranch.api.conditions import MESSAGE_LIMIT, Finding, Reason
from dbranch.api.enums import RestorePhase, Undo
from dbranch.api.errors import ClusterUnreachable
from dbranch.api.project import UndoPolicy
from dbranch.api.restore import RestoreRecord
from dbranch.controller.restore.admission import Admitted, Rejected, Waiting, admit
from dbranch.controller.restore.facts import RestoreFacts
from dbranch.controller.restore.plan import Step, plan_restore, surplus_copies
from dbranch.controller.restore.watch import concerned_by, is_at_rest, needs_reconcile
from dbranch.controller.scheduling import NodeFacts
from dbranch.controller.snapshot.plan import SnapshotFacts, plan_snapshot
from dbranch.kube.client import branch_path, path_of, restore_path, snapshot_path
from dbranch.runtime.result import Key

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


# Admission.


def test_without_a_source_a_branch_gets_that_of_its_own_origin() -> None:
    decision = admit(facts(), NOW)
    assert isinstance(decision, Admitted) and decision.undo == Undo.KEEP
    assert decision.source.as_dict() == {"kind": "Branch", "name": "main", "uid": MAIN.uid}
    of_snapshot = replace(FEATURE, source=None, source_snapshot="shop-kept")
    decision = admit(facts(branch=of_snapshot, source=None, snapshot=KEPT), NOW)
    assert isinstance(decision, Admitted) and decision.source.text == "snapshot/shop-kept"
    # What is named wins.
    named = replace(RESTORE, source_snapshot="shop-kept")
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
            restore=replace(RESTORE, undo=of_restore),
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
        ({"queue": [*EARLIER, RESTORE]}, Rejected, Reason.QUEUE_FULL),
        ({"queue": [EARLIER[0], RESTORE]}, Waiting, Reason.QUEUED),
        ({"busy": 2}, Waiting, Reason.QUEUED),
        ({"project": replace(SHOP, state="Stopped")}, Waiting, Reason.PROJECT_STOPPED),
        ({"branch": branch("feature-x").bound().parsed()}, Waiting, Reason.BRANCH_NOT_READY),
        ({"node": replace(UP, agent_ready=False)}, Waiting, Reason.NODE_NOT_READY),
        ({"node": NodeFacts(NODE, exists=False)}, Waiting, Reason.NODE_NOT_READY),
        ({"node": replace(UP, features=frozenset({names.FEATURE_SNAPSHOTS}))}, Waiting, Reason.AGENT_TOO_OLD),
        ({"source": None}, Waiting, Reason.SOURCE_NOT_FOUND),
        ({"source": replace(MAIN, deleted=ago())}, Waiting, Reason.SOURCE_NOT_FOUND),
        ({"source": branch().bound().parsed()}, Waiting, Reason.SOURCE_NOT_READY),
        ({"restore": replace(RESTORE, source_snapshot="x")}, Waiting, Reason.SOURCE_NOT_FOUND),
        (
            {"restore": replace(RESTORE, source_snapshot="x"), "snapshot": snapshot("x").bound().parsed()},
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
    decision = admit(facts(project=LOW, restore=replace(RESTORE, undo=Undo.DISCARD)), NOW)
    assert isinstance(decision, Admitted) and decision.undo == Undo.DISCARD


def test_restores_of_one_second_are_done_in_the_order_of_their_uids() -> None:
    twins = [replace(RESTORE, uid=uid, object_name=uid) for uid in ("b", "a")]
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
    for change in ({"busy": 9}, {"queue": [*EARLIER, RESTORE]}):
        done = plan_restore(facts(branch=replace(FEATURE, restores=(record,)), **change), NOW)
        assert conditions_of({"status": done.status}) == {"Complete": "AlreadyApplied"}
    other = replace(record, name="first")
    assert plan_restore(facts(branch=replace(FEATURE, restores=(other,))), NOW).step == Step.MAKE_UNDO


def test_a_branch_made_again_under_its_name_is_not_restored() -> None:
    pinned = replace(RESTORE, branch_uid="earlier")
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
    finish(rig, agent)
    assert "restore" not in rig.branch("feature-x")["status"]
    assert agent.exchanges == ["again-uid"] and ("Normal", "Restored") in rig.events
    kept = rig.existing(snapshot_path(NAMESPACE, order["undoSnapshot"]))
    assert conditions_of(kept)["Ready"] == "Available" and kept["status"]["expirationTime"]
    # At rest nobody writes.
    assert rig.writes_of(lambda: finish(rig, agent)) == []


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
        if path == restore_path(NAMESPACE, "again") and not body:
            # The user's.
            return True
        by_agent = "dbsnapshots" in path and (body.get("metadata") or {}).get("finalizers") == []
        return "node" in written or "proxies" in written or by_agent


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
            rig.api.delete(restore_path(NAMESPACE, "again"))
        finish(rig, agent, interrupted=True)
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


def test_a_branch_that_is_protected_meanwhile_keeps_its_data() -> None:
    rig = shop()
    agent = Agent(rig)
    rig.put(restore())
    rig.reconcile_restore()
    agent.act()
    rig.change_branch("feature-x", protection="Enabled")
    # Neither is the route withdrawn.
    assert "restore" not in rig.reconcile_branch("feature-x")["status"]["route"]
    finish(rig, agent)
    assert rig.restore()["status"]["phase"] == "Failed" and agent.exchanges == []
    assert conditions_of(rig.restore()) == {"Failed": "Protected", "Stalled": "Protected"}
    assert rig.api.find(SNAPSHOTS) == [] and ("Warning", "RestoreFailed") in rig.events


def test_what_fails_on_the_node_leaves_the_old_data_and_says_why() -> None:
    rig = shop()
    agent = Agent(rig, fails="Preparing")
    rig.put(restore())
    finish(rig, agent)
    body = rig.restore()
    assert body["status"]["phase"] == "Failed" and message_of(body, "Failed").startswith(
        "Postgres did not start"
    )
    assert "undoSnapshot" not in body["status"] and rig.api.find(SNAPSHOTS) == []
    status = rig.branch("feature-x")["status"]
    assert "restore" not in status and "restores" not in status and status["route"]["address"] == "10.0.0.2"
    # Another name may be done, and this one is not tried again.
    rig.put(restore("second"))
    agent.fails = ""
    finish(rig, agent, "again", "second")
    assert rig.restore("second")["status"]["phase"] == "Complete" and agent.exchanges == ["second-uid"]


def test_restores_of_a_branch_are_done_one_after_the_other_and_keep_three_copies() -> None:
    rig = shop()
    agent = Agent(rig)
    restores = [f"r{n}" for n in range(5)]
    for n, name in enumerate(restores):
        rig.put(restore(name).changed(metadata={"creationTimestamp": ago(60 - n)}))
    finish(rig, agent, *reversed(restores))
    assert agent.exchanges == [f"{name}-uid" for name in restores]
    kept = {body["spec"]["origin"]["restoreUID"] for body in rig.api.find(SNAPSHOTS)}
    assert kept == {"r2-uid", "r3-uid", "r4-uid"}
    assert ("Normal", "UndoRemoved") in rig.events
    assert rig.branch("feature-x")["status"]["node"]["generation"] == 6


def test_neither_protected_copies_nor_what_is_copied_now_make_room() -> None:
    copies = [
        replace(
            snapshot(f"c{n}", "feature-x").taken_of(FEATURE.uid).node(generation=n + 1).parsed(),
            restore_uid=f"r{n}",
        )
        for n in range(6)
    ]
    last = RestoreRecord("again", RESTORE.uid)
    seen = facts(branch=replace(FEATURE, restores=(last,)), copies=copies)
    assert [copy.uid for copy in surplus_copies(seen)] == [copy.uid for copy in copies[:3]]
    protected = [replace(copies[0], protection="Enabled"), *copies[1:]]
    assert [copy.uid for copy in surplus_copies(replace(seen, copies=protected))] == [
        c.uid for c in copies[1:3]
    ]
    in_use = replace(seen, in_use=frozenset({copies[1].uid}))
    assert [copy.uid for copy in surplus_copies(in_use)] == [copies[0].uid, copies[2].uid]
    # One that waits for its data is the newest; an earlier restore that is reconciled deletes nothing.
    coming = replace(snapshot("new", "feature-x").bound().parsed(), restore_uid="r6", branch_uid=FEATURE.uid)
    assert len(surplus_copies(replace(seen, copies=[coming, *copies]))) == 4
    later = replace(FEATURE, restores=(last, RestoreRecord("later", "later-uid")))
    assert surplus_copies(replace(seen, branch=later)) == ()


def test_a_stopped_branch_has_no_sessions_to_hold() -> None:
    rig = shop()
    agent = Agent(rig)
    rig.change_branch("feature-x", state="Stopped")
    rig.api.merge(
        branch_path(NAMESPACE, "shop-feature-x", "status"),
        {"status": {"node": {"postgres": Finding(Reason.STOPPED, "it is stopped").as_dict()}}},
    )
    rig.run()
    route = rig.branch("feature-x")["status"]["route"]
    rig.put(restore(undo="Discard"))
    finish(rig, agent)
    assert rig.restore()["status"]["phase"] == "Complete" and agent.exchanges == ["again-uid"]
    assert rig.branch("feature-x")["status"]["route"] == route and rig.api.find(SNAPSHOTS) == []


def test_a_proxy_that_is_silent_or_old_does_not_hold_up_a_restore() -> None:
    rig = shop()
    agent = Agent(rig)
    rig.proxy("old")
    rig.proxy_obeys("old")
    rig.put(restore())
    rig.reconcile_restore()
    agent.act()
    rig.reconcile_branch("feature-x")
    rig.reconcile_restore()
    assert rig.branch("feature-x")["status"]["restore"]["state"] == "Preparing"
    conditions = rig.branch("feature-x")["status"]["conditions"]
    for condition in conditions:
        condition["lastTransitionTime"] = ago(6)
    path = branch_path(NAMESPACE, "shop-feature-x", "status")
    rig.api.merge(path, {"status": {"conditions": conditions}})
    rig.reconcile_restore()
    assert rig.branch("feature-x")["status"]["restore"]["state"] == "Switching"
    # The old one has not acknowledged anything, and nobody waited for it alone.
    body = rig.branch("feature-x")["status"]
    assert not body.get("proxies")


def test_the_branchs_own_service_leads_to_the_proxies_while_they_hold() -> None:
    rig = shop()
    agent = Agent(rig)
    pod = rig.existing(f"{PODS}/p1")
    rig.api.merge(f"{PODS}/p1/status", {"status": {**pod["status"], "podIPs": [{"ip": "10.0.2.1"}]}})
    path = path_of("discovery.k8s.io/v1", "endpointslices", NAMESPACE, "shop-feature-x")

    def addresses() -> list[str]:
        return [address for entry in rig.existing(path)["endpoints"] for address in entry["addresses"]]

    rig.put(restore())
    rig.reconcile_restore()
    agent.act()
    rig.reconcile_branch("feature-x")
    # Not before they hold: until then its Postgres admits everybody.
    assert addresses() == ["10.0.0.2"]
    Proxy(rig).act()
    rig.reconcile_branch("feature-x")
    assert addresses() == ["10.0.2.1"]
    finish(rig, agent)
    assert addresses() == ["10.0.1.2"]


def test_a_restore_goes_when_its_time_has_come_and_not_before() -> None:
    rig = shop()
    agent = Agent(rig)
    rig.put(restore(ttlAfterFinished="1h"))
    finish(rig, agent)
    assert rig.restore()["status"]["phase"] == "Complete"
    rig.reconcile_restore()
    assert rig.result.requeue_after and 3500 < rig.result.requeue_after <= 3602
    rig.api.merge(restore_path(NAMESPACE, "again", "status"), {"status": {"completionTime": ago(3700)}})
    assert rig.reconcile_restore() is None
    assert rig.branch("feature-x")["status"]["restores"]


def switching(rig: Rig, agent: Agent) -> None:
    """Bring restore `again` to the order to exchange."""
    rig.put(restore())
    rig.reconcile_restore()
    agent.act()
    rig.reconcile_branch("feature-x")
    Proxy(rig).act()
    rig.reconcile_restore()
    assert rig.branch("feature-x")["status"]["restore"]["state"] == "Switching"


def test_a_deleted_restore_waits_from_the_order_to_exchange_until_it_is_done() -> None:
    rig = shop()
    agent = Agent(rig)
    switching(rig, agent)
    rig.api.delete(restore_path(NAMESPACE, "again"))
    assert rig.reconcile_restore() and rig.branch("feature-x")["status"]["restore"]["state"] == "Switching"
    finish(rig, agent)
    assert rig.reconcile_restore() is None and agent.exchanges == ["again-uid"]
    assert [r["uid"] for r in rig.branch("feature-x")["status"]["restores"]] == ["again-uid"]
    assert len(rig.api.find(SNAPSHOTS)) == 1


def test_a_project_that_is_deleted_ends_its_restores_first() -> None:
    rig = shop()
    agent = Agent(rig)
    rig.put(restore("waiting").changed(metadata={"creationTimestamp": ago(-5)}))
    switching(rig, agent)
    rig.api.delete(f"{PROJECTS}/shop")
    assert not rig.remove_project()
    assert not rig.exists(restore_path(NAMESPACE, "waiting"))
    assert not rig.branch("feature-x")["metadata"].get("deletionTimestamp")
    # The agents of a project that is being deleted answer nobody.
    assert rig.reconcile_restore() is None
    rig.remove_project()
    assert rig.branch("feature-x")["metadata"]["deletionTimestamp"]


@pytest.mark.parametrize("state", ["Preparing", "Switching"])
def test_a_branch_that_is_deleted_ends_its_restore(state: str) -> None:
    rig = shop()
    agent = Agent(rig)
    if state == "Switching":
        switching(rig, agent)
    else:
        rig.put(restore())
        rig.reconcile_restore()
    path = branch_path(NAMESPACE, "shop-feature-x")
    rig.api.delete(path)
    rig.reconcile_restore()
    if state == "Switching":
        # It may be exchanged in this very moment; the agent says so, and the old data is not thrown away.
        assert rig.restore()["status"]["phase"] == "Running"
        agent.act()
        rig.remove_branch("feature-x")
        rig.reconcile_restore()
        assert conditions_of(rig.restore()) == {"Complete": "Restored"}
        assert len(rig.api.find(SNAPSHOTS)) >= 1
    else:
        assert conditions_of(rig.restore()) == {"Failed": "Canceled", "Stalled": "Canceled"}
        assert all(body["metadata"].get("deletionTimestamp") for body in rig.api.find(SNAPSHOTS))
    assert not rig.restore()["metadata"].get("finalizers")


def test_the_old_data_of_a_branch_that_is_gone_is_not_thrown_away() -> None:
    undo = snapshot("x", "feature-x", origin={"reason": "Restore", "restoreUID": RESTORE.uid})
    bound = undo.bound().status(branchUID=FEATURE.uid).parsed()
    running = replace(RESTORE, phase=RestorePhase.RUNNING, branch_uid=FEATURE.uid)
    plan = plan_restore(facts(restore=running, branch=None, undo=bound), NOW)
    assert plan.step is None and conditions_of({"status": plan.status})["Failed"] == "BranchReplaced"
    assert plan_restore(facts(restore=running, branch=None, undo=undo.parsed()), NOW).step == Step.DELETE_UNDO


def test_a_source_that_is_deleted_waits_for_the_copy_of_it() -> None:
    rig = shop()
    agent = Agent(rig)
    rig.branch_up("seed", "10.0.0.3")
    rig.put(restore(source="seed"))
    rig.reconcile_restore()
    assert rig.branch("feature-x")["status"]["restore"]["source"]["name"] == "seed"
    rig.api.delete(branch_path(NAMESPACE, "shop-seed"))
    rig.remove_branch("seed")
    assert rig.branch("seed")["status"].get("release") != rig.branch("seed")["metadata"]["deletionTimestamp"]
    agent.act()
    rig.remove_branch("seed")
    body = rig.api.peek(branch_path(NAMESPACE, "shop-seed"))
    assert body is None or body["status"]["route"]["state"] == "Deleting"


def test_a_record_of_a_restore_that_was_made_again_takes_nothing() -> None:
    record = snapshot("x", origin={"reason": "Restore", "restoreUID": "r", "branchUID": FEATURE.uid}).parsed()
    plan = plan_snapshot(SnapshotFacts(record, SHOP, FEATURE, UP), NOW)
    assert plan.binding is None and plan.ready.reason == Reason.SNAPSHOT_LOST
    plan = plan_snapshot(SnapshotFacts(record, SHOP, FEATURE, UP, is_awaited=True), NOW)
    assert plan.binding is None and plan.ready.reason == Reason.PENDING


def test_who_is_reconciled_after_what() -> None:
    done = restore().status(phase="Complete").parsed()
    assert is_at_rest(done) and not needs_reconcile(None, done) and needs_reconcile(None, RESTORE)
    assert not is_at_rest(replace(done, ttl_after_finished="1h"))
    assert not is_at_rest(replace(done, finalizers=(names.CONTROLLER_FINALIZER,)))
    assert needs_reconcile(done, replace(done, deleted=ago()))
    assert not needs_reconcile(RESTORE, replace(RESTORE, start_time=ago()))
    rig = shop()
    rig.put(restore(), restore("other", "else"))
    cache = rig.cache()
    key = Key(names.RESTORE_KIND, NAMESPACE, "again")
    for change in (SHOP, NODE, (NAMESPACE, "shop"), FEATURE, MAIN):
        assert key in set(concerned_by(change, cache.restores, cache)), change
    named = replace(RESTORE, source="main")
    cache.restores.put(named)
    of_others = set(concerned_by(branch("else").parsed(), cache.restores, cache))
    assert of_others == {Key(names.RESTORE_KIND, NAMESPACE, "other")}
    assert set(concerned_by((NAMESPACE, "another"), cache.restores, cache)) == set()
    # What an order leaves behind whose DBRestore is gone.
    left = replace(FEATURE, restore=branch().restoring(MAIN.uid, name="gone").parsed().restore)
    assert Key(names.RESTORE_KIND, NAMESPACE, "gone") in set(concerned_by(left, cache.restores, cache))
