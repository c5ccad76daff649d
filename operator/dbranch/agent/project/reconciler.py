"""The agent's work on a project: its pool up, down and gone; how full it is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dbranch.agent import status as report
from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.machine import MachineFacts, observe_machine
from dbranch.agent.pool.effect import ensure_base, ensure_pool, ensure_pool_down, ensure_pool_removed
from dbranch.agent.pool.observe import PoolFacts, observe_pool
from dbranch.agent.pool.retained import (
    checked_retained,
    ensure_forgotten,
    ensure_pool_adopted,
    ensure_recorded,
    observe_retained,
)
from dbranch.agent.pool.space import Space, pool_finding, read_only_finding
from dbranch.agent.slot import effect as slot
from dbranch.agent.slot import pods
from dbranch.agent.slot.observe import observe_pods, observe_project_slots
from dbranch.agent.volume.effect import ensure_trash_emptied
from dbranch.agent.volume.marker import Marker, Role
from dbranch.agent.volume.observe import observe_subvolumes
from dbranch.api import names
from dbranch.api.branch import parse_branch
from dbranch.api.conditions import Finding, Reason
from dbranch.api.enums import DeletionPolicy
from dbranch.api.errors import Busy, DbranchError
from dbranch.api.project import Project, parse_project
from dbranch.kube.client import Cluster, path_of, project_path
from dbranch.kube.requeue import request_reconcile
from dbranch.kube.status import patch_status
from dbranch.runtime.locks import KeyedLocks

logger = logging.getLogger(__name__)

# Seconds within which a pool that fails again after it was mounted anew is left to a person.
_SOON = 600.0


class ProjectReconciler:
    """What handlers call. Each call answers with the seconds after which it wants to come back, or None."""

    def __init__(
        self,
        cluster: Cluster,
        layout: Layout,
        context: NodeContext,
        locks: KeyedLocks,
        stir: Callable[[Project], None],
    ) -> None:
        self._cluster, self._layout, self._context, self._locks = cluster, layout, context, locks
        # Called with a project for which something else should wait on the node now.
        self._stir = stir
        self._thawed: dict[str, float] = {}

    def reconcile(self, namespace: str, name: str) -> float | None:
        """One visit of a project that is not being deleted."""
        with self._locks.held(namespace, name):
            body = self._cluster.get(project_path(namespace, name))
            if body is None:
                return None
            project = parse_project(body)
            if project.deleting or project.node_name != self._context.node:
                return None
            return self._up(project) if project.running else self._down(project)

    def _up(self, project: Project) -> float | None:
        was = observe_pool(self._layout, project.uid).mounted
        machine = observe_machine(self._layout)
        if not (machine.btrfs and machine.loop):
            lacks = "btrfs" if not machine.btrfs else "loop devices"
            text = f"node {self._context.node} has no {lacks} in its kernel; no pool can be made; load the module"
            self._write(project, {"storage": Finding(Reason.BTRFS_MISSING, text).as_dict()})
            return 60.0
        try:
            known = project.node
            uuid = ensure_pool(self._layout, project.uid, project.size, self._made(project), known.machine_id)
        except (DbranchError, OSError) as error:
            logger.warning("project %s/%s: %s", project.namespace, project.name, error)
            step = report.failed_pool_finding(error, project.name)
            self._write(project, {"storage": step.as_dict(), "observedGeneration": project.generation})
            return 30.0
        pool = observe_pool(self._layout, project.uid)
        if pool.frozen:
            return self._thaw(project, machine)
        markers = observe_subvolumes(self._layout, project.uid).branches.values()
        step = pool_finding(
            Space(pool.total_bytes, pool.free_bytes, machine.host_total_bytes, pool.host_free_bytes),
            project.name,
            pool.damaged,
        )
        node: dict[str, Any] = {
            "machineID": ensure_base(self._layout),
            "poolUUID": uuid,
            "initialized": known.initialized
            or bool(project.adopt)
            or any(isinstance(marker, Marker) and marker.role is Role.ROOT for marker in markers),
            "storage": step.as_dict(),
            "observedGeneration": project.generation,
        }
        if project.password_version:
            node["passwordVersion"] = project.password_version
        told = (known.observed_generation, known.password_version)
        if not (was and known.pool_uuid) or told != (project.generation, project.password_version):
            # Before it is told: what is cut off here is done again.
            self._poke_branches(project)
            self._stir(replace(project, node=replace(known, initialized=node["initialized"])))
        self._write(project, node | _space(pool))
        if project.adopt and known.pool_uuid:
            ensure_forgotten(self._layout, project.adopt)
        return None

    def _thaw(self, project: Project, machine: MachineFacts) -> float:
        """The kernel has stopped writing to the pool: ended, and mounted anew once that can help."""
        space = Space(host_total=machine.host_total_bytes, host_free=machine.host_free_bytes)
        again = time.monotonic() - self._thawed.get(project.uid, -_SOON) < _SOON
        step = read_only_finding(space, project.name, again)
        self._write(project, {"storage": step.as_dict(), "observedGeneration": project.generation})
        if step.reason != Reason.ATTACH_FAILED:
            return 10.0
        if self._pods_left(project):
            return 0.5
        for name in observe_project_slots(self._layout, project.uid):
            slot.ensure_slot_removed(self._layout, name)
        ensure_pool_down(self._layout, project.uid)
        self._thawed[project.uid] = time.monotonic()
        return 0.05

    def _pods_left(self, project: Project) -> bool:
        """Whether pods of the project are left; the end of all is asked for."""
        left = observe_pods(
            self._cluster, self._context.namespace, f"{names.LABEL_PROJECT_UID}={project.uid}"
        )
        for pod in left:
            if not pod.terminating:
                pods.delete_pod(self._cluster, self._context.namespace, pod, 2)
        return bool(left)

    def _made(self, project: Project) -> str | None:
        """The UUID of the filesystem that is there already: its own, or the retained one that it takes over."""
        if project.adopt is None or project.node.pool_uuid is not None:
            return project.node.pool_uuid
        found = observe_retained(self._layout, project.adopt)
        record = checked_retained(found, project.adopt, project.namespace)
        ensure_pool_adopted(self._layout, record, project.uid)
        return record.pool_uuid

    def _down(self, project: Project) -> float | None:
        if project.node.observed_generation != project.generation:
            self._poke_branches(project)
            self._stir(project)
            self._write(project, {"observedGeneration": project.generation})
        try:
            ensure_pool_down(self._layout, project.uid)
        except Busy as error:
            logger.info("project %s/%s: %s", project.namespace, project.name, error)
            if not observe_pool(self._layout, project.uid).bound_slots:
                # Not its own pods: somebody has to be told.
                step = Finding(
                    Reason.PENDING, report.sentence(error, f"project {project.name} is not stopped yet")
                )
                self._write(project, {"storage": step.as_dict()})
            return 0.5
        except (DbranchError, OSError) as error:
            logger.warning("project %s/%s: %s", project.namespace, project.name, error)
            return 5.0
        text = (
            f"project {project.name} is stopped; its pool is detached; set spec.state to Running to start it"
        )
        self._write(project, {"storage": Finding(Reason.STOPPED, text).as_dict()})
        return None

    def _poke_branches(self, project: Project) -> None:
        """Wakes the project's branches: what they waited for may have come."""
        path = path_of(names.API_VERSION, names.BRANCHES, project.namespace)
        for body in self._cluster.find(path, fields=f"status.nodeName={self._context.node}"):
            branch = parse_branch(body)
            if branch.project == project.name and not branch.deleting:
                request_reconcile(
                    self._cluster, names.AGENT_REQUESTED_AT, branch.namespace, branch.object_name
                )

    def _write(self, project: Project, node: dict[str, Any]) -> None:
        now = project.status.get("node") or {}
        changed = report.changes(now, report.told(now, node))
        if changed:
            patch_status(self._cluster, project, {"node": changed})

    def remove(self, body: dict[str, Any]) -> float | None:
        """One visit of a project being deleted: None once the node is as before it."""
        project = parse_project(body)
        if names.CONTROLLER_FINALIZER in project.finalizers:
            return 0.5
        with self._locks.held(project.namespace, project.name):
            if self._pods_left(project):
                return 0.3
            for name in observe_project_slots(self._layout, project.uid):
                slot.ensure_slot_removed(self._layout, name)
            if project.deletion_policy == DeletionPolicy.RETAIN:
                ensure_recorded(self._layout, project.uid, project.namespace, project.name)
                ensure_pool_down(self._layout, project.uid)
            else:
                ensure_pool_removed(self._layout, project.uid)
            self._stir(project)
            return None

    def tidy(self, namespace: str, name: str) -> None:
        """The slow timer's visit: usage told anew, what was left in the trash destroyed."""
        with self._locks.held(namespace, name):
            self.reconcile(namespace, name)
            body = self._cluster.get(project_path(namespace, name))
            if body:
                project = parse_project(body)
                if observe_pool(self._layout, project.uid).mounted:
                    ensure_trash_emptied(self._layout, project.uid)


def _space(pool: PoolFacts) -> dict[str, Any]:
    told = {"totalBytes": pool.total_bytes} if pool.total_bytes is not None else {}
    used, free = report.sizes("used", pool.used_bytes), report.sizes("free", pool.free_bytes)
    allocated = report.sizes("allocated", pool.allocated_bytes)
    return told | used | free | allocated | report.sizes("hostFree", pool.host_free_bytes)
