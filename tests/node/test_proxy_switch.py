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
from tests.node.proxy_talk import (
    await_active,
    build_startup,
    error_fields,
    fatal_message,
    read_all,
    running_sleeps,
)

from dbranch.api.project import Target


def test_terminate_ends_sessions_with_57p01(proxy: Proxy) -> None:
    with proxy.connect() as idle, proxy.connect() as open_:
        open_.execute("BEGIN")
        proxy.apply(active="feature-x")
        wait_until(lambda: proxy.counts() == (0, 0))
        for connection in (idle, open_):
            message = fatal_message(connection)
            assert message.startswith("57P01")
            assert 'project shop was switched to branch "feature-x"' in message
    with proxy.connect() as connection:
        assert branch_of(connection) == "feature-x"


def test_terminate_ends_a_running_statement(proxy: Proxy, main: Backend, threads: ThreadPoolExecutor) -> None:
    """The client gets its error at once, and the statement does not run on."""
    connection = proxy.connect()
    running = threads.submit(connection.execute, "SELECT pg_sleep(60)")
    with main.direct() as direct:
        wait_until(lambda: running_sleeps(direct) == 1)
        started_at = time.monotonic()
        proxy.apply(active="feature-x")
        with pytest.raises(psycopg.errors.AdminShutdown):
            running.result(10)
        wait_until(lambda: running_sleeps(direct) == 0)
        assert time.monotonic() - started_at < 3


def test_terminate_within_a_streamed_result(proxy: Proxy, threads: ThreadPoolExecutor) -> None:
    connection = proxy.connect()
    query = "SELECT repeat('x', 1000) FROM generate_series(1, 3000000)"

    def read() -> None:
        with connection.cursor() as cursor:
            for _ in cursor.stream(query):
                pass

    reading = threads.submit(read)
    wait_until(lambda: min(s.bytes_out for s in proxy.switchboard.sessions) > 1_000_000)
    proxy.apply(active="feature-x")
    with pytest.raises(psycopg.OperationalError):
        reading.result(20)
    wait_until(lambda: proxy.counts() == (0, 0))
    # The client gets an error from Postgres or from the proxy, never a broken stream.
    message = fatal_message(connection) if not connection.closed else ""
    assert not message or message.startswith("57P01")


def test_terminate_does_not_wait_for_a_client_that_does_not_read(proxy: Proxy, main: Backend) -> None:
    """No message boundary is reached: the session ends all the same, and its state is removed."""
    connection = proxy.connect()
    query = "SELECT repeat('x', 1000) FROM generate_series(1, 1000000)"
    connection.pgconn.send_query(query.encode())
    connection.pgconn.flush()
    await_active(main, query, wait_event="ClientWrite")
    proxy.apply(active="feature-x")
    wait_until(lambda: not proxy.switchboard.sessions, 15)
    assert proxy.switchboard.cancel_keys == {}
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
        assert fatal_message(idle).startswith("57P01")
        assert proxy.counts() == (0, 1)
        busy.execute("INSERT INTO drained VALUES (2)")
        busy.execute("COMMIT")
        assert fatal_message(busy).startswith("57P01")
        assert direct.execute("SELECT count(*) FROM drained").fetchone() == (2,)
        wait_until(lambda: proxy.counts() == (0, 0))


def test_drain_lets_a_running_statement_finish(
    make_proxy: MakeProxy, main: Backend, threads: ThreadPoolExecutor
) -> None:
    """Outside of a transaction block, with a notice before its end."""
    proxy = make_proxy(on_switch="Drain", drain_timeout=30.0)
    connection = proxy.connect()
    statement = "DO $$ BEGIN RAISE NOTICE 'begun'; PERFORM pg_advisory_lock(7); END $$"
    with main.direct() as direct:
        direct.execute("SELECT pg_advisory_lock(7)")
        running: Future[Any] = threads.submit(connection.execute, statement)
        await_active(main, statement, wait_event="advisory")
        proxy.apply(active="feature-x")
        assert proxy.counts() == (0, 1) and not running.done()
    running.result(10)
    assert fatal_message(connection).startswith("57P01")


def test_drain_ends_after_drain_timeout(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(on_switch="Drain", drain_timeout=0.5)
    connection = proxy.connect()
    connection.execute("BEGIN")
    proxy.apply(active="feature-x")
    wait_until(lambda: proxy.counts() == (0, 0))
    assert fatal_message(connection).startswith("57P01")


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


def test_keep_leaves_sessions_and_sends_new_ones_to_the_new_branch(
    make_proxy: MakeProxy, main: Backend, threads: ThreadPoolExecutor
) -> None:
    proxy = make_proxy(on_switch="Keep")
    with proxy.connect() as old:
        proxy.apply(active="feature-x")
        assert branch_of(old) == "main"
        with proxy.connect() as new:
            assert branch_of(new) == "feature-x"
        # A cancel of the old session still goes to its own backend.
        running = threads.submit(old.execute, "SELECT pg_sleep(60)")
        await_active(main, "SELECT pg_sleep(60)")
        old.cancel_safe(timeout=10)
        with pytest.raises(psycopg.errors.QueryCanceled):
            running.result(10)
        assert branch_of(old) == "main"


def test_many_notifications_do_not_hide_that_a_session_is_idle(proxy: Proxy, main: Backend) -> None:
    with proxy.connect() as listener, main.direct() as direct:
        listener.execute("LISTEN channel_1")
        for i in range(50):
            direct.execute("SELECT pg_notify('channel_1', %s)", [f"{i} " + "x" * 100])
        wait_until(lambda: min(s.bytes_out for s in proxy.switchboard.sessions) > 5000)
        proxy.apply(active="feature-x")
        wait_until(lambda: proxy.counts() == (0, 0))
        assert fatal_message(listener).startswith("57P01")


@pytest.mark.parametrize("on_switch", ["Terminate", "Drain", "Keep"])
def test_after_a_switch_no_connection_reaches_the_old_branch(
    make_proxy: MakeProxy, threads: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture, on_switch: str
) -> None:
    """Clients keep connecting. (`Proxy.apply` checks those that are not logged in yet.)"""
    caplog.set_level(logging.INFO, "dbranch.session")
    proxy = make_proxy(on_switch=on_switch)
    stop = threading.Event()
    in_force = ["main"]
    wrong: list[str] = []
    reached: list[str] = []

    def client() -> None:
        while not stop.is_set():
            # The branch in force when this client began, and all later ones, are correct.
            first = len(in_force) - 1
            try:
                connection = proxy.connect()
            except psycopg.OperationalError as error:
                if "was switched" not in str(error):
                    wrong.append(str(error))
                continue
            try:
                reached.append(branch_of(connection))
                # The next branch may be in force before it is appended to in_force.
                if reached[-1] not in in_force[first:] and proxy.table.active != reached[-1]:
                    wrong.append(f"{reached[-1]}, not {in_force[first:]}")
            except psycopg.OperationalError:
                pass
            connection.close()

    clients = [threads.submit(client) for _ in range(6)]
    for i in range(30):
        enough = len(reached) + 5
        wait_until(lambda enough=enough: len(reached) >= enough, 30)  # type: ignore[misc]
        branch = ("feature-x", "main")[i % 2]
        proxy.apply(active=branch)
        in_force.append(branch)
    stop.set()
    for future in clients:
        future.result(30)
    assert wrong == []
    assert min(reached.count("main"), reached.count("feature-x")) > 30
    ends = {r.fields["end"].split(":")[0] for r in caplog.records if r.name == "dbranch.session"}  # type: ignore[attr-defined]
    assert "client closed" in ends
    assert ends <= {"client closed", "terminated", "drained"}


@pytest.mark.parametrize("on_switch", ["Terminate", "Drain", "Keep"])
def test_a_client_without_a_backends_answer_at_a_switch_goes_to_the_new_branch(
    make_proxy: MakeProxy, threads: ThreadPoolExecutor, on_switch: str
) -> None:
    """The old backend has read the startup packet and not answered yet."""
    proxy = make_proxy(on_switch=on_switch)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = Target("main", "Ready", "127.0.0.1", silent.getsockname()[1])
        proxy.apply(targets={**proxy.table.targets, "main": mute})
        waiting = threads.submit(proxy.connect)
        accepted, _ = silent.accept()
        with accepted:
            assert accepted.recv(8192)
            proxy.apply(active="feature-x")
            with waiting.result(5) as connection:
                assert branch_of(connection) == "feature-x"
            assert accepted.recv(8192) == b""


@pytest.mark.parametrize("on_switch", ["Terminate", "Drain", "Keep"])
def test_a_client_without_a_password_at_a_switch_gets_57p01(make_proxy: MakeProxy, on_switch: str) -> None:
    proxy = make_proxy(on_switch=on_switch)
    with proxy.raw() as sock:
        sock.sendall(build_startup({"user": USER, "database": "postgres"}))
        assert sock.recv(4096)[:1] == b"R"
        proxy.apply(active="feature-x")
        error = error_fields(read_all(sock))
        assert error["C"] == "57P01" and "was switched" in error["M"]


def test_the_sessions_of_a_deleted_branch_end(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(on_switch="Keep")
    with proxy.connect(options="-c dbranch.branch=feature-x") as named, proxy.connect() as other:
        proxy.apply(targets={**proxy.table.targets, "feature-x": Target("feature-x", "Deleting")})
        assert 'branch "feature-x" of project shop is deleted' in fatal_message(named)
        assert branch_of(other) == "main"


def test_a_proxy_that_shuts_down_lets_transactions_end(proxy: Proxy) -> None:
    idle, busy = proxy.connect(), proxy.connect()
    busy.execute("BEGIN")
    proxy.begin_shutdown()
    # A change of the routes meanwhile does not undo it.
    proxy.apply(targets={**proxy.table.targets, "new": Target("new", "Starting")})
    assert fatal_message(idle).startswith("57P01")
    busy.execute("COMMIT")
    assert "the proxy is stopping" in fatal_message(busy)
