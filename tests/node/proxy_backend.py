"""Real Postgres servers on this machine, and a proxy in front of them that is fed tables directly."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def wait_until(true: Callable[[], object], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.02)


@dataclass
class Backend:
    """One Postgres server; `cluster_name` says which it is."""

    branch: str
    port: int
    context: Path
    programs: Path
    server: subprocess.Popen[bytes] | None = None
    max_connections: int = 30

    def start(self) -> None:
        nobody = pwd.getpwnam("nobody")
        with (self.context / "log").open("ab") as out:
            self.server = subprocess.Popen(
                [
                    str(self.programs / "postgres"),
                    *("-D", str(self.context / "data"), "-k", str(self.context), "-p", str(self.port)),
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
            assert self.server and self.server.poll() is None, (self.context / "log").read_text()
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
        """A connection that goes around the proxy."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname="postgres", autocommit=True
        )

    def target(self, state: str = "Ready") -> Target:
        return Target(self.branch, state, "127.0.0.1", self.port)


@contextmanager
def running_backend(
    branch: str, max_connections: int = 30, programs: Path | None = None
) -> Iterator[Backend]:
    """A server in a directory of its own, which goes with it. Fails where Postgres is not installed."""
    root = programs.parent.parent if programs else Path("/usr/lib/postgresql")
    found = sorted(root.glob("*/bin/initdb"))
    assert found, f"no {root}/*/bin/initdb: apt-get install postgresql (hack/test does)"
    context = Path(tempfile.mkdtemp(prefix="dbranch-proxy-"))
    backend = Backend(branch, free_port(), context, found[-1].parent, max_connections=max_connections)
    try:
        nobody = pwd.getpwnam("nobody")
        (context / "password").write_text(PASSWORD)
        for path in (context, context / "password"):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        subprocess.run(
            [
                str(found[-1]),
                *("-D", str(context / "data"), "-U", USER, "--pwfile", str(context / "password")),
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
        shutil.rmtree(context)


class Client(psycopg.Connection[Any]):
    """Keeps what libpq reports as a notice: so it does with a FATAL that comes while it asks nothing."""

    def __init__(self, *words: Any, **more: Any) -> None:
        super().__init__(*words, **more)
        self.heard: list[str] = []
        self.add_notice_handler(lambda d: self.heard.append(f"{d.sqlstate} {d.message_primary}"))


MakeProxy = Callable[..., "Proxy"]


class Proxy:
    """The proxy on a port of its own, its event loop in a thread of its own."""

    def __init__(self, table: Table, tls: Path | None = None) -> None:
        self.port = free_port()
        self.table = table
        self._tls = tls
        self._loop = uvloop.new_event_loop()
        self.trouble: list[dict[str, Any]] = []
        self._loop.set_exception_handler(lambda _, context: self.trouble.append(context))
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.board: Any = self._call(self._open())

    async def _open(self) -> Switchboard:
        board, canceller = Switchboard(Certificate(self._tls) if self._tls else None), Canceller()
        board.apply(self.table)
        self._server = await self._loop.create_server(
            lambda: ClientStart(board, canceller), sock=listening_socket(self.port)
        )
        return board

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def apply(self, **changes: Any) -> None:
        """Puts the table in force, with `changes`; a change of `active` is a new generation."""
        step = 1 if "active" in changes else 0
        self.table = replace(self.table, generation=self.table.generation + step, **changes)

        async def now() -> None:
            self.board.apply(self.table)
            for session in self.board.sessions:
                # Whoever is not let in yet has no way left to a branch that is not the active one.
                if session.place and session.greeting and not session.place.named:
                    assert session.how or session.place.branch == self.table.active

        self._call(now())

    def counts(self) -> tuple[int, int]:
        async def now() -> tuple[int, int]:
            found = self.board.counts()
            return sum(b.sessions for b in found), sum(b.draining for b in found)

        found: tuple[int, int] = self._call(now())
        return found

    def metrics(self) -> str:
        """What `/metrics` shows."""

        async def now() -> str:
            text: bytes = self.board.metrics.text()
            return text.decode()

        found: str = self._call(now())
        return found

    def stop_taking(self) -> None:
        """What SIGTERM does to the sessions."""

        async def now() -> None:
            self.board.close()

        self._call(now())

    def close(self) -> None:
        async def now() -> None:
            self._server.close()
            self.board.close()
            self.board.end_all("the test is over")
            await asyncio.sleep(0.05)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0.05)

        self._call(now())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def connect(self, **more: Any) -> Client:
        words: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self.port,
            "user": USER,
            "password": PASSWORD,
            "dbname": "postgres",
            "autocommit": True,
            "connect_timeout": 20,
        }
        return Client.connect(**(words | more))

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


def branch_of(connection: psycopg.Connection[Any]) -> str:
    row = connection.execute("SELECT current_setting('cluster_name')").fetchone()
    assert row
    name: str = row[0]
    return name


def make_certificate(directory: Path, name: str = "shop") -> None:
    """A self-signed one, as a Secret of type kubernetes.io/tls is mounted."""
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


def trusting(directory: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(directory / "tls.crt"))
    context.set_alpn_protocols(["postgresql"])
    return context
