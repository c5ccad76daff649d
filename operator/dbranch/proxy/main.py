"""`dbranch-server proxy`: the endpoint of one project. Environment, event loop and signals."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import uvloop

from dbranch.api import names
from dbranch.api.errors import InvalidInput
from dbranch.proxy import timing
from dbranch.proxy.branch_ports import BranchPorts
from dbranch.proxy.cancel import Canceller
from dbranch.proxy.client import ClientStart
from dbranch.proxy.entries import Acknowledger, EntryWriter
from dbranch.proxy.follow import follow
from dbranch.proxy.health import HealthServer
from dbranch.proxy.metrics import Metrics
from dbranch.proxy.project_client import ApiServer, ProjectClient, ProxyPod
from dbranch.proxy.sockets import LISTEN_BACKLOG, listening_socket
from dbranch.proxy.switchboard import Switchboard
from dbranch.proxy.tls import Certificate
from dbranch.runtime.log_queue import QueuedLines
from dbranch.runtime.logs import start_logging

log = logging.getLogger(__name__)

_SERVICE_ACCOUNT_DIR = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True)
class ProxySettings:
    """The settings from the environment.

    After SIGTERM the proxy takes new connections for `withdraw_seconds`, until the cluster's nodes have removed
    this pod from the Service; then sessions have `grace_seconds` to end by themselves. Their sum and
    SHUTDOWN_END_SECONDS have to stay below the pod's termination grace period (30 s).
    """

    proxy_pod: ProxyPod
    api: ApiServer
    tls_dir: Path | None = None
    port: int = names.POSTGRES_PORT
    health_port: int = 8080
    withdraw_seconds: float = 3.0
    grace_seconds: float = 20.0


def read_settings(env: Mapping[str, str]) -> ProxySettings:
    """Return the settings in `env`. Raise InvalidInput, which names the variables, if any is missing."""
    missing = [
        k for k in ("DBRANCH_PROJECT", "DBRANCH_PROJECT_NAMESPACE", "DBRANCH_POD_NAME") if not env.get(k)
    ]
    if missing:
        raise InvalidInput(f"environment: {', '.join(missing)} not set; the proxy's Deployment sets them")
    if env.get("DBRANCH_API_SERVER"):
        api = ApiServer(
            env["DBRANCH_API_SERVER"],
            Path(env["DBRANCH_API_TOKEN"]) if env.get("DBRANCH_API_TOKEN") else None,
            Path(env["DBRANCH_API_CA"]) if env.get("DBRANCH_API_CA") else None,
        )
    elif env.get("KUBERNETES_SERVICE_HOST"):
        host, port = env["KUBERNETES_SERVICE_HOST"], env.get("KUBERNETES_SERVICE_PORT", "443")
        url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        api = ApiServer(url, _SERVICE_ACCOUNT_DIR / "token", _SERVICE_ACCOUNT_DIR / "ca.crt")
    else:
        raise InvalidInput("environment: no API server; run in a pod, or set DBRANCH_API_SERVER")
    return ProxySettings(
        proxy_pod=ProxyPod(env["DBRANCH_PROJECT"], env["DBRANCH_PROJECT_NAMESPACE"], env["DBRANCH_POD_NAME"]),
        api=api,
        tls_dir=Path(env["DBRANCH_TLS_DIR"]) if env.get("DBRANCH_TLS_DIR") else None,
        port=int(env.get("DBRANCH_PORT", names.POSTGRES_PORT)),
        health_port=int(env.get("DBRANCH_HEALTH_PORT", "8080")),
        withdraw_seconds=float(env.get("DBRANCH_WITHDRAW_SECONDS", "3")),
        grace_seconds=float(env.get("DBRANCH_GRACE_SECONDS", "20")),
    )


async def serve(settings: ProxySettings, log_lines: QueuedLines) -> None:
    """Read the DBProject and its branches, then serve its sessions until SIGTERM or SIGINT.

    Raise the error of a background task that has failed: the process then ends, and kubelet restarts it.
    """
    loop = asyncio.get_running_loop()
    stop, table_read = asyncio.Event(), asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    proxy_pod = settings.proxy_pod
    switchboard = Switchboard(Certificate(settings.tls_dir) if settings.tls_dir else None)
    switchboard.metrics.dropped_log_lines = lambda: log_lines.dropped
    canceller = Canceller()
    client = ProjectClient(settings.api, proxy_pod)
    writer, acknowledger = EntryWriter(client, proxy_pod, switchboard), Acknowledger(client, proxy_pod)
    branch_ports = BranchPorts(switchboard, canceller)
    servers: list[asyncio.Server] = []

    def not_ready_reason() -> str:
        if stop.is_set():
            return "stopping"
        return "" if servers else "the project has not been read yet"

    health = HealthServer(not_ready_reason, switchboard.metrics)
    await health.start(settings.health_port)
    following = loop.create_task(
        follow(client, proxy_pod, switchboard, writer, acknowledger, branch_ports, table_read.set)
    )
    tasks: list[asyncio.Task[None]] = [
        following,
        loop.create_task(writer.run()),
        loop.create_task(acknowledger.run()),
        loop.create_task(measure_loop_lag(switchboard.metrics)),
    ]
    stopped: asyncio.Task[bool] = loop.create_task(stop.wait())
    try:
        await asyncio.wait(
            [following, stopped, loop.create_task(table_read.wait())], return_when=asyncio.FIRST_COMPLETED
        )
        if table_read.is_set() and not stop.is_set():
            sock = listening_socket(settings.port)
            server = await loop.create_server(
                lambda: ClientStart(switchboard, canceller), sock=sock, backlog=LISTEN_BACKLOG
            )
            servers.append(server)
            # All objects so far live as long as the process: the garbage collector can skip them.
            gc.freeze()
            log.info(
                "serving project %s/%s on port %d", proxy_pod.namespace, proxy_pod.project, settings.port
            )
        # A task that ends here has failed.
        await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
        if servers and stop.is_set():
            await asyncio.sleep(settings.withdraw_seconds)
        for server in servers:
            server.close()
        branch_ports.close()
        await drain_sessions(switchboard, settings.grace_seconds)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        stopped.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await writer.remove_entry()
        await client.close()
        await health.close()


async def measure_loop_lag(metrics: Metrics) -> None:
    """Observe once a second how much later than asked for the event loop goes on."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + timing.LOOP_LAG_INTERVAL_SECONDS
        await asyncio.sleep(timing.LOOP_LAG_INTERVAL_SECONDS)
        metrics.observe_loop_lag(max(loop.time() - due, 0.0))


async def drain_sessions(switchboard: Switchboard, grace_seconds: float) -> None:
    """Let sessions end with their transactions; end those that are left after `grace_seconds` with a FATAL."""
    log.info("stopping with %d sessions", len(switchboard.sessions))
    switchboard.begin_shutdown()
    await _wait_for_sessions(switchboard, grace_seconds)
    switchboard.end_all("terminating connection: the proxy is stopping")
    await _wait_for_sessions(switchboard, timing.SHUTDOWN_END_SECONDS)
    await asyncio.sleep(timing.SHUTDOWN_FLUSH_SECONDS)


async def _wait_for_sessions(switchboard: Switchboard, timeout: float) -> None:
    """Wait until no session is left, or for `timeout` seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while switchboard.sessions and loop.time() < deadline:
        await asyncio.sleep(timing.SHUTDOWN_POLL_SECONDS)


def raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard one: a session takes two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    log_lines = QueuedLines(sys.stderr)
    start_logging(os.environ, log_lines)
    sys.setswitchinterval(timing.THREAD_SWITCH_SECONDS)
    try:
        settings = read_settings(os.environ)
    except InvalidInput as error:
        sys.exit(f"dbranch-server proxy: {error}")
    raise_file_limit()
    uvloop.run(serve(settings, log_lines))


if __name__ == "__main__":
    main()
