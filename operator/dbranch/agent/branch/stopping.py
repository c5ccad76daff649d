"""Slots without a pod are removed; a branch that is to be stopped loses its pods, then its slots. Pure."""

from __future__ import annotations

from dataclasses import replace

from dbranch.agent.branch.actions import Action, DeletePod, RemoveSlot
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.api.conditions import Finding, Reason
from dbranch.api.quantity import format_bytes


def remove_slots(facts: BranchFacts) -> tuple[tuple[RemoveSlot, ...], BranchFacts]:
    """Return the removals of bound slots whose pods are gone, and the facts after them."""
    pod_names = {pod.name for pod in facts.pods}
    surplus = [slot for slot in facts.bound_slots if slot not in pod_names]
    kept = tuple(slot for slot in facts.bound_slots if slot in pod_names)
    return tuple(map(RemoveSlot, surplus)), replace(facts, bound_slots=kept) if surplus else facts


def delete_pods(facts: BranchFacts) -> tuple[Action, ...]:
    """Return the deletions of all pods of the branch."""
    return tuple(DeletePod(pod) for pod in facts.pods if not pod.terminating)


def stopped_finding(desired: Desired) -> Finding:
    """Return what is said about the Postgres of a stopped branch."""
    text = f"{desired.subject} is stopped; its data stays; set spec.state to Running to start it"
    return Finding(Reason.STOPPED, text)


def writer_stopped_finding(desired: Desired, facts: BranchFacts) -> Finding:
    """Return what is said about the Postgres of a branch that was stopped since it fills the node's disk."""
    text = (
        f"{desired.subject}: the node's disk is almost full and this branch went on filling it; Postgres is stopped "
        f"until {format_bytes(facts.space.watermarks.warn)} are free; delete branches or free space on the node"
    )
    return Finding(Reason.WRITER_STOPPED, text)


def storage_without_pool(desired: Desired) -> Finding:
    """Return what is said about the storage of a stopped branch whose pool is not mounted."""
    reported = desired.branch.node.storage
    return reported if reported and reported.reason == Reason.STORED else stopped_finding(desired)
