"""Crowds: clients that wait for a Postgres, TLS handshakes, unread logs, idle connections to the health port."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.node.proxy_backend import (
    USER,
    Backend,
    MakeProxy,
    branch_of,
    trusting_context,
    wait_until,
)
from tests.node.proxy_process import connect, proxy_process
from tests.node.proxy_talk import build_startup, error_fields, read_all

from dbranch.api.project import Target
from dbranch.proxy import knock, sockets, wire

STARTUP = build_startup({"user": USER, "database": "postgres"})


class Recovering:
    """A Postgres that answers each startup packet with 57P03, as it does during recovery. `knocks` counts them."""

    def __init__(self) -> None:
        self.knocks = 0
        self._sock = socket.create_server(("127.0.0.1", 0), backlog=1000)
        self.port: int = self._sock.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = self._sock.accept()
                with accepted:
                    if accepted.recv(8192):
                        self.knocks += 1
                        accepted.sendall(
                            wire.build_fatal_error("57P03", "the database system is starting up")
                        )

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._thread.join(10)


@pytest.fixture
def recovering() -> Iterator[Recovering]:
    server = Recovering()
    yield server
    server.close()


def test_those_who_wait_share_one_knock(make_proxy: MakeProxy, recovering: Recovering, main: Backend) -> None:
    proxy = make_proxy(start_timeout=60.0)
    recovers = Target("main", "Ready", "127.0.0.1", recovering.port)
    proxy.apply(targets={**proxy.table.targets, "main": recovers})
    with ExitStack() as stack:
        clients = [stack.enter_context(proxy.raw()) for _ in range(500)]
        for client in clients:
            client.sendall(STARTUP)
        wait_until(lambda: len(proxy.switchboard.sessions) == 500 and recovering.knocks >= 5, 30)
        # The first ones at once, then one at a time, less and less often.
        before, started_at = recovering.knocks, time.monotonic()
        assert before <= knock.MAX_UNANSWERED_DIALS + 20
        time.sleep(2)
        assert recovering.knocks - before <= 10 + 2 * (time.monotonic() - started_at)
        # With another address all of them get in, within Postgres' own limit.
        for client in clients[100:]:
            client.close()
        wait_until(lambda: len(proxy.switchboard.sessions) == 100)
        proxy.apply(targets={**proxy.table.targets, "main": main.target()})
        for client in clients[:100]:
            assert client.recv(1) == b"R"
    wait_until(lambda: not proxy.switchboard.sessions)
    assert len(proxy.switchboard.gates) <= 2


def test_one_who_leaves_hands_the_knock_on(make_proxy: MakeProxy, recovering: Recovering) -> None:
    proxy = make_proxy(start_timeout=60.0)
    recovers = Target("main", "Ready", "127.0.0.1", recovering.port)
    proxy.apply(targets={**proxy.table.targets, "main": recovers})
    for _ in range(3):
        with proxy.raw() as leaving, proxy.raw() as staying:
            for client in (leaving, staying):
                client.sendall(STARTUP)
            before = recovering.knocks
            wait_until(lambda b=before: recovering.knocks > b)  # type: ignore[misc]
            leaving.close()
            before = recovering.knocks
            wait_until(lambda b=before: recovering.knocks >= b + 2)  # type: ignore[misc]


def test_unread_logs_stop_nobody(main: Backend, tmp_path: Path) -> None:
    """The reader of the log stands still; connections that are refused write lines all the time."""
    with proxy_process([main], tmp_path / "log", stderr_is_unread=True) as running:
        session = connect(running)
        for _ in range(30):
            connect(running).close()
        for _ in range(100):
            with socket.create_connection(("127.0.0.1", running.port), timeout=5) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
                assert error_fields(read_all(sock))["C"] == "08P01"
        assert branch_of(session) == "main"
        assert running.get("healthz") == (200, "ok\n")
        assert "dbranch_proxy_log_lines_dropped_total 0.0" in running.get("metrics")[1]
        session.close()


def test_required_tls_waits_for_a_pod_that_has_the_secret_mounted(make_proxy: MakeProxy) -> None:
    """spec.proxy.tls was added: this pod was made before, and the rollout has not replaced it yet."""
    proxy = make_proxy(tls_required=True)
    with proxy.connect() as connection:
        assert branch_of(connection) == "main"


def test_a_mounted_secret_without_a_certificate_admits_nobody_without_tls(
    make_proxy: MakeProxy, tmp_path: Path
) -> None:
    proxy = make_proxy(tmp_path, tls_required=True)
    with proxy.raw() as sock:
        sock.sendall(STARTUP)
        assert error_fields(read_all(sock))["C"] == "28000"


def test_tls_handshakes_wait_for_their_turn(make_proxy: MakeProxy, tls: Path) -> None:
    """Silent ones occupy no turn for longer than handshakeTimeout; the others are all done, and counted."""
    proxy, context = make_proxy(tls, handshake_timeout=3.0), trusting_context(tls)
    with ExitStack() as stack:
        for _ in range(100):
            sock = stack.enter_context(proxy.raw())
            sock.sendall(struct.pack("!II", 8, wire.SSL_REQUEST_CODE))
            assert sock.recv(1) == b"S"
        wait_until(lambda: not proxy.switchboard.starting, 15)
    for _ in range(30):
        sock = proxy.raw()
        sock.sendall(struct.pack("!II", 8, wire.SSL_REQUEST_CODE))
        assert sock.recv(1) == b"S"
        context.wrap_socket(sock, server_hostname="shop").close()
    wait_until(lambda: 'dbranch_proxy_handshakes_total{result="done"} 30.0' in proxy.metrics())


def test_lingering_connections_are_bounded(make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "MAX_LINGERING", 20)
    proxy = make_proxy()
    with ExitStack() as stack:
        clients = [stack.enter_context(proxy.raw()) for _ in range(60)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert error_fields(read_all(client))["C"] == "08P01"
        assert len(sockets._Lingering._all) <= 20


def test_idle_connections_to_the_health_port_stop_no_probe(main: Backend, tmp_path: Path) -> None:
    with proxy_process([main], tmp_path / "log") as running, ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", running.health), timeout=5))
        assert running.get("healthz") == (200, "ok\n")
        descriptors = Path(f"/proc/{running.process.pid}/fd")
        wait_until(lambda: len(list(descriptors.iterdir())) < 120)
        assert running.get("healthz") == (200, "ok\n")
