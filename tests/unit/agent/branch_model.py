"""A model of a node for tests of the branch's plan: what each action changes, and what kubelet changes."""

from __future__ import annotations

from dataclasses import replace

from dbranch.agent.branch.plan import (
    Action,
    Adopt,
    AwaitPostgres,
    Bind,
    BranchFacts,
    BranchPlan,
    Claim,
    CreateInitdbArea,
    CreateInitdbPod,
    CreatePod,
    DeletePod,
    PromoteInitdb,
    RemoveSlot,
    TakeSnapshot,
    plan_branch,
)
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


def apply(branch: Branch, facts: BranchFacts, action: Action) -> BranchFacts:
    """Return the facts after one action that succeeded."""
    pods = facts.pods
    match action:
        case DeletePod(pod):
            # The pod is terminating until kubelet has stopped it.
            if pod.name == INITDB:
                return replace(
                    facts, initdb_pod=facts.initdb_pod and replace(facts.initdb_pod, terminating=True)
                )
            changed = (replace(p, terminating=True) if p.name == pod.name else p for p in pods)
            return replace(facts, pods=tuple(changed))
        case RemoveSlot(slot):
            assert slot not in {p.name for p in pods}, "a slot is removed while its pod exists"
            return replace(facts, bound_slots=tuple(s for s in facts.bound_slots if s != slot))
        case CreateInitdbArea(slot):
            assert facts.marker is None and facts.initdb_pod is None
            return replace(facts, bound_slots=(*facts.bound_slots, slot), initdb_done=False)
        case CreateInitdbPod(slot):
            assert slot in facts.bound_slots
            return replace(facts, initdb_pod=PodFacts(slot, running=True))
        case PromoteInitdb():
            assert facts.initdb_pod is None and facts.initdb_done and INITDB not in facts.bound_slots
            return replace(facts, marker=marker(branch), initdb_done=False)
        case Claim(pod):
            assert not pods and pod in facts.warm_pods, "a second pod, or one that was not free"
            return replace(facts, pods=(replace(pod, running=True),), warm_pods=())
        case CreatePod(slot):
            assert not pods
            restarted_at = branch.annotations.get(names.RESTARTED_AT)
            return replace(facts, pods=(PodFacts(slot, running=True, restarted_at=restarted_at),))
        case TakeSnapshot():
            assert facts.marker is None
            return replace(facts, marker=marker(branch, cleaned=False))
        case Adopt():
            assert facts.marker is None
            return replace(facts, marker=marker(branch), retained_uid=None)
        case Bind(slot):
            assert facts.marker is not None and not facts.bound_slots, "two binds of one branch"
            assert slot in {p.name for p in pods}, "a bind without a pod"
            return replace(facts, bound_slots=(slot,))
        case AwaitPostgres():
            opened = marker(branch) if facts.marker else None
            return replace(facts, marker=opened, server_version="17.6")
        case _:
            return facts


def progress_pods(facts: BranchFacts) -> BranchFacts:
    """Return the facts after kubelet has removed terminating pods and the initdb pod has finished."""
    if facts.initdb_pod and facts.initdb_pod.terminating:
        facts = replace(facts, initdb_pod=None)
    if facts.initdb_pod and facts.initdb_pod.running:
        facts = replace(facts, initdb_pod=PodFacts(INITDB, terminated=True), initdb_done=True)
    pods = tuple(p for p in facts.pods if not p.terminating)
    alive = any(not p.terminated and p.name in facts.bound_slots for p in pods)
    return replace(facts, pods=pods, server_version=facts.server_version if alive else None)


def converge(
    project: Project, branch: Branch, facts: BranchFacts, reconciles: int = 12
) -> tuple[BranchFacts, BranchPlan]:
    """Plan and apply again and again; return the facts after that, and the last plan."""
    plan = plan_branch(project, branch, facts)
    for _ in range(reconciles):
        plan = plan_branch(project, branch, facts)
        for action in plan.actions:
            facts = apply(branch, facts, action)
        facts = progress_pods(facts)
    return facts, plan
