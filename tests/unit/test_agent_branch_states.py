"""The agent's decision from generated states, cut off again and again: it ends in what was asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.unit.branch_model import COPY, INITDB, NEW, PROJECT, ROOMY, ROOT, apply, marker, world

from dbranch.agent.branch import plan
from dbranch.agent.branch.plan import BranchFacts, BranchPlan, plan_branch
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.api import names
from dbranch.api.branch import Branch, BranchNode
from dbranch.api.conditions import Reason
from dbranch.api.project import Project

# Visits that nothing cuts off: a pod that ends, one that is gone, a new one, its bind, its Postgres, and a look.
BOUND = 8
ASKED = "2026-01-01T00:00:00Z"
SLOTS = st.sampled_from(["slot-a", "slot-b", "slot-c"])
# What makes nothing that was not there.
HARMLESS = (plan.WriteSettings, plan.AwaitPostgres)


@dataclass(frozen=True)
class Case:
    project: Project
    branch: Branch
    facts: BranchFacts


def pods(slots: st.SearchStrategy[str]) -> st.SearchStrategy[PodFacts]:
    return st.builds(
        PodFacts,
        name=slots,
        # Another image or class than the present one, or its own.
        image=st.sampled_from(["", "", "old:17"]),
        slot_class=st.sampled_from(["", "", "another"]),
        restarted_at=st.sampled_from([ASKED, ASKED, None, "2025-01-01T00:00:00Z"]),
        terminating=st.booleans(),
        over=st.sampled_from([False, False, True]),
        running=st.booleans(),
        ready=st.booleans(),
        reason=st.sampled_from(["", "ContainerCreating", "ErrImagePull", "CrashLoopBackOff"]),
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A branch as an agent may find it that knows nothing of what was done before."""
    kind = draw(st.sampled_from(["new", "root", "copy", "retained"]))
    project = NEW if kind == "new" else PROJECT
    branch = ROOT if kind in ("new", "root") else COPY
    stored = kind == "root" or draw(st.booleans())
    facts = BranchFacts(
        pool_mounted=True,
        space=ROOMY,
        marker=marker(branch, cleaned=branch.is_root or draw(st.booleans())) if stored else None,
        pods=tuple(draw(st.lists(pods(SLOTS), max_size=3, unique_by=lambda pod: pod.name))),
        bound=tuple(draw(st.lists(SLOTS, min_size=draw(st.integers(0, 1)), max_size=1))) if stored else (),
        retained="o-uid" if kind == "retained" and not stored else None,
        refused=draw(st.sampled_from([None, "waiting", "another container holds the lock"])),
    )
    if kind == "new" and not stored:
        done = draw(st.booleans())
        pod = draw(st.none() | pods(st.just(INITDB)))
        area = draw(st.booleans()) or (pod is not None)
        facts = replace(facts, initdb=pod, initdb_done=done, pods=(), bound=(INITDB,) if area else ())
    branch = replace(
        branch,
        state=draw(st.sampled_from(["Running", "Stopped"])),
        annotations={names.RESTARTED_AT: ASKED} if draw(st.booleans()) else {},
        node=BranchNode(slot=draw(st.none() | SLOTS)),
    )
    if draw(st.booleans()):
        branch = replace(branch, node=replace(branch.node, snapshot_time=ASKED)) if stored else branch
    return Case(
        replace(project, state=draw(st.sampled_from(["Running", "Running", "Stopped"]))), branch, facts
    )


def visited(case: Case, facts: BranchFacts, cut: int | None = None) -> tuple[BranchFacts, BranchPlan]:
    """One visit, cut off after `cut` actions."""
    todo = plan_branch(case.project, case.branch, facts)
    for action in todo.actions[:cut]:
        facts = apply(case.branch, facts, action)
        assert len(facts.bound) <= 1, "two binds of one branch"
        if case.branch.node.snapshot_time:
            assert not isinstance(action, plan.TakeSnapshot | plan.CreateInitdbArea), "made twice"
    return facts, todo


def kubelet(facts: BranchFacts) -> BranchFacts:
    """Pods go their way: those that can run do, and whatever ends is gone."""
    going = (replace(p, running=not p.over, reason="" if not p.over else p.reason) for p in facts.pods)
    initdb = facts.initdb
    if initdb and not initdb.over and not initdb.terminating:
        initdb = replace(initdb, running=True)
    found = world(replace(facts, pods=tuple(going), initdb=initdb))
    bound = any(pod.name in found.bound for pod in found.pods)
    return replace(found, refused=None if bound else found.refused)


# Bound in a pod that is still ending, while the next one is there: it waits.
HANDED_OVER = Case(
    PROJECT,
    COPY,
    BranchFacts(
        True,
        ROOMY,
        marker(COPY),
        (PodFacts("slot-a", terminating=True, running=True), PodFacts("slot-b", running=True)),
        bound=("slot-a",),
    ),
)


@settings(max_examples=400, deadline=None)
@example(case=HANDED_OVER, cuts=[])
@given(case=cases(), cuts=st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=6))
def test_every_state_converges(case: Case, cuts: list[tuple[int, bool]]) -> None:
    """Visits that are cut off anywhere, kubelet coming between them or not; then a bounded number of whole ones."""
    facts = case.facts
    for cut, between in cuts:
        facts, _ = visited(case, facts, cut)
        facts = kubelet(facts) if between else facts
    for _ in range(BOUND):
        facts, _ = visited(case, facts)
        facts = kubelet(facts)
    ended, todo = visited(case, facts)
    assert all(isinstance(action, HARMLESS) for action in todo.actions), (facts, todo)
    runs = case.branch.running and case.project.running
    assert ended.marker is not None or (not runs and case.branch.is_root), facts
    if ended.marker is not None:
        accepting = (Reason.ACCEPTING, Reason.RESTART_PENDING) if runs else (Reason.STOPPED,)
        assert todo.postgres and todo.postgres.reason in accepting, (facts, todo)
        assert todo.storage.reason == Reason.STORED
        assert len(ended.pods) == len(ended.bound) == int(runs), facts


@given(case=cases())
def test_a_visit_is_the_same_twice_and_its_actions_are_in_order(case: Case) -> None:
    """The plan is pure; and no pod is bound before the branch is stored, no slot removed under its pod."""
    todo = plan_branch(case.project, case.branch, case.facts)
    assert todo == plan_branch(case.project, case.branch, case.facts)
    visited(case, case.facts)


@given(case=cases())
def test_without_its_pool_nothing_is_begun_and_what_is_to_rest_ends(case: Case) -> None:
    facts = replace(case.facts, pool_mounted=False)
    for _ in range(BOUND):
        facts, todo = visited(case, facts)
        assert all(isinstance(action, plan.DeletePod | plan.RemoveSlot) for action in todo.actions)
        if case.branch.running and case.project.running:
            assert todo.actions == ()
            return
        facts = kubelet(facts)
    assert facts.pods == () == facts.bound
