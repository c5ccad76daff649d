"""What a client was sent when its session ends is what its branch has: nothing commits behind a 57P01."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from tests.node.proxy_backend import PASSWORD, USER, Backend, Client, MakeProxy, Proxy, wait_until
from tests.node.proxy_process import proxy_process
from tests.node.proxy_talk import await_active, build_message, error_fields, fatal_message, read_all

from dbranch.api.project import Target
from dbranch.proxy import timing, wire

SLOW_INSERT = b"INSERT INTO ends SELECT FROM pg_sleep(1.5)"
INSERT_DONE = b"INSERT 0 1\0"


@pytest.fixture
def ends(main: Backend) -> Iterator[psycopg.Connection[Any]]:
    """A direct session to branch main, where the table `ends` is empty."""
    with main.direct() as direct:
        direct.execute("CREATE TABLE ends ()")
        yield direct
        direct.execute("DROP TABLE ends")


def rows(direct: psycopg.Connection[Any]) -> int:
    """Return how many rows `ends` has once every other session of the branch is gone or idle."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND state <> 'idle'"
    wait_until(lambda: direct.execute(sql).fetchone() == (1,), 30)
    row = direct.execute("SELECT count(*) FROM ends").fetchone()
    assert row
    count: int = row[0]
    return count


@contextlib.contextmanager
def raw_socket(connection: psycopg.Connection[Any]) -> Iterator[socket.socket]:
    """Yield libpq's own socket, to send and read messages by hand; close the connection behind it."""
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as sock:
        sock.setblocking(True)
        sock.settimeout(20)
        yield sock
    connection.close()


def query(sql: bytes) -> bytes:
    return build_message(b"Q", sql + b"\0")


def extended(sql: bytes, sync: bool = True) -> bytes:
    """Return Parse, Bind, Execute, and Sync."""
    parse = build_message(b"P", b"\0" + sql + b"\0\0\0")
    bind = build_message(b"B", b"\0\0" + b"\0\0" * 3)
    execute = build_message(b"E", b"\0" + b"\0\0\0\0")
    return parse + bind + execute + (build_message(b"S", b"") if sync else b"")


def restart(proxy: Proxy) -> None:
    """The branch has another address now, as after a restart."""
    proxy.apply(targets={**proxy.table.targets, "main": Target("main", "Ready", "127.0.0.1", 1)})


def switch(proxy: Proxy) -> None:
    proxy.apply(active="feature-x")


def test_more_busy_sessions_than_cancels_at_once(
    proxy: Proxy, ends: psycopg.Connection[Any], threads: ThreadPoolExecutor
) -> None:
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    clients = list(threads.map(lambda _: proxy.connect(), range(150)))
    for client in clients:
        client.pgconn.send_query(b"INSERT INTO ends SELECT FROM pg_sleep(300)")
        client.pgconn.flush()
    sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    wait_until(lambda: ends.execute(sql).fetchone() == (150,), 60)
    switch(proxy)
    for client in clients:
        with raw_socket(client) as sock:
            data = read_all(sock)
        assert error_fields(data)["C"] == "57P01" and INSERT_DONE not in data
        client.close()
    assert rows(ends) == 0
    wait_until(lambda: not proxy.switchboard.sessions)
    wait_until(lambda: len(list(descriptors.iterdir())) < before + 10)
    assert "dbranch_proxy_ended_unconfirmed_total 0.0" in proxy.metrics()


@pytest.mark.parametrize("end", [switch, restart])
@pytest.mark.parametrize("build", [query, extended])
def test_terminate_cancels_what_was_sent_ahead(
    proxy: Proxy,
    ends: psycopg.Connection[Any],
    build: Callable[[bytes], bytes],
    end: Callable[[Proxy], None],
) -> None:
    """The answer of the first of several requests in one segment looks like a session at rest."""
    with raw_socket(proxy.connect()) as sock:
        sock.sendall(build(b"SELECT 1") + 2 * build(SLOW_INSERT))
        assert b"SELECT 1\0" in sock.recv(4096)
        end(proxy)
        data = read_all(sock)
    assert error_fields(data)["C"] == "57P01"
    assert rows(ends) == data.count(INSERT_DONE) == 0


@pytest.mark.parametrize("build", [query, extended])
def test_drain_answers_what_was_sent_ahead(
    make_proxy: MakeProxy, ends: psycopg.Connection[Any], build: Callable[[bytes], bytes]
) -> None:
    proxy = make_proxy(on_switch="Drain", drain_timeout=30.0)
    with raw_socket(proxy.connect()) as sock:
        sock.sendall(build(b"SELECT 1") + build(SLOW_INSERT))
        assert b"SELECT 1\0" in sock.recv(4096)
        switch(proxy)
        assert proxy.counts() == (0, 1)
        # Too late: the session has begun to end.
        sock.sendall(build(SLOW_INSERT))
        data = read_all(sock)
    assert error_fields(data)["C"] == "57P01"
    assert rows(ends) == data.count(INSERT_DONE) == 1


def test_the_drain_timeout_ends_what_was_sent_ahead(
    make_proxy: MakeProxy, ends: psycopg.Connection[Any]
) -> None:
    proxy = make_proxy(on_switch="Drain", drain_timeout=0.5)
    with raw_socket(proxy.connect()) as sock:
        sock.sendall(query(b"SELECT 1") + query(b"INSERT INTO ends SELECT FROM pg_sleep(60)"))
        assert b"SELECT 1\0" in sock.recv(4096)
        switch(proxy)
        assert error_fields(read_all(sock))["C"] == "57P01"
    assert rows(ends) == 0


UNFINISHED = {
    "half a query": query(SLOW_INSERT)[:-10],
    "no Sync": extended(SLOW_INSERT, sync=False),
    "an error and no Sync": extended(b"SELECT 1/0", sync=False) + extended(SLOW_INSERT, sync=False),
    "COPY": query(b"COPY ends FROM STDIN") + build_message(b"d", b"\n"),
    "half a CopyData": query(b"COPY ends FROM STDIN") + build_message(b"d", b"\n" * 50)[:-10],
    "a transaction": query(b"BEGIN") + query(b"INSERT INTO ends DEFAULT VALUES"),
    "a failed transaction": query(b"BEGIN") + query(b"SELECT 1/0"),
    "half a function call": build_message(b"F", b"\0" * 40)[:-10],
    "an answer that is not read": query(b"SELECT repeat('x', 1000) FROM generate_series(1, 300000)"),
}


@pytest.mark.parametrize("sent", UNFINISHED.values(), ids=UNFINISHED)
def test_an_end_in_the_middle_of_anything(proxy: Proxy, ends: psycopg.Connection[Any], sent: bytes) -> None:
    with raw_socket(proxy.connect()) as sock:
        sock.sendall(sent)
        time.sleep(0.2)
        switch(proxy)
        assert error_fields(read_all(sock))["C"] == "57P01"
    assert rows(ends) == 0
    wait_until(lambda: not proxy.switchboard.sessions)


def test_a_walsender_ends(proxy: Proxy, main: Backend) -> None:
    with raw_socket(proxy.connect(replication="true")) as sock:
        with main.direct() as direct:
            row = direct.execute("SELECT pg_current_wal_flush_lsn()").fetchone()
        assert row
        sock.sendall(query(f"START_REPLICATION PHYSICAL {row[0]}".encode()))
        assert sock.recv(4096)[:1] == b"W"
        switch(proxy)
        assert error_fields(read_all(sock))["C"] == "57P01"


def test_requests_that_the_proxy_still_buffers_are_not_delivered(
    proxy: Proxy, ends: psycopg.Connection[Any]
) -> None:
    """Far more than the kernel's buffers hold, behind a statement that runs."""
    connection = proxy.connect()
    padded = query(b"INSERT INTO ends DEFAULT VALUES /*" + b"x" * 100_000 + b"*/")
    sent = 0
    with raw_socket(connection) as sock:
        sock.sendall(query(b"SELECT pg_sleep(60)"))
        sock.settimeout(1.0)
        with contextlib.suppress(TimeoutError):
            while True:
                sock.sendall(padded)
                sent += 1
        sock.settimeout(20)
        (session,) = proxy.switchboard.sessions
        assert session.server.get_write_buffer_size() > 100_000
        switch(proxy)
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while part := sock.recv(65536):
                data += part
    count = rows(ends)
    assert count == data.count(INSERT_DONE) < sent


def test_what_cannot_be_confirmed_is_said_and_counted(
    make_proxy: MakeProxy,
    ends: psycopg.Connection[Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A backend that stands still delays nobody else's end."""
    monkeypatch.setattr(timing, "END_TIMEOUT_SECONDS", 1.5)
    proxy = make_proxy()
    stuck, other = proxy.connect(), proxy.connect()
    row = stuck.execute("SELECT pg_backend_pid()").fetchone()
    assert row
    os.kill(row[0], signal.SIGSTOP)
    try:
        with raw_socket(stuck) as sock:
            sock.sendall(query(SLOW_INSERT))
            switch(proxy)
            started_at = time.monotonic()
            assert fatal_message(other).startswith("57P01")
            assert time.monotonic() - started_at < 3
            fields = error_fields(read_all(sock))
        assert fields["C"] == "57P01" and "may have gone on" in fields["H"]
        assert "dbranch_proxy_ended_unconfirmed_total 1.0" in proxy.metrics()
        assert [r for r in caplog.records if "may have gone on" in r.getMessage()]
    finally:
        os.kill(row[0], signal.SIGCONT)
    rows(ends)


def test_sigterm_leaves_no_statement_behind(
    main: Backend, feature: Backend, ends: psycopg.Connection[Any], tmp_path: Path
) -> None:
    short = {"DBRANCH_WITHDRAW_SECONDS": "0", "DBRANCH_GRACE_SECONDS": "0.3"}
    with proxy_process([main, feature], tmp_path / "log", **short) as running:
        connection = Client.connect(
            host="127.0.0.1",
            port=running.port,
            user=USER,
            password=PASSWORD,
            dbname="postgres",
            autocommit=True,
        )
        with raw_socket(connection) as sock:
            sock.sendall(query(b"SELECT 1") + 2 * query(SLOW_INSERT))
            assert b"SELECT 1\0" in sock.recv(4096)
            running.process.send_signal(signal.SIGTERM)
            data = read_all(sock)
        assert error_fields(data)["C"] == "57P01"
        assert running.process.wait(20) == 0
    assert rows(ends) == data.count(INSERT_DONE) == 0


def test_a_batch_of_asyncpg_ends_whole(make_proxy: MakeProxy, ends: psycopg.Connection[Any]) -> None:
    """`executemany` sends many requests and one Sync: all of them or none."""
    proxy = make_proxy()

    async def work() -> str:
        connection = await asyncpg.connect(
            host="127.0.0.1", port=proxy.port, user=USER, password=PASSWORD, database="postgres"
        )
        batch = connection.executemany("INSERT INTO ends SELECT FROM pg_sleep($1)", [(0.01,)] * 500)
        running = asyncio.ensure_future(batch)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(switch, proxy)
        try:
            await running
        except asyncpg.PostgresError as error:
            return str(error.sqlstate)
        return "done"

    outcome = asyncio.run(work())
    # asyncpg reports a FATAL that no ReadyForQuery follows as 08003.
    assert (outcome, rows(ends)) in {("57P01", 0), ("08003", 0), ("done", 500)}


def test_a_burst_of_notifications_does_not_hide_that_sessions_rest(
    make_proxy: MakeProxy, main: Backend
) -> None:
    """One transaction with more than Postgres sends at once, so that its messages arrive in pieces."""
    proxy = make_proxy(on_switch="Drain", drain_timeout=30.0)
    listeners = [proxy.connect() for _ in range(10)]
    for listener in listeners:
        listener.execute("LISTEN channel_1")
    with main.direct() as direct, direct.transaction():
        for i in range(100):
            direct.execute("SELECT pg_notify('channel_1', %s)", [f"{i} " + "x" * 7000])
    wait_until(lambda: min(s.bytes_out for s in proxy.switchboard.sessions) > 700_000)
    switch(proxy)
    wait_until(lambda: proxy.counts() == (0, 0), 5)
    for listener in listeners:
        with raw_socket(listener) as sock:
            assert error_fields(read_all(sock))["C"] == "57P01"
        listener.close()


def test_a_second_switch_does_not_put_off_the_end_of_a_drain(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(on_switch="Drain", drain_timeout=1.5)
    proxy.apply(targets={**proxy.table.targets, "third": Target("third", "Starting")})
    connection = proxy.connect()
    connection.execute("BEGIN")
    started_at = time.monotonic()
    switch(proxy)
    while proxy.counts() != (0, 0):
        time.sleep(0.3)
        proxy.apply(active=("third", "feature-x")[proxy.table.generation % 2])
        assert time.monotonic() - started_at < 10
    assert fatal_message(connection).startswith("57P01")


def test_a_branch_that_stands_still_costs_no_cancel_of_another(
    make_proxy: MakeProxy, main: Backend, threads: ThreadPoolExecutor
) -> None:
    """Guesses occupy the backend that does not answer them, not a client's own cancel, nor an end."""
    proxy = make_proxy(on_switch="Keep")
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as silent, contextlib.ExitStack() as stack:
        mute = Target("mute", "Ready", "127.0.0.1", silent.getsockname()[1])
        connection = proxy.connect()
        proxy.apply(targets={**proxy.table.targets, "mute": mute}, active="mute")
        for i in range(100):
            sock = stack.enter_context(proxy.raw())
            sock.sendall(wire.build_cancel_request(i.to_bytes(8, "big")))
        time.sleep(0.3)
        running = threads.submit(connection.execute, "SELECT pg_sleep(60)")
        await_active(main, "SELECT pg_sleep(60)")
        connection.cancel_safe(timeout=10)
        with pytest.raises(psycopg.errors.QueryCanceled):
            running.result(5)
        connection.close()
