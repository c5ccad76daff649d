"""`dbranch-server agent`: runs the node's agent. Wiring only."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import kopf

from dbranch.agent.context import NodeContext, PodDefaults
from dbranch.agent.dispatch import Dispatcher
from dbranch.agent.handlers import register
from dbranch.agent.housekeeping.loop import Housekeeping
from dbranch.agent.housekeeping.requests import watch_requests
from dbranch.agent.kubelet import observe_eviction
from dbranch.agent.layout import Layout
from dbranch.agent.linux.privileges import AGENT_CAPABILITIES, drop_capabilities
from dbranch.agent.machine import observe_machine
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.pod_watch import watch_pods
from dbranch.agent.pool.effect import ensure_base
from dbranch.agent.postgres.spawn import session_processes
from dbranch.agent.server import Readiness
from dbranch.agent.snapshot.watch import watch_snapshots
from dbranch.agent.space_watch import SpaceWatch
from dbranch.agent.warm.sizing import WarmLimits
from dbranch.api import names
from dbranch.api.errors import DbranchError, InvalidInput
from dbranch.api.quantity import parse_bytes, parse_seconds
from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.heartbeats import Heartbeats
from dbranch.runtime.kopf_settings import serve
from dbranch.runtime.locks import KeyedLocks
from dbranch.runtime.logs import start_logging

logger = logging.getLogger(__name__)


def make_dispatcher(environment: dict[str, str]) -> tuple[Dispatcher, Cluster, Layout, NodeContext]:
    """Build the reconcilers from the environment. Raises InvalidInput if a variable is missing or wrong."""
    required = ("DBRANCH_NODE_NAME", "DBRANCH_POD_NAME", "DBRANCH_NODES_NAMESPACE", "DBRANCH_BASE_DIR")
    missing = [key for key in required if not environment.get(key)]
    if missing:
        raise InvalidInput(f"environment: {', '.join(missing)} not set; the agent's DaemonSet sets them")
    cluster = Cluster(names.AGENT_MANAGER)
    node = cluster.get(path_of("v1", "nodes", name=environment["DBRANCH_NODE_NAME"]))
    if node is None:
        raise InvalidInput(f"node {environment['DBRANCH_NODE_NAME']} does not exist; see DBRANCH_NODE_NAME")
    layout = Layout(Path(environment["DBRANCH_BASE_DIR"]))
    ensure_base(layout)
    address = environment.get("DBRANCH_NODE_ADDRESS", "127.0.0.1")
    features = node.get("status", {}).get("features") or {}
    context = NodeContext(
        node=environment["DBRANCH_NODE_NAME"],
        node_uid=node["metadata"]["uid"],
        namespace=environment["DBRANCH_NODES_NAMESPACE"],
        release=environment.get("DBRANCH_RELEASE", "dbranch"),
        pods=PodDefaults.parse(environment.get("DBRANCH_POSTGRES", "")),
        strict_groups=bool(features.get("supplementalGroupsPolicy")),
        eviction=observe_eviction(layout, address, environment.get("DBRANCH_EVICTION_THRESHOLD", "15%")),
        quotas=environment.get("DBRANCH_QUOTAS", "Enabled") == "Enabled",
    )
    limits = WarmLimits(
        _number(environment, "DBRANCH_WARM_SLOTS", 1, "agent.warmSlots"),
        _number(environment, "DBRANCH_BURST_WARM_SLOTS", 0, "agent.burstWarmSlots"),
        _number(environment, "DBRANCH_MAX_WARM_SLOTS", 32, "agent.maxWarmSlots"),
        (node.get("status") or {}).get("allocatable") or {},
    )
    locks, metrics = KeyedLocks(layout.locks), AgentMetrics(limits.minimum, limits.maximum)
    dispatcher = Dispatcher(cluster, layout, context, locks, limits, metrics)
    return dispatcher, cluster, layout, context


def _number(environment: dict[str, str], variable: str, default: int, value: str) -> int:
    """Return a variable's number; raise InvalidInput, naming the chart's `value`, if it is none."""
    text = environment.get(variable, str(default))
    if not text.isdecimal():
        raise InvalidInput(f"environment: {variable} is {text!r}, not a number; see {value}")
    return int(text)


def main() -> None:
    """Run the agent until SIGTERM. It unmounts nothing at its end: Postgres goes on."""
    start_logging(os.environ)
    # Before any thread starts: each has capabilities of its own.
    dropped = drop_capabilities(AGENT_CAPABILITIES)
    logger.info(
        "gave up %d capabilities; kept %s", dropped, ", ".join(c.name for c in sorted(AGENT_CAPABILITIES))
    )
    try:
        session_processes.ensure_started()
        dispatcher, cluster, layout, context = make_dispatcher(dict(os.environ))
    except DbranchError as error:
        raise SystemExit(f"dbranch-server agent: {error}") from error
    machine = observe_machine(layout)
    if not (machine.btrfs and machine.loop):
        logger.error("node %s: btrfs %s, loop %s", context.node, machine.btrfs, machine.loop)
    readiness = Readiness(layout, dispatcher.metrics)
    readiness.serve()
    ballast = parse_bytes(os.environ.get("DBRANCH_BALLAST", "0"))
    space = SpaceWatch(layout, context, ballast, dispatcher.metrics, dispatcher.request_branch)
    heartbeats, pod = Heartbeats(), os.environ["DBRANCH_POD_NAME"]
    interval = parse_seconds(os.environ.get("DBRANCH_HOUSEKEEPING_INTERVAL", "60s"))
    housekeeping = Housekeeping(cluster, layout, context, pod, dispatcher.metrics, interval)
    dispatcher.on_pool_retained = housekeeping.trigger
    housekeeping.publish_features()
    loops: dict[str, Callable[[Callable[[], None]], None]] = {
        "pod watch": partial(watch_pods, cluster, context, dispatcher.warm, dispatcher.request_branch),
        "snapshot watch": partial(
            watch_snapshots, cluster, context, dispatcher.snapshot_records, dispatcher.request_snapshot
        ),
        "warm slots": partial(dispatcher.warm.run, dispatcher.wait_idle),
        "space": space.run,
        "written branches": dispatcher.written.run,
        "housekeeping": housekeeping.run,
        "requests": partial(watch_requests, cluster, context, pod, housekeeping.trigger),
    }
    for name, loop in loops.items():
        threading.Thread(target=heartbeats.run, args=(name, loop), daemon=True, name=name).start()
    registry = kopf.OperatorRegistry()
    register(registry, dispatcher, context.node, heartbeats, readiness.started.set)
    serve(registry, names.AGENT_MANAGER)
