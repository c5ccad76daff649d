"""What keeps every step from being planned: data of a newer release, data that is lost. Pure."""

from __future__ import annotations

from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.api.conditions import Finding, Reason


def blocking_finding(desired: Desired, facts: BranchFacts) -> Finding | None:
    """Return why nothing may be created or changed for this branch; None if nothing forbids it."""
    if not facts.pool_mounted:
        return None
    if facts.newer:
        text = (
            f"{desired.subject} was written by a newer release of dbranch ({facts.newer}); nothing is touched; "
            f"upgrade the agent of node {desired.project.node_name}"
        )
        return Finding(Reason.STORAGE_UNCLEAR, text)
    if facts.marker is None and desired.branch.node.snapshot_time:
        text = (
            f"{desired.subject} was stored and its subvolume is gone; it is not created again; "
            "check the node's disk"
        )
        return Finding(Reason.DATA_LOST, text)
    return None
