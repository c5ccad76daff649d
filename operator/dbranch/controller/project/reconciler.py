"""The controller's work on a project: binding, Secrets, proxy, routes, conditions."""

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
from dbranch.controller import manifests
from dbranch.controller.cache import Cache
from dbranch.controller.conditions import phase_of, ready_finding, report_conditions
from dbranch.controller.credentials import Logins
from dbranch.controller.events import EmitEvent, emit_transition
from dbranch.controller.manifests import Release
from dbranch.controller.owned import OwnedObjects
from dbranch.controller.project.status import project_findings
from dbranch.controller.routing import ProxyPod, laggards, plan_route, routed_finding, targets_of
from dbranch.controller.scheduling import Binding, bind_branch, bind_project, node_trouble
from dbranch.kube.client import Cluster, branch_path, path_of, project_path
from dbranch.kube.requeue import request_reconcile
from dbranch.kube.status import patch_status
from dbranch.runtime.clock import now_rfc3339
from dbranch.runtime.locks import KeyedLocks

logger = logging.getLogger(__name__)

# Writes of others (the proxies' entries) come in between; then the visit is made anew.
_ATTEMPTS = 8


class ProjectReconciler:
    """What handlers call, with the cache of the moment and a way to tell an Event."""

    def __init__(self, cluster: Cluster, release: Release, owned: OwnedObjects, locks: KeyedLocks) -> None:
        self._cluster, self._release, self._owned, self._locks = cluster, release, owned, locks
        self._logins = Logins(cluster, release, owned)

    def reconcile(
        self, namespace: str, name: str, cache: Cache, tell: EmitEvent, fresh: bool = False
    ) -> None:
        """One visit of a project that is not being deleted. `fresh`: look at what is remembered, too."""
        with self._locks.held(namespace, name):
            for attempt in range(_ATTEMPTS):
                body = self._cluster.get(project_path(namespace, name))
                if body is None or body["metadata"].get("deletionTimestamp"):
                    return
                try:
                    self._visit(body, cache, tell, fresh)
                    return
                except ApiError as error:
                    if error.status != 409 or attempt == _ATTEMPTS - 1:
                        raise

    def _visit(self, body: dict[str, Any], cache: Cache, tell: EmitEvent, fresh: bool) -> None:
        project = parse_project(body)
        branches = cache.branches_of(project.namespace, project.name)
        self._ensure_root(project, branches)
        wanted: dict[str, Any] = {"host": names.service_host(project.name, project.namespace)}
        scheduled = self._bind(project, cache, wanted)
        blocked = self._ensure_objects(project, fresh, wanted)
        targets = targets_of(project, branches)
        route = plan_route(project, targets)
        pods = _reported(project) if route != project.route else ()
        # No proxy obeys a route that is not told yet: it waits for no list of them.
        pods = pods or self._proxy_pods(project)
        self._clear_entries(project, pods)
        routed = blocked or routed_finding(project, route, targets, pods)
        steps = project_findings(project, scheduled, routed, route, branches)
        ready = ready_finding(steps, f"project {project.name} answers at {wanted['host']}")
        wanted |= {
            "observedGeneration": project.generation,
            "conditions": report_conditions(
                project.status.get("conditions") or (), steps, ready, project.generation, now_rfc3339()
            ),
            "phase": phase_of(ready),
            "branches": len(branches),
            "routes": [_target_dict(target) for target in targets],
        }
        if route:
            wanted["route"] = {"generation": route.generation, "branch": route.branch}
        changed = {k: v for k, v in wanted.items() if project.status.get(k) != v}
        if changed:
            patch_status(self._cluster, project, changed, body["metadata"]["resourceVersion"])
            emit_transition(project.status, ready, tell)
        # ACTIVE is told behind the proxies' word: what the new route's first sessions need comes first.
        obeyed = route if route and not laggards(route, pods, project.proxies) else None
        self._wake_branches(
            replace(project, node_name=wanted.get("nodeName", project.node_name)), branches, obeyed
        )

    def _ensure_root(self, project: Project, branches: tuple[Branch, ...]) -> None:
        if any(branch.name == names.ROOT_BRANCH for branch in branches):
            return
        path = path_of(names.API_VERSION, names.BRANCHES, project.namespace)
        try:
            self._cluster.create(path, manifests.root_branch(project))
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise

    def _bind(self, project: Project, cache: Cache, wanted: dict[str, Any]) -> Finding:
        if project.node_name is None:
            answer = bind_project(project, cache.all_nodes())
            if isinstance(answer, Finding):
                return answer
            wanted["nodeName"] = answer.node
            return _bound(project, answer.node)
        return node_trouble(cache.node(project.node_name)) or _bound(project, project.node_name)

    def _ensure_objects(self, project: Project, fresh: bool, wanted: dict[str, Any]) -> Finding | None:
        """Everything that the project is reached by. What stands in its way, as the step Routed."""
        try:
            for api, plural, body in manifests.proxy_access(project, self._release):
                self._owned.ensure(api, plural, body, fresh)
            service = manifests.project_service(project, self._release)
            self._owned.ensure("v1", "services", service, fresh)
            deployment = manifests.proxy_deployment(project, self._release)
            self._owned.ensure("apps/v1", "deployments", deployment, fresh)
            allow = manifests.allow_policy(project.namespace, self._release)
            self._owned.ensure("networking.k8s.io/v1", "networkpolicies", allow, fresh)
            version = self._logins.ensure(project, fresh)
            if isinstance(version, Finding):
                return version
            wanted["passwordVersion"] = version
        except NameTaken as error:
            return Finding(Reason.NAME_TAKEN, str(error))
        return self._tls_trouble(project)

    def _tls_trouble(self, project: Project) -> Finding | None:
        tls = project.proxy.tls
        if tls is None:
            return None
        body = self._cluster.get(path_of("v1", "secrets", project.namespace, tls.secret_name))
        if body is None:
            text = f'Secret "{tls.secret_name}" does not exist; the proxy offers no TLS; create it'
            return Finding(Reason.TLS_SECRET_NOT_FOUND, text)
        lacking = [key for key in ("tls.crt", "tls.key") if not (body.get("data") or {}).get(key)]
        if lacking:
            text = f'Secret "{tls.secret_name}" has no {lacking[0]}; the proxy offers no TLS; add it'
            return Finding(Reason.TLS_SECRET_INVALID, text)
        return None

    def _proxy_pods(self, project: Project) -> tuple[ProxyPod, ...]:
        """Uncached: a proxy that the watch has not told of must not be overlooked."""
        selector = ",".join(f"{k}={v}" for k, v in manifests.proxy_selector(project).items())
        found = self._cluster.find(path_of("v1", "pods", project.namespace), labels=selector)
        alive = (b for b in found if (b.get("status") or {}).get("phase") not in ("Succeeded", "Failed"))
        return tuple(map(proxy_pod_of, alive))

    def _clear_entries(self, project: Project, pods: tuple[ProxyPod, ...]) -> None:
        """Entries of proxies that are gone for good, taken away as their own field managers."""
        there = {pod.name for pod in pods}
        for entry in project.proxies:
            if entry.pod not in there:
                body = {
                    "apiVersion": names.API_VERSION,
                    "kind": names.PROJECT_KIND,
                    "metadata": {"name": project.name, "namespace": project.namespace},
                    "status": {"proxies": []},
                }
                path = project_path(project.namespace, project.name, "status")
                self._cluster.apply(path, body, names.PROXY_MANAGER_PREFIX + entry.pod)

    def _wake_branches(self, project: Project, branches: tuple[Branch, ...], route: Route | None) -> None:
        """Wakes the branches that would say something else now; tells them which one is active, by the route
        that all proxies obey (None: not yet)."""
        for branch in branches:
            if branch.deleting:
                continue
            told = (find_condition(branch.status, Condition.SCHEDULED) or {}).get("reason")
            expected: str | None = told
            if branch.node_name is None:
                answer = bind_branch(project, branch, branches)
                expected = "" if isinstance(answer, Binding) else answer.reason.value
            if told != expected:
                request_reconcile(
                    self._cluster, names.CONTROLLER_REQUESTED_AT, branch.namespace, branch.object_name
                )
            elif route and branch.active != (route.branch == branch.name):
                self._tell_active(branch, route.branch == branch.name)

    def _tell_active(self, branch: Branch, active: bool) -> None:
        """Without a visit of the branch: a switch waits for nothing else of it."""
        try:
            patch_status(self._cluster, branch, {"active": active})
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    def remove(self, project: Project, cache: Cache) -> float | None:
        """One visit of a project being deleted: None once its branches are gone; seconds to wait else."""
        path = path_of(names.API_VERSION, names.BRANCHES, project.namespace)
        left = [b for b in self._cluster.find(path) if b["spec"]["project"] == project.name]
        for body in left:
            if not body["metadata"].get("deletionTimestamp"):
                meta = body["metadata"]
                self._cluster.delete(branch_path(meta["namespace"], meta["name"]), uid=meta["uid"])
        if left:
            return 0.5
        self._logins.drop(project)
        nodes = self._release.nodes_namespace
        # Those that are being deleted too need it no more than this one.
        others = (p for p in cache.all_projects() if p.namespace == project.namespace and not p.deleting)
        if not any(other.uid != project.uid for other in others):
            self._owned.drop("networking.k8s.io/v1", "networkpolicies", nodes, f"allow-{project.namespace}")
        return None


def _reported(project: Project) -> tuple[ProxyPod, ...]:
    """The proxies that have said something, as if they were there and ready."""
    return tuple(ProxyPod(entry.pod, True) for entry in project.proxies)


def _bound(project: Project, node: str) -> Finding:
    return Finding(Reason.BOUND, f"project {project.name} is bound to node {node}")


def proxy_pod_of(body: Mapping[str, Any]) -> ProxyPod:
    """A proxy's pod as the API server has it."""
    meta = body["metadata"]
    return ProxyPod(meta["name"], is_ready(body) and not meta.get("deletionTimestamp"))


def _target_dict(target: Target) -> dict[str, Any]:
    told = {"branch": target.branch, "state": target.state}
    return told | ({"address": target.address, "port": target.port} if target.address else {})
