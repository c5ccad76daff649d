"""`dbranch-server agent`: kopf handlers over the objects bound to this node. Wiring only."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kopf
from dbranch import names
from dbranch.api.project import parse_seconds
from dbranch.cluster import Cluster, path_of
from dbranch.effect.pool import ensure_base
from dbranch.errors import Busy, DbranchError, InvalidInput
from dbranch.observe.machine import observe_machine
from dbranch.plan.layout import Layout
from dbranch.plan.slot_pod import Home
from dbranch.run.agent_branches import BranchWork
from dbranch.run.agent_house import keep_house
from dbranch.run.agent_metrics import AgentMetrics
from dbranch.run.agent_pods import watch_pods
from dbranch.run.agent_projects import ProjectWork
from dbranch.run.agent_ready import Readiness
from dbranch.run.agent_warm import WarmWork
from dbranch.run.keyed_locks import KeyedLocks
from dbranch.run.kopf_settings import later, login, serve, settle
from dbranch.run.logs import start_logging

logger = logging.getLogger(__name__)

_PROJECT: Any = (names.GROUP, names.VERSION, names.PROJECTS)
_BRANCH: Any = (names.GROUP, names.VERSION, names.BRANCHES)
_RESTARTED: Any = ("metadata", "annotations", names.RESTARTED_AT)
_POKED: Any = ("metadata", "annotations", names.AGENT_POKE)


@dataclass(frozen=True)
class Work:
    projects: ProjectWork
    branches: BranchWork
    warm: WarmWork
    metrics: AgentMetrics


def make_work(environment: dict[str, str]) -> tuple[Work, Cluster, Layout, Home]:
    """Everything the handlers need. InvalidInput with the name of what the environment lacks."""
    wanted = ("DBRANCH_NODE_NAME", "DBRANCH_POD_NAME", "DBRANCH_NODES_NAMESPACE", "DBRANCH_BASE_DIR")
    missing = [key for key in wanted if not environment.get(key)]
    if missing:
        raise InvalidInput(f"environment: {', '.join(missing)} not set; the agent's DaemonSet sets them")
    cluster = Cluster(names.AGENT_MANAGER)
    node = cluster.get(path_of("v1", "nodes", name=environment["DBRANCH_NODE_NAME"]))
    if node is None:
        raise InvalidInput(f"node {environment['DBRANCH_NODE_NAME']} does not exist; see DBRANCH_NODE_NAME")
    layout = Layout(Path(environment["DBRANCH_BASE_DIR"]))
    home = Home(
        node=environment["DBRANCH_NODE_NAME"],
        node_uid=node["metadata"]["uid"],
        namespace=environment["DBRANCH_NODES_NAMESPACE"],
        release=environment.get("DBRANCH_RELEASE", "dbranch"),
    )
    slots = environment.get("DBRANCH_WARM_SLOTS", "1")
    if not slots.isdecimal():
        raise InvalidInput(f"environment: DBRANCH_WARM_SLOTS is {slots!r}, not a number; see agent.warmSlots")
    ensure_base(layout)
    locks, metrics = KeyedLocks(layout.visits), AgentMetrics(int(slots))
    warm = WarmWork(cluster, layout, home, int(slots), metrics)
    work = Work(
        ProjectWork(cluster, layout, home, locks, warm.stir),
        BranchWork(cluster, layout, home, locks, warm, metrics),
        warm,
        metrics,
    )
    return work, cluster, layout, home


def register(
    registry: kopf.OperatorRegistry, work: Work, node: str, started: Callable[[], None] = lambda: None
) -> None:
    """The handlers, each of which only asks for one visit. `started` is called when they are about to run."""
    more: Any = {"registry": registry}

    @kopf.on.startup(**more)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        others = [("metadata", "annotations", names.CONTROLLER_POKE)]
        settle(settings, names.AGENT_FINALIZER, names.AGENT_PREFIX, others)
        for plural in (names.PROJECTS, names.BRANCHES):
            settings.watching.field_selectors[names.GROUP, plural] = f"status.nodeName={node}"
        started()

    kopf.on.login(**more)(login)

    @kopf.on.resume(*_PROJECT, id="project", **more)
    @kopf.on.create(*_PROJECT, id="project", **more)
    # Not all of the spec: a switch must not wake every branch.
    @kopf.on.update(*_PROJECT, field="spec.state", id="project", **more)
    @kopf.on.update(*_PROJECT, field="spec.postgres", id="project", **more)
    @kopf.on.update(*_PROJECT, field="spec.storage", id="project", **more)
    @kopf.on.field(*_PROJECT, field=_POKED, id="project", **more)
    @kopf.on.field(*_PROJECT, field="status.passwordVersion", id="project", **more)
    def project(namespace: Any, name: str, **_: Any) -> None:
        visit(work.projects.reconcile, namespace, name)

    @kopf.on.resume(*_BRANCH, id="branch", **more)
    @kopf.on.create(*_BRANCH, id="branch", **more)
    @kopf.on.update(*_BRANCH, field="spec", id="branch", **more)
    @kopf.on.field(*_BRANCH, field=_POKED, id="branch", **more)
    @kopf.on.field(*_BRANCH, field=_RESTARTED, id="branch", **more)
    def branch(namespace: Any, name: str, **_: Any) -> None:
        visit(work.branches.reconcile, namespace, name)

    @kopf.on.delete(*_PROJECT, id="project-removal", **more)
    def project_removal(body: kopf.Body, **_: Any) -> None:
        visit(work.projects.remove, dict(body))

    @kopf.on.delete(*_BRANCH, id="branch-removal", **more)
    def branch_removal(body: kopf.Body, **_: Any) -> None:
        visit(work.branches.remove, dict(body))

    @kopf.timer(*_PROJECT, interval=60.0, initial_delay=60.0, id="project-usage", **more)
    def project_usage(namespace: Any, name: str, **_: Any) -> None:
        visit(work.projects.tidy, namespace, name)

    @kopf.timer(*_BRANCH, interval=300.0, initial_delay=300.0, id="branch-usage", **more)
    def branch_usage(namespace: Any, name: str, **_: Any) -> None:
        visit(work.branches.reconcile, namespace, name)


def visit(call: Any, *args: Any) -> None:
    """One visit; what failed for now is tried again."""
    try:
        wait = call(*args)
    except Busy as error:
        raise kopf.TemporaryError(str(error), delay=0.5) from error
    except (DbranchError, OSError) as error:
        logger.warning("%s: %s", args[-1] if isinstance(args[-1], str) else call.__name__, error)
        raise kopf.TemporaryError(str(error), delay=3.0) from error
    later(wait, "there is more to do")


def main() -> None:
    """Runs until it is told to end. Nothing is unmounted then: Postgres goes on."""
    start_logging(os.environ)
    try:
        work, cluster, layout, home = make_work(dict(os.environ))
    except DbranchError as error:
        raise SystemExit(f"dbranch-server agent: {error}") from error
    grace = parse_seconds(os.environ.get("DBRANCH_UNCLAIMED_GRACE", "24h"))
    machine = observe_machine(layout)
    if not (machine.btrfs and machine.loop):
        logger.error("node %s: btrfs %s, loop %s", home.node, machine.btrfs, machine.loop)
    readiness = Readiness(layout, work.metrics)
    readiness.serve()
    for target, args in (
        (watch_pods, (cluster, home, work.warm)),
        (work.warm.keep, (work.branches.quiet,)),
        (keep_house, (cluster, layout, home, os.environ["DBRANCH_POD_NAME"], grace)),
    ):
        threading.Thread(target=target, args=args, daemon=True, name=target.__name__).start()
    registry = kopf.OperatorRegistry()
    register(registry, work, home.node, readiness.started.set)
    serve(registry, names.AGENT_MANAGER)
