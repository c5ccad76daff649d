"""The controller's reconciles of a project: observe, plan, effect, report; and its deletion."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from dbranch.api import names
from dbranch.api.conditions import Finding, Reason
from dbranch.api.errors import ApiError, NameTaken
from dbranch.api.project import Project, parse_project
from dbranch.controller import manifests, timing
from dbranch.controller.cache import Cache
from dbranch.controller.credentials import CredentialSecrets
from dbranch.controller.events import EmitEvent, emit_transition
from dbranch.controller.failure import failure_finding
from dbranch.controller.finalizers import AbandonmentRefusals, release_if_abandoned
from dbranch.controller.manifests import Release
from dbranch.controller.metrics import ControllerMetrics
from dbranch.controller.owned import OwnedObjects
from dbranch.controller.project.plan import (
    Applied,
    ProjectFacts,
    ProjectPlan,
    desired_objects,
    held_status,
    moves_route,
    needs_root,
    plan_project,
    reported_applied,
    tls_finding,
)
from dbranch.controller.routing import ProxyPod, proxy_pod_of
from dbranch.kube.client import Cluster, branch_path, object_path, path_of, project_path
from dbranch.kube.status import patch_status
from dbranch.runtime.clock import now_rfc3339
from dbranch.runtime.finalizers import remove_finalizer
from dbranch.runtime.locks import KeyedLocks
from dbranch.runtime.result import DONE, GONE, Result

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
        emit_event: EmitEvent,
    ) -> None:
        self._cluster, self._release, self._owned, self._locks = cluster, release, owned, locks
        self._metrics, self._emit_event = metrics, emit_event
        self._abandonment_refusals = AbandonmentRefusals(emit_event)
        self._credential_secrets = CredentialSecrets(cluster, release, owned)

    def reconcile(self, namespace: str, name: str, cache: Cache, bypass_cache: bool = False) -> Result:
        """Reconcile a project, also one that is being deleted. `bypass_cache`: read again what is remembered."""
        with self._locks.held(namespace, name), self._metrics.reconcile(names.PROJECT_KIND):
            for attempt in range(_MAX_ATTEMPTS):
                body = self._cluster.get(project_path(namespace, name))
                if body is None:
                    return GONE
                try:
                    if body["metadata"].get("deletionTimestamp"):
                        return self._remove(parse_project(body), cache)
                    return self._reconcile_once(body, cache, bypass_cache)
                except ApiError as error:
                    if error.status != 409 or attempt == _MAX_ATTEMPTS - 1:
                        raise
        return DONE

    def report_failure(self, namespace: str, name: str, cache: Cache, error: Exception) -> None:
        """Report a reconcile that failed in the condition Routed, if the project is to blame for it."""
        finding = failure_finding(f"project {name}", error)
        with self._locks.held(namespace, name):
            body = self._cluster.get(project_path(namespace, name)) if finding else None
            if body is None or body["metadata"].get("deletionTimestamp"):
                return
            facts = self._observe(parse_project(body), cache)
            facts = replace(facts, applied=replace(facts.applied, problem=finding))
            plan = plan_project(facts, now_rfc3339())
            self._report(facts.project, plan, body["metadata"]["resourceVersion"])

    def _reconcile_once(self, body: dict[str, Any], cache: Cache, bypass_cache: bool) -> Result:
        facts = self._observe(parse_project(body), cache)
        project, version = facts.project, body["metadata"]["resourceVersion"]
        if needs_root(facts.branches):
            self._create_root(project)
        if project.status.get("conditions") and moves_route(project, facts.branches):
            # A switch waits for no other object. What comes of these is taken as it was.
            plan = plan_project(facts, now_rfc3339())
            body = self._report(project, plan, version) or body
            project, version = parse_project(body), body["metadata"]["resourceVersion"]
            facts = replace(facts, node=cache.node(project.node_name) if project.node_name else None)
        facts = replace(facts, project=project, applied=self._apply_objects(project, bypass_cache))
        plan = plan_project(facts, now_rfc3339())
        self._report(project, plan, version)
        for pod in plan.gone:
            self._delete_entry(project, pod)
        # The controller watches neither users' Secrets nor what has a name that it needs.
        if facts.applied.problem or project.postgres.password_secret:
            return Result(timing.UNREADY_RESYNC_SECONDS)
        return DONE if plan.ready.done else Result(timing.UNREADY_RESYNC_SECONDS, unfinished=True)

    def _observe(self, project: Project, cache: Cache) -> ProjectFacts:
        branches = cache.branches_of(project.namespace, project.name)
        # No proxy can have acknowledged a route that is not written yet, so the pods need not be listed for it.
        proxies = _pods_with_entries(project) if moves_route(project, branches) else ()
        return ProjectFacts(
            project,
            branches,
            cache.node(project.node_name) if project.node_name else None,
            () if project.node_name else tuple(cache.all_nodes()),
            proxies or self._list_proxy_pods(project),
            reported_applied(project),
        )

    def _report(self, project: Project, plan: ProjectPlan, version: str) -> dict[str, Any] | None:
        """Write the fields of the status that differ; return the object as written, None if none does."""
        changes = plan.changes(project.status)
        if not changes:
            return None
        written = patch_status(self._cluster, project, changes, version)
        emit_transition(project, plan.ready, plan.status["conditions"], self._emit_event)
        return written

    def _create_root(self, project: Project) -> None:
        path = path_of(names.API_VERSION, names.BRANCHES, project.namespace)
        try:
            self._cluster.create(path, manifests.root_branch(project))
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise

    def _apply_objects(self, project: Project, bypass_cache: bool) -> Applied:
        """Apply all that the project is reached by."""
        try:
            for api, plural, manifest in desired_objects(project, self._release):
                self._owned.apply(api, plural, manifest, bypass_cache)
            version = self._credential_secrets.apply(project, bypass_cache)
        except NameTaken as error:
            return Applied(project.password_version, Finding(Reason.NAME_TAKEN, str(error)))
        if isinstance(version, Finding):
            return Applied(project.password_version, version)
        tls = project.proxy.tls
        secret = path_of("v1", "secrets", project.namespace, tls.secret_name) if tls else None
        return Applied(version, tls_finding(project, self._cluster.get(secret) if secret else None))

    def _list_proxy_pods(self, project: Project) -> tuple[ProxyPod, ...]:
        """List the project's proxy pods uncached: one that the watch has not delivered yet counts, too."""
        selector = ",".join(f"{k}={v}" for k, v in manifests.proxy_selector(project).items())
        bodies = self._cluster.find(path_of("v1", "pods", project.namespace), labels=selector)
        return tuple(filter(None, map(proxy_pod_of, bodies)))

    def _delete_entry(self, project: Project, pod: str) -> None:
        """Delete the entry in status.proxies of a pod that does not exist any more, as its own field manager."""
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.PROJECT_KIND,
            "metadata": {"name": project.name, "namespace": project.namespace},
            "status": {"proxies": []},
        }
        path = project_path(project.namespace, project.name, "status")
        self._cluster.apply(path, body, names.PROXY_MANAGER_PREFIX + pod)

    def _remove(self, project: Project, cache: Cache) -> Result:
        """Delete the project's branches, then its objects in the nodes' namespace; let go of it in the end.

        The event of the last branch's deletion leads here again.
        """
        node = cache.node(project.node_name) if project.node_name else None
        release_if_abandoned(self._cluster, project, node)
        self._abandonment_refusals.report(project, node)
        if names.CONTROLLER_FINALIZER not in project.finalizers:
            held = held_status(project, now_rfc3339())
            if held:
                patch_status(self._cluster, project, held)
            return DONE
        path = path_of(names.API_VERSION, names.BRANCHES, project.namespace)
        remaining = [b for b in self._cluster.find(path) if b["spec"]["project"] == project.name]
        for body in remaining:
            meta = body["metadata"]
            if not meta.get("deletionTimestamp"):
                self._cluster.delete(branch_path(meta["namespace"], meta["name"]), uid=meta["uid"])
        if remaining:
            return Result(timing.DELETION_RESYNC_SECONDS)
        self._credential_secrets.delete(project)
        # The last project of a namespace takes the NetworkPolicy along. One that is being deleted needs it no more.
        others = (p for p in cache.all_projects() if p.namespace == project.namespace and not p.deleting)
        if not any(other.uid != project.uid for other in others):
            nodes_namespace, name = self._release.nodes_namespace, f"allow-{project.namespace}"
            self._owned.delete("networking.k8s.io/v1", "networkpolicies", nodes_namespace, name)
        remove_finalizer(self._cluster, object_path(project), project.uid, names.CONTROLLER_FINALIZER)
        return DONE


def _pods_with_entries(project: Project) -> tuple[ProxyPod, ...]:
    """Return the proxies that have an entry in status.proxies, taken as existing and ready."""
    return tuple(ProxyPod(entry.pod, True) for entry in project.proxies)
