"""The controller's reconciles of a project: observe, plan, effect, report."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import Any

from dbranch.api import names
from dbranch.api.conditions import Finding, Reason
from dbranch.api.errors import ApiError
from dbranch.api.project import Project, parse_project
from dbranch.api.versions import is_newer
from dbranch.controller import timing
from dbranch.controller.cache import Cache
from dbranch.controller.credentials import CredentialSecrets
from dbranch.controller.events import EmitEvent, emit_switch, emit_transition
from dbranch.controller.failure import failure_finding
from dbranch.controller.foreign_owners import ForeignOwners
from dbranch.controller.keys import key_of
from dbranch.controller.limits import Limits
from dbranch.controller.manifests import Release
from dbranch.controller.metrics import ControllerMetrics
from dbranch.controller.owned import OwnedObjects
from dbranch.controller.places import Places
from dbranch.controller.project.objects import ProjectObjects
from dbranch.controller.project.plan import (
    Applied,
    ProjectFacts,
    ProjectPlan,
    moves_route,
    needs_root,
    plan_project,
    reported_applied,
)
from dbranch.controller.project.removal import ProjectRemoval
from dbranch.controller.proxy_manifests import proxy_selector
from dbranch.controller.proxy_pods import ProxyPod, proxy_pod_of
from dbranch.controller.pull_secrets import PullSecrets
from dbranch.controller.rollouts import Rollouts
from dbranch.controller.scheduling import Binding, bind_project
from dbranch.kube.client import Cluster, path_of, project_path
from dbranch.kube.status import patch_status
from dbranch.runtime.clock import now_rfc3339
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
        rollouts: Rollouts | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._cluster, self._release, self._owned, self._locks = cluster, release, owned, locks
        self._metrics, self._emit_event = metrics, emit_event
        self._foreign_owners = ForeignOwners(emit_event)
        self._credential_secrets = CredentialSecrets(cluster, release, owned, emit_event)
        self._pull_secrets = PullSecrets(cluster, release, owned)
        self._removal = ProjectRemoval(
            cluster, release, owned, self._credential_secrets, self._pull_secrets, emit_event
        )
        self._rollouts = rollouts or Rollouts()
        self._objects = ProjectObjects(
            *(cluster, release, owned, metrics, self._credential_secrets, self._pull_secrets, self._rollouts)
        )
        self._limits = limits or Limits()
        self._places = Places(self._limits, "projects")
        # By project UID: the version of the last switch that was written here.
        self._switched: dict[str, str] = {}

    def forget(self, project: Project) -> None:
        """Forget a project that is gone."""
        self._credential_secrets.forget(project)
        self._switched.pop(project.uid, None)
        self._objects.forget(project)

    def reconcile(self, namespace: str, name: str, cache: Cache, bypass_cache: bool = False) -> Result:
        """Reconcile a project, also one that is being deleted. `bypass_cache`: read again what is remembered."""
        with self._locks.held(namespace, name), self._metrics.reconcile(names.PROJECT_KIND):
            if not bypass_cache and self._switch_cached(namespace, name, cache):
                # The acknowledgements lead here again. What else is to be done competes with no first session.
                return Result(timing.SWITCHED_RESYNC_SECONDS)
            for attempt in range(_MAX_ATTEMPTS):
                body = self._cluster.get(project_path(namespace, name))
                if body is None:
                    return GONE
                try:
                    if body["metadata"].get("deletionTimestamp"):
                        return self._removal.remove(parse_project(body), cache, body["spec"])
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

    def _switch_cached(self, namespace: str, name: str, cache: Cache) -> bool:
        """Write a switch of a project as the cache has it, without a read of it; return whether it is written.

        It is not if it is no switch, or if the project has been written since: the write names the version that it
        follows.
        """
        cached = cache.project(namespace, name)
        if cached is None or cached.deleting or not cached.status.get("conditions"):
            return False
        is_own_event_awaited = is_newer(self._switched.get(cached.uid, ""), cached.resource_version)
        if is_own_event_awaited or not moves_route(cached, cache.branches_of(namespace, name)):
            return False
        try:
            return self._report_switch(self._observe(cached, cache), cached.resource_version) is not None
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            return False

    def _report_switch(self, facts: ProjectFacts, version: str) -> dict[str, Any] | None:
        """Write a switch, which waits for no other object: what comes of these is taken as it was."""
        body = self._report(facts.project, plan_project(facts, now_rfc3339()), version)
        if body:
            self._switched[facts.project.uid] = body["metadata"]["resourceVersion"]
        return body

    def _reconcile_once(self, body: dict[str, Any], cache: Cache, bypass_cache: bool) -> Result:
        facts = self._observe(parse_project(body), cache)
        self._foreign_owners.report(facts.project)
        version = body["metadata"]["resourceVersion"]
        if facts.is_refused:
            facts = replace(facts, applied=Applied())
            self._report(facts.project, plan_project(facts, now_rfc3339()), version)
            return Result(timing.UNREADY_RESYNC_SECONDS, unfinished=True)
        if facts.project.node_name is not None:
            return self._apply_and_report(facts, body, cache, bypass_cache)
        # Who waits for a node holds no place.
        is_binding = isinstance(bind_project(facts.project, facts.candidates), Binding)
        in_namespace = partial(cache.projects_in, facts.project.namespace)
        if is_binding and not self._places.take(facts.project, in_namespace):
            return Result(timing.PLACE_TAKEN_RETRY_SECONDS)
        try:
            return self._apply_and_report(facts, body, cache, bypass_cache)
        except Exception:
            self._places.release(facts.project)
            raise

    def _apply_and_report(
        self, facts: ProjectFacts, body: dict[str, Any], cache: Cache, bypass_cache: bool
    ) -> Result:
        """Apply what the project needs, and report; a switch first."""
        project, version = facts.project, body["metadata"]["resourceVersion"]
        root_problem = self._objects.create_root(project) if needs_root(facts.branches) else None
        if project.status.get("conditions") and moves_route(project, facts.branches):
            body = self._report_switch(facts, version) or body
            project, version = parse_project(body), body["metadata"]["resourceVersion"]
            facts = replace(facts, node=cache.node(project.node_name) if project.node_name else None)
        binding = bind_project(project, facts.candidates) if project.node_name is None else None
        node = binding.node if isinstance(binding, Binding) else project.node_name
        applied = self._objects.apply(project, node, facts.proxies, bypass_cache)
        applied = replace(applied, problem=root_problem or applied.problem)
        facts = replace(facts, project=project, applied=applied)
        plan = plan_project(facts, now_rfc3339())
        self._report(project, plan, version)
        for pod in plan.gone:
            self._delete_entry(project, pod)
        self._credential_secrets.apply_for_branches(project, len(facts.branches))
        return self._result(project, plan, facts.applied.problem)

    def _result(self, project: Project, plan: ProjectPlan, problem: Finding | None) -> Result:
        """Return when to reconcile the project without an event."""
        if problem and problem.reason in (Reason.OBJECT_REFUSED, Reason.WAITING_FOR_DELETION):
            longest = timing.REFUSED_LONGEST_RETRY_SECONDS
            return Result(timing.REFUSED_RETRY_SECONDS, unfinished=True, longest=longest)
        if self._rollouts.is_running(key_of(project)):
            return Result(timing.PROXY_ROLLOUT_POLL_SECONDS)
        # The controller watches neither users' Secrets nor what has a name that it needs; and who waits for its turn
        # to replace its proxies does not rely on the others alone.
        if problem or project.postgres.password_secret or self._rollouts.is_waiting(key_of(project)):
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
            self._limits.of(project.namespace),
            self._places.is_excess(project, partial(cache.projects_in, project.namespace)),
        )

    def _report(self, project: Project, plan: ProjectPlan, version: str) -> dict[str, Any] | None:
        """Write the fields of the status that differ; return the object as written, None if none does."""
        changes = plan.changes(project.status)
        if not changes:
            return None
        written = patch_status(self._cluster, project, changes, version)
        switched = emit_switch(project, plan.status.get("route"), self._emit_event)
        emit_transition(project, plan.ready, plan.status["conditions"], self._emit_event, switched)
        return written

    def _list_proxy_pods(self, project: Project) -> tuple[ProxyPod, ...]:
        """List the project's proxy pods uncached: one that the watch has not delivered yet counts, too."""
        selector = ",".join(f"{k}={v}" for k, v in proxy_selector(project).items())
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


def _pods_with_entries(project: Project) -> tuple[ProxyPod, ...]:
    """Return the proxies that have an entry in status.proxies, taken as existing and ready."""
    return tuple(ProxyPod(entry.pod, True) for entry in project.proxies)
