"""The agent's plan from generated states, cut off again and again: it converges to the spec."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.unit.agent.branch_model import (
    COPY,
    INITDB,
    NEW,
    PROJECT,
    ROOMY,
    ROOT,
    VERSION,
    apply,
    marker,
    progress_pods,
    undone_steps,
)

from dbranch.agent.branch.actions import (
    Bind,
    CreateInitdbArea,
    DeletePod,
    RemoveSlot,
    TakeSnapshot,
    WriteSettings,
)
from dbranch.agent.branch.facts import BranchFacts
from dbranch.agent.branch.plan import BranchPlan, plan_branch
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.volume.marker import Marker
from dbranch.api import names
from dbranch.api.branch import Branch, BranchNode
from dbranch.api.conditions import Reason
from dbranch.api.project import Project

# Complete reconciles until convergence: a pod terminates, is gone, a new one, its bind, its Postgres, and one more.
RECONCILES = 8
RESTARTED_AT = "2026-01-01T00:00:00Z"
# Neither the time of one example nor of its making is a fault: the machine may be busy.
BUSY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
REQUESTS: tuple[tuple[str, ...], ...] = (
    *((), (names.RESTARTED_AT,), (names.ALTER_SYSTEM_RESET_AT,)),
    (names.RESTARTED_AT, names.ALTER_SYSTEM_RESET_AT),
)
SLOTS = st.sampled_from(["slot-a", "slot-b", "slot-c"])


@dataclass(frozen=True)
class Case:
    project: Project
    branch: Branch
    facts: BranchFacts


def pods(slots: st.SearchStrategy[str]) -> st.SearchStrategy[PodFacts]:
    return st.builds(
        PodFacts,
        name=slots,
        # Another image or class than the branch's, or the same.
        image=st.sampled_from(["", "", "old:17"]),
        class_hash=st.sampled_from(["", "", "another"]),
        restarted_at=st.sampled_from([RESTARTED_AT, RESTARTED_AT, None, "2025-01-01T00:00:00Z"]),
        terminating=st.booleans(),
        terminated=st.sampled_from([False, False, True]),
        running=st.booleans(),
        ready=st.booleans(),
        reason=st.sampled_from(["", "ContainerCreating", "ErrImagePull", "CrashLoopBackOff"]),
    )


@st.composite
def markers(draw: st.DrawFn, branch: Branch) -> Marker:
    """Generate the marker of a branch between any two of its steps; the first release knew no `opened`."""
    stored = marker(branch, cleaned=branch.is_root or draw(st.booleans()))
    password = draw(st.sampled_from(["", VERSION, "v0"]))
    reset = draw(st.sampled_from(["", RESTARTED_AT, "2025-01-01T00:00:00Z"]))
    opened = stored.cleaned and draw(st.booleans())
    verifiers = (
        draw(st.sampled_from([("", ""), ("own", branch.uid), ("own", "another")])) if password else ("", "")
    )
    stored = replace(stored, verifiers=verifiers[0], verifiers_of=verifiers[1])
    return replace(stored, password=password, opened=opened, alter_system_reset=reset)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Generate a branch in any state in which an agent may find it after a restart."""
    origin = draw(st.sampled_from(["new", "root", "copy", "retained"]))
    project = NEW if origin == "new" else PROJECT
    branch = ROOT if origin in ("new", "root") else COPY
    stored = origin == "root" or draw(st.booleans())
    facts = BranchFacts(
        pool_mounted=True,
        space=ROOMY,
        marker=draw(markers(branch)) if stored else None,
        pods=tuple(draw(st.lists(pods(SLOTS), max_size=3, unique_by=lambda pod: pod.name))),
        bound_slots=tuple(draw(st.lists(SLOTS, min_size=draw(st.integers(0, 1)), max_size=1)))
        if stored
        else (),
        retained_uid="o-uid" if origin == "retained" and not stored else None,
        start_blocked_by=draw(st.sampled_from([None, "no branch", "another container holds the lock"])),
        settings_outdated=draw(st.booleans()),
        passwords_differ=draw(st.booleans()),
        outdated_collations=draw(st.sampled_from([None, (), ("database app",)])) if stored else None,
    )
    if origin == "new" and not stored:
        done = draw(st.booleans())
        pod = draw(st.none() | pods(st.just(INITDB)))
        area = draw(st.booleans()) or (pod is not None)
        facts = replace(
            facts, initdb_pod=pod, initdb_done=done, pods=(), bound_slots=(INITDB,) if area else ()
        )
    branch = replace(
        branch,
        state=draw(st.sampled_from(["Running", "Stopped"])),
        annotations=dict.fromkeys(draw(st.sampled_from(REQUESTS)), RESTARTED_AT),
        node=BranchNode(slot=draw(st.none() | SLOTS)),
    )
    if draw(st.booleans()):
        branch = replace(branch, node=replace(branch.node, snapshot_time=RESTARTED_AT)) if stored else branch
    return Case(
        replace(project, state=draw(st.sampled_from(["Running", "Running", "Stopped"]))), branch, facts
    )


def reconcile(
    case: Case, facts: BranchFacts, cut: int | None = None, reached: set[str] | None = None
) -> tuple[BranchFacts, BranchPlan]:
    """Plan once and apply the first `cut` actions (None: all); add the steps to `reached`."""
    plan = plan_branch(case.project, case.branch, facts)
    reached = set() if reached is None else reached
    reached |= {*plan.steps}
    for action in plan.actions[:cut]:
        facts = apply(case.branch, facts, action)
        # A bind writes the settings, as their step does.
        reached |= {"settings"} if isinstance(action, Bind | WriteSettings) else set()
        assert len(facts.bound_slots) <= 1, "two binds of one branch"
        if case.branch.node.snapshot_time:
            assert not isinstance(action, TakeSnapshot | CreateInitdbArea), "created twice"
    return facts, plan


def run_kubelet(facts: BranchFacts) -> BranchFacts:
    """Return the facts after kubelet has started every pod that can run and removed every terminating one."""
    pods = (
        replace(p, running=not p.terminated, reason="" if not p.terminated else p.reason) for p in facts.pods
    )
    initdb = facts.initdb_pod
    if initdb and not initdb.terminated and not initdb.terminating:
        initdb = replace(initdb, running=True)
    progressed = progress_pods(replace(facts, pods=tuple(pods), initdb_pod=initdb))
    bound = any(pod.name in progressed.bound_slots for pod in progressed.pods)
    return replace(progressed, start_blocked_by=None if bound else progressed.start_blocked_by)


def reported(case: Case, plan: BranchPlan) -> Case:
    """Return the case once the status says what the plan found of Postgres."""
    node = replace(case.branch.node, postgres=plan.postgres or case.branch.node.postgres)
    return replace(case, branch=replace(case.branch, node=node))


# Bound in a pod that is still terminating while the next pod exists: the branch waits.
HANDED_OVER = Case(
    PROJECT,
    COPY,
    BranchFacts(
        True,
        ROOMY,
        marker(COPY),
        (PodFacts("slot-a", terminating=True, running=True), PodFacts("slot-b", running=True)),
        bound_slots=("slot-a",),
    ),
)


@settings(BUSY, max_examples=400)
@example(case=HANDED_OVER, cuts=[])
@given(case=cases(), cuts=st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=6))
def test_every_state_converges(case: Case, cuts: list[tuple[int, bool]]) -> None:
    """Reconciles are cut off anywhere, with or without kubelet in between; then a bounded number is complete.

    On the way every step is planned that was not done, but for a start that happens while another step waits.
    """
    facts = case.facts
    undone = undone_steps(case.project, case.branch, facts)
    reached: set[str] = set()
    for cut, between in cuts:
        facts, _ = reconcile(case, facts, cut, reached)
        facts = run_kubelet(facts) if between else facts
    for _ in range(RECONCILES):
        facts, plan = reconcile(case, facts, None, reached)
        facts, case = run_kubelet(facts), reported(case, plan)
    assert undone - {"start"} <= reached, undone - reached
    final, plan = reconcile(case, facts)
    assert plan.actions == () == plan.steps, (facts, plan)
    runs = case.branch.running and case.project.running
    assert final.marker is not None or (not runs and case.branch.is_root), facts
    if final.marker is not None:
        changed = Reason.IMAGE_CHANGED if case.facts.outdated_collations else Reason.ACCEPTING
        accepting = (changed, Reason.RESTART_PENDING) if runs else (Reason.STOPPED,)
        assert plan.postgres and plan.postgres.reason in accepting, (facts, plan)
        assert plan.storage.reason == Reason.STORED
        assert len(final.pods) == len(final.bound_slots) == int(runs), facts


@settings(BUSY)
@given(case=cases())
def test_a_plan_is_deterministic_and_its_actions_are_in_order(case: Case) -> None:
    """No pod gets a branch before it is stored, no slot is removed while its pod exists: `apply` asserts that."""
    plan = plan_branch(case.project, case.branch, case.facts)
    assert plan == plan_branch(case.project, case.branch, case.facts)
    reconcile(case, case.facts)


@settings(BUSY)
@given(case=cases())
def test_without_a_pool_nothing_starts_and_a_stopped_branch_stops(case: Case) -> None:
    facts = replace(case.facts, pool_mounted=False)
    for _ in range(RECONCILES):
        facts, plan = reconcile(case, facts)
        assert all(isinstance(action, DeletePod | RemoveSlot) for action in plan.actions)
        if case.branch.running and case.project.running:
            assert plan.actions == ()
            return
        facts = run_kubelet(facts)
    assert facts.pods == () == facts.bound_slots
