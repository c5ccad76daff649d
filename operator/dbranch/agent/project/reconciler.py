"""Reconcile a project on its node: create, mount, detach and delete its pool, and report how full it is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from dbranch.agent.context import NodeContext
from dbranch.agent.held import HeldDeletions
from dbranch.agent.layout import Layout
from dbranch.agent.machine import MachineFacts, observe_machine
from dbranch.agent.node_status import patch_node
from dbranch.agent.pool.effect import ensure_base, ensure_pool, ensure_pool_down, ensure_pool_removed
from dbranch.agent.pool.observe import PoolFacts, observe_pool
from dbranch.agent.pool.records import ensure_record_removed
from dbranch.agent.pool.space import Space, pool_finding, read_only_finding
from dbranch.agent.pool.tombstone import ensure_tombstone_withdrawn
from dbranch.agent.project.ownership import PoolOwnership
from dbranch.agent.slot import effect as slot
from dbranch.agent.slot import pods
from dbranch.agent.slot.observe import observe_pods, observe_project_slots
from dbranch.agent.status import (
    error_message,
    failed_pool_finding,
    held_deletion_finding,
    size_fields,
)
from dbranch.agent.timing import (
    BTRFS_MISSING_RETRY_SECONDS,
    BUSY_RETRY_SECONDS,
    CONTROLLER_FINALIZER_POLL_SECONDS,
    FAILED_RETRY_SECONDS,
    FINALIZER_REMOVED_CHECK_SECONDS,
    LONGEST_RETRY_SECONDS,
    NO_CHECKPOINT_GRACE_SECONDS,
    POD_DELETION_POLL_SECONDS,
    POOL_DETACH_FAILED_RETRY_SECONDS,
    POOL_FAILED_RETRY_SECONDS,
    READ_ONLY_POOL_POLL_SECONDS,
    REMOUNT_BACKOFF_SECONDS,
    REMOUNT_RETRY_SECONDS,
)
from dbranch.agent.volume.effect import ensure_trash_emptied
from dbranch.agent.volume.marker import Marker, Role
from dbranch.agent.volume.observe import observe_subvolumes
from dbranch.agent.volume.quotas import ensure_dead_groups_removed
from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.conditions import Finding, Reason
from dbranch.api.errors import ApiError, Busy, ClusterUnreachable, DbranchError
from dbranch.api.project import Project, parse_project
from dbranch.kube.client import Cluster, object_path, path_of, project_path
from dbranch.runtime.backoff import Backoff
from dbranch.runtime.finalizers import remove_finalizer
from dbranch.runtime.limited import LimitedDict
from dbranch.runtime.locks import KeyedLocks
from dbranch.runtime.logs import log_error
from dbranch.runtime.result import GONE, Result

logger = logging.getLogger(__name__)

_MAX_REMOUNTS: Final = 1000


class ProjectReconciler:
    """Reconciles projects. `request_branch` requests a reconcile of a branch that may have waited for its project."""

    def __init__(
        self,
        cluster: Cluster,
        layout: Layout,
        context: NodeContext,
        locks: KeyedLocks,
        trigger_warm: Callable[[Project], None],
        request_branch: Callable[[Branch], None],
        trigger_housekeeping: Callable[[], None] = lambda: None,
        request_snapshots: Callable[[Project], None] = lambda project: None,
    ) -> None:
        """`trigger_housekeeping`: called when a pool has become one that can be adopted.

        `request_snapshots`: requests reconciles of the project's snapshots that may have waited for its pool.
        """
        self._request_snapshots = request_snapshots
        self._cluster, self._layout, self._context, self._locks = cluster, layout, context, locks
        self._trigger_housekeeping = trigger_housekeeping
        self._ownership = PoolOwnership(cluster, layout, context)
        # Called with a project whose warm slots may have to change.
        self._trigger_warm = trigger_warm
        self._request_branch = request_branch
        self._backoff = Backoff(LONGEST_RETRY_SECONDS)
        self._held = HeldDeletions()
        # By UID: when its pool was remounted, by time.monotonic().
        self._remounted_at: LimitedDict[str, float] = LimitedDict(_MAX_REMOUNTS)

    def reconcile(self, namespace: str, name: str) -> Result:
        """Reconcile a project; remove it if it is being deleted, and then the agent's finalizer."""
        with self._locks.held(namespace, name):
            body = self._cluster.get(project_path(namespace, name))
            if body is None:
                return GONE
            project = parse_project(body)
            if project.node_name != self._context.node:
                return GONE
            try:
                if project.deleting:
                    return self._remove(project)
                return self._bring_up(project) if project.running else self._bring_down(project)
            except (ApiError, ClusterUnreachable, Busy):
                # Neither says anything about the project.
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the project's status says it
                log_error(logger, error, f"project {namespace}/{name}")
                patch_node(
                    self._cluster, project, {"storage": failed_pool_finding(error, project.name).as_dict()}
                )
                first = FAILED_RETRY_SECONDS if project.deleting else POOL_FAILED_RETRY_SECONDS
                return self._failed(project, first)

    def _bring_up(self, project: Project) -> Result:
        was_mounted = observe_pool(self._layout, project.uid).mounted
        machine = observe_machine(self._layout)
        if not (machine.btrfs and machine.loop):
            missing = "btrfs" if not machine.btrfs else "loop devices"
            text = f"node {self._context.node} has no {missing} in its kernel; no pool can be made; load the module"
            patch_node(self._cluster, project, {"storage": Finding(Reason.BTRFS_MISSING, text).as_dict()})
            return self._failed(project, BTRFS_MISSING_RETRY_SECONDS)
        current = project.node
        try:
            recorded_uuid = self._ownership.claim(project)
            uuid = ensure_pool(
                self._layout,
                project.uid,
                project.size,
                recorded_uuid,
                current.machine_id,
                self._context.quotas,
            )
        except (DbranchError, OSError) as error:
            logger.warning("project %s/%s: %s", project.namespace, project.name, error)
            finding = failed_pool_finding(error, project.name)
            patch_node(
                self._cluster,
                project,
                {"storage": finding.as_dict(), "observedGeneration": project.generation},
            )
            return self._failed(project, POOL_FAILED_RETRY_SECONDS)
        self._backoff.succeed(project.uid)
        pool = observe_pool(self._layout, project.uid)
        if pool.read_only:
            return self._remount(project, machine)
        markers = observe_subvolumes(self._layout, project.uid).branches.values()
        readable = [marker for marker in markers if isinstance(marker, Marker)]
        finding = pool_finding(
            self._space_of(machine, pool),
            project.name,
            pool.damaged,
        )
        initialized = (
            current.initialized or bool(project.adopt) or any(marker.role is Role.ROOT for marker in readable)
        )
        machine_id = ensure_base(self._layout)
        self._ownership.record(project, uuid, machine_id, initialized)
        node: dict[str, Any] = {
            "machineID": machine_id,
            "poolUUID": uuid,
            "initialized": initialized,
            "storage": finding.as_dict(),
            "observedGeneration": project.generation,
        }
        if readable:
            # All of a project's data comes from one initdb.
            node["superuser"] = readable[0].superuser
        if project.password_version:
            node["passwordVersion"] = project.password_version
        reported = (current.observed_generation, current.password_version)
        if not (was_mounted and current.pool_uuid) or reported != (
            project.generation,
            project.password_version,
        ):
            self._request_branch_reconciles(project)
            self._trigger_warm(replace(project, node=replace(current, initialized=node["initialized"])))
        patch_node(self._cluster, project, node | _usage_fields(pool))
        if project.adopt and current.pool_uuid:
            ensure_record_removed(self._layout, project.adopt)
        return Result()

    def _space_of(self, machine: MachineFacts, pool: PoolFacts | None = None) -> Space:
        """Return the bytes of the node's disk, and of the pool."""
        eviction = self._context.eviction.of(machine.host_total_bytes)
        disk = (machine.host_total_bytes, machine.host_free_bytes, eviction)
        return Space(pool.total_bytes, pool.free_bytes, *disk) if pool else Space(None, None, *disk)

    def _failed(self, project: Project, first_delay: float) -> Result:
        """Return when to try again: less and less often, unless somebody asks for something else."""
        version = project.generation, project.annotations.get(names.AGENT_REQUESTED_AT)
        return Result(self._backoff.fail(project.uid, first_delay, version, time.monotonic()))

    def _remount(self, project: Project, machine: MachineFacts) -> Result:
        """Delete the pods of a pool that the kernel made read-only and detach it; the next call mounts it again.

        Only report it if a remount cannot help: the disk is full, or the pool became read-only soon after a remount.
        """
        space = self._space_of(machine)
        remounted_at = self._remounted_at.get(project.uid, -REMOUNT_BACKOFF_SECONDS)
        remounted_recently = time.monotonic() - remounted_at < REMOUNT_BACKOFF_SECONDS
        finding = read_only_finding(space, project.name, remounted_recently)
        patch_node(
            self._cluster, project, {"storage": finding.as_dict(), "observedGeneration": project.generation}
        )
        if finding.reason != Reason.ATTACH_FAILED:
            return Result(READ_ONLY_POOL_POLL_SECONDS)
        if self._delete_pods(project):
            return Result(BUSY_RETRY_SECONDS)
        for name in observe_project_slots(self._layout, project.uid):
            slot.ensure_slot_removed(self._layout, name)
        ensure_pool_down(self._layout, project.uid)
        self._remounted_at[project.uid] = time.monotonic()
        return Result(REMOUNT_RETRY_SECONDS)

    def _delete_pods(self, project: Project) -> bool:
        """Delete the project's pods; return True while some of them still exist."""
        existing = observe_pods(
            self._cluster, self._context.namespace, f"{names.LABEL_PROJECT_UID}={project.uid}"
        )
        for pod in existing:
            if not pod.terminating:
                pods.delete_pod(self._cluster, self._context.namespace, pod, NO_CHECKPOINT_GRACE_SECONDS)
        return bool(existing)

    def _bring_down(self, project: Project) -> Result:
        ensure_tombstone_withdrawn(self._layout, project.uid)
        node = project.node
        if node.pool_uuid and self._layout.image(project.uid).exists():
            self._ownership.record(project, node.pool_uuid, node.machine_id or "", node.initialized)
        if project.node.observed_generation != project.generation:
            self._request_branch_reconciles(project)
            self._trigger_warm(project)
            patch_node(self._cluster, project, {"observedGeneration": project.generation})
        if observe_pool(self._layout, project.uid).mounted and self._awaits_restores(project):
            # What becomes of the data beside a branch's own can be said only while the pool is mounted.
            return Result(BUSY_RETRY_SECONDS)
        try:
            ensure_pool_down(self._layout, project.uid)
        except Busy as error:
            logger.info("project %s/%s: %s", project.namespace, project.name, error)
            if not observe_pool(self._layout, project.uid).bound_slots:
                # Something else than the project's own pods uses the pool: report it.
                finding = Finding(
                    Reason.PENDING, error_message(error, f"project {project.name} is not stopped yet")
                )
                patch_node(self._cluster, project, {"storage": finding.as_dict()})
            return Result(BUSY_RETRY_SECONDS)
        except (DbranchError, OSError) as error:
            logger.warning("project %s/%s: %s", project.namespace, project.name, error)
            return self._failed(project, POOL_DETACH_FAILED_RETRY_SECONDS)
        text = (
            f"project {project.name} is stopped; its pool is detached; set spec.state to Running to start it"
        )
        self._backoff.succeed(project.uid)
        patch_node(self._cluster, project, {"storage": Finding(Reason.STOPPED, text).as_dict()})
        return Result()

    def _request_branch_reconciles(self, project: Project) -> None:
        """Request a reconcile of each branch of the project on this node: it may have waited for the project."""
        for branch in self._branches_of(project):
            self._request_branch(branch)
        self._request_snapshots(project)

    def _awaits_restores(self, project: Project) -> bool:
        """Return True while the end of a restore of one of its branches is still to be reported."""
        return any(branch.awaits_restore for branch in self._branches_of(project))

    def _branches_of(self, project: Project) -> list[Branch]:
        """Return the branches of the project on this node that are not being deleted."""
        path = path_of(names.API_VERSION, names.BRANCHES, project.namespace)
        bodies = self._cluster.find(path, fields=f"status.nodeName={self._context.node}")
        branches = (parse_branch(body) for body in bodies)
        return [branch for branch in branches if branch.project == project.name and not branch.deleting]

    def _remove(self, project: Project) -> Result:
        """Remove pods, slots and pool as far as they can be removed now; once nothing is left, the finalizer."""
        if names.AGENT_FINALIZER not in project.finalizers:
            return GONE
        if names.CONTROLLER_FINALIZER in project.finalizers:
            return Result(CONTROLLER_FINALIZER_POLL_SECONDS)
        if project.keeps_pool:
            ensure_tombstone_withdrawn(self._layout, project.uid)
            self._ownership.record_deletion(project)
        else:
            self._ownership.request_removal(project)
        if self._delete_pods(project):
            return Result(POD_DELETION_POLL_SECONDS)
        try:
            self._remove_pool(project)
        except Busy as error:
            logger.info("project %s/%s: %s", project.namespace, project.name, error)
            delay, is_reported = self._held.hold(project.uid)
            if is_reported:
                finding = held_deletion_finding(error, f"project {project.name}")
                patch_node(self._cluster, project, {"deletion": finding.as_dict()})
            return Result(delay)
        self._held.forget(project.uid)
        self._trigger_warm(project)
        self._backoff.succeed(project.uid)
        remove_finalizer(self._cluster, object_path(project), project.uid, names.AGENT_FINALIZER)
        if self._layout.image(project.uid).exists():
            # It can be adopted now.
            self._trigger_housekeeping()
        return Result(FINALIZER_REMOVED_CHECK_SECONDS)

    def _remove_pool(self, project: Project) -> None:
        """Remove the project's slots, and its pool unless it is kept, for ever or for a time.

        Raises Busy while they are in use.
        """
        for name in observe_project_slots(self._layout, project.uid):
            slot.ensure_slot_removed(self._layout, name)
        if project.keeps_pool or not self._ownership.may_be_removed(project):
            ensure_pool_down(self._layout, project.uid)
        else:
            ensure_pool_removed(self._layout, project.uid)

    def collect_usage_and_trash(self, namespace: str, name: str) -> Result:
        """Reconcile the project, which reports its usage, and destroy what is left in its pool's trash."""
        with self._locks.held(namespace, name):
            result = self.reconcile(namespace, name)
            body = self._cluster.get(project_path(namespace, name))
            if body:
                project = parse_project(body)
                if observe_pool(self._layout, project.uid).mounted:
                    ensure_trash_emptied(self._layout, project.uid)
                    ensure_dead_groups_removed(self._layout, project.uid)
            return result


def _usage_fields(pool: PoolFacts) -> dict[str, Any]:
    total = {"totalBytes": pool.total_bytes} if pool.total_bytes is not None else {}
    used, free = size_fields("used", pool.used_bytes), size_fields("free", pool.free_bytes)
    allocated = size_fields("allocated", pool.allocated_bytes)
    return total | used | free | allocated | size_fields("hostFree", pool.host_free_bytes)
