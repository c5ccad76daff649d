"""The controller's reconciles of a branch: binding, its Service and Secret, conditions, deletion."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.conditions import Condition, Finding, Reason, find_condition
from dbranch.api.enums import TargetState
from dbranch.api.errors import NameTaken
from dbranch.api.project import Project, parse_project
from dbranch.api.secrets import secret_text
from dbranch.controller import manifests, timing
from dbranch.controller.branch.status import branch_findings
from dbranch.controller.cache import Cache
from dbranch.controller.conditions import phase_of, ready_finding, report_conditions
from dbranch.controller.events import EmitEvent, emit_transition
from dbranch.controller.manifests import Credentials, Release
from dbranch.controller.metrics import ControllerMetrics
from dbranch.controller.owned import OwnedObjects, owner_uids
from dbranch.controller.routing import target_of
from dbranch.controller.scheduling import Binding, bind_branch, is_abandoned, not_reporting_finding
from dbranch.kube.client import Cluster, branch_path, path_of, project_path
from dbranch.kube.requeue import request_reconcile
from dbranch.kube.status import patch_status
from dbranch.runtime.clock import now_rfc3339, seconds_since
from dbranch.runtime.locks import KeyedLocks

logger = logging.getLogger(__name__)


class BranchReconciler:
    """Reconciles branches; handlers call it with the cache and a way to emit Events about the branch."""

    def __init__(
        self,
        cluster: Cluster,
        release: Release,
        owned: OwnedObjects,
        locks: KeyedLocks,
        metrics: ControllerMetrics,
    ) -> None:
        self._cluster, self._release, self._owned, self._locks = cluster, release, owned, locks
        self._metrics = metrics
        # By project UID: the password's version and the credentials with that password.
        self._credentials: dict[str, tuple[str, Credentials]] = {}

    def reconcile(
        self, namespace: str, name: str, cache: Cache, emit_event: EmitEvent, bypass_cache: bool = False
    ) -> None:
        """Reconcile a branch that is not being deleted. `bypass_cache`: read again what is remembered."""
        with self._locks.held(namespace, name), self._metrics.reconcile(names.BRANCH_KIND):
            body = self._cluster.get(branch_path(namespace, name))
            if body is None or body["metadata"].get("deletionTimestamp"):
                return
            branch = parse_branch(body)
            project = self._project_of(branch)
            siblings = cache.branches_of(namespace, branch.project)
            status: dict[str, Any] = {}
            scheduled = self._bind(project, branch, siblings, cache, bypass_cache, status)
            newly_bound = "nodeName" in status
            branch = replace(branch, node_name=status.get("nodeName", branch.node_name))
            if project and not newly_bound:
                taken = self._name_taken(self._apply_access, project, branch, bypass_cache)
                scheduled = taken or scheduled
            self._write_status(project, branch, scheduled, status, emit_event)
            if project and newly_bound:
                # After the binding is written: the agent works meanwhile.
                taken = self._name_taken(self._apply_access, project, branch, bypass_cache)
                if taken:
                    self._write_status(project, branch, taken, status, emit_event)
            self._requeue_waiting(project, branch, siblings)

    def _project_of(self, branch: Branch) -> Project | None:
        body = self._cluster.get(project_path(branch.namespace, branch.project))
        return parse_project(body) if body else None

    def _write_status(
        self,
        project: Project | None,
        branch: Branch,
        scheduled: Finding,
        status: dict[str, Any],
        emit_event: EmitEvent,
    ) -> None:
        """Complete `status` and write the fields that differ."""
        findings = branch_findings(project, branch, scheduled)
        host = names.service_host(branch.object_name, branch.namespace)
        ready = ready_finding(findings, f"branch {branch.name} accepts connections at {host}")
        previous = branch.status.get("conditions") or ()
        status |= {
            "observedGeneration": branch.generation,
            "conditions": report_conditions(previous, findings, ready, branch.generation, now_rfc3339()),
            "phase": phase_of(ready),
            "active": bool(project and project.route and project.route.branch == branch.name),
        }
        changes = {key: value for key, value in status.items() if branch.status.get(key) != value}
        if changes:
            patch_status(self._cluster, branch, changes)
            emit_transition(branch.status, ready, emit_event)

    def _bind(
        self,
        project: Project | None,
        branch: Branch,
        siblings: tuple[Branch, ...],
        cache: Cache,
        bypass_cache: bool,
        status: dict[str, Any],
    ) -> Finding:
        """Add a new binding to `status`; return the finding of Scheduled.

        The Service is applied before: if its name is taken, the agent must make nothing.
        """
        taken = self._name_taken(self._apply_service, project, branch, bypass_cache) if project else None
        if taken:
            return taken
        if branch.node_name is None:
            binding = bind_branch(project, branch, siblings)
            if isinstance(binding, Finding):
                return binding
            status["nodeName"] = binding.node
            if binding.source_uid:
                status["sourceUID"] = binding.source_uid
            return Finding(Reason.BOUND, f"branch {branch.name} is bound to node {binding.node}")
        not_reporting = not_reporting_finding(cache.node(branch.node_name))
        bound = Finding(Reason.BOUND, f"branch {branch.name} is bound to node {branch.node_name}")
        return not_reporting or bound

    def _name_taken(
        self,
        apply: Callable[[Project, Branch, bool], None],
        project: Project,
        branch: Branch,
        bypass_cache: bool,
    ) -> Finding | None:
        """Call `apply`; return the finding of Scheduled if a name is taken by another owner's object."""
        try:
            apply(project, branch, bypass_cache)
        except NameTaken as error:
            return Finding(Reason.NAME_TAKEN, str(error))
        return None

    def _apply_service(self, project: Project, branch: Branch, bypass_cache: bool) -> None:
        service = manifests.branch_service(project, branch, self._release)
        self._owned.apply("v1", "services", service, bypass_cache, probably_new=_is_new(branch))

    def _apply_access(self, project: Project, branch: Branch, bypass_cache: bool) -> None:
        """Apply the EndpointSlice and the connection Secret, so that they exist before the branch is Ready."""
        target = target_of(project, branch)
        reachable = target is not None and target.state == TargetState.READY
        endpoints = manifests.branch_endpoints(project, branch, self._release, reachable)
        self._owned.apply(
            "discovery.k8s.io/v1", "endpointslices", endpoints, bypass_cache, probably_new=_is_new(branch)
        )
        credentials = self._project_credentials(project, bypass_cache)
        if credentials:
            secret = manifests.conn_secret(project, self._release, credentials, branch)
            self._owned.apply("v1", "secrets", secret, bypass_cache, probably_new=_is_new(branch))

    def _project_credentials(self, project: Project, bypass_cache: bool) -> Credentials | None:
        """Read the project's connection Secret, once for each password; None while the project has none."""
        version, remembered = self._credentials.get(project.uid, ("", None))
        if remembered and version == project.password_version and not bypass_cache:
            return replace(remembered, user=project.postgres.user, database=project.postgres.database)
        path = path_of("v1", "secrets", project.namespace, names.conn_secret_name(project.name))
        body = self._cluster.get(path)
        if body is None or project.uid not in owner_uids(body):
            return None
        password = secret_text(body, "password")
        if password is None:
            return None
        credentials = Credentials(project.postgres.user, password, project.postgres.database)
        if project.password_version:
            self._credentials[project.uid] = project.password_version, credentials
        return credentials

    def _requeue_waiting(self, project: Project | None, branch: Branch, siblings: tuple[Branch, ...]) -> None:
        """Request reconciles of the unbound branches with this source whose Scheduled would change."""
        for sibling in siblings:
            if sibling.node_name is None and not sibling.deleting and sibling.source == branch.name:
                binding = bind_branch(project, sibling, siblings)
                reported = (find_condition(sibling.status, Condition.SCHEDULED) or {}).get("reason")
                if isinstance(binding, Binding) or binding.reason.value != reported:
                    request_reconcile(
                        self._cluster, names.CONTROLLER_REQUESTED_AT, sibling.namespace, sibling.object_name
                    )

    def remove(self, branch: Branch, cache: Cache) -> float | None:
        """Reconcile a branch that is being deleted: report that, and delete its EndpointSlice in the end.

        Returns None when the controller's finalizer may go, else the seconds after which to call it again: while
        snapshots of the branch are awaited, or a proxy does not obey the route that excludes it yet.
        """
        with self._locks.held(branch.namespace, branch.object_name):
            project = self._project_of(branch)
            siblings = cache.branches_of(branch.namespace, branch.project)
            self._report_deleting(branch)
            node_abandoned = bool(branch.node_name) and is_abandoned(
                cache.node(branch.node_name or ""), branch.annotations
            )
            if not node_abandoned and any(_awaits_snapshot_of(branch, sibling) for sibling in siblings):
                return timing.SNAPSHOTS_TAKEN_POLL_SECONDS
            if project and not project.deleting and not _is_overdue(branch):
                target = next((t for t in project.routes if t.branch == branch.name), None)
                route = project.route
                obeyed = not route or all(p.generation >= route.generation for p in project.proxies)
                if target and (target.state != TargetState.DELETING or not obeyed):
                    return timing.PROXIES_OBEY_POLL_SECONDS
            self._owned.delete(
                "discovery.k8s.io/v1", "endpointslices", branch.namespace, branch.object_name, branch.uid
            )
            return None

    def _report_deleting(self, branch: Branch) -> None:
        ready = Finding(Reason.DELETING, f"branch {branch.name} is being deleted")
        findings = [(Condition.DELETION_BLOCKED, _blocked_finding(branch))] if _is_overdue(branch) else []
        previous = branch.status.get("conditions") or ()
        conditions = report_conditions(previous, findings, ready, branch.generation, now_rfc3339())
        if conditions != list(previous):
            patch_status(self._cluster, branch, {"conditions": conditions, "phase": phase_of(ready)})


def _is_new(branch: Branch) -> bool:
    """Return True before the branch's first report: nothing has been applied for it yet."""
    return not branch.status.get("conditions")


def _is_overdue(branch: Branch) -> bool:
    return seconds_since(branch.deleted) > timing.PROXIES_OBEY_TIMEOUT_SECONDS


def _blocked_finding(branch: Branch) -> Finding:
    text = f"branch {branch.name} waits for a branch that is being made of it; it ends by itself"
    return Finding(Reason.WAITING_FOR_AGENT, text)


def _awaits_snapshot_of(source: Branch, branch: Branch) -> bool:
    """Return True if `branch` is bound to `source` and its snapshot has not been taken yet."""
    return branch.source_uid == source.uid and branch.node.snapshot_time is None and not branch.deleting
