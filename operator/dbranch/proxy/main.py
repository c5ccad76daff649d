"""`dbranch-server proxy`: one project's endpoint. Wiring: environment, event loop, signals."""

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
from dbranch.api.project import ProxyEntry
from dbranch.proxy.cancel import Canceller
from dbranch.proxy.client import ClientStart
from dbranch.proxy.follow import ApiServer, EntryWriter, Own, ProjectClient, follow
from dbranch.proxy.health import serve_health
from dbranch.proxy.sockets import listening_socket
from dbranch.proxy.switchboard import Switchboard
from dbranch.proxy.tls import Certificate
from dbranch.runtime.logs import start_logging

log = logging.getLogger(__name__)

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True)
class Settings:
    """What the environment says.

    After SIGTERM new connections are taken for `withdraw` seconds more, until the cluster's nodes have
    heard that this pod goes; then sessions have `grace` seconds to end. Both together stay below the
    pod's termination grace period (30 s).
    """

    own: Own
    api: ApiServer
    tls: Path | None = None
    port: int = names.POSTGRES_PORT
    health_port: int = 8080
    withdraw: float = 3.0
    grace: float = 20.0


def settings_of(env: Mapping[str, str]) -> Settings:
    """Reads the environment. Raises InvalidInput with the name of what is missing."""
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
        api = ApiServer(url, _ACCOUNT / "token", _ACCOUNT / "ca.crt")
    else:
        raise InvalidInput("environment: no API server; run in a pod, or set DBRANCH_API_SERVER")
    return Settings(
        own=Own(env["DBRANCH_PROJECT"], env["DBRANCH_PROJECT_NAMESPACE"], env["DBRANCH_POD_NAME"]),
        api=api,
        tls=Path(env["DBRANCH_TLS_DIR"]) if env.get("DBRANCH_TLS_DIR") else None,
        port=int(env.get("DBRANCH_PORT", names.POSTGRES_PORT)),
        health_port=int(env.get("DBRANCH_HEALTH_PORT", "8080")),
        withdraw=float(env.get("DBRANCH_WITHDRAW_SECONDS", "3")),
        grace=float(env.get("DBRANCH_GRACE_SECONDS", "20")),
    )


async def serve(settings: Settings) -> None:
    """Reads the project, then serves it until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stop, first = asyncio.Event(), asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    board = Switchboard(Certificate(settings.tls) if settings.tls else None)
    canceller = Canceller()
    client = ProjectClient(settings.api, settings.own)
    writer = EntryWriter(client, settings.own, board)
    listening: list[asyncio.Server] = []

    def why_not_ready() -> str:
        if stop.is_set():
            return "stopping"
        return "" if listening else "the project is not read yet"

    def applied(entries: tuple[ProxyEntry, ...]) -> None:
        first.set()
        writer.notice(entries)

    health = await serve_health(settings.health_port, why_not_ready, board.metrics.text)
    following = loop.create_task(follow(client, settings.own, board, applied))
    tasks: list[asyncio.Task[None]] = [following, loop.create_task(writer.run())]
    stopped: asyncio.Task[bool] = loop.create_task(stop.wait())
    try:
        await asyncio.wait(
            [following, stopped, loop.create_task(first.wait())], return_when=asyncio.FIRST_COMPLETED
        )
        if first.is_set() and not stop.is_set():
            sock = listening_socket(settings.port)
            listening.append(
                await loop.create_server(lambda: ClientStart(board, canceller), sock=sock, backlog=1024)
            )
            # What is there now stays for good: the collector need not look at it again and again.
            gc.freeze()
            log.info("project %s/%s on port %d", settings.own.namespace, settings.own.project, settings.port)
        # A task that ends here has failed: that is the proxy's end, and kubelet starts it again.
        await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
        if listening and stop.is_set():
            await asyncio.sleep(settings.withdraw)
        for server in listening:
            server.close()
        await _let_go(board, settings.grace)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        stopped.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await writer.retire()
        await client.close()
        await health.cleanup()


async def _let_go(board: Switchboard, grace: float) -> None:
    """Ends the sessions with their transactions; those that last longer than `grace` are told and ended."""
    loop = asyncio.get_running_loop()
    log.info("stopping: %d sessions", len(board.sessions))
    board.close()
    until = loop.time() + grace
    while board.sessions and loop.time() < until:
        await asyncio.sleep(0.05)
    board.end_all("terminating connection: the proxy is stopping")
    until = loop.time() + 2.0
    while board.sessions and loop.time() < until:
        await asyncio.sleep(0.05)
    # What was written last is on its way; a closed client needs no more time.
    await asyncio.sleep(0.1)


def raise_file_limit() -> None:
    """As many open files as the system lets this process have: a session takes two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    start_logging(os.environ)
    try:
        settings = settings_of(os.environ)
    except InvalidInput as error:
        sys.exit(f"dbranch-server proxy: {error}")
    raise_file_limit()
    uvloop.run(serve(settings))


if __name__ == "__main__":
    main()
