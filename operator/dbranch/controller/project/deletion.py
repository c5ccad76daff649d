"""The record of a project that is deleted and kept for a time: the objects of which it can be made again. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from dbranch.api import names
from dbranch.api.branch import parse_branch
from dbranch.api.conditions import Finding, Reason
from dbranch.api.enums import SnapshotReason, Undo
from dbranch.api.errors import DbranchError
from dbranch.api.expiry import format_time, parse_time, parse_ttl
from dbranch.api.project import Project, UndoPolicy
from dbranch.api.snapshot import Snapshot, parse_snapshot
from dbranch.controller.failure import refusal_message
from dbranch.controller.scheduling import NodeFacts, is_abandoned

Json = dict[str, Any]

# Characters of all objects in a record; etcd takes no object of more than 1.5 MiB.
_MAX_SIZE: Final = 1_000_000
# Of a DBSnapshot's spec: what somebody who is not dbranch may write.
_SNAPSHOT_FIELDS: Final = ("project", "branch", "ttl", "protection")


def keeps_project(project: Project, node: NodeFacts | None) -> bool:
    """Return True if the pool of a project that is being deleted is kept, so that it can be undeleted.

    Not one that never had a database, nor what is on a node that was given up. One that is retained by its
    deletionPolicy is kept anyway, and needs no record.
    """
    if project.keeps_pool or not project.undo.keeps or not project.node.initialized:
        return False
    if project.node_name is None or node is None or is_abandoned(node, project.annotations):
        return False
    return not node.agent_ready or names.FEATURE_PROJECT_UNDO in node.features


def record_name(project: Project) -> str:
    """Return the name of the DBSnapshot that is the record of the project's deletion: always the same one."""
    return names.deletion_copy_name(project.name, project.uid)


def deletion_record(
    project: Project,
    spec: Mapping[str, Any],
    branches: Iterable[Mapping[str, Any]],
    snapshots: Iterable[Mapping[str, Any]],
) -> Json:
    """Return the record: a DBSnapshot with the manifests that make the project again from its pool.

    `spec`: the project's; `branches`, `snapshots`: of the project, as the API server has them. It goes with nothing
    but its namespace and its time.
    """
    branches, made = list(branches), _snapshot_manifests(snapshots)
    remade = _branch_manifests(branches, {body["metadata"]["name"]: body["spec"]["branch"] for body in made})
    own = _manifest(names.PROJECT_KIND, project.name, {**spec, "storage": _adopting(project, spec)})
    objects = [own, *remade, *made]
    if len(json.dumps(objects)) > _MAX_SIZE:
        # Without their snapshots branches are adopted all the same.
        objects = [own, *_branch_manifests(branches, {})]
    labels = {
        names.LABEL_PROJECT: project.name,
        names.LABEL_ORIGIN: SnapshotReason.DELETION.value,
        names.LABEL_MANAGED_BY: "dbranch",
    }
    origin = {"reason": SnapshotReason.DELETION.value, "projectUID": project.uid, "objects": objects}
    meta = {"name": record_name(project), "namespace": project.namespace, "labels": labels}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.SNAPSHOT_KIND,
        "metadata": meta,
        "spec": {
            "project": project.name,
            "branch": names.ROOT_BRANCH,
            "ttl": project.undo.ttl,
            "origin": origin,
        },
    }


def is_record_of(body: Mapping[str, Any], project: Project) -> bool:
    """Return True if a DBSnapshot is the record of this project's deletion."""
    return parse_snapshot(body).origin_project_uid == project.uid


def record_binding(project: Project, record: Snapshot, now: datetime) -> Json:
    """Return the status of a record that is new: where the pool is, and until when it stays, which never changes.

    It is what says that the record was made here: one that is applied again, by a backup or Git, has none.
    """
    created = parse_time(record.created) or now
    kept = parse_ttl(record.ttl) or parse_ttl(UndoPolicy.keep)
    assert kept is not None
    return {"nodeName": project.node_name, "expirationTime": format_time(created + kept)}


def _adopting(project: Project, spec: Mapping[str, Any]) -> Json:
    return {**(spec.get("storage") or {}), "adopt": project.uid}


def _branch_manifests(bodies: Iterable[Mapping[str, Any]], snapshots: Mapping[str, str]) -> list[Json]:
    """Return those of the branches whose data is in the pool.

    `snapshots`: by name, of which branch those are that come back. What a branch was made from may not, and the
    snapshot of a branch waits for that: its data is adopted whatever it says.
    """
    branches = [(parse_branch(body), body) for body in bodies]
    stored = [
        (branch, body)
        for branch, body in branches
        if branch.node.snapshot_time is not None
        # One whose deletion came first is a snapshot by now, or gone.
        and not (branch.deleting and (branch.is_released or branch.undo == Undo.DISCARD))
    ]
    existing = {branch.name for branch, _ in stored}
    made = []
    for branch, body in stored:
        spec = dict(body["spec"])
        source, snapshot = spec.pop("source", None), spec.pop("sourceSnapshot", None)
        if snapshot is not None and snapshots.get(snapshot, branch.name) != branch.name:
            spec["sourceSnapshot"] = snapshot
        elif not branch.is_root:
            spec["source"] = source if source in existing else names.ROOT_BRANCH
        made.append(_manifest(names.BRANCH_KIND, branch.object_name, spec))
    return made


def _snapshot_manifests(bodies: Iterable[Mapping[str, Any]]) -> list[Json]:
    """Return those of the snapshots that are stored. What one was made for is history: it is a requested one now."""
    made = []
    for body in bodies:
        snapshot = parse_snapshot(body)
        if snapshot.node.stored:
            spec = {key: body["spec"][key] for key in _SNAPSHOT_FIELDS if key in body["spec"]}
            made.append(_manifest(names.SNAPSHOT_KIND, snapshot.object_name, spec))
    return made


def _manifest(kind: str, name: str, spec: Mapping[str, Any]) -> Json:
    return {
        "apiVersion": names.API_VERSION,
        "kind": kind,
        "metadata": {"name": name},
        "spec": dict(spec),
    }


def record_refused_finding(project: Project, error: DbranchError) -> Finding:
    """Return the finding of DeletionBlocked of a project of whose deletion no record can be made."""
    subject = f"DBSnapshot {record_name(project)} cannot be made"
    advice = f"project {project.name} and its data stay; it is tried again; spec.undo.keep: 0s lets it go"
    return Finding(Reason.UNDO_REFUSED, refusal_message(subject, str(error), advice))
