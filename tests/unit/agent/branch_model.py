"""A model of a node for tests of the branch's plan: what each action changes, and what kubelet changes."""

from __future__ import annotations

from dataclasses import replace

from dbranch.agent.branch.actions import (
    Action,
    Adopt,
    Bind,
    Claim,
    Clean,
    CreateInitdbArea,
    CreateInitdbPod,
    CreatePod,
    DeletePod,
    Open,
    PromoteInitdb,
    RecordImage,
    RemoveSlot,
    ResetAlterSystem,
    SetOwnVerifiers,
    SetPasswords,
    TakeRestore,
    TakeSnapshot,
    WriteSettings,
)
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.plan import BranchPlan, plan_branch
from dbranch.agent.branch.steps import STEPS
from dbranch.agent.branch.stopping import remove_slots
from dbranch.agent.pool.space import Space
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.volume.marker import FROM_BRANCH, FROM_INITDB, Marker, Origin, Role
from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.project import Project, ProjectNode

VERSION = "v1"
NEW = Project(
    "team", "shop", "p-uid", node_name="n1", password_version=VERSION, node=ProjectNode(pool_uuid="u")
)
PROJECT = replace(NEW, node=ProjectNode(pool_uuid="u", initialized=True))
ROOT = Branch("team", "shop-main", "r-uid", "shop", node_name="n1")
COPY = Branch("team", "shop-x", "x-uid", "shop", "main", node_name="n1", source_uid="r-uid")
ROOMY = Space(2**30, 2**29, 2**40, 2**39)
INITDB = "initdb-p-uid"
TAKEN = "2026-01-01T00:00:00Z"


def marker(branch: Branch, cleaned: bool = True) -> Marker:
    """Return the marker of a branch that has been stored; no password was set yet."""
    origin = Origin(FROM_BRANCH if branch.source_uid else FROM_INITDB, branch.source_uid, TAKEN)
    role = Role.ROOT if branch.is_root else Role.COPY
    return Marker("p-uid", branch.uid, role, origin, TAKEN, 17, cleaned, opened=branch.is_root)


def undone_steps(project: Project, branch: Branch, facts: BranchFacts) -> set[str]:
    """Return the steps that have to be planned before the branch runs (or, if it is to be stopped, is stored).

    Data that initdb made or that was retained needs no cleaning; what initdb made is open from its first start. Slots
    without a pod are removed before any step.
    """
    desired = Desired(project, branch)
    _, facts = remove_slots(facts)
    undone = {step.name for step in STEPS if step.needed(desired) and not step.done(desired, facts)}
    if facts.marker is None and branch.is_root:
        undone -= {"clean", "open"}
    if facts.marker is None and facts.retained_uid:
        undone -= {"clean"}
    return undone


def recorded(facts: BranchFacts, **fields: object) -> BranchFacts:
    """Return the facts after a change of the marker, which needs a Postgres that accepts connections."""
    assert facts.marker and facts.server_version and facts.live_pod
    assert facts.bound_slots == (facts.live_pod.name,)
    return replace(facts, marker=replace(facts.marker, **fields))  # type: ignore[arg-type]


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
        case TakeRestore():
            assert facts.marker is None
            return replace(facts, marker=marker(branch, cleaned=False))
        case Adopt():
            assert facts.marker is None
            return replace(facts, marker=marker(branch), retained_uid=None)
        case ResetAlterSystem(requested_at):
            assert facts.marker is not None and not facts.bound_slots, "a reset beside a Postgres"
            assert facts.marker.alter_system_reset != requested_at, "a second reset for one request"
            return replace(facts, marker=facts.marker.with_alter_system_reset(requested_at), altered=False)
        case Bind(slot):
            assert facts.marker is not None and not facts.bound_slots, "two binds of one branch"
            assert slot in {p.name for p in pods}, "a bind without a pod"
            return replace(facts, bound_slots=(slot,), settings_outdated=False)
        case Clean():
            return recorded(facts, cleaned=True)
        case SetPasswords():
            set_by_project = recorded(facts, password=VERSION, verifiers="", verifiers_of="")
            return replace(set_by_project, passwords_differ=False)
        case SetOwnVerifiers():
            assert facts.marker and facts.marker.password == VERSION, "own verifiers of other passwords"
            return recorded(facts, verifiers="own", verifiers_of=branch.uid)
        case WriteSettings():
            assert facts.marker is not None
            return replace(facts, settings_outdated=False, hba_closed=False)
        case RecordImage(_, digest):
            return replace(recorded(facts, image=digest), outdated_collations=None)
        case Open():
            assert facts.marker and facts.marker.cleaned, (
                "a copy is opened that still has what is its source's"
            )
            return recorded(facts, opened=True)


def progress_pods(facts: BranchFacts) -> BranchFacts:
    """Return the facts after pods have terminated, the initdb pod has finished, and Postgres has started."""
    if facts.initdb_pod and facts.initdb_pod.terminating:
        facts = replace(facts, initdb_pod=None)
    if facts.initdb_pod and facts.initdb_pod.running:
        facts = replace(facts, initdb_pod=PodFacts(INITDB, terminated=True), initdb_done=True)
    pods = tuple(p for p in facts.pods if not p.terminating)
    alive = any(p.running and not p.terminated and p.name in facts.bound_slots for p in pods)
    return replace(facts, pods=pods, server_version="17.6" if alive and not facts.start_blocked_by else None)


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
