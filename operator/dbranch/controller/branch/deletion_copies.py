"""Make the DBSnapshots that get the data of branches that are being deleted."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from dbranch.api.branch import Branch, DeletionCopy
from dbranch.api.conditions import Finding
from dbranch.api.errors import NamespaceEnding, NameTaken, ObjectRefused
from dbranch.api.project import Project
from dbranch.api.snapshot import parse_snapshot
from dbranch.controller.branch.deletion import copy_manifest, is_copy_of, undo_refused_finding
from dbranch.controller.undo_records import ensure_record
from dbranch.kube.client import Cluster
from dbranch.kube.status import patch_status

logger = logging.getLogger(__name__)


class DeletionCopies:
    """Makes them by names that are derived from the branches' UIDs, so that none is made twice."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def ensure(
        self, branch: Branch, project: Project, spec: Mapping[str, Any]
    ) -> DeletionCopy | Finding | None:
        """Make the DBSnapshot, bound to the branch and its node; return it, or why it is refused.

        None if there will be none: the namespace is being deleted, where nothing can be made, or somebody has deleted
        it. `spec`: the branch's, as the API server has it.
        """
        try:
            body = ensure_record(
                self._cluster, copy_manifest(project, branch, spec), lambda body: is_copy_of(body, branch)
            )
        except NamespaceEnding:
            return None
        except (ObjectRefused, NameTaken) as error:
            return undo_refused_finding(branch, error)
        snapshot = parse_snapshot(body)
        if snapshot.deleting:
            return None
        binding = {"nodeName": branch.node_name, "branchUID": branch.uid}
        if any(snapshot.status.get(key) != value for key, value in binding.items()):
            # Before the branch is let go of: behind that nothing says to whom the data belongs.
            patch_status(self._cluster, snapshot, binding)
        return DeletionCopy(snapshot.object_name, snapshot.uid)
