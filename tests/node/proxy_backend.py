"""Real Postgres servers, and a proxy in front of them whose routing tables come from the test."""

from __future__ import annotations

import asyncio
import os
import pwd
import random
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import uvloop

from dbranch.api.project import Target
from dbranch.proxy.cancel import Canceller
from dbranch.proxy.client import ClientStart
from dbranch.proxy.routes import Table
from dbranch.proxy.sockets import listening_socket
from dbranch.proxy.switchboard import Switchboard
from dbranch.proxy.tls import Certificate

USER, PASSWORD = "ann", "not-a-secret"


def free_port() -> int:
    """Return a port that no other worker of the tests takes, and that no connection has as its own end.

    The kernel's ports for connections begin at 32768 (ip(7), ip_local_port_range).
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 5
    while True:
        port = random.randrange(10000 + 2000 * worker, 12000 + 2000 * worker)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


@dataclass
class Backend:
    """One Postgres server, whose `cluster_name` is its branch. `directory` holds its data, log and socket."""

    branch: str
    port: int
    directory: Path
    programs: Path
    server: subprocess.Popen[bytes] | None = None
    max_connections: int = 30

    def start(self) -> None:
        nobody = pwd.getpwnam("nobody")
        with (self.directory / "log").open("ab") as out:
            self.server = subprocess.Popen(
                [
                    str(self.programs / "postgres"),
                    *("-D", str(self.directory / "data"), "-k", str(self.directory), "-p", str(self.port)),
                    *("-c", "listen_addresses=127.0.0.1", "-c", f"cluster_name={self.branch}"),
                    *("-c", "fsync=off", "-c", "wal_level=logical"),
                    *("-c", f"max_connections={self.max_connections}"),
                ],
                stdout=out,
                stderr=out,
                user=nobody.pw_uid,
                group=nobody.pw_gid,
                extra_groups=[],
                cwd="/",
            )

    def wait(self) -> None:
        def accepts() -> bool:
            assert self.server and self.server.poll() is None, (self.directory / "log").read_text()
            try:
                self.direct().close()
            except psycopg.OperationalError:
                return False
            return True

        wait_until(accepts, 30)

    def stop(self) -> None:
        if self.server and self.server.poll() is None:
            self.server.send_signal(signal.SIGINT)
            self.server.wait(30)
        self.server = None

    def direct(self) -> psycopg.Connection[Any]:
        """Connect to the server without the proxy."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname="postgres", autocommit=True
        )

    def target(self, state: str = "Ready") -> Target:
        return Target(self.branch, state, "127.0.0.1", self.port)


@contextmanager
def running_backend(
    branch: str, max_connections: int = 30, programs: Path | None = None
) -> Iterator[Backend]:
    """Run a server in a temporary directory. Fails if Postgres is not installed."""
    root = programs.parent.parent if programs else Path("/usr/lib/postgresql")
    initdbs = sorted(root.glob("*/bin/initdb"))
    assert initdbs, f"no {root}/*/bin/initdb: apt-get install postgresql (hack/test does)"
    directory = Path(tempfile.mkdtemp(prefix="dbranch-proxy-"))
    backend = Backend(branch, free_port(), directory, initdbs[-1].parent, max_connections=max_connections)
    try:
        nobody = pwd.getpwnam("nobody")
        (directory / "password").write_text(PASSWORD)
        for path in (directory, directory / "password"):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        subprocess.run(
            [
                str(initdbs[-1]),
                *("-D", str(directory / "data"), "-U", USER, "--pwfile", str(directory / "password")),
                *("--auth=scram-sha-256", "--locale=C.UTF-8", "--encoding=UTF8", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            user=nobody.pw_uid,
            group=nobody.pw_gid,
            extra_groups=[],
            cwd="/",
        )
        backend.start()
        backend.wait()
        yield backend
    finally:
        backend.stop()
        shutil.rmtree(directory)


class Client(psycopg.Connection[Any]):
    """A connection that keeps its notices. libpq reports a FATAL as a notice if it comes between two statements."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.notices_received: list[str] = []
        self.add_notice_handler(lambda d: self.notices_received.append(f"{d.sqlstate} {d.message_primary}"))


MakeProxy = Callable[..., "Proxy"]


class Proxy:
    """A proxy on a port of its own, with its event loop in a thread. `trouble`: errors that the loop reported."""

    def __init__(self, table: Table, tls: Path | None = None) -> None:
        self.port = free_port()
        self.table = table
        self._tls = tls
        self._own_server: asyncio.Server | None = None
        self._loop = uvloop.new_event_loop()
        self.trouble: list[dict[str, Any]] = []
        self._loop.set_exception_handler(lambda _, context: self.trouble.append(context))
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.switchboard: Any = self._call(self._open())

    async def _open(self) -> Switchboard:
        switchboard, canceller = Switchboard(Certificate(self._tls) if self._tls else None), Canceller()
        switchboard.apply(self.table)
        self._server = await self._loop.create_server(
            lambda: ClientStart(switchboard, canceller), sock=listening_socket(self.port)
        )
        return switchboard

    def open_own_port(self, branch: str) -> int:
        """Listen for a branch's own Service, too, and return the port."""
        port = free_port()

        async def now() -> None:
            canceller = Canceller()
            self._own_server = await self._loop.create_server(
                lambda: ClientStart(self.switchboard, canceller, branch), sock=listening_socket(port)
            )

        self._call(now())
        return port

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def apply(self, **changes: Any) -> None:
        """Put the table with `changes` in force; a change of `active` is a new generation."""
        generation = self.table.generation + (1 if "active" in changes else 0)
        self.table = replace(self.table, generation=generation, **changes)

        async def now() -> None:
            self.switchboard.apply(self.table)
            for session in self.switchboard.sessions:
                # A client that is not logged in yet can only reach the active branch.
                if session.backend and session.greeting and not session.backend.requested:
                    assert (
                        session.end_reason or session.teardown or session.backend.branch == self.table.active
                    )

        self._call(now())

    def counts(self) -> tuple[int, int]:
        """Return how many sessions stay and how many have to end."""

        async def now() -> tuple[int, int]:
            branches = self.switchboard.session_counts()
            return sum(b.sessions for b in branches), sum(b.draining for b in branches)

        counts: tuple[int, int] = self._call(now())
        return counts

    def metrics(self) -> str:
        """Return the body of `/metrics`."""

        async def now() -> str:
            self.switchboard.metrics.take_snapshot()
            text: bytes = self.switchboard.metrics.text()
            return text.decode()

        metrics: str = self._call(now())
        return metrics

    def begin_shutdown(self) -> None:
        """Do to the sessions what SIGTERM does."""

        async def now() -> None:
            self.switchboard.begin_shutdown()

        self._call(now())

    def close(self) -> None:
        async def now() -> None:
            self._server.close()
            if self._own_server:
                self._own_server.close()
            self.switchboard.begin_shutdown()
            self.switchboard.end_all("the test is over")
            await asyncio.sleep(0.05)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0.05)

        self._call(now())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def connect(self, **options: Any) -> Client:
        defaults: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self.port,
            "user": USER,
            "password": PASSWORD,
            "dbname": "postgres",
            "autocommit": True,
            "connect_timeout": 20,
        }
        return Client.connect(**(defaults | options))

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


def branch_of(connection: psycopg.Connection[Any]) -> str:
    row = connection.execute("SELECT current_setting('cluster_name')").fetchone()
    assert row
    name: str = row[0]
    return name


def make_certificate(directory: Path, name: str = "shop") -> None:
    """Write a self-signed `tls.crt` and `tls.key`, like a mounted Secret of type kubernetes.io/tls."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1"),
            *("-keyout", str(directory / "tls.key"), "-out", str(directory / "tls.crt")),
        ],
        check=True,
        capture_output=True,
    )


def trusting_context(directory: Path) -> ssl.SSLContext:
    """Return a client's TLS context that trusts `tls.crt` in `directory`."""
    context = ssl.create_default_context(cafile=str(directory / "tls.crt"))
    context.set_alpn_protocols(["postgresql"])
    return context
