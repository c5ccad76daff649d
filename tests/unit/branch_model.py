"""A node as the branch's planner sees it: what each action makes of the facts, and what happens by itself."""

from __future__ import annotations

from dataclasses import replace

from dbranch.agent.branch import plan
from dbranch.agent.branch.plan import BranchFacts, BranchPlan, plan_branch
from dbranch.agent.pool.space import Space
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.volume.marker import FROM_BRANCH, FROM_INITDB, Marker, Origin, Role
from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.project import Project, ProjectNode

PROJECT = Project("team", "shop", "p-uid", node_name="n1", node=ProjectNode(pool_uuid="u", initialized=True))
NEW = Project("team", "shop", "p-uid", node_name="n1", node=ProjectNode(pool_uuid="u"))
ROOT = Branch("team", "shop-main", "r-uid", "shop", node_name="n1")
COPY = Branch("team", "shop-x", "x-uid", "shop", "main", node_name="n1", source_uid="r-uid")
ROOMY = Space(2**30, 2**29, 2**40, 2**39)
INITDB = "initdb-p-uid"
TAKEN = "2026-01-01T00:00:00Z"


def marker(branch: Branch, cleaned: bool = True) -> Marker:
    origin = Origin(FROM_BRANCH if branch.source_uid else FROM_INITDB, branch.source_uid, TAKEN)
    role = Role.ROOT if branch.is_root else Role.COPY
    return Marker("p-uid", branch.uid, role, origin, TAKEN, 17, cleaned)


def apply(branch: Branch, facts: BranchFacts, action: plan.Action) -> BranchFacts:
    """What a node is like after one action that succeeded."""
    pods = facts.pods
    match action:
        case plan.DeletePod(pod):
            # Its end is asked for; it is gone when kubelet says so.
            if pod.name == INITDB:
                return replace(facts, initdb=facts.initdb and replace(facts.initdb, terminating=True))
            ended = (replace(p, terminating=True) if p.name == pod.name else p for p in pods)
            return replace(facts, pods=tuple(ended))
        case plan.RemoveSlot(slot):
            assert slot not in {p.name for p in pods}, "a slot is removed under its pod"
            return replace(facts, bound=tuple(s for s in facts.bound if s != slot))
        case plan.CreateInitdbArea(slot):
            assert facts.marker is None and facts.initdb is None
            return replace(facts, bound=(*facts.bound, slot), initdb_done=False)
        case plan.CreateInitdbPod(slot):
            assert slot in facts.bound
            return replace(facts, initdb=PodFacts(slot, running=True))
        case plan.PromoteInitdb():
            assert facts.initdb is None and facts.initdb_done and INITDB not in facts.bound
            return replace(facts, marker=marker(branch), initdb_done=False)
        case plan.Claim(pod):
            assert not pods and pod in facts.waiting, "a second pod, or one that was not free"
            return replace(facts, pods=(replace(pod, running=True),), waiting=())
        case plan.CreatePod(slot):
            assert not pods
            asked = branch.annotations.get(names.RESTARTED_AT)
            return replace(facts, pods=(PodFacts(slot, running=True, restarted_at=asked),))
        case plan.TakeSnapshot():
            assert facts.marker is None
            return replace(facts, marker=marker(branch, cleaned=False))
        case plan.Adopt():
            assert facts.marker is None
            return replace(facts, marker=marker(branch), retained=None)
        case plan.Bind(slot):
            assert facts.marker is not None and not facts.bound, "two binds of one branch"
            assert slot in {p.name for p in pods}, "a bind without a pod"
            return replace(facts, bound=(slot,))
        case plan.AwaitPostgres():
            opened = marker(branch) if facts.marker else None
            return replace(facts, marker=opened, accepting="17.6")
        case _:
            return facts


def world(facts: BranchFacts) -> BranchFacts:
    """What happens by itself between two visits."""
    if facts.initdb and facts.initdb.terminating:
        facts = replace(facts, initdb=None)
    if facts.initdb and facts.initdb.running:
        facts = replace(facts, initdb=PodFacts(INITDB, over=True), initdb_done=True)
    pods = tuple(p for p in facts.pods if not p.terminating)
    alive = any(not p.over and p.name in facts.bound for p in pods)
    return replace(facts, pods=pods, accepting=facts.accepting if alive else None)


def converge(
    project: Project, branch: Branch, facts: BranchFacts, visits: int = 12
) -> tuple[BranchFacts, BranchPlan]:
    todo = plan_branch(project, branch, facts)
    for _ in range(visits):
        todo = plan_branch(project, branch, facts)
        for action in todo.actions:
            facts = apply(branch, facts, action)
        facts = world(facts)
    return facts, todo
