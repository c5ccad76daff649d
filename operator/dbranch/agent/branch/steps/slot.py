"""The branch has exactly one pod, which serves what the spec asks: a warm one that it claims, or a new one."""

from __future__ import annotations

from dataclasses import replace

from dbranch.agent.branch.actions import Action, Claim, CreatePod, DeletePod
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.pods import PodChoice, choose_pod
from dbranch.agent.branch.step import Planned, Step, runs
from dbranch.agent.slot.pod_status import PodFacts, pod_finding
from dbranch.agent.timing import PREVIOUS_POD_POLL_SECONDS, REJECTED_POD_RETRY_SECONDS
from dbranch.api import names
from dbranch.api.conditions import Condition, Finding, Reason


def _bound_elsewhere(pod: PodFacts, facts: BranchFacts) -> str | None:
    """Return the slot of another pod in which the branch is bound, if it is not bound in this pod's."""
    if pod.name in facts.bound_slots:
        return None
    return next(iter(facts.bound_slots), None)


def _done(desired: Desired, facts: BranchFacts) -> bool:
    choice = choose_pod(desired, facts)
    if choice.pod is None or choice.surplus or choice.terminated:
        return False
    return _bound_elsewhere(choice.pod, facts) is None


def _plan(desired: Desired, facts: BranchFacts) -> Planned:
    subject, choice = desired.subject, choose_pod(desired, facts)
    actions: tuple[Action, ...] = tuple(map(DeletePod, choice.surplus))
    if choice.terminated:
        rejected = choice.terminated[0]
        finding = pod_finding(rejected, subject) or Finding(
            Reason.POD_REJECTED, f"pod {rejected.name} has terminated"
        )
        return Planned(actions, finding=finding, retry_after=REJECTED_POD_RETRY_SECONDS)
    if choice.pod is None:
        return _plan_next_pod(desired, facts, choice, actions)
    slot, other_slot = choice.pod.name, _bound_elsewhere(choice.pod, facts)
    if other_slot:
        text = f"{subject} is still bound in slot {other_slot}; Postgres starts in {slot} after that"
        finding = Finding(Reason.WAITING_FOR_SLOT, text)
        return Planned(actions, finding=finding, requeue_after=PREVIOUS_POD_POLL_SECONDS)
    terminating = (replace(pod, terminating=True) if pod in choice.surplus else pod for pod in facts.pods)
    return Planned(actions, then=replace(facts, pods=tuple(terminating)))


def _plan_next_pod(
    desired: Desired, facts: BranchFacts, choice: PodChoice, actions: tuple[Action, ...]
) -> Planned:
    subject, branch = desired.subject, desired.branch
    if facts.pods:
        text = (
            f"{subject}: its previous pod {facts.pods[0].name} is still terminating; Postgres starts after it"
        )
        finding = Finding(Reason.WAITING_FOR_SLOT, text)
        return Planned(actions, finding=finding, requeue_after=PREVIOUS_POD_POLL_SECONDS)
    if facts.backoff_seconds.get(SLOT.name):
        reported = branch.node.postgres
        if reported is None or reported.reason != Reason.POD_REJECTED:
            reported = Finding(Reason.WAITING_FOR_SLOT, f"{subject}: its last pod failed; it is tried again")
        return Planned(actions, finding=reported, requeue_after=facts.backoff_seconds[SLOT.name])
    if facts.warm_pods:
        # Branches that are planned at the same moment choose different pods.
        warm_pod = min(facts.warm_pods, key=lambda pod: names.slot_name(branch.uid, pod.name))
        then = replace(facts, pods=(replace(warm_pod, running=True),), warm_pods=())
        return Planned((*actions, Claim(warm_pod)), then=then)
    slot = desired.next_slot
    # It serves the restart that was requested last.
    pod = PodFacts(slot, restarted_at=branch.annotations.get(names.RESTARTED_AT))
    return Planned((*actions, CreatePod(slot)), then=replace(facts, pods=(pod,)))


SLOT = Step("slot", Condition.POSTGRES_READY, runs, _done, _plan)
