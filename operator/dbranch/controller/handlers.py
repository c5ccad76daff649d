"""The controller's kopf handlers: events of projects, branches, nodes and pods -> reconciles. Wiring only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import kopf

from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.conditions import Condition, is_condition_true
from dbranch.api.errors import DbranchError
from dbranch.api.project import Project, parse_project
from dbranch.controller import timing
from dbranch.controller.branch.reconciler import BranchReconciler
from dbranch.controller.cache import Cache
from dbranch.controller.events import EmitEvent
from dbranch.controller.finalizers import remove_agent_finalizer
from dbranch.controller.manifests import Release
from dbranch.controller.metrics import ControllerMetrics
from dbranch.controller.nodes import AgentPod, NodeObject, agent_pod, node_object
from dbranch.controller.owned import OwnedObjects
from dbranch.controller.project.reconciler import ProjectReconciler
from dbranch.controller.routing import ProxyPod, proxy_pod_of
from dbranch.controller.scheduling import is_abandoned
from dbranch.controller.stale import Change, NodeChange, PasswordChange, ProxyChange, stale
from dbranch.kube.client import Cluster, object_path
from dbranch.runtime.initial_sync import InitialSync
from dbranch.runtime.kopf_settings import configure_kopf, login, requeue_after
from dbranch.runtime.locks import KeyedLocks
from dbranch.runtime.workqueue import WorkQueue

logger = logging.getLogger(__name__)

_PROJECT: Any = (names.GROUP, names.VERSION, names.PROJECTS)
_BRANCH: Any = (names.GROUP, names.VERSION, names.BRANCHES)
_REQUESTED_AT: Any = ("metadata", "annotations", names.CONTROLLER_REQUESTED_AT)
# Fields of status.node that the agents measure: no condition and no route depends on them.
_MEASURED_FIELDS = (
    *(
        f"{quantity}{unit}"
        for quantity in ("logical", "unique", "used", "free", "allocated", "hostFree")
        for unit in ("Bytes", "Size")
    ),
    "warmSlots",
)


def register(
    registry: kopf.OperatorRegistry,
    cluster: Cluster,
    release: Release,
    resync_seconds: float,
    metrics: ControllerMetrics,
) -> None:
    """Register the indices and handlers. Each object is reconciled at least every `resync_seconds`."""
    locks, owned, initial_sync = KeyedLocks(), OwnedObjects(cluster), InitialSync("branches")
    projects = ProjectReconciler(cluster, release, owned, locks, metrics)
    branches = BranchReconciler(cluster, release, owned, locks, metrics)
    _register_startup(registry, owned)
    _register_indices(registry, release.nodes_namespace)
    _register_projects(registry, projects, resync_seconds)
    _register_branches(registry, branches, resync_seconds, initial_sync)
    by_kind: dict[str, ProjectReconciler | BranchReconciler] = {
        names.PROJECT_KIND: projects,
        names.BRANCH_KIND: branches,
    }
    _register_related(registry, cluster, by_kind, initial_sync)


def _register_startup(registry: kopf.OperatorRegistry, owned: OwnedObjects) -> None:
    options: Any = {"registry": registry}

    @kopf.on.startup(**options)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        ignored_fields = [
            ("metadata", "annotations", names.AGENT_REQUESTED_AT),
            *(("status", "node", field) for field in _MEASURED_FIELDS),
        ]
        configure_kopf(settings, names.CONTROLLER_FINALIZER, names.CONTROLLER_PREFIX, ignored_fields)
        # Not the Postgres pods: they are the agents' business, and there are as many as branches.
        settings.watching.label_selectors["v1", "pods"] = (
            f"{names.LABEL_NAME}=dbranch,"
            f"{names.LABEL_COMPONENT} in ({names.COMPONENT_AGENT},{names.COMPONENT_PROXY})"
        )

    @kopf.on.startup(**options)
    def preload(**_: Any) -> None:
        # Every branch has one of each, so a controller that starts would read them one by one.
        for api, plural in (("v1", "services"), ("discovery.k8s.io/v1", "endpointslices")):
            try:
                owned.preload(api, plural)
            except DbranchError as error:
                logger.warning("cannot list %s, so each is read by itself: %s", plural, error)

    kopf.on.login(**options)(login)


def _register_indices(registry: kopf.OperatorRegistry, nodes_namespace: str) -> None:
    """Register the indices as coroutines: kopf would run each function in a thread, also those that do nothing."""
    options: Any = {"registry": registry}

    @kopf.index("v1", "nodes", id="node_index", **options)
    async def node_index(body: kopf.Body, **_: Any) -> dict[str, NodeObject]:
        return {body["metadata"]["name"]: node_object(body)}

    @kopf.index("v1", "pods", id="agent_index", **options)
    async def agent_index(
        body: kopf.Body, namespace: Any, labels: kopf.Labels, **_: Any
    ) -> dict[str, AgentPod]:
        is_agent = namespace == nodes_namespace and labels.get(names.LABEL_COMPONENT) == names.COMPONENT_AGENT
        agent = agent_pod(body) if is_agent else None
        return {agent.node: agent} if agent else {}

    @kopf.index("v1", "pods", id="proxy_index", **options)
    async def proxy_index(body: kopf.Body, labels: kopf.Labels, **_: Any) -> dict[str, ProxyPod]:
        proxy = proxy_pod_of(body) if labels.get(names.LABEL_COMPONENT) == names.COMPONENT_PROXY else None
        return {labels.get(names.LABEL_PROJECT_UID, ""): proxy} if proxy else {}

    @kopf.index(*_PROJECT, id="project_index", **options)
    async def project_index(body: kopf.Body, **_: Any) -> dict[tuple[str, str], Project]:
        project = parse_project(body)
        return {(project.namespace, project.name): project}

    @kopf.index(*_BRANCH, id="branch_index", **options)
    async def branch_index(body: kopf.Body, **_: Any) -> dict[tuple[str, str], Branch]:
        branch = parse_branch(body)
        return {(branch.namespace, branch.project): branch}


def cache_of(kwargs: Mapping[str, Any]) -> Cache:
    """Return the cache over the indices among a handler's keyword arguments."""
    return Cache(*(kwargs[f"{noun}_index"] for noun in ("node", "agent", "project", "branch", "proxy")))


def event_emitter(body: Mapping[Any, Any]) -> EmitEvent:
    """Return a function that emits Events about the object."""
    return lambda event_type, reason, message: kopf.event(
        body, type=event_type, reason=reason, message=message
    )


def _register_projects(
    registry: kopf.OperatorRegistry, reconciler: ProjectReconciler, resync_seconds: float
) -> None:
    options: Any = {"registry": registry}
    unready_seconds = timing.UNREADY_RESYNC_SECONDS

    @kopf.on.resume(*_PROJECT, id="project", **options)
    @kopf.on.create(*_PROJECT, id="project", **options)
    @kopf.on.update(*_PROJECT, field="spec", id="project", **options)
    @kopf.on.field(*_PROJECT, field="status.node", id="project", **options)
    @kopf.on.field(*_PROJECT, field="status.proxies", id="project", **options)
    def on_project_change(namespace: Any, name: str, body: kopf.Body, **kwargs: Any) -> None:
        call_or_retry(reconciler.reconcile, namespace, name, cache_of(kwargs), event_emitter(body))

    @kopf.on.delete(*_PROJECT, id="project-removal", **options)
    def on_project_deletion(body: kopf.Body, **kwargs: Any) -> None:
        done = call_or_retry(reconciler.remove, parse_project(body), cache_of(kwargs))
        requeue_after(None if done else timing.BRANCHES_GONE_POLL_SECONDS, "its branches are being deleted")

    @kopf.timer(
        *_PROJECT, interval=unready_seconds, initial_delay=unready_seconds, id="project-unready", **options
    )
    async def resync_unready_project(
        namespace: Any, name: str, body: kopf.Body, status: kopf.Status, **kwargs: Any
    ) -> None:
        user_secret = body["spec"].get("postgres", {}).get("passwordSecret")
        if user_secret or not is_condition_true(status, Condition.READY):
            await call_in_thread(
                reconciler.reconcile, namespace, name, cache_of(kwargs), event_emitter(body), True
            )

    @kopf.timer(
        *_PROJECT, interval=resync_seconds, initial_delay=resync_seconds, id="project-resync", **options
    )
    def resync_project(namespace: Any, name: str, body: kopf.Body, **kwargs: Any) -> None:
        call_or_retry(reconciler.reconcile, namespace, name, cache_of(kwargs), event_emitter(body), True)


def _register_branches(
    registry: kopf.OperatorRegistry,
    reconciler: BranchReconciler,
    resync_seconds: float,
    initial_sync: InitialSync,
) -> None:
    options: Any = {"registry": registry}
    unready_seconds = timing.UNREADY_RESYNC_SECONDS

    @kopf.on.resume(*_BRANCH, id="branch", **options)
    @kopf.on.create(*_BRANCH, id="branch", **options)
    @kopf.on.update(*_BRANCH, field="spec", id="branch", **options)
    @kopf.on.field(*_BRANCH, field="status.node", id="branch", **options)
    @kopf.on.field(*_BRANCH, field=_REQUESTED_AT, id="branch", **options)
    def on_branch_change(namespace: Any, name: str, body: kopf.Body, **kwargs: Any) -> None:
        call_or_retry(reconciler.reconcile, namespace, name, cache_of(kwargs), event_emitter(body))
        initial_sync.mark_reconciled(namespace, name)

    @kopf.on.delete(*_BRANCH, id="branch-removal", **options)
    def on_branch_deletion(body: kopf.Body, **kwargs: Any) -> None:
        waits = call_or_retry(reconciler.remove, parse_branch(body), cache_of(kwargs))
        initial_sync.mark_reconciled(body["metadata"]["namespace"], body["metadata"]["name"])
        text = "sessions are still sent to it, or a copy of it is being made"
        requeue_after(timing.PROXIES_OBEY_POLL_SECONDS if waits else None, text)

    @kopf.timer(
        *_BRANCH, interval=unready_seconds, initial_delay=unready_seconds, id="branch-unready", **options
    )
    async def resync_unready_branch(
        namespace: Any, name: str, body: kopf.Body, status: kopf.Status, **kwargs: Any
    ) -> None:
        if not is_condition_true(status, Condition.READY):
            await call_in_thread(
                reconciler.reconcile, namespace, name, cache_of(kwargs), event_emitter(body), True
            )

    @kopf.timer(
        *_BRANCH, interval=resync_seconds, initial_delay=resync_seconds, id="branch-resync", **options
    )
    def resync_branch(namespace: Any, name: str, body: kopf.Body, **kwargs: Any) -> None:
        call_or_retry(reconciler.reconcile, namespace, name, cache_of(kwargs), event_emitter(body), True)


def _register_related(
    registry: kopf.OperatorRegistry,
    cluster: Cluster,
    reconcilers: Mapping[str, ProjectReconciler | BranchReconciler],
    initial_sync: InitialSync,
) -> None:
    """Enqueue who would report something else after an event of any object (`stale`).

    kopf updates the indices before it runs the handlers of an event, so the reconcile sees the change that led to it.
    """
    options: Any = {"registry": registry}
    queue = WorkQueue()

    def enqueue_stale(cache: Cache, *changes: Change) -> None:
        for key in stale(changes, cache):
            emit = event_emitter(
                {
                    "apiVersion": names.API_VERSION,
                    "kind": key.kind,
                    "metadata": {"namespace": key.namespace, "name": key.name},
                }
            )
            queue.add(key, reconcilers[key.kind].reconcile, key.namespace, key.name, cache, emit)

    @kopf.on.event(*_BRANCH, **options)
    async def on_branch_event(event: Any, body: kopf.Body, **kwargs: Any) -> None:
        branch, cache = parse_branch(body), cache_of(kwargs)
        enqueue_stale(cache, branch)
        if event["type"] == "DELETED":
            initial_sync.mark_reconciled(branch.namespace, branch.object_name)
        elif branch.deleting:
            await call_in_thread(release_if_abandoned, cluster, cache, branch)

    @kopf.on.event(*_PROJECT, **options)
    async def on_project_event(event: Any, body: kopf.Body, **kwargs: Any) -> None:
        # The events of its branches may have come before the project's own.
        project, cache = parse_project(body), cache_of(kwargs)
        enqueue_stale(cache, project)
        if event["type"] != "DELETED" and project.deleting:
            await call_in_thread(release_if_abandoned, cluster, cache, project)

    @kopf.on.field(*_PROJECT, field="status.passwordVersion", id="project-password", **options)
    async def on_password_change(namespace: Any, name: str, **kwargs: Any) -> None:
        enqueue_stale(cache_of(kwargs), PasswordChange(namespace, name))

    @kopf.on.event("v1", "pods", labels={names.LABEL_COMPONENT: names.COMPONENT_PROXY}, **options)
    async def on_proxy_event(namespace: Any, labels: kopf.Labels, **kwargs: Any) -> None:
        enqueue_stale(cache_of(kwargs), ProxyChange(namespace, labels.get(names.LABEL_PROJECT, "")))

    @kopf.on.event("v1", "pods", labels={names.LABEL_COMPONENT: names.COMPONENT_AGENT}, **options)
    async def on_agent_event(body: kopf.Body, **kwargs: Any) -> None:
        await on_node_change((body.get("spec") or {}).get("nodeName", ""), cache_of(kwargs))

    @kopf.on.event("v1", "nodes", **options)
    async def on_node_event(name: str, **kwargs: Any) -> None:
        # A cluster has a node, and no handler runs before the indices hold all objects that were listed at the start.
        cache = cache_of(kwargs)
        initial_sync.begin((branch.namespace, branch.object_name) for branch in cache.all_branches())
        await on_node_change(name, cache)

    async def on_node_change(node: str, cache: Cache) -> None:
        enqueue_stale(cache, NodeChange(node))
        items: list[Project | Branch] = [*cache.all_branches(), *cache.all_projects()]
        if any(item.deleting for item in items):
            await asyncio.to_thread(_release_all_abandoned, cluster, cache, items)


def _release_all_abandoned(cluster: Cluster, cache: Cache, items: Iterable[Project | Branch]) -> None:
    for item in items:
        call_or_retry(release_if_abandoned, cluster, cache, item)


def release_if_abandoned(cluster: Cluster, cache: Cache, item: Project | Branch) -> None:
    """Remove the agent's finalizer from an object that is being deleted if its node's agent will never do so."""
    if item.node_name and item.deleting and is_abandoned(cache.node(item.node_name), item.annotations):
        remove_agent_finalizer(cluster, object_path(item), item.uid)


def call_or_retry(call: Any, *args: Any) -> Any:
    """Return `call(*args)`; make kopf retry the handler after a DbranchError or an OSError."""
    try:
        return call(*args)
    except (DbranchError, OSError) as error:
        logger.warning("%s: %s", call.__name__, error)
        raise kopf.TemporaryError(str(error), delay=timing.FAILED_RETRY_SECONDS) from error


async def call_in_thread(call: Any, *args: Any) -> None:
    """Call `call_or_retry` in a thread, for a handler that is a coroutine: kopf's event loop goes on meanwhile."""
    await asyncio.to_thread(call_or_retry, call, *args)
