"""Plan the actions that bring a branch towards its spec, and the findings for its status. Pure.

The table of steps (`agent/branch/steps/`) is walked from its first step that is needed and not done, and on as long
as the facts that follow from the actions say that the next step can start. So a new branch with a free warm slot is
claimed, stored and bound in one reconcile, and a Postgres that accepts is cleaned and opened in one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from dbranch.agent.branch.actions import Action, Claim, CreatePod, DeletePod
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.guards import blocking_finding
from dbranch.agent.branch.pods import has_other_class
from dbranch.agent.branch.steps import STEPS
from dbranch.agent.branch.steps.origins import origin_of
from dbranch.agent.branch.stopping import (
    delete_pods,
    remove_slots,
    stopped_finding,
    storage_without_pool,
    writer_stopped_finding,
)
from dbranch.agent.slot.image_ref import digest_of, short
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.timing import NO_CHECKPOINT_GRACE_SECONDS
from dbranch.agent.volume.brake import Brake
from dbranch.api.branch import Branch
from dbranch.api.conditions import MESSAGE_LIMIT, Condition, Finding, Reason
from dbranch.api.project import Project
from dbranch.api.quantity import format_bytes

# How many settings the message of RestartPending names.
_SHOWN_SETTINGS: Final = 5


@dataclass(frozen=True)
class BranchPlan:
    """Actions in order, and the findings about storage and Postgres once they are done.

    `postgres` None: the status keeps what it says. `steps`: the names of the steps that were planned. `awaits`: the
    slot whose Postgres is waited for. `requeue_after`: seconds after which to reconcile again, if no event will
    come. `retry_after`: the same after a failure; failures that repeat are retried less and less often. `complete`:
    no step is left once the actions are done.
    """

    actions: tuple[Action, ...]
    storage: Finding
    postgres: Finding | None = None
    steps: tuple[str, ...] = ()
    awaits: str | None = None
    requeue_after: float | None = None
    retry_after: float | None = None
    complete: bool = False


def plan_branch(project: Project, branch: Branch, facts: BranchFacts) -> BranchPlan:
    """Plan towards a branch that is stored and, if it should run, runs in exactly one slot."""
    desired = Desired(project, branch)
    blocked = blocking_finding(desired, facts)
    if blocked:
        stops = blocked.reason == Reason.STORAGE_UNCLEAR and not desired.runs
        return _stop(desired, facts, BranchPlan((), blocked)) if stops else BranchPlan((), blocked)
    if not facts.pool_mounted and not desired.runs:
        # Also stop what runs on a lost pool: then the pool can be detached.
        return _stop(desired, facts, BranchPlan((), storage_without_pool(desired)))
    if facts.pool_mounted and facts.marker is None and origin_of(desired, facts).runs_pod:
        return plan_steps(desired, facts)
    if not desired.runs:
        return _stop(desired, facts, plan_steps(desired, facts))
    if facts.brake is Brake.STOPPED and facts.marker:
        plan = BranchPlan((), _stored_finding(desired))
        return replace(_stop(desired, facts, plan), postgres=writer_stopped_finding(desired, facts))
    removals, facts = remove_slots(facts) if facts.pool_mounted else ((), facts)
    plan = plan_steps(desired, facts)
    return replace(plan, actions=(*removals, *_delete_strays(desired, facts), *plan.actions))


def _delete_strays(desired: Desired, facts: BranchFacts) -> tuple[Action, ...]:
    """Return the deletions of pods of a restore of which nothing else is left."""
    if desired.branch.restore or desired.branch.node.restore or not facts.pool_mounted:
        return ()
    return tuple(
        DeletePod(pod, NO_CHECKPOINT_GRACE_SECONDS) for pod in facts.stray_pods if not pod.terminating
    )


def plan_steps(desired: Desired, facts: BranchFacts) -> BranchPlan:
    """Plan the steps that are needed and not done, up to the first one behind which has to be waited."""
    actions: list[Action] = []
    names: list[str] = []
    requeue_after: float | None = None
    for step in STEPS:
        if not step.needed(desired) or step.done(desired, facts):
            continue
        planned = step.plan(desired, facts)
        names.append(step.name)
        actions += planned.actions
        if planned.then is None:
            assert planned.finding is not None, (
                f"step {step.name} says neither what follows nor what it waits for"
            )
            is_storage = step.condition is Condition.STORAGE_READY
            return BranchPlan(
                actions=_pods_first(actions),
                storage=planned.finding if is_storage else _stored_finding(desired),
                postgres=planned.postgres if is_storage else planned.finding,
                steps=tuple(names),
                awaits=planned.awaits,
                requeue_after=planned.requeue_after,
                retry_after=planned.retry_after,
            )
        facts, requeue_after = planned.then, planned.requeue_after or requeue_after
    postgres = _accepting_finding(desired, facts) if desired.runs else None
    plan = BranchPlan(_pods_first(actions), _stored_finding(desired), postgres, tuple(names))
    return replace(plan, requeue_after=requeue_after, complete=True)


def _pods_first(actions: list[Action]) -> tuple[Action, ...]:
    """Return the actions, those first that make a pod start: it starts while the agent stores the branch."""
    return tuple(sorted(actions, key=lambda action: not isinstance(action, Claim | CreatePod)))


def _stop(desired: Desired, facts: BranchFacts, plan: BranchPlan) -> BranchPlan:
    """Return the plan of a branch that is to be stopped: `plan`, which concerns its storage, and no pod or slot."""
    removals, _ = remove_slots(facts)
    actions = (*removals, *plan.actions, *delete_pods(facts))
    return replace(plan, actions=actions, postgres=stopped_finding(desired))


def _stored_finding(desired: Desired) -> Finding:
    text = f"{desired.subject} is stored in the pool of project {desired.project.name}"
    return Finding(Reason.STORED, text)


def _image_finding(desired: Desired, facts: BranchFacts, pod: PodFacts) -> Finding | None:
    """Return the finding if the pod runs another image than was meant, or one that sorts the data otherwise."""
    project, subject = desired.project, desired.subject
    digest, meant = digest_of(pod.image_id), digest_of(desired.slot_class.image_id)
    is_meant = not meant or digest in ("", meant) or has_other_class(pod, desired)
    collations = facts.outdated_collations or ()
    if is_meant and not collations:
        return None
    old = meant if not is_meant else facts.marker.image if facts.marker else ""
    fact = f"{subject} runs {short(digest)} as image {project.postgres.image}, not {short(old)}; "
    if not collations:
        advice = "no collation differs; set spec.postgres.image to what is meant"
        return Finding(Reason.IMAGE_CHANGED, f"{fact}{advice}")
    advice = "; REINDEX what they order, then ALTER DATABASE or COLLATION … REFRESH VERSION"
    room = MESSAGE_LIMIT - len(advice) - len("text is sorted otherwise by ")
    shown = ", ".join(collations)
    room -= min(len(fact), room // 2)
    shown = shown if len(shown) <= room else f"{shown[: room - 1]}…"
    text = f"text is sorted otherwise by {shown}{advice}"
    return Finding(Reason.IMAGE_CHANGED, f"{fact[: MESSAGE_LIMIT - len(text)]}{text}")


def _rejected_finding(desired: Desired, facts: BranchFacts) -> Finding:
    """Return which settings Postgres does not take; the advice is a restart only if that helps by itself."""
    by_reset = all(setting.altered for setting in facts.rejected_settings)
    advice = f"run {desired.reset_command}" if by_reset else "correct spec.postgres.parameters"
    fact, effect = (
        f"Postgres of {desired.subject} does not take ",
        "; it runs on and would not start with that; ",
    )
    shown = ", ".join(setting.text for setting in facts.rejected_settings)
    room = MESSAGE_LIMIT - len(fact) - len(effect) - len(advice)
    shown = shown if len(shown) <= room else f"{shown[: room - 1]}…"
    return Finding(Reason.SETTINGS_REJECTED, f"{fact}{shown}{effect}{advice}")


def _accepting_finding(desired: Desired, facts: BranchFacts) -> Finding:
    branch, subject = desired.branch, desired.subject
    if facts.missing_role:
        text = (
            f"{subject} has no role {facts.missing_role}, which spec.postgres.user names; its connection string does "
            f"not answer; create the role: dbranch psql {branch.name} --superuser"
        )
        return Finding(Reason.ROLE_NOT_FOUND, text)
    if facts.rejected_settings:
        return _rejected_finding(desired, facts)
    if facts.brake:
        text = (
            f"{subject} accepts connections; its transactions are read-only: the node's disk is almost full and this "
            f"branch fills it; lifted once {format_bytes(facts.space.watermarks.refuse)} are free; "
            "delete branches or free space on the node"
        )
        return Finding(Reason.WRITES_BRAKED, text)
    pending, pod = list(facts.pending_settings), facts.live_pod
    changed = _image_finding(desired, facts, pod) if pod else None
    if changed:
        return changed
    if pod and has_other_class(pod, desired):
        pending.append("resources" if desired.slot_class.has_image_of(pod) else "image")
    if pending:
        shown = ", ".join(pending[:_SHOWN_SETTINGS])
        if len(pending) > _SHOWN_SETTINGS:
            shown += f" and {len(pending) - _SHOWN_SETTINGS} more"
        text = (
            f"{subject} runs without its new {shown}; they take effect at its next start; "
            f"run dbranch restart {branch.name}"
        )
        return Finding(Reason.RESTART_PENDING, text)
    return Finding(Reason.ACCEPTING, f"Postgres {facts.server_version} of {subject} accepts connections")
