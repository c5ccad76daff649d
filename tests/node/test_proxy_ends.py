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
from tests.node.proxy_talk import ended, message, read_all

from dbranch.api.project import Target
from dbranch.proxy import cancel, wire
from dbranch.proxy.cancel import MOST


def test_a_cancel_reaches_its_backend(proxy: Proxy, threads: ThreadPoolExecutor) -> None:
    with proxy.connect() as connection, proxy.connect() as other:
        running = threads.submit(connection.execute, "SELECT pg_sleep(60)")
        beside = threads.submit(other.execute, "SELECT pg_sleep(1.5)")
        time.sleep(0.5)
        connection.cancel_safe(timeout=10)
        with pytest.raises(psycopg.errors.QueryCanceled):
            running.result(5)
        beside.result(5)
        assert branch_of(connection) == "main"


def test_a_cancel_with_an_unknown_key_is_closed(proxy: Proxy) -> None:
    with proxy.raw() as sock:
        sock.sendall(wire.cancel_request(struct.pack("!II", 1, 2)))
        assert read_all(sock) == b""


def test_a_cancel_through_another_replica_reaches_its_backend(
    make_proxy: MakeProxy, threads: ThreadPoolExecutor
) -> None:
    """Also of a session that named its branch, and after a switch; and nobody else is cancelled."""
    one, two = make_proxy(on_switch="Keep"), make_proxy(on_switch="Keep")
    named = "-c dbranch.branch=feature-x"
    with one.connect() as own, one.connect(options=named) as other, one.connect() as beside:
        running = [threads.submit(c.execute, "SELECT pg_sleep(60)") for c in (own, other)]
        goes_on = threads.submit(beside.execute, "SELECT pg_sleep(3)")
        for proxy in (one, two):
            proxy.apply(active="feature-x")
        time.sleep(0.5)
        for connection in (own, other):
            key = next(k for k, s in one.board.keys.items() if s is session_of(one, connection))
            with two.raw() as sock:
                sock.sendall(wire.cancel_request(key))
                assert read_all(sock) == b""
        for work in running:
            with pytest.raises(psycopg.errors.QueryCanceled):
                work.result(5)
        goes_on.result(10)
    assert 'dbranch_proxy_cancels_total{result="tried"} 2.0' in two.metrics()


def session_of(proxy: Proxy, connection: psycopg.Connection[Any]) -> Any:
    pid = connection.info.backend_pid
    return next(s for k, s in proxy.board.keys.items() if int.from_bytes(k[:4], "big") == pid)


def test_a_flood_of_cancels_is_bounded(make_proxy: MakeProxy) -> None:
    """Every key is unknown, and the backend takes them and does not close: never more than MOST at once."""
    proxy = make_proxy()
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as silent:
        mute = Target("mute", "Ready", "127.0.0.1", silent.getsockname()[1])
        proxy.apply(targets={"mute": mute}, active="mute")
        socks = [proxy.raw() for _ in range(MOST + 100)]
        for i, sock in enumerate(socks):
            sock.sendall(wire.cancel_request(struct.pack("!II", i, i)))
        # Those beyond are closed at once, the others wait for the backend's close.
        ended = 0
        time.sleep(0.5)
        for sock in socks:
            sock.settimeout(0.01)
            with contextlib.suppress(TimeoutError):
                ended += sock.recv(1) == b""
        assert ended == 100
        silent.settimeout(0.2)
        taken = []
        with contextlib.suppress(TimeoutError):
            while True:
                taken.append(silent.accept()[0])
        assert len(taken) == MOST
        for sock in taken + socks:
            sock.close()
    assert 'dbranch_proxy_cancels_total{result="dropped"} 100.0' in proxy.metrics()


def test_guesses_have_a_budget_and_own_cancels_do_not_need_it(
    make_proxy: MakeProxy, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each guess costs the backend a process, and anybody can send them."""
    monkeypatch.setattr(cancel, "GUESSES", 20)
    proxy, taken, stop = make_proxy(), [0], threading.Event()
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as quick:
        quick.settimeout(0.1)

        def take() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    quick.accept()[0].close()
                    taken[0] += 1

        taking = threads.submit(take)
        target = Target("quick", "Ready", "127.0.0.1", quick.getsockname()[1])
        with proxy.connect(options="-c dbranch.branch=main") as connection:
            proxy.apply(active="quick", targets={"quick": target, "main": Target("main", "Starting")})
            running = threads.submit(connection.execute, "SELECT pg_sleep(60)")
            began = time.monotonic()
            for i in range(400):
                with proxy.raw() as sock:
                    sock.sendall(wire.cancel_request(struct.pack("!II", i, i)))
                    assert read_all(sock) == b""
            seconds = time.monotonic() - began
            assert 20 <= taken[0] <= 20 * (1 + seconds) + 1
            connection.cancel_safe(timeout=10)
            with pytest.raises(psycopg.errors.QueryCanceled):
                running.result(5)
        stop.set()
        taking.result(5)


def test_a_backend_that_is_killed_is_said(proxy: Proxy, main: Backend) -> None:
    """One that is killed, and its neighbours that Postgres then ends itself."""
    with proxy.connect() as killed, proxy.connect() as neighbour:
        row = killed.execute("SELECT pg_backend_pid()").fetchone()
        assert row
        os.kill(row[0], signal.SIGKILL)
        said = ended(killed)
        assert said.startswith("57P01") and 'Postgres of branch "main" closed the connection' in said
        assert ended(neighbour).startswith(("57P02", "57P01"))
    with proxy.connect() as again:
        assert branch_of(again) == "main"


def test_a_backend_that_ends_a_session_says_it_itself(proxy: Proxy, main: Backend) -> None:
    with proxy.connect() as connection, main.direct() as direct:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row
        direct.execute("SELECT pg_terminate_backend(%s)", row)
        assert "terminating connection due to administrator command" in ended(connection)


def test_a_half_closed_client_still_hears_its_answer(proxy: Proxy) -> None:
    connection = proxy.connect()
    # Behind libpq's back: a query, then the end of what this side says.
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as sock:
        sock.setblocking(True)
        sock.settimeout(10)
        sock.sendall(message(b"Q", b"SELECT 'still here' FROM pg_sleep(0.5)\0"))
        sock.shutdown(socket.SHUT_WR)
        assert b"still here" in read_all(sock)
    connection.close()
    wait_until(lambda: not proxy.board.sessions)


def test_a_client_that_says_goodbye_has_closed_whoever_is_faster(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """The backend closes at Terminate, here long before the client does."""
    caplog.set_level(logging.INFO, "dbranch.session")
    with proxy.connect() as connection, socket.socket(fileno=os.dup(connection.pgconn.socket)) as sock:
        sock.sendall(wire.TERMINATE)
        sock.settimeout(10)
        sock.setblocking(True)
        assert read_all(sock) == b""
    assert [r.fields["end"] for r in caplog.records if r.name == "dbranch.session"] == ["client closed"]  # type: ignore[attr-defined]


def test_a_client_that_vanishes_takes_its_backend_along(proxy: Proxy, main: Backend) -> None:
    connection = proxy.connect(application_name="vanishes")
    sock = socket.socket(fileno=os.dup(connection.pgconn.socket))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    sock.close()
    with main.direct() as direct:
        sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'vanishes'"
        wait_until(lambda: direct.execute(sql).fetchone() == (0,))
    wait_until(lambda: not proxy.board.sessions)


def test_a_peer_that_is_gone_without_a_word_is_noticed(proxy: Proxy) -> None:
    """On both sides: probes after a minute of silence, and an end to what is sent and not acknowledged."""
    with proxy.connect():
        (session,) = proxy.board.sessions
        for transport in (session.client, session.server):
            sock = transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            tcp = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT", "TCP_NODELAY")
            found = [sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in tcp]
            assert found == [60, 10, 3, 90_000, 1]
