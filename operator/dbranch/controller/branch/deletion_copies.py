"""Make the DBSnapshots that get the data of branches that are being deleted."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from dbranch.api import names
from dbranch.api.branch import Branch, DeletionCopy
from dbranch.api.conditions import Finding
from dbranch.api.errors import ApiError, NameTaken
from dbranch.api.project import Project
from dbranch.api.snapshot import parse_snapshot
from dbranch.controller.branch.deletion import copy_manifest, is_copy_of, undo_refused_finding
from dbranch.controller.failure import is_refusal
from dbranch.kube.client import Cluster, path_of, snapshot_path
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
        manifest = copy_manifest(project, branch, spec)
        name = manifest["metadata"]["name"]
        collection = path_of(names.API_VERSION, names.SNAPSHOTS, branch.namespace)
        try:
            body = self._cluster.create(collection, manifest)
        except ApiError as error:
            if error.reason == "AlreadyExists":
                existing = self._cluster.get(snapshot_path(branch.namespace, name))
                if existing is None:
                    raise
                if not is_copy_of(existing, branch):
                    return undo_refused_finding(branch, NameTaken("another snapshot has its name"))
                body = existing
            elif not is_refusal(error):
                raise
            elif self._is_namespace_going(branch.namespace):
                return None
            else:
                return undo_refused_finding(branch, error)
        snapshot = parse_snapshot(body)
        if snapshot.deleting:
            return None
        binding = {"nodeName": branch.node_name, "branchUID": branch.uid}
        if any(snapshot.status.get(key) != value for key, value in binding.items()):
            # Before the branch is let go of: behind that nothing says to whom the data belongs.
            patch_status(self._cluster, snapshot, binding)
        return DeletionCopy(name, snapshot.uid)

    def _is_namespace_going(self, namespace: str) -> bool:
        body = self._cluster.get(path_of("v1", "namespaces", name=namespace))
        return body is None or bool(body["metadata"].get("deletionTimestamp"))
