"""kopf handlers over projects, branches, nodes and pods. Wiring only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import kopf

from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.conditions import Condition, find_condition, is_condition_true
from dbranch.api.errors import DbranchError
from dbranch.api.project import Project, parse_project
from dbranch.controller.branch.reconciler import BranchReconciler
from dbranch.controller.cache import Cache
from dbranch.controller.events import EmitEvent
from dbranch.controller.finalizers import ensure_agent_dropped
from dbranch.controller.manifests import Release
from dbranch.controller.nodes import AgentPod, NodeObject, agent_pod, node_object
from dbranch.controller.owned import OwnedObjects
from dbranch.controller.project.reconciler import ProjectReconciler, proxy_pod_of
from dbranch.controller.project.status import is_outdated
from dbranch.controller.routing import needs_reconcile
from dbranch.controller.scheduling import is_abandoned, node_trouble
from dbranch.kube.client import Cluster, object_path
from dbranch.kube.requeue import request_reconcile
from dbranch.runtime.initial_sync import InitialSync
from dbranch.runtime.kopf_settings import configure_kopf, login, requeue_after
from dbranch.runtime.locks import KeyedLocks
from dbranch.runtime.workqueue import WorkQueue

logger = logging.getLogger(__name__)


_PROJECT: Any = (names.GROUP, names.VERSION, names.PROJECTS)


_BRANCH: Any = (names.GROUP, names.VERSION, names.BRANCHES)


_REQUESTED: Any = ("metadata", "annotations", names.CONTROLLER_REQUESTED_AT)


# What the agents measure: no condition and no route follows from it.
_MEASURED = (
    *(
        f"{what}{unit}"
        for what in ("logical", "unique", "used", "free", "allocated", "hostFree")
        for unit in ("Bytes", "Size")
    ),
    "warmSlots",
)


# What the controller does not follow by watching (users' Secrets, what others do to its objects).
_LOOK_EVERY = 20.0


def register(registry: kopf.OperatorRegistry, cluster: Cluster, release: Release, resync: float) -> None:
    """The indices and handlers, each of which only asks for one visit. `resync`: seconds between two looks at
    whether everything made for an object is still there."""
    locks, owned, first = KeyedLocks(), OwnedObjects(cluster), InitialSync("branches")
    projects = ProjectReconciler(cluster, release, owned, locks)
    branches = BranchReconciler(cluster, release, owned, locks)
    _register_start(registry, owned)
    _register_indices(registry, release.nodes_namespace)
    _register_projects(registry, projects, resync)
    _register_branches(registry, branches, resync, first)
    _register_neighbours(registry, cluster, projects, first)


def _register_start(registry: kopf.OperatorRegistry, owned: OwnedObjects) -> None:
    more: Any = {"registry": registry}

    @kopf.on.startup(**more)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        others = [
            ("metadata", "annotations", names.AGENT_REQUESTED_AT),
            *(("status", "node", key) for key in _MEASURED),
        ]
        configure_kopf(settings, names.CONTROLLER_FINALIZER, names.CONTROLLER_PREFIX, others)
        # Not those of Postgres: they are the agents' concern, and there are as many as branches.
        settings.watching.label_selectors["v1", "pods"] = (
            f"{names.LABEL_NAME}=dbranch,"
            f"{names.LABEL_COMPONENT} in ({names.COMPONENT_AGENT},{names.COMPONENT_PROXY})"
        )

    @kopf.on.startup(**more)
    def remember(**_: Any) -> None:
        # A branch has one of each: a start would ask for them one by one.
        for api, plural in (("v1", "services"), ("discovery.k8s.io/v1", "endpointslices")):
            try:
                owned.remember(api, plural)
            except DbranchError as error:
                logger.warning("%s are looked at one by one: %s", plural, error)

    kopf.on.login(**more)(login)


def _register_indices(registry: kopf.OperatorRegistry, nodes_namespace: str) -> None:
    """Not in a thread each, as kopf runs what may wait: these, and what mostly finds nothing to do."""
    more: Any = {"registry": registry}

    @kopf.index("v1", "nodes", id="node_index", **more)
    async def node_index(body: kopf.Body, **_: Any) -> dict[str, NodeObject]:
        return {body["metadata"]["name"]: node_object(body)}

    @kopf.index("v1", "pods", id="agent_index", **more)
    async def agent_index(
        body: kopf.Body, namespace: Any, labels: kopf.Labels, **_: Any
    ) -> dict[str, AgentPod]:
        mine = namespace == nodes_namespace and labels.get(names.LABEL_COMPONENT) == names.COMPONENT_AGENT
        agent = agent_pod(body) if mine else None
        return {agent.node: agent} if agent else {}

    @kopf.index(*_PROJECT, id="project_index", **more)
    async def project_index(body: kopf.Body, **_: Any) -> dict[tuple[str, str], Project]:
        project = parse_project(body)
        return {(project.namespace, project.name): project}

    @kopf.index(*_BRANCH, id="branch_index", **more)
    async def branch_index(body: kopf.Body, **_: Any) -> dict[tuple[str, str], Branch]:
        branch = parse_branch(body)
        return {(branch.namespace, branch.project): branch}


def cache_of(found: Mapping[str, Any]) -> Cache:
    """The cache in a handler's keywords."""
    return Cache(*(found[f"{noun}_index"] for noun in ("node", "agent", "project", "branch")))


def event_emitter(body: Mapping[Any, Any]) -> EmitEvent:
    """Events about the object."""
    return lambda kind, reason, message: kopf.event(body, type=kind, reason=reason, message=message)


def project_event_emitter(project: Project) -> EmitEvent:
    """Events about a project whose body is not at hand."""
    meta = {"namespace": project.namespace, "name": project.name, "uid": project.uid}
    return event_emitter({"apiVersion": names.API_VERSION, "kind": names.PROJECT_KIND, "metadata": meta})


def _register_projects(registry: kopf.OperatorRegistry, care: ProjectReconciler, resync: float) -> None:
    more: Any = {"registry": registry}

    @kopf.on.resume(*_PROJECT, id="project", **more)
    @kopf.on.create(*_PROJECT, id="project", **more)
    @kopf.on.update(*_PROJECT, field="spec", id="project", **more)
    @kopf.on.field(*_PROJECT, field="status.node", id="project", **more)
    @kopf.on.field(*_PROJECT, field="status.proxies", id="project", **more)
    def project(namespace: Any, name: str, body: kopf.Body, **found: Any) -> None:
        visit(care.reconcile, namespace, name, cache_of(found), event_emitter(body))

    @kopf.on.delete(*_PROJECT, id="project-removal", **more)
    def project_removal(body: kopf.Body, **found: Any) -> None:
        requeue_after(
            visit(care.remove, parse_project(body), cache_of(found)), "its branches are being deleted"
        )

    @kopf.timer(*_PROJECT, interval=_LOOK_EVERY, initial_delay=_LOOK_EVERY, id="project-look", **more)
    async def project_look(
        namespace: Any, name: str, body: kopf.Body, status: kopf.Status, **found: Any
    ) -> None:
        secret = body["spec"].get("postgres", {}).get("passwordSecret")
        if secret or not is_condition_true(status, Condition.READY):
            await in_thread(care.reconcile, namespace, name, cache_of(found), event_emitter(body), True)

    @kopf.timer(*_PROJECT, interval=resync, initial_delay=resync, id="project-resync", **more)
    def project_resync(namespace: Any, name: str, body: kopf.Body, **found: Any) -> None:
        visit(care.reconcile, namespace, name, cache_of(found), event_emitter(body), True)


def _register_branches(
    registry: kopf.OperatorRegistry, care: BranchReconciler, resync: float, first: InitialSync
) -> None:
    more: Any = {"registry": registry}

    @kopf.on.resume(*_BRANCH, id="branch", **more)
    @kopf.on.create(*_BRANCH, id="branch", **more)
    @kopf.on.update(*_BRANCH, field="spec", id="branch", **more)
    @kopf.on.field(*_BRANCH, field="status.node", id="branch", **more)
    @kopf.on.field(*_BRANCH, field=_REQUESTED, id="branch", **more)
    def branch(namespace: Any, name: str, body: kopf.Body, **found: Any) -> None:
        visit(care.reconcile, namespace, name, cache_of(found), event_emitter(body))
        first.mark_reconciled(namespace, name)

    @kopf.on.delete(*_BRANCH, id="branch-removal", **more)
    def branch_removal(body: kopf.Body, **found: Any) -> None:
        wait = visit(care.remove, parse_branch(body), cache_of(found))
        first.mark_reconciled(body["metadata"]["namespace"], body["metadata"]["name"])
        requeue_after(wait, "sessions are still sent to it, or a copy of it is being made")

    @kopf.timer(*_BRANCH, interval=_LOOK_EVERY, initial_delay=_LOOK_EVERY, id="branch-look", **more)
    async def branch_look(
        namespace: Any, name: str, body: kopf.Body, status: kopf.Status, **found: Any
    ) -> None:
        if not is_condition_true(status, Condition.READY):
            await in_thread(care.reconcile, namespace, name, cache_of(found), event_emitter(body), True)

    @kopf.timer(*_BRANCH, interval=resync, initial_delay=resync, id="branch-resync", **more)
    def branch_resync(namespace: Any, name: str, body: kopf.Body, **found: Any) -> None:
        visit(care.reconcile, namespace, name, cache_of(found), event_emitter(body), True)


def _register_neighbours(
    registry: kopf.OperatorRegistry, cluster: Cluster, care: ProjectReconciler, first: InitialSync
) -> None:
    """What only wakes those objects that would say something else now: a project by a visit, a branch by a poke.

    The indices hold an event before its handlers run, so a visit that is asked for knows of it.
    """
    more: Any = {"registry": registry}
    asked = WorkQueue()

    def look(cache: Cache, project: Project) -> None:
        key = project.namespace, project.name
        asked.add(key, care.reconcile, *key, cache, project_event_emitter(project))

    def enqueue_if_stale(cache: Cache, namespace: str, name: str) -> None:
        project = cache.project(namespace, name)
        if project and is_outdated(project, cache.branches_of(namespace, name)):
            look(cache, project)

    @kopf.on.event(*_BRANCH, **more)
    async def on_branch_event(event: Any, body: kopf.Body, **found: Any) -> None:
        namespace, cache = body["metadata"]["namespace"], cache_of(found)
        enqueue_if_stale(cache, namespace, body["spec"]["project"])
        if event["type"] == "DELETED":
            first.mark_reconciled(namespace, body["metadata"]["name"])
        elif body["metadata"].get("deletionTimestamp"):
            await in_thread(release_agent_finalizer, cluster, cache, parse_branch(body))

    @kopf.on.event(*_PROJECT, **more)
    async def on_project_event(event: Any, body: kopf.Body, **found: Any) -> None:
        # What its branches say may have come before it.
        enqueue_if_stale(cache_of(found), body["metadata"]["namespace"], body["metadata"]["name"])
        if event["type"] != "DELETED" and body["metadata"].get("deletionTimestamp"):
            await in_thread(release_agent_finalizer, cluster, cache_of(found), parse_project(body))

    @kopf.on.event("v1", "pods", labels={names.LABEL_COMPONENT: names.COMPONENT_PROXY}, **more)
    async def proxy_pod(
        event: Any, namespace: Any, labels: kopf.Labels, body: kopf.Body, **found: Any
    ) -> None:
        cache = cache_of(found)
        project = cache.project(namespace, labels.get(names.LABEL_PROJECT, ""))
        if not project or project.deleting or project.uid != labels.get(names.LABEL_PROJECT_UID):
            return
        if event["type"] == "DELETED" or needs_reconcile(project, proxy_pod_of(body)):
            look(cache, project)

    @kopf.on.event("v1", "pods", labels={names.LABEL_COMPONENT: names.COMPONENT_AGENT}, **more)
    async def on_agent_event(**found: Any) -> None:
        await requeue_scheduled(cluster, cache_of(found), look)

    @kopf.on.event("v1", "nodes", **more)
    async def on_node_event(**found: Any) -> None:
        # There is always a node, and no handler runs before the indices hold all that was listed.
        first.begin((branch.namespace, branch.object_name) for branch in cache_of(found).all_branches())
        await requeue_scheduled(cluster, cache_of(found), look)


def release_agent_finalizer(cluster: Cluster, cache: Cache, item: Project | Branch) -> None:
    """What is being deleted and waits for an agent that will never come, waits no more."""
    if item.node_name and item.deleting and is_abandoned(cache.node(item.node_name), item.annotations):
        ensure_agent_dropped(cluster, object_path(item), item.uid)


async def requeue_scheduled(cluster: Cluster, cache: Cache, look: Callable[[Cache, Project], None]) -> None:
    """Wakes what is bound to a node whose state it does not tell, and projects that wait for a node."""
    troubles: dict[str, str] = {}

    def expected(node: str) -> str:
        if node not in troubles:
            trouble = node_trouble(cache.node(node))
            troubles[node] = trouble.reason.value if trouble else "Bound"
        return troubles[node]

    for project in cache.all_projects():
        told = (find_condition(project.status, Condition.SCHEDULED) or {}).get("reason")
        if (
            not project.deleting
            and told
            and (project.node_name is None or told != expected(project.node_name))
        ):
            look(cache, project)
    await in_thread(_requeue_scheduled_branches, cluster, cache, expected)


def _requeue_scheduled_branches(cluster: Cluster, cache: Cache, expected: Callable[[str], str]) -> None:
    bound: list[Project | Branch] = [*cache.all_branches(), *cache.all_projects()]
    for item in bound:
        release_agent_finalizer(cluster, cache, item)
    for branch in cache.all_branches():
        told = (find_condition(branch.status, Condition.SCHEDULED) or {}).get("reason")
        if (
            branch.node_name
            and not branch.deleting
            and told not in (None, "NameTaken", expected(branch.node_name))
        ):
            request_reconcile(cluster, names.CONTROLLER_REQUESTED_AT, branch.namespace, branch.object_name)


def visit(call: Any, *args: Any) -> Any:
    """One visit; what failed for now is tried again."""
    try:
        return call(*args)
    except (DbranchError, OSError) as error:
        logger.warning("%s: %s", call.__name__, error)
        raise kopf.TemporaryError(str(error), delay=2.0) from error


async def in_thread(call: Any, *args: Any) -> None:
    """`visit`, for a handler that is a coroutine: kopf's loop goes on meanwhile."""
    await asyncio.to_thread(visit, call, *args)
