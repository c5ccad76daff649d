"""Make the DBSnapshots that are records of deleted projects, and say in the projects until when they are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dbranch.api import names
from dbranch.api.conditions import Condition, Finding, Reason, find_condition
from dbranch.api.errors import NamespaceEnding, NameTaken, ObjectRefused
from dbranch.api.project import Project
from dbranch.api.snapshot import parse_snapshot
from dbranch.controller.conditions import held_deletion_status
from dbranch.controller.project.deletion import (
    deletion_record,
    is_record_of,
    keeps_project,
    record_binding,
    record_refused_finding,
)
from dbranch.controller.scheduling import NodeFacts
from dbranch.controller.undo_records import ensure_record
from dbranch.kube.client import Cluster, path_of
from dbranch.kube.status import patch_status
from dbranch.runtime.clock import now_rfc3339


class DeletionRecords:
    """Makes them before anything of a project is deleted, by names that are derived from the projects' UIDs."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def ensure(
        self,
        project: Project,
        node: NodeFacts | None,
        spec: Mapping[str, Any],
        branches: Sequence[Mapping[str, Any]],
    ) -> bool:
        """Make the record of a project that is kept; return False while it is refused, which the project then says.

        `spec`: the project's; `branches`: its DBBranches; both as the API server has them.
        """
        refused = self._refusal(project, node, spec, branches)
        self._report(project, refused)
        return refused is None

    def _refusal(
        self,
        project: Project,
        node: NodeFacts | None,
        spec: Mapping[str, Any],
        branches: Sequence[Mapping[str, Any]],
    ) -> Finding | None:
        if project.kept_until or not keeps_project(project, node):
            return None
        path = path_of(names.API_VERSION, names.SNAPSHOTS, project.namespace)
        snapshots = self._cluster.find(path, fields=f"spec.project={project.name}")
        record = deletion_record(project, spec, branches, snapshots)
        try:
            body = ensure_record(self._cluster, record, lambda body: is_record_of(body, project))
        except NamespaceEnding:
            # Nobody could bring it back.
            return None
        except (ObjectRefused, NameTaken) as error:
            return record_refused_finding(project, error)
        snapshot = parse_snapshot(body)
        if snapshot.expiration_time is None:
            binding = record_binding(project, snapshot, self._cluster.server_time())
            snapshot = parse_snapshot(patch_status(self._cluster, snapshot, binding))
        # From here on a later keep changes nothing, and the agent knows that the record exists.
        patch_status(self._cluster, project, {"keptUntil": snapshot.expiration_time})
        return None

    def _report(self, project: Project, refused: Finding | None) -> None:
        """Write the condition DeletionBlocked of a project whose record is refused; take it back once it is not."""
        if refused is not None:
            subject, now = f"project {project.name}", now_rfc3339()
            held = held_deletion_status(subject, refused, project.status, project.generation, now)
            if held:
                patch_status(self._cluster, project, held)
            return
        blocked = Finding.from_dict(find_condition(project.status, Condition.DELETION_BLOCKED))
        if blocked is not None and blocked.reason == Reason.UNDO_REFUSED:
            others = [c for c in project.status["conditions"] if c["type"] != Condition.DELETION_BLOCKED]
            patch_status(self._cluster, project, {"conditions": others})
