"""The controller's reconciles of a project: binding, Secrets, proxy, routes, conditions, deletion."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.conditions import Condition, Finding, Reason, find_condition, is_ready
from dbranch.api.errors import ApiError, NameTaken
from dbranch.api.project import Project, Route, Target, parse_project
from dbranch.controller import manifests, timing
from dbranch.controller.cache import Cache
from dbranch.controller.conditions import phase_of, ready_finding, report_conditions
from dbranch.controller.credentials import CredentialSecrets
from dbranch.controller.events import EmitEvent, emit_transition
from dbranch.controller.manifests import Release
from dbranch.controller.metrics import ControllerMetrics
from dbranch.controller.owned import OwnedObjects
from dbranch.controller.project.status import project_findings
from dbranch.controller.routing import ProxyPod, laggards, plan_route, routed_finding, targets_of
from dbranch.controller.scheduling import Binding, bind_branch, bind_project, not_reporting_finding
from dbranch.kube.client import Cluster, branch_path, path_of, project_path
from dbranch.kube.requeue import request_reconcile
from dbranch.kube.status import patch_status
from dbranch.runtime.clock import now_rfc3339
from dbranch.runtime.locks import KeyedLocks

logger = logging.getLogger(__name__)

# A reconcile starts over if others (the proxies, by their entries) have written the object meanwhile.
_MAX_ATTEMPTS = 8


class ProjectReconciler:
    """Reconciles projects; handlers call it with the cache and a way to emit Events about the project."""

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
        self._credential_secrets = CredentialSecrets(cluster, release, owned)

    def reconcile(
        self, namespace: str, name: str, cache: Cache, emit_event: EmitEvent, bypass_cache: bool = False
    ) -> None:
        """Reconcile a project that is not being deleted. `bypass_cache`: read again what is remembered."""
        with self._locks.held(namespace, name), self._metrics.reconcile(names.PROJECT_KIND):
            for attempt in range(_MAX_ATTEMPTS):
                body = self._cluster.get(project_path(namespace, name))
                if body is None or body["metadata"].get("deletionTimestamp"):
                    return
                try:
                    self._reconcile_once(body, cache, emit_event, bypass_cache)
                    return
                except ApiError as error:
                    if error.status != 409 or attempt == _MAX_ATTEMPTS - 1:
                        raise

    def _reconcile_once(
        self, body: dict[str, Any], cache: Cache, emit_event: EmitEvent, bypass_cache: bool
    ) -> None:
        project = parse_project(body)
        branches = cache.branches_of(project.namespace, project.name)
        self._ensure_root(project, branches)
        status: dict[str, Any] = {"host": names.service_host(project.name, project.namespace)}
        scheduled = self._bind(project, cache, status)
        not_reachable = self._apply_objects(project, bypass_cache, status)
        targets = targets_of(project, branches)
        route = plan_route(project, targets)
        # No proxy can have acknowledged a route that is not written yet, so the pods need not be listed for it.
        pods = _pods_with_entries(project) if route != project.route else ()
        pods = pods or self._list_proxy_pods(project)
        self._delete_entries_of_missing(project, pods)
        routed = not_reachable or routed_finding(project, route, targets, pods)
        findings = project_findings(project, scheduled, routed, route, branches)
        ready = ready_finding(findings, f"project {project.name} answers at {status['host']}")
        previous = project.status.get("conditions") or ()
        status |= {
            "observedGeneration": project.generation,
            "conditions": report_conditions(previous, findings, ready, project.generation, now_rfc3339()),
            "phase": phase_of(ready),
            "branches": len(branches),
            "routes": [_target_fields(target) for target in targets],
        }
        if route:
            status["route"] = {"generation": route.generation, "branch": route.branch}
        changes = {key: value for key, value in status.items() if project.status.get(key) != value}
        if changes:
            patch_status(self._cluster, project, changes, body["metadata"]["resourceVersion"])
            emit_transition(project.status, ready, emit_event)
        # A branch becomes active once all proxies obey; what the new route's first sessions need was written before.
        obeyed = route if route and not laggards(route, pods, project.proxies) else None
        project = replace(project, node_name=status.get("nodeName", project.node_name))
        self._update_branches(project, branches, obeyed)

    def _ensure_root(self, project: Project, branches: tuple[Branch, ...]) -> None:
        if any(branch.name == names.ROOT_BRANCH for branch in branches):
            return
        path = path_of(names.API_VERSION, names.BRANCHES, project.namespace)
        try:
            self._cluster.create(path, manifests.root_branch(project))
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise

    def _bind(self, project: Project, cache: Cache, status: dict[str, Any]) -> Finding:
        """Add a new binding to `status`; return the finding of Scheduled."""
        if project.node_name is None:
            binding = bind_project(project, cache.all_nodes())
            if isinstance(binding, Finding):
                return binding
            status["nodeName"] = binding.node
            return _bound_finding(project, binding.node)
        not_reporting = not_reporting_finding(cache.node(project.node_name))
        return not_reporting or _bound_finding(project, project.node_name)

    def _apply_objects(self, project: Project, bypass_cache: bool, status: dict[str, Any]) -> Finding | None:
        """Apply all that the project is reached by, and add the password's version to `status`.

        Returns the finding of Routed if something prevents that.
        """
        try:
            for api, plural, manifest in manifests.proxy_access(project, self._release):
                self._owned.apply(api, plural, manifest, bypass_cache)
            service = manifests.project_service(project, self._release)
            self._owned.apply("v1", "services", service, bypass_cache)
            deployment = manifests.proxy_deployment(project, self._release)
            self._owned.apply("apps/v1", "deployments", deployment, bypass_cache)
            policy = manifests.allow_policy(project.namespace, self._release)
            self._owned.apply("networking.k8s.io/v1", "networkpolicies", policy, bypass_cache)
            version = self._credential_secrets.apply(project, bypass_cache)
            if isinstance(version, Finding):
                return version
            status["passwordVersion"] = version
        except NameTaken as error:
            return Finding(Reason.NAME_TAKEN, str(error))
        return self._tls_finding(project)

    def _tls_finding(self, project: Project) -> Finding | None:
        """Return the finding of Routed if the TLS Secret is missing or incomplete."""
        tls = project.proxy.tls
        if tls is None:
            return None
        secret = self._cluster.get(path_of("v1", "secrets", project.namespace, tls.secret_name))
        if secret is None:
            text = f'Secret "{tls.secret_name}" does not exist; the proxy offers no TLS; create it'
            return Finding(Reason.TLS_SECRET_NOT_FOUND, text)
        missing = [key for key in ("tls.crt", "tls.key") if not (secret.get("data") or {}).get(key)]
        if missing:
            text = f'Secret "{tls.secret_name}" has no {missing[0]}; the proxy offers no TLS; add it'
            return Finding(Reason.TLS_SECRET_INVALID, text)
        return None

    def _list_proxy_pods(self, project: Project) -> tuple[ProxyPod, ...]:
        """List the project's proxy pods uncached: one that the watch has not delivered yet counts, too."""
        selector = ",".join(f"{k}={v}" for k, v in manifests.proxy_selector(project).items())
        bodies = self._cluster.find(path_of("v1", "pods", project.namespace), labels=selector)
        alive = (b for b in bodies if (b.get("status") or {}).get("phase") not in ("Succeeded", "Failed"))
        return tuple(map(proxy_pod_of, alive))

    def _delete_entries_of_missing(self, project: Project, pods: tuple[ProxyPod, ...]) -> None:
        """Delete the entries in status.proxies of pods that do not exist any more, as their own field managers."""
        existing = {pod.name for pod in pods}
        for entry in project.proxies:
            if entry.pod not in existing:
                body = {
                    "apiVersion": names.API_VERSION,
                    "kind": names.PROJECT_KIND,
                    "metadata": {"name": project.name, "namespace": project.namespace},
                    "status": {"proxies": []},
                }
                path = project_path(project.namespace, project.name, "status")
                self._cluster.apply(path, body, names.PROXY_MANAGER_PREFIX + entry.pod)

    def _update_branches(self, project: Project, branches: tuple[Branch, ...], obeyed: Route | None) -> None:
        """Request reconciles of the branches whose Scheduled would change; write `status.active` of the others.

        `obeyed`: the route, if all proxies obey it.
        """
        for branch in branches:
            if branch.deleting:
                continue
            reported = (find_condition(branch.status, Condition.SCHEDULED) or {}).get("reason")
            expected: str | None = reported
            if branch.node_name is None:
                binding = bind_branch(project, branch, branches)
                expected = "" if isinstance(binding, Binding) else binding.reason.value
            if reported != expected:
                request_reconcile(
                    self._cluster, names.CONTROLLER_REQUESTED_AT, branch.namespace, branch.object_name
                )
            elif obeyed and branch.active != (obeyed.branch == branch.name):
                self._write_active(branch, obeyed.branch == branch.name)

    def _write_active(self, branch: Branch, active: bool) -> None:
        """Write `status.active` without a reconcile of the branch, since a switch waits for nothing else of it."""
        try:
            patch_status(self._cluster, branch, {"active": active})
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    def remove(self, project: Project, cache: Cache) -> float | None:
        """Reconcile a project that is being deleted: delete its branches, then its objects in the nodes' namespace.

        Returns None when the controller's finalizer may go, else the seconds after which to call it again.
        """
        path = path_of(names.API_VERSION, names.BRANCHES, project.namespace)
        remaining = [b for b in self._cluster.find(path) if b["spec"]["project"] == project.name]
        for body in remaining:
            meta = body["metadata"]
            if not meta.get("deletionTimestamp"):
                self._cluster.delete(branch_path(meta["namespace"], meta["name"]), uid=meta["uid"])
        if remaining:
            return timing.BRANCHES_GONE_POLL_SECONDS
        self._credential_secrets.delete(project)
        # The last project of a namespace takes the NetworkPolicy along. One that is being deleted needs it no more.
        others = (p for p in cache.all_projects() if p.namespace == project.namespace and not p.deleting)
        if not any(other.uid != project.uid for other in others):
            nodes_namespace, name = self._release.nodes_namespace, f"allow-{project.namespace}"
            self._owned.delete("networking.k8s.io/v1", "networkpolicies", nodes_namespace, name)
        return None


def _pods_with_entries(project: Project) -> tuple[ProxyPod, ...]:
    """Return the proxies that have an entry in status.proxies, taken as existing and ready."""
    return tuple(ProxyPod(entry.pod, True) for entry in project.proxies)


def _bound_finding(project: Project, node: str) -> Finding:
    return Finding(Reason.BOUND, f"project {project.name} is bound to node {node}")


def proxy_pod_of(body: Mapping[str, Any]) -> ProxyPod:
    """Parse a proxy's pod."""
    meta = body["metadata"]
    return ProxyPod(meta["name"], is_ready(body) and not meta.get("deletionTimestamp"))


def _target_fields(target: Target) -> dict[str, Any]:
    fields = {"branch": target.branch, "state": target.state.value}
    return fields | ({"address": target.address, "port": target.port} if target.address else {})
