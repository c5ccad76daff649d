"""Restores: who may begin, what its branch's memory says of it, and which copies make room."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.factories import NAMESPACE, NODE, ago, branch, project, restore, snapshot
from tests.unit.controller.restores import FEATURE, KEPT, MAIN, NOW, RESTORE, SHOP, UP, facts, shop
from tests.unit.controller.rig import conditions_of

from dbranch.api import names
from dbranch.api.conditions import MESSAGE_LIMIT, Finding, Reason
from dbranch.api.enums import RestorePhase, Undo
from dbranch.api.project import UndoPolicy
from dbranch.api.restore import RestoreRecord
from dbranch.controller.restore.admission import Admitted, Rejected, Waiting, admit
from dbranch.controller.restore.outcome import surplus_copies
from dbranch.controller.restore.plan import plan_restore
from dbranch.controller.restore.steps import Step
from dbranch.controller.restore.watch import concerned_by, is_at_rest, needs_reconcile
from dbranch.controller.scheduling import NodeFacts
from dbranch.controller.snapshot.plan import SnapshotFacts, plan_snapshot
from dbranch.runtime.result import Key


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
        ({"restore": replace(RESTORE, source="feature-x")}, Rejected, Reason.NO_SOURCE),
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
    other = replace(FEATURE, restores=(last, RestoreRecord("later", "later-uid")))
    assert surplus_copies(replace(seen, branch=other)) == ()


def test_the_old_data_of_a_branch_that_is_gone_is_not_thrown_away() -> None:
    undo = snapshot("x", "feature-x", origin={"reason": "Restore", "restoreUID": RESTORE.uid})
    bound = undo.bound().status(branchUID=FEATURE.uid).parsed()
    running = replace(RESTORE, phase=RestorePhase.RUNNING, branch_uid=FEATURE.uid)
    plan = plan_restore(facts(restore=running, branch=None, undo=bound), NOW)
    assert plan.step is None and conditions_of({"status": plan.status})["Failed"] == "BranchReplaced"
    assert plan_restore(facts(restore=running, branch=None, undo=undo.parsed()), NOW).step == Step.DELETE_UNDO


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
