"""Switches of the active branch under open, new and waiting sessions."""

from __future__ import annotations

import logging
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from tests.node.proxy_backend import (
    USER,
    Backend,
    MakeProxy,
    Proxy,
    branch_of,
    wait_until,
)
from tests.node.proxy_talk import ended, error_of, read_all, sleepers, startup

from dbranch.api.project import Target


def test_terminate_ends_sessions_with_57p01(proxy: Proxy) -> None:
    with proxy.connect() as idle, proxy.connect() as open_:
        open_.execute("BEGIN")
        proxy.apply(active="feature-x")
        assert proxy.counts() == (0, 0)
        for connection in (idle, open_):
            said = ended(connection)
            assert said.startswith("57P01")
            assert 'project shop was switched to branch "feature-x"' in said
    with proxy.connect() as connection:
        assert branch_of(connection) == "feature-x"


def test_terminate_ends_a_running_statement(proxy: Proxy, main: Backend, threads: ThreadPoolExecutor) -> None:
    """It is told at once, and the statement does not go on behind it."""
    connection = proxy.connect()
    running = threads.submit(connection.execute, "SELECT pg_sleep(60)")
    with main.direct() as direct:
        wait_until(lambda: sleepers(direct) == 1)
        began = time.monotonic()
        proxy.apply(active="feature-x")
        with pytest.raises(psycopg.errors.AdminShutdown):
            running.result(10)
        wait_until(lambda: sleepers(direct) == 0)
        assert time.monotonic() - began < 3


def test_terminate_within_a_result_that_streams(proxy: Proxy, threads: ThreadPoolExecutor) -> None:
    connection = proxy.connect()
    size = "SELECT repeat('x', 1000) FROM generate_series(1, 3000000)"

    def read() -> None:
        with connection.cursor() as cursor:
            for _ in cursor.stream(size):
                pass

    reading = threads.submit(read)
    time.sleep(0.7)
    proxy.apply(active="feature-x")
    with pytest.raises(psycopg.OperationalError):
        reading.result(20)
    wait_until(lambda: proxy.counts() == (0, 0))
    # What the client hears is an error of Postgres' or of the proxy, never a broken stream.
    said = ended(connection) if not connection.closed else ""
    assert not said or said.startswith("57P01")


def test_terminate_does_not_wait_for_who_does_not_read(proxy: Proxy) -> None:
    """No boundary of a message can come: the session ends all the same, and its memory goes."""
    connection = proxy.connect()
    connection.pgconn.send_query(b"SELECT repeat('x', 1000) FROM generate_series(1, 1000000)")
    connection.pgconn.flush()
    time.sleep(1)
    proxy.apply(active="feature-x")
    wait_until(lambda: not proxy.board.sessions, 15)
    assert proxy.board.keys == {}
    connection.close()


def test_drain_finishes_a_transaction(make_proxy: MakeProxy, main: Backend) -> None:
    proxy = make_proxy(on_switch="Drain", drain_timeout=30.0)
    with main.direct() as direct:
        direct.execute("DROP TABLE IF EXISTS drained")
        direct.execute("CREATE TABLE drained (x int)")
        idle, busy = proxy.connect(), proxy.connect()
        busy.execute("BEGIN")
        busy.execute("INSERT INTO drained VALUES (1)")
        proxy.apply(active="feature-x")
        assert ended(idle).startswith("57P01")
        assert proxy.counts() == (0, 1)
        busy.execute("INSERT INTO drained VALUES (2)")
        busy.execute("COMMIT")
        assert ended(busy).startswith("57P01")
        assert direct.execute("SELECT count(*) FROM drained").fetchone() == (2,)
        assert proxy.counts() == (0, 0)


def test_drain_lets_a_statement_under_way_finish(make_proxy: MakeProxy, threads: ThreadPoolExecutor) -> None:
    """Not in a transaction block, and with a notice sent before its end."""
    proxy = make_proxy(on_switch="Drain", drain_timeout=30.0)
    connection = proxy.connect()
    work = "DO $$ BEGIN RAISE NOTICE 'begun'; PERFORM pg_sleep(1.5); END $$"
    running: Future[Any] = threads.submit(connection.execute, work)
    time.sleep(0.5)
    proxy.apply(active="feature-x")
    running.result(10)
    assert ended(connection).startswith("57P01")


def test_drain_has_a_limit(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(on_switch="Drain", drain_timeout=0.5)
    connection = proxy.connect()
    connection.execute("BEGIN")
    proxy.apply(active="feature-x")
    time.sleep(1)
    assert proxy.counts() == (0, 0)
    assert ended(connection).startswith("57P01")


def test_a_switch_back_keeps_a_draining_session(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(on_switch="Drain")
    with proxy.connect() as connection:
        connection.execute("BEGIN")
        proxy.apply(active="feature-x")
        assert proxy.counts() == (0, 1)
        proxy.apply(active="main")
        connection.execute("COMMIT")
        assert branch_of(connection) == "main"
        assert proxy.counts() == (1, 0)


def test_keep_leaves_sessions_and_sends_new_ones_on(
    make_proxy: MakeProxy, threads: ThreadPoolExecutor
) -> None:
    proxy = make_proxy(on_switch="Keep")
    with proxy.connect() as old:
        proxy.apply(active="feature-x")
        assert branch_of(old) == "main"
        with proxy.connect() as new:
            assert branch_of(new) == "feature-x"
        # Its cancel still goes to its own backend.
        running = threads.submit(old.execute, "SELECT pg_sleep(60)")
        time.sleep(0.5)
        old.cancel_safe(timeout=10)
        with pytest.raises(psycopg.errors.QueryCanceled):
            running.result(10)
        assert branch_of(old) == "main"


def test_many_notifications_do_not_hide_that_a_session_rests(proxy: Proxy, main: Backend) -> None:
    with proxy.connect() as listener, main.direct() as direct:
        listener.execute("LISTEN news")
        for i in range(50):
            direct.execute("SELECT pg_notify('news', %s)", [f"{i} " + "x" * 100])
        time.sleep(0.3)
        proxy.apply(active="feature-x")
        assert proxy.counts() == (0, 0)
        assert ended(listener).startswith("57P01")


@pytest.mark.parametrize("on_switch", ["Terminate", "Drain", "Keep"])
def test_after_a_switch_no_connection_reaches_the_old_branch(
    make_proxy: MakeProxy, threads: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture, on_switch: str
) -> None:
    """Clients connect without end. (`apply` looks at those that are in the middle of it.)"""
    caplog.set_level(logging.INFO, "dbranch.session")
    proxy = make_proxy(on_switch=on_switch)
    stop = threading.Event()
    in_force = ["main"]
    wrong: list[str] = []
    reached: list[str] = []

    def client() -> None:
        while not stop.is_set():
            # The branches from the last switch that was over when this client began, on.
            first = len(in_force) - 1
            try:
                connection = proxy.connect()
            except psycopg.OperationalError as error:
                if "was switched" not in str(error):
                    wrong.append(str(error))
                continue
            try:
                reached.append(branch_of(connection))
                # The next one may be in force before this thread hears of it.
                if reached[-1] not in in_force[first:] and proxy.table.active != reached[-1]:
                    wrong.append(f"{reached[-1]}, not {in_force[first:]}")
            except psycopg.OperationalError:
                pass
            connection.close()

    clients = [threads.submit(client) for _ in range(6)]
    for i in range(30):
        time.sleep(0.1)
        branch = ("feature-x", "main")[i % 2]
        proxy.apply(active=branch)
        in_force.append(branch)
    stop.set()
    for one in clients:
        one.result(30)
    assert wrong == []
    assert min(reached.count("main"), reached.count("feature-x")) > 30
    ends = {r.fields["end"].split(":")[0] for r in caplog.records if r.name == "dbranch.session"}  # type: ignore[attr-defined]
    assert "client closed" in ends
    assert ends <= {"client closed", "terminated", "drained"}


@pytest.mark.parametrize("on_switch", ["Terminate", "Drain", "Keep"])
def test_who_is_on_the_way_at_a_switch_goes_to_the_new_branch(
    make_proxy: MakeProxy, threads: ThreadPoolExecutor, on_switch: str
) -> None:
    """The old backend has taken the startup packet and not answered yet."""
    proxy = make_proxy(on_switch=on_switch)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = Target("main", "Ready", "127.0.0.1", silent.getsockname()[1])
        proxy.apply(targets={**proxy.table.targets, "main": mute})
        waiting = threads.submit(proxy.connect)
        taken, _ = silent.accept()
        with taken:
            assert taken.recv(8192)
            proxy.apply(active="feature-x")
            with waiting.result(5) as connection:
                assert branch_of(connection) == "feature-x"
            assert taken.recv(8192) == b""


@pytest.mark.parametrize("on_switch", ["Terminate", "Drain", "Keep"])
def test_who_has_not_said_the_password_at_a_switch_is_told(make_proxy: MakeProxy, on_switch: str) -> None:
    proxy = make_proxy(on_switch=on_switch)
    with proxy.raw() as sock:
        sock.sendall(startup({"user": USER, "database": "postgres"}))
        assert sock.recv(4096)[:1] == b"R"
        proxy.apply(active="feature-x")
        error = error_of(read_all(sock))
        assert error["C"] == "57P01" and "was switched" in error["M"]


def test_a_branch_that_is_deleted_ends_its_sessions(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(on_switch="Keep")
    with proxy.connect(options="-c dbranch.branch=feature-x") as named, proxy.connect() as other:
        proxy.apply(targets={**proxy.table.targets, "feature-x": Target("feature-x", "Deleting")})
        assert 'branch "feature-x" of project shop is deleted' in ended(named)
        assert branch_of(other) == "main"


def test_a_proxy_that_stops_lets_transactions_end(proxy: Proxy) -> None:
    idle, busy = proxy.connect(), proxy.connect()
    busy.execute("BEGIN")
    proxy.stop_taking()
    # A change of the routes meanwhile does not call it off.
    proxy.apply(targets={**proxy.table.targets, "new": Target("new", "Starting")})
    assert ended(idle).startswith("57P01")
    busy.execute("COMMIT")
    assert "the proxy is stopping" in ended(busy)
