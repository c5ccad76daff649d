"""Whether the data of a branch that is being deleted becomes a DBSnapshot. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.conditions import Finding, Reason
from dbranch.api.enums import SnapshotReason, Undo
from dbranch.api.errors import DbranchError
from dbranch.api.project import Project
from dbranch.controller.failure import refusal_message
from dbranch.controller.manifests import record_of_branch
from dbranch.controller.scheduling import NodeFacts, is_abandoned

Json = dict[str, Any]


def keeps_data(branch: Branch, project: Project | None, node: NodeFacts | None) -> bool:
    """Return True if a branch that is being deleted becomes a DBSnapshot.

    Not data that nobody could connect to (it may be half made), nor what is on a node that was given up, nor the
    branches of a project that is being deleted, whose pool is kept as a whole. An agent that is not Ready is waited
    for: only one that says what it can, and not this, is of an earlier release.
    """
    if project is None or project.deleting or branch.node_name is None:
        return False
    if node is None or is_abandoned(node, branch.annotations):
        return False
    if node.agent_ready and names.FEATURE_DELETION_COPIES not in node.features:
        return False
    is_whole = branch.node.opened and branch.node.snapshot_time is not None
    storage = branch.node.storage
    if not is_whole or (storage is not None and storage.reason == Reason.DATA_LOST):
        return False
    return branch.undo == Undo.KEEP or (branch.undo is None and project.undo.keeps)


def copy_name(branch: Branch) -> str:
    """Return the name of the DBSnapshot that gets the data of a branch: always the same one."""
    return names.deletion_copy_name(branch.object_name, branch.uid)


def copy_manifest(project: Project, branch: Branch, spec: Mapping[str, Any]) -> Json:
    """Return the DBSnapshot that gets the data of a branch; `spec`: the branch's, as the API server has it."""
    origin: Json = {
        "reason": SnapshotReason.DELETION.value,
        "branchUID": branch.uid,
        "branchSpec": dict(spec),
    }
    if branch.source_text:
        origin["source"] = branch.source_text
    return record_of_branch(project, branch, copy_name(branch), origin)


def is_copy_of(body: Mapping[str, Any], branch: Branch) -> bool:
    """Return True if a DBSnapshot is the one that this branch's deletion has made."""
    origin = body["spec"].get("origin") or {}
    return bool(origin.get("reason") == SnapshotReason.DELETION and origin.get("branchUID") == branch.uid)


def undo_refused_finding(branch: Branch, error: DbranchError) -> Finding:
    """Return the finding of DeletionBlocked of a branch whose DBSnapshot cannot be made."""
    subject = f"DBSnapshot {copy_name(branch)} cannot be made"
    advice = f"branch {branch.name} and its data stay; it is tried again; spec.undo: Discard lets it go"
    return Finding(Reason.UNDO_REFUSED, refusal_message(subject, str(error), advice))
