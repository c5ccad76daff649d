"""Cancel requests, and how sessions end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from tests.node.proxy_backend import (
    Backend,
    MakeProxy,
    Proxy,
    branch_of,
    wait_until,
)
from tests.node.proxy_talk import await_active, build_message, fatal_message, read_all

from dbranch.api.project import Target
from dbranch.proxy import cancel, wire
from dbranch.proxy.cancel import MAX_GUESSES_IN_FLIGHT_PER_BACKEND


def test_a_cancel_reaches_its_backend(proxy: Proxy, main: Backend, threads: ThreadPoolExecutor) -> None:
    with proxy.connect() as connection, proxy.connect() as other:
        running = threads.submit(connection.execute, "SELECT pg_sleep(60)")
        undisturbed = threads.submit(other.execute, "SELECT pg_sleep(1.5)")
        await_active(main, "SELECT pg_sleep(60)")
        connection.cancel_safe(timeout=10)
        with pytest.raises(psycopg.errors.QueryCanceled):
            running.result(5)
        undisturbed.result(5)
        assert branch_of(connection) == "main"


def test_a_cancel_with_an_unknown_key_is_closed_without_an_answer(proxy: Proxy) -> None:
    with proxy.raw() as sock:
        sock.sendall(wire.build_cancel_request(struct.pack("!II", 1, 2)))
        assert read_all(sock) == b""


def test_a_cancel_through_another_replica_reaches_its_backend(
    make_proxy: MakeProxy, main: Backend, feature: Backend, threads: ThreadPoolExecutor
) -> None:
    """Also for a session that named its branch, and after a switch; and no other session is cancelled."""
    one, two = make_proxy(on_switch="Keep"), make_proxy(on_switch="Keep")
    named = "-c dbranch.branch=feature-x"
    with one.connect() as first, one.connect(options=named) as second, one.connect() as third:
        running = [threads.submit(c.execute, "SELECT pg_sleep(60)") for c in (first, second)]
        undisturbed = threads.submit(third.execute, "SELECT pg_sleep(3)")
        for proxy in (one, two):
            proxy.apply(active="feature-x")
        await_active(main, "SELECT pg_sleep(60)")
        await_active(feature, "SELECT pg_sleep(60)")
        for connection in (first, second):
            key = next(k for k, s in one.switchboard.cancel_keys.items() if s is session_of(one, connection))
            with two.raw() as sock:
                sock.sendall(wire.build_cancel_request(key))
                assert read_all(sock) == b""
        for future in running:
            with pytest.raises(psycopg.errors.QueryCanceled):
                future.result(5)
        undisturbed.result(10)
    assert 'dbranch_proxy_cancels_total{result="tried"} 2.0' in two.metrics()


def session_of(proxy: Proxy, connection: psycopg.Connection[Any]) -> Any:
    """Return the proxy's session of a connection."""
    pid = connection.info.backend_pid
    return next(s for k, s in proxy.switchboard.cancel_keys.items() if int.from_bytes(k[:4], "big") == pid)


def is_closed(sock: socket.socket) -> bool:
    """Return True if the peer has closed this socket, which does not block, without an answer."""
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False


def test_a_flood_of_cancels_is_bounded(make_proxy: MakeProxy) -> None:
    """All keys are unknown and the backend does not close: at most MAX_GUESSES_IN_FLIGHT_PER_BACKEND are open."""
    proxy = make_proxy()
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as silent:
        mute = Target("mute", "Ready", "127.0.0.1", silent.getsockname()[1])
        proxy.apply(targets={"mute": mute}, active="mute")
        socks = [proxy.raw() for _ in range(MAX_GUESSES_IN_FLIGHT_PER_BACKEND + 100)]
        for i, sock in enumerate(socks):
            sock.sendall(wire.build_cancel_request(struct.pack("!II", i, i)))
        # Requests beyond the limit are closed at once, the others wait for the backend's close.
        for sock in socks:
            sock.setblocking(False)
        wait_until(lambda: sum(is_closed(sock) for sock in socks) >= 100)
        silent.settimeout(0.2)
        accepted = []
        with contextlib.suppress(TimeoutError):
            while True:
                accepted.append(silent.accept()[0])
        assert len(accepted) == MAX_GUESSES_IN_FLIGHT_PER_BACKEND
        assert sum(is_closed(sock) for sock in socks) == 100
        for sock in accepted + socks:
            sock.close()
    assert 'dbranch_proxy_cancels_total{result="dropped"} 100.0' in proxy.metrics()


def test_guessed_cancels_are_limited_and_cancels_with_a_known_key_are_not(
    make_proxy: MakeProxy, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each guess costs its backend a process, and anybody can send them."""
    monkeypatch.setattr(cancel, "MAX_GUESSED_CANCELS_PER_SECOND", 20)
    proxy, accepted, stop = make_proxy(), [0], threading.Event()
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as quick:
        quick.settimeout(0.1)

        def accept_all() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    quick.accept()[0].close()
                    accepted[0] += 1

        accepting = threads.submit(accept_all)
        target = Target("quick", "Ready", "127.0.0.1", quick.getsockname()[1])
        with proxy.connect(options="-c dbranch.branch=main") as connection:
            proxy.apply(active="quick", targets={"quick": target, "main": Target("main", "Starting")})
            running = threads.submit(connection.execute, "SELECT pg_sleep(60)")
            started_at = time.monotonic()
            for i in range(400):
                with proxy.raw() as sock:
                    sock.sendall(wire.build_cancel_request(struct.pack("!II", i, i)))
                    assert read_all(sock) == b""
            seconds = time.monotonic() - started_at
            assert 20 <= accepted[0] <= 20 * (1 + seconds) + 1
            connection.cancel_safe(timeout=10)
            with pytest.raises(psycopg.errors.QueryCanceled):
                running.result(5)
        stop.set()
        accepting.result(5)


def test_a_killed_backend_ends_its_session_with_57p01(proxy: Proxy, main: Backend) -> None:
    """The killed backend, and the others, which Postgres then ends itself."""
    with proxy.connect() as killed, proxy.connect() as neighbour:
        row = killed.execute("SELECT pg_backend_pid()").fetchone()
        assert row
        os.kill(row[0], signal.SIGKILL)
        message = fatal_message(killed)
        assert message.startswith("57P01") and 'Postgres of branch "main" closed the connection' in message
        assert fatal_message(neighbour).startswith(("57P02", "57P01"))
    with proxy.connect() as reconnected:
        assert branch_of(reconnected) == "main"


def test_a_fatal_error_of_postgres_is_forwarded(proxy: Proxy, main: Backend) -> None:
    with proxy.connect() as connection, main.direct() as direct:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row
        direct.execute("SELECT pg_terminate_backend(%s)", row)
        assert "terminating connection due to administrator command" in fatal_message(connection)


def test_a_half_closed_client_still_gets_its_answer(proxy: Proxy) -> None:
    connection = proxy.connect()
    # On libpq's own socket: a query, then a half-close.
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as sock:
        sock.setblocking(True)
        sock.settimeout(10)
        sock.sendall(build_message(b"Q", b"SELECT 'still here' FROM pg_sleep(0.5)\0"))
        sock.shutdown(socket.SHUT_WR)
        assert b"still here" in read_all(sock)
    connection.close()
    wait_until(lambda: not proxy.switchboard.sessions)


def test_terminate_counts_as_closed_by_the_client_even_if_the_backend_closes_first(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """The backend closes after Terminate, here long before the client does."""
    caplog.set_level(logging.INFO, "dbranch.session")
    with proxy.connect() as connection, socket.socket(fileno=os.dup(connection.pgconn.socket)) as sock:
        sock.sendall(wire.TERMINATE)
        sock.settimeout(10)
        sock.setblocking(True)
        assert read_all(sock) == b""
    assert [r.fields["end"] for r in caplog.records if r.name == "dbranch.session"] == ["client closed"]  # type: ignore[attr-defined]


def test_the_backend_of_a_client_that_resets_its_connection_ends(proxy: Proxy, main: Backend) -> None:
    connection = proxy.connect(application_name="vanishes")
    sock = socket.socket(fileno=os.dup(connection.pgconn.socket))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    sock.close()
    with main.direct() as direct:
        sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'vanishes'"
        wait_until(lambda: direct.execute(sql).fetchone() == (0,))
    wait_until(lambda: not proxy.switchboard.sessions)


def test_a_peer_that_disappears_is_noticed(proxy: Proxy) -> None:
    """On both sides: keepalive probes after a minute of silence, and a limit on unacknowledged bytes."""
    with proxy.connect():
        (session,) = proxy.switchboard.sessions
        for transport in (session.client, session.server):
            sock = transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            option_names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT", "TCP_NODELAY")
            values = [sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in option_names]
            assert values == [60, 10, 3, 90_000, 1]
