"""The controller's reconciles of a snapshot: observe, plan, effect, report; its expiry, and its deletion."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Final

from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.conditions import WARNING_REASONS, Condition, find_condition
from dbranch.api.project import parse_project
from dbranch.api.restore import Restore, parse_restore
from dbranch.api.snapshot import Snapshot, parse_snapshot
from dbranch.controller import timing
from dbranch.controller.branch.sources import Sources
from dbranch.controller.cache import Cache
from dbranch.controller.event_requests import EventRequests
from dbranch.controller.events import EXPIRED, EXPIRING
from dbranch.controller.failure import failure_finding
from dbranch.controller.finalizers import release_if_abandoned
from dbranch.controller.limits import Limits
from dbranch.controller.metrics import ControllerMetrics
from dbranch.controller.snapshot.plan import (
    FINAL_REASONS,
    SnapshotBinding,
    SnapshotFacts,
    SnapshotPlan,
    deletion_status,
    failure_status,
    has_no_maker,
    is_expired,
    labels_of,
    needs_binding,
    plan_snapshot,
)
from dbranch.controller.snapshot_records import SnapshotRecords, record_of
from dbranch.kube.client import Cluster, Json, branch_path, object_path, path_of, project_path, snapshot_path
from dbranch.kube.status import patch_status
from dbranch.runtime.clock import seconds_since
from dbranch.runtime.finalizers import remove_finalizer
from dbranch.runtime.locks import KeyedLocks
from dbranch.runtime.result import AT_REST, GONE, Result

logger = logging.getLogger(__name__)

# Called with the snapshot, and the Event's type (Normal or Warning), reason and message.
EmitSnapshotEvent = Callable[[Snapshot, str, str, str], None]
# A branch or project may have the same name; they do not wait for each other.
_LOCK_PREFIX: Final = "snapshot/"
# The lock under which the snapshots of a project are counted and bound.
_COUNT_PREFIX: Final = "snapshots-of/"


class SnapshotReconciler:
    """Reconciles snapshots. `sources`: who has been let go of, as the branches' reconciler says."""

    def __init__(
        self,
        cluster: Cluster,
        locks: KeyedLocks,
        metrics: ControllerMetrics,
        sources: Sources,
        records: SnapshotRecords,
        limits: Limits | None = None,
        emit_event: EmitSnapshotEvent | None = None,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self._cluster, self._locks, self._metrics = cluster, locks, metrics
        self._sources, self._records, self._limits = sources, records, limits or Limits()
        # What asks for a snapshot's reconcile is no handler of kopf's.
        self._emit_event = emit_event or EventRequests(cluster)
        self._clock = clock or cluster.server_time

    def reconcile(self, namespace: str, name: str, cache: Cache) -> Result:
        """Reconcile a snapshot, also one that is being deleted or has to be."""
        with (
            self._locks.held(namespace, _LOCK_PREFIX + name),
            self._metrics.reconcile(names.SNAPSHOT_KIND),
        ):
            body = self._cluster.get(snapshot_path(namespace, name))
            if body is None:
                return GONE
            snapshot = parse_snapshot(body)
            if snapshot.deleting:
                return self._remove(snapshot, cache)
            if has_no_maker(*self._maker_of(snapshot, cache)):
                return self._delete_without_maker(snapshot)
            if is_expired(snapshot, self._clock()):
                return self._expire(snapshot)
            if not needs_binding(snapshot):
                plan = plan_snapshot(self._observe(snapshot, cache), self._clock())
                return self._report(snapshot, plan)
            with self._locks.held(namespace, _COUNT_PREFIX + snapshot.project):
                plan = plan_snapshot(self._observe(snapshot, cache), self._clock())
                if plan.binding is None:
                    return self._report(snapshot, plan)
                with self._sources.held(plan.binding.branch_uid) as may_be_used:
                    if not may_be_used:
                        # The cache still has the branch.
                        return Result(timing.SOURCE_GONE_RETRY_SECONDS)
                    snapshot = self._label(snapshot, plan.binding)
                    result = self._report(snapshot, plan)
            return result

    def _observe(self, snapshot: Snapshot, cache: Cache) -> SnapshotFacts:
        body = self._cluster.get(project_path(snapshot.namespace, snapshot.project))
        project = parse_project(body) if body else None
        branches = cache.branches_of(snapshot.namespace, snapshot.project)
        node = snapshot.node_name or (project.node_name if project else None)
        return SnapshotFacts(
            snapshot,
            project,
            next((branch for branch in branches if branch.name == snapshot.branch), None),
            cache.node(node) if node else None,
            [
                record.snapshot
                for record in cache.snapshots.of_project(snapshot.namespace, snapshot.project)
                if not record.snapshot.origin_project_uid
            ],
            self._limits.of(snapshot.namespace),
            cache.restores.is_unfinished(snapshot.restore_uid),
        )

    def _maker_of(self, snapshot: Snapshot, cache: Cache) -> tuple[Snapshot, Branch | None, Restore | None]:
        """Return what says whether a restore still leaves its data in the snapshot."""
        branches = cache.branches_of(snapshot.namespace, snapshot.project)
        branch = next((branch for branch in branches if branch.name == snapshot.branch), None)
        return snapshot, branch, cache.restores.of_uid(snapshot.restore_uid)

    def _delete_without_maker(self, snapshot: Snapshot) -> Result:
        """Delete a snapshot that no restore leaves its data in, if that is so uncached, too."""
        name = names.branch_object_name(snapshot.project, snapshot.branch)
        path = path_of(names.API_VERSION, names.RESTORES, snapshot.namespace)
        restores = map(parse_restore, self._cluster.find(path, fields=f"spec.project={snapshot.project}"))
        restore = next((r for r in restores if r.uid == snapshot.restore_uid), None)
        body = self._cluster.get(branch_path(snapshot.namespace, name))
        if not has_no_maker(snapshot, parse_branch(body) if body else None, restore):
            # The cache will have it in a moment.
            return Result(timing.SOURCE_GONE_RETRY_SECONDS)
        logger.info("snapshot %s/%s: its restore is gone", snapshot.namespace, snapshot.object_name)
        version = snapshot.resource_version
        self._cluster.delete(object_path(snapshot), uid=snapshot.uid, version=version)
        return Result(timing.SOURCE_GONE_RETRY_SECONDS)

    def _label(self, snapshot: Snapshot, binding: SnapshotBinding) -> Snapshot:
        """Write the labels and the agent's finalizer: it has to be there before the agent makes anything."""
        labels = labels_of(snapshot, binding)
        finalizers = list(dict.fromkeys((*snapshot.finalizers, names.AGENT_FINALIZER)))
        is_labelled = all(snapshot.labels.get(key) == value for key, value in labels.items())
        if is_labelled and names.AGENT_FINALIZER in snapshot.finalizers:
            return snapshot
        meta: Json = {
            "resourceVersion": snapshot.resource_version,
            "labels": labels,
            "finalizers": finalizers,
        }
        return parse_snapshot(self._cluster.merge(object_path(snapshot), {"metadata": meta}))

    def _report(self, snapshot: Snapshot, plan: SnapshotPlan) -> Result:
        """Write the status fields that differ; return when to reconcile again without an event."""
        changes = plan.changes(snapshot.status)
        if changes:
            body = patch_status(self._cluster, snapshot, changes)
            # Who is counted next counts this one.
            self._records.put(record_of(body))
            self._emit_changes(snapshot, parse_snapshot(body), plan)
        if plan.ready.done or plan.ready.reason in FINAL_REASONS:
            return AT_REST
        return Result(timing.UNREADY_RESYNC_SECONDS, unfinished=True)

    def _emit_changes(self, before: Snapshot, after: Snapshot, plan: SnapshotPlan) -> None:
        """Emit an Event about what has gone wrong newly, and about an expiry that has become earlier."""
        ready, previous = plan.ready, find_condition(before.status, Condition.READY)
        if ready.reason in WARNING_REASONS and (previous or {}).get("reason") != ready.reason.value:
            self._emit_event(after, "Warning", ready.reason.value, ready.message)
        if plan.expires_sooner:
            text = f"snapshot {after.name} is deleted at {after.expiration_time}; set spec.ttl to Never to keep it"
            self._emit_event(after, "Normal", EXPIRING, text)

    def _expire(self, snapshot: Snapshot) -> Result:
        """Delete the snapshot as it was read: a write in the same second wins."""
        logger.info("snapshot %s/%s: its time has come", snapshot.namespace, snapshot.object_name)
        path = object_path(snapshot)
        self._cluster.delete(path, uid=snapshot.uid, version=snapshot.resource_version)
        body = self._cluster.get(path)
        if body is None or body["metadata"].get("deletionTimestamp"):
            text = f"snapshot {snapshot.name} of branch {snapshot.branch} is deleted: its ttl {snapshot.ttl} is over"
            self._emit_event(snapshot, "Normal", EXPIRED, text)
            return AT_REST
        return Result(timing.EXPIRED_RETRY_SECONDS, unfinished=True)

    def _remove(self, snapshot: Snapshot, cache: Cache) -> Result:
        """Let the agent remove the data, and report it if that takes its time."""
        node = cache.node(snapshot.node_name) if snapshot.node_name else None
        release_if_abandoned(self._cluster, snapshot, node)
        if snapshot.node_name is None:
            # No agent knows it.
            path = object_path(snapshot)
            remove_finalizer(self._cluster, path, snapshot.uid, names.AGENT_FINALIZER)
            return AT_REST
        left = timing.SNAPSHOT_DELETION_REPORT_SECONDS - seconds_since(snapshot.deleted)
        if left > 0:
            return Result(left)
        status = deletion_status(snapshot, self._clock())
        if any(snapshot.status.get(key) != value for key, value in status.items()):
            patch_status(self._cluster, snapshot, status)
        return Result(timing.DELETION_RESYNC_SECONDS)

    def report_failure(self, namespace: str, name: str, error: Exception) -> None:
        """Report a reconcile that failed in the condition Ready, if the snapshot is to blame for it."""
        finding = failure_finding(f"snapshot {name}", error)
        body = self._cluster.get(snapshot_path(namespace, name)) if finding else None
        if finding is None or body is None or body["metadata"].get("deletionTimestamp"):
            return
        with self._locks.held(namespace, _LOCK_PREFIX + name):
            snapshot = parse_snapshot(body)
            if snapshot.node.stored:
                return
            status = failure_status(snapshot, finding, self._clock())
            patch_status(self._cluster, snapshot, status)
