"""Write what an agent reports into `status.node` of a DBProject, DBBranch or DBSnapshot."""

from __future__ import annotations

from typing import Any

from dbranch.agent.status import changed_fields, drop_insignificant
from dbranch.api.branch import Branch
from dbranch.api.project import Project
from dbranch.api.snapshot import Snapshot
from dbranch.kube.client import Cluster
from dbranch.kube.status import patch_status


def patch_node(cluster: Cluster, item: Project | Branch | Snapshot, node: dict[str, Any]) -> None:
    """Write the fields of `node` that differ significantly from the object as read; None removes one."""
    current = item.status.get("node") or {}
    changed = changed_fields(current, drop_insignificant(current, node))
    if changed:
        patch_status(cluster, item, {"node": changed})
