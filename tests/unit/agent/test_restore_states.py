"""The plan of a restore, cut off again and again: the old data serves on, or the new one does, and none is lost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.unit.agent.branch_model import COPY, PROJECT, ROOMY, VERSION, apply, marker, progress_pods

from dbranch.agent.branch.actions import Bind, Claim, CreatePod, DeletePod, RemoveSlot, TakeRestore
from dbranch.agent.branch.beside import RestorePart
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.plan import plan_branch
from dbranch.agent.branch.pods import is_beside
from dbranch.agent.restore.actions import (
    Close,
    DestroyPrepared,
    EndSessions,
    Exchange,
    KeepOld,
    TrashOld,
)
from dbranch.agent.restore.facts import RestoreFacts
from dbranch.agent.restore.plan import RestorePlan, plan_restore
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.volume.marker import Marker, RestoreMark
from dbranch.agent.volume.restore_rules import RestoreVolume, VolumeState
from dbranch.api.branch import Branch
from dbranch.api.conditions import Finding, Reason
from dbranch.api.enums import NodeRestoreState, RestoreSourceKind, RestoreState, State, Undo
from dbranch.api.restore import BranchRestore, NodeRestore, RestoreSource

BUSY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=300)
ROUNDS = 40
SOURCE = RestoreSource(RestoreSourceKind.BRANCH, "main", "r-uid")
OWN = replace(marker(COPY), password=VERSION, verifiers="own", verifiers_of=COPY.uid, opened=True)
SERVING = BranchFacts(
    True, ROOMY, OWN, (PodFacts("slot-old", running=True),), bound_slots=("slot-old",), server_version="17.6"
)
EMPTY = BranchFacts(True, ROOMY)
ENDS = (NodeRestoreState.DONE, NodeRestoreState.FAILED, NodeRestoreState.CANCELED)


@dataclass
class Model:
    """A node with one branch: its own data and what lies beside it, the controller and the agent's memory."""

    branch: Branch
    own: BranchFacts = SERVING
    beside: BranchFacts = EMPTY
    state: VolumeState = VolumeState.ABSENT
    closed: bool = False
    failure: Finding | None = None
    kept: list[str] = field(default_factory=list)
    end: NodeRestoreState | None = None
    cancels: bool = False
    taken: bool = False

    def facts(self) -> RestoreFacts:
        volume = RestoreVolume(self.state, self.beside.marker)
        slot = next(iter(self.own.bound_slots), None)
        beside = replace(self.beside, marker=self.beside.marker if self.state is VolumeState.COMING else None)
        warm = () if beside.pods else (PodFacts("slot-warm", running=True),)
        return RestoreFacts(
            volume, self.own.marker, replace(beside, warm_pods=warm), slot, failure=self.failure
        )

    def desired(self) -> Desired:
        return Desired(PROJECT, self.branch, self.branch.restore)

    def answer(self, answer: NodeRestore | None) -> None:
        self.branch = replace(self.branch, node=replace(self.branch.node, restore=answer))

    def begin(self, cut: int | None) -> RestorePart | None:
        """Do what the reconciler does before the branch's own reconcile; None: the agent was killed."""
        facts, self.taken = self.facts(), False
        plan = plan_restore(self.desired(), facts)
        if plan.failure:
            self.failure = plan.failure
            return RestorePart()
        if plan.steps:
            for step_action in plan.steps.actions[:cut]:
                self._apply_step(step_action)
        elif self.state is not VolumeState.OLD:
            for action in plan.actions[:cut]:
                self._apply(action)
        return None if cut is not None else _part(plan)

    def _apply_step(self, action: object) -> None:
        order = self.branch.restore
        assert order and order.state is not RestoreState.CANCELING
        before = self.beside
        if isinstance(action, Claim | CreatePod):
            assert not before.pods, "a second pod of one restore"
            name = action.pod.name if isinstance(action, Claim) else action.slot
            self.beside = replace(before, pods=(PodFacts(name, running=True, restore=order.uid),))
            return
        if isinstance(action, Bind):
            assert all(pod.restore == order.uid for pod in before.pods), "a pod of another restore"
            assert self.taken, "what was prepared before a restart is used"
        facts = apply(self.branch, replace(before, warm_pods=()), action)  # type: ignore[arg-type]
        if isinstance(action, TakeRestore):
            assert self.state is VolumeState.ABSENT and facts.marker and self.own.marker
            assert self.own.marker.restore is None or self.own.marker.restore.uid != order.uid, "done twice"
            done_by = RestoreMark(order.uid, order.undo.value, order.undo_uid or "")
            generation = self.own.marker.generation + 1
            facts = replace(facts, marker=replace(facts.marker, restore=done_by, generation=generation))
            self.state, self.taken = VolumeState.COMING, True
        self.beside = facts

    def _apply(self, action: object) -> None:
        beside = self.beside
        match action:
            case DeletePod(pod):
                changed = (replace(p, terminating=True) if p.name == pod.name else p for p in beside.pods)
                self.beside = replace(beside, pods=tuple(changed))
            case RemoveSlot(slot):
                assert slot not in {pod.name for pod in beside.pods}
                self.beside = replace(beside, bound_slots=tuple(s for s in beside.bound_slots if s != slot))
            case DestroyPrepared():
                assert self.state is not VolumeState.OLD and not beside.pods and not beside.bound_slots
                self.state, self.beside = VolumeState.ABSENT, EMPTY
            case Close(slot):
                assert slot in self.own.bound_slots
                self.closed = True
                self.own = replace(self.own, hba_closed=True, settings_outdated=True)
            case EndSessions():
                assert self.closed and self.own.hba_closed, "sessions end while others begin"
            case Exchange():
                assert self.own.hba_closed or not self.own.bound_slots, "an exchange under users"
                new = beside.marker
                assert isinstance(new, Marker) and new.cleaned and new.password == VERSION and not new.opened
                self.own, self.beside = replace(beside, warm_pods=()), self.own
                self.state = VolumeState.OLD
            case KeepOld(uid):
                assert self.state is VolumeState.OLD and not beside.pods and not beside.bound_slots
                self.kept.append(uid)
                self.state, self.beside = VolumeState.ABSENT, EMPTY
            case TrashOld():
                raise AssertionError("kept data is discarded")

    def reconcile(self, cut: int | None = None) -> None:
        """Reconcile once; with a `cut` the agent is killed after so many actions of the restore."""
        part = self.begin(cut)
        if part is None:
            self.failure = None
            return
        desired = Desired(PROJECT, self.branch)
        serves = False
        if not part.holds:
            for action in plan_branch(PROJECT, self.branch, self.own).actions:
                self.own = apply(self.branch, self.own, action)
            serves = self.own.serves
            assert not (serves and self.own.hba_closed), "users are shut out though nothing is exchanged"
        written = part.fields(desired, serves)
        if written:
            self.answer(part.answer)
        if self.state is VolumeState.OLD:
            plan = plan_restore(self.desired(), self.facts())
            for restore_action in plan.actions:
                self._apply(restore_action)
            if plan.answer and plan.answer.state == NodeRestoreState.DONE and part.serves:
                self.answer(plan.answer)

    def run_kubelet(self) -> None:
        self.own, self.beside = progress_pods(self.own), progress_pods(self.beside)

    def restart_node(self) -> None:
        """All binds are gone, containers start anew."""
        self.failure = None
        for facts in (self.own, self.beside):
            assert facts.pool_mounted
        self.own = replace(self.own, bound_slots=(), server_version=None)
        self.beside = replace(self.beside, bound_slots=(), server_version=None)

    def run_controller(self) -> None:
        order, answer = self.branch.restore, self.branch.node.restore
        if order is None or answer is None or answer.uid != order.uid:
            return
        if answer.state in ENDS:
            self.end = answer.state
            self.branch = replace(self.branch, restore=None)
        elif self.cancels and order.state is RestoreState.PREPARING:
            self.branch = replace(self.branch, restore=replace(order, state=RestoreState.CANCELING))
        elif answer.state == NodeRestoreState.PREPARED and order.state is RestoreState.PREPARING:
            self.branch = replace(self.branch, restore=replace(order, state=RestoreState.SWITCHING))


def _part(plan: RestorePlan) -> RestorePart:
    holds = plan.holds and not any(isinstance(action, Exchange) for action in plan.actions)
    return RestorePart(plan.answer, plan.is_answered, holds)


def ordered(state: State = State.RUNNING) -> Branch:
    order = BranchRestore("again", "a-uid", RestoreState.PREPARING, SOURCE, Undo.KEEP, "undo", "u-uid")
    node = replace(COPY.node, slot="slot-old", snapshot_time=OWN.snapshot_time)
    return replace(COPY, restore=order, state=state, node=node)


EVENTS = st.one_of(
    st.integers(0, 6),
    st.sampled_from(["kubelet", "controller", "restart", "fail", "reconcile"]),
)


# Killed when the old data is closed to its users, and then given up.
CLOSED: list[int | str] = [*(["reconcile", "kubelet"] * 2), "reconcile", "controller", 1, "fail", "reconcile"]


@BUSY
@example(events=CLOSED, cancels=False, is_stopped=False)
@given(
    events=st.lists(EVENTS, max_size=14),
    cancels=st.booleans(),
    is_stopped=st.booleans(),
)
def test_every_interrupted_restore_ends_with_one_of_the_two_data(
    events: list[int | str], cancels: bool, is_stopped: bool
) -> None:
    model = Model(ordered(State.STOPPED if is_stopped else State.RUNNING), cancels=cancels)
    if is_stopped:
        model.own = replace(model.own, pods=(), bound_slots=(), server_version=None)
    for event in events:
        if isinstance(event, int):
            model.reconcile(event)
        elif event == "kubelet":
            model.run_kubelet()
        elif event == "controller":
            model.run_controller()
        elif event == "restart":
            model.restart_node()
        elif event == "fail" and model.state is not VolumeState.OLD:
            model.failure = Finding(Reason.START_FAILED, "it does not start")
        else:
            model.reconcile()
    for _ in range(ROUNDS):
        model.reconcile()
        model.run_kubelet()
        model.run_controller()
    assert model.branch.restore is None and model.branch.node.restore is None, (model.branch, model.state)
    assert model.state is VolumeState.ABSENT and model.beside.pods == () == model.beside.bound_slots
    is_new = model.own.marker is not None and model.own.marker.restore is not None
    assert is_new == (model.end is NodeRestoreState.DONE), model.end
    # What the branch had is kept once, or it still has it.
    assert model.kept == (["u-uid"] if is_new else [])
    assert not model.own.hba_closed, "users are shut out"
    running = 0 if is_stopped else 1
    assert len(model.own.pods) == len(model.own.bound_slots) == running, model.own
    if running:
        assert model.own.serves


@BUSY
@given(cuts=st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=6))
def test_without_a_failure_a_restore_that_is_cut_off_completes(cuts: list[tuple[int, bool]]) -> None:
    model = Model(ordered())
    for cut, is_between in cuts:
        model.reconcile(cut)
        if is_between:
            model.run_kubelet()
            model.run_controller()
    for _ in range(ROUNDS):
        model.reconcile()
        model.run_kubelet()
        model.run_controller()
    assert model.end is NodeRestoreState.DONE and model.kept == ["u-uid"]
    assert model.own.serves and model.own.marker and model.own.marker.generation == 2


def test_without_its_pool_nobody_says_how_a_restore_ended() -> None:
    """It may have been exchanged: the old pod of a stopped project ends, and the answer comes with the pool."""
    desired = Desired(replace(PROJECT, state=State.STOPPED), ordered(), ordered().restore)
    pod = PodFacts("slot-old", running=True)
    unmounted = replace(EMPTY, pool_mounted=False, pods=(pod,))
    plan = plan_restore(desired, RestoreFacts(RestoreVolume(), None, unmounted))
    assert not plan.is_answered and [type(action) for action in plan.actions] == [DeletePod]
    rest = plan_restore(desired, RestoreFacts(RestoreVolume(), None, replace(unmounted, pods=())))
    assert not rest.is_answered and rest.actions == () and rest.requeue_after is None
    running = plan_restore(replace(desired, project=PROJECT), RestoreFacts(RestoreVolume(), None, unmounted))
    assert not running.is_answered and running.actions == () and running.requeue_after


UNBOUND = PodFacts("pod", restore="r")
RESTORED = replace(OWN, restore=RestoreMark("r", "Discard"))
ANOTHER = replace(OWN, restore=RestoreMark("s", "Discard"))


@pytest.mark.parametrize(
    ("pod", "own", "is_asked", "expected"),
    [
        (PodFacts("pod"), OWN, True, False),
        (UNBOUND, OWN, True, True),
        (UNBOUND, ANOTHER, False, True),
        # The exchange has made its data the branch's own.
        (UNBOUND, RESTORED, False, False),
        # Without a pool nobody knows: it is the branch's, unless it is asked for beside it now.
        (UNBOUND, None, False, False),
        (UNBOUND, None, True, True),
    ],
)
def test_whose_a_pod_is_in_which_nothing_is_bound(
    pod: PodFacts, own: Marker | None, is_asked: bool, expected: bool
) -> None:
    order = replace(ordered().restore, uid="r")  # type: ignore[type-var]
    branch = replace(COPY, restore=order if is_asked else None)
    assert is_beside(pod, branch, own, (), ()) == expected
    # What is bound says it, whatever the marker says.
    assert not is_beside(pod, branch, own, (pod.name,), ())
    assert is_beside(pod, branch, own, (), (pod.name,))
