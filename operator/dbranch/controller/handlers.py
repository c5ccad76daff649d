"""The controller's kopf handlers: events of projects, branches, nodes and pods -> the work queue. Wiring only."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import kopf

from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.enums import Undo
from dbranch.api.errors import DbranchError
from dbranch.api.project import Project, parse_project
from dbranch.controller import timing
from dbranch.controller.branch.expiry import EXPIRY_STATES
from dbranch.controller.branch.reaper import BranchReaper
from dbranch.controller.branch.reconciler import BranchReconciler
from dbranch.controller.branch.sources import Sources
from dbranch.controller.dispatch import Dispatcher
from dbranch.controller.indices import BRANCH, PROJECT, cache_of, register_indices
from dbranch.controller.keys import reference_of
from dbranch.controller.limits import Limits
from dbranch.controller.manifests import Release
from dbranch.controller.metrics import ControllerMetrics
from dbranch.controller.owned import OwnedObjects
from dbranch.controller.project.reconciler import ProjectReconciler
from dbranch.controller.proxy_pods import switch_state
from dbranch.controller.restore.reconciler import RestoreReconciler
from dbranch.controller.restore.watch import PHASES, RestoreWatch
from dbranch.controller.restore_records import RestoreRecords
from dbranch.controller.rollouts import Rollouts
from dbranch.controller.schedule.loop import ScheduleLoop
from dbranch.controller.snapshot.reconciler import SnapshotReconciler
from dbranch.controller.snapshot.relief import PoolRelief
from dbranch.controller.snapshot.watch import SnapshotWatch
from dbranch.controller.snapshot_records import STATES, SnapshotRecords
from dbranch.controller.stale import ConnectionChange, NodeChange, ProxyChange
from dbranch.controller.sweep import Sweeper
from dbranch.controller.work import Work
from dbranch.kube.client import Cluster
from dbranch.runtime.heartbeats import Heartbeats
from dbranch.runtime.initial_sync import InitialSync
from dbranch.runtime.kopf_settings import configure_kopf, login, requeue_after
from dbranch.runtime.locks import KeyedLocks
from dbranch.runtime.result import Key
from dbranch.runtime.steady_clock import SteadyClock

logger = logging.getLogger(__name__)

_REQUESTED_AT: Any = ("metadata", "annotations", names.CONTROLLER_REQUESTED_AT)
_UNSEEN: Any = object()
# Fields of status.node that the agents measure: no condition and no route depends on them.
_MEASURED_FIELDS = (
    *(
        f"{quantity}{unit}"
        for quantity in ("logical", "unique", "written", "used", "free", "allocated", "hostFree")
        for unit in ("Bytes", "Size")
    ),
    # What schedules ask for; they look by themselves.
    "transaction",
    "warmSlots",
)


def register(
    registry: kopf.OperatorRegistry,
    cluster: Cluster,
    release: Release,
    resync_seconds: float,
    metrics: ControllerMetrics,
    limits: Limits | None = None,
) -> None:
    """Register the indices and handlers. Each object is reconciled at least every `resync_seconds` or so."""
    locks, owned, initial_sync = KeyedLocks(), OwnedObjects(cluster, metrics.refused), InitialSync("branches")
    rollouts, limits = Rollouts(), limits or Limits()
    projects = ProjectReconciler(cluster, release, owned, locks, metrics, emit_event, rollouts, limits)
    records, sources = SnapshotRecords(), Sources()
    clock = SteadyClock(cluster.server_time)

    def request(key: Key) -> None:
        work.queue.add(key)

    branches = BranchReconciler(
        *(cluster, release, owned, locks, metrics, emit_event, limits, sources),
        clock=clock,
        request=request,
    )
    snapshots = SnapshotReconciler(cluster, locks, metrics, sources, records, limits, clock=clock)
    known_restores = RestoreRecords()
    restores = RestoreReconciler(
        cluster,
        locks,
        metrics,
        sources,
        known_restores,
        clock=clock,
        request=request,
    )
    dispatcher = Dispatcher(projects, branches, snapshots, restores, owned, initial_sync)
    work = Work(dispatcher, resync_seconds, limits, records, known_restores, clock)
    watch = SnapshotWatch(cluster, records, work.queue.add, lambda: dispatcher.cache, clock)
    restore_watch = RestoreWatch(cluster, known_restores, work.queue.add, lambda: dispatcher.cache)
    metrics.watch_restores(PHASES, known_restores.count)
    reaper = BranchReaper(cluster, dispatcher.all_branches, work.queue.add, metrics, clock)
    metrics.watch_expiry(EXPIRY_STATES, reaper.count)
    metrics.watch_snapshots(STATES, records.count)
    schedules = ScheduleLoop(cluster, limits, metrics, work.queue.add, lambda: dispatcher.cache, clock)
    rollouts.on_free = work.queue.add
    sweeper = Sweeper(cluster, release, owned)
    relief = PoolRelief(cluster, lambda: dispatcher.cache)
    loops = {
        "snapshot watch": watch.run,
        "restore watch": restore_watch.run,
        "expiry of snapshots": watch.run_expiry,
        "expiry of branches": reaper.run,
        "schedules": schedules.run,
        "room in pools": relief.run,
    }
    _register_startup(registry, owned, work, partial(sweeper.run, resync_seconds), loops)
    register_indices(registry, release.nodes_namespace)
    _register_objects(registry, work)
    _register_related(registry, work, initial_sync)


def emit_event(item: Project | Branch, event_type: str, reason: str, message: str) -> None:
    """Emit an Event about the object."""
    kopf.event(reference_of(item), type=event_type, reason=reason, message=message)  # type: ignore[arg-type]


def _register_startup(
    registry: kopf.OperatorRegistry,
    owned: OwnedObjects,
    work: Work,
    sweep: Callable[[], None],
    loops: Mapping[str, Callable[[Callable[[], None]], None]],
) -> None:
    """`loops`: by name, each run in a thread of its own for ever; it calls its argument in each round."""
    options: Any = {"registry": registry}
    heartbeats = Heartbeats()

    @kopf.on.startup(**options)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
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
        work.queue.start()
        threading.Thread(target=sweep, daemon=True, name="sweep").start()
        for name, loop in loops.items():
            threading.Thread(target=heartbeats.run, args=(name, loop), daemon=True, name=name).start()

    @kopf.on.startup(**options)
    def preload(**_: Any) -> None:
        # Every branch has one of each, so a controller that starts would read them one by one.
        for api, plural in (("v1", "services"), ("discovery.k8s.io/v1", "endpointslices")):
            try:
                owned.preload(api, plural)
            except DbranchError as error:
                logger.warning("cannot list %s, so each is read by itself: %s", plural, error)

    @kopf.on.probe(id="reconciles", errors=kopf.ErrorsMode.PERMANENT, **options)
    async def probe(**_: Any) -> str:
        # An exception makes the liveness endpoint answer 500.
        trouble = work.queue.trouble() or heartbeats.trouble()
        if trouble:
            raise kopf.PermanentError(trouble)
        return "running"

    kopf.on.login(**options)(login)


def _register_objects(registry: kopf.OperatorRegistry, work: Work) -> None:
    """Register the events of an object that ask for its own reconcile."""
    options: Any = {"registry": registry}

    @kopf.on.resume(*PROJECT, id="project", **options)
    @kopf.on.create(*PROJECT, id="project", **options)
    @kopf.on.update(*PROJECT, field="spec", id="project", **options)
    @kopf.on.field(*PROJECT, field="status.node", id="project", **options)
    async def on_project_change(body: kopf.Body, **kwargs: Any) -> None:
        work.request(parse_project(body), kwargs)

    @kopf.on.field(*PROJECT, field="status.proxies", id="project-proxies", **options)
    async def on_proxies_change(old: Any, new: Any, body: kopf.Body, **kwargs: Any) -> None:
        # They write the numbers of their sessions every few seconds.
        if switch_state(old) != switch_state(new):
            work.request(parse_project(body), kwargs)

    @kopf.on.resume(*BRANCH, id="branch", **options)
    @kopf.on.create(*BRANCH, id="branch", **options)
    @kopf.on.update(*BRANCH, field="spec", id="branch", **options)
    @kopf.on.field(*BRANCH, field="status.node", id="branch", **options)
    @kopf.on.field(*BRANCH, field=_REQUESTED_AT, id="branch", **options)
    async def on_branch_change(body: kopf.Body, **kwargs: Any) -> None:
        work.request(parse_branch(body), kwargs)

    # With a delete handler kopf puts the controller's finalizer on a project. The reconcile removes it: kopf would
    # sleep through the events that a deletion waits for (tried), and write for each time that it calls the handler.
    # A branch needs none but the agent's (`status.release`). `when=` keeps kopf from adding one, and from removing
    # one that a branch has, since kopf takes a finalizer off that no handler needs.

    @kopf.on.delete(*PROJECT, id="project-removal", **options)
    async def on_project_deletion(body: kopf.Body, **kwargs: Any) -> None:
        work.request(parse_project(body), kwargs)
        requeue_after(timing.KOPF_DELETION_SECONDS, "its branches are being deleted")

    @kopf.on.delete(*BRANCH, id="branch-removal", when=_has_finalizer, **options)
    async def on_branch_deletion(body: kopf.Body, **kwargs: Any) -> None:
        work.request(parse_branch(body), kwargs)
        text = "sessions are still sent to it, or a copy of it is being made"
        requeue_after(timing.KOPF_DELETION_SECONDS, text)


def _has_finalizer(meta: kopf.Meta, **_: Any) -> bool:
    """Return True if an object has the controller's finalizer."""
    return names.CONTROLLER_FINALIZER in (meta.get("finalizers") or ())


def _register_related(registry: kopf.OperatorRegistry, work: Work, initial_sync: InitialSync) -> None:
    """Register the events after which others would report something else (`stale`).

    kopf updates the indices before it runs the handlers of an event, so the reconcile sees the change that led to it.
    """
    options: Any = {"registry": registry}
    # By UID: spec.undo of branches, which can be changed while their deletion waits.
    being_deleted: dict[str, Undo | None] = {}

    @kopf.on.event(*BRANCH, **options)
    async def on_branch_event(event: Any, body: kopf.Body, **kwargs: Any) -> None:
        branch = parse_branch(body)
        work.follow(kwargs, branch)
        if event["type"] == "DELETED":
            being_deleted.pop(branch.uid, None)
            work.forget(branch)
            initial_sync.mark_reconciled(branch.namespace, branch.object_name)
        elif branch.deleting and being_deleted.get(branch.uid, _UNSEEN) != branch.undo:
            # kopf calls no handler for a deletion that its own finalizer does not hold.
            being_deleted[branch.uid] = branch.undo
            work.request(branch, kwargs)

    @kopf.on.event(*PROJECT, **options)
    async def on_project_event(event: Any, body: kopf.Body, **kwargs: Any) -> None:
        # The events of its branches may have come before the project's own.
        project = parse_project(body)
        work.follow(kwargs, project)
        if event["type"] == "DELETED":
            work.forget(project)

    @kopf.on.field(*PROJECT, field="status.passwordVersion", id="project-password", **options)
    @kopf.on.field(*PROJECT, field="spec.proxy.externalHost", id="project-external-host", **options)
    @kopf.on.field(*PROJECT, field="spec.proxy.externalPort", id="project-external-port", **options)
    @kopf.on.field(*PROJECT, field="spec.proxy.port", id="project-port", **options)
    async def on_connection_change(namespace: Any, name: str, reason: Any, **kwargs: Any) -> None:
        # A new project has no password yet: this one is only new to this process, which reconciles every branch.
        if reason != "create":
            work.follow(kwargs, ConnectionChange(namespace, name))

    @kopf.on.event("v1", "pods", labels={names.LABEL_COMPONENT: names.COMPONENT_PROXY}, **options)
    async def on_proxy_event(namespace: Any, labels: kopf.Labels, **kwargs: Any) -> None:
        work.follow(kwargs, ProxyChange(namespace, labels.get(names.LABEL_PROJECT, "")))

    @kopf.on.event("v1", "pods", labels={names.LABEL_COMPONENT: names.COMPONENT_AGENT}, **options)
    async def on_agent_event(body: kopf.Body, **kwargs: Any) -> None:
        work.follow(kwargs, NodeChange((body.get("spec") or {}).get("nodeName", "")))

    @kopf.on.event("v1", "nodes", **options)
    async def on_node_event(name: str, **kwargs: Any) -> None:
        # A cluster has a node, and no handler runs before the indices hold all objects that were listed at the start.
        branches = cache_of(kwargs).all_branches()
        initial_sync.begin((branch.namespace, branch.object_name) for branch in branches)
        work.follow(kwargs, NodeChange(name))
