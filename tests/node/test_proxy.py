"""The proxy between real clients and real Postgres servers: forwarding, named branches, waiting."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from tests.node.proxy_backend import (
    PASSWORD,
    USER,
    Backend,
    MakeProxy,
    Proxy,
    branch_of,
    wait_until,
)
from tests.node.proxy_talk import build_startup, connect_error, error_fields, read_all, resident_bytes

from dbranch.api.project import Target


def test_simple_and_extended_queries(proxy: Proxy) -> None:
    with proxy.connect() as connection:
        assert branch_of(connection) == "main"
        assert connection.execute("SELECT 1; SELECT 2").nextset()
        assert connection.execute("SELECT %s::int + 1", [41], prepare=True).fetchone() == (42,)
        with connection.transaction(), pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1/0")
            raise AssertionError
        with connection.pipeline():
            cursors = [connection.execute("SELECT %s::int", [i]) for i in range(300)]
        assert [c.fetchone() for c in cursors] == [(i,) for i in range(300)]


def test_psql_follows_the_active_branch(proxy: Proxy) -> None:
    def psql() -> str:
        return subprocess.run(
            ["psql", "-XAtc", "SHOW cluster_name", f"host=127.0.0.1 port={proxy.port} dbname=postgres"],
            env={**os.environ, "PGUSER": USER, "PGPASSWORD": PASSWORD},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    assert psql() == "main"
    proxy.apply(active="feature-x")
    assert psql() == "feature-x"


def test_a_wrong_password_is_rejected_by_postgres(proxy: Proxy) -> None:
    assert 'password authentication failed for user "ann"' in connect_error(proxy, password="wrong")


def test_a_large_copy_is_complete_both_ways(proxy: Proxy) -> None:
    """100 MB in and out, compared with what the server has."""
    line = b"0123456789abcdef" * 64 + b"\n"
    count = 100_000_000 // len(line)
    with proxy.connect() as connection:
        connection.execute("CREATE TEMP TABLE big (line text)")
        with connection.cursor().copy("COPY big FROM STDIN") as copy:
            for _ in range(count // 100):
                copy.write(line * 100)
        rows = count // 100 * 100
        row = connection.execute("SELECT count(*), count(DISTINCT line), min(line) FROM big").fetchone()
        assert row == (rows, 1, line[:-1].decode())
        size = 0
        with connection.cursor().copy("COPY big TO STDOUT") as copy:
            for data in copy:
                assert bytes(data) == line
                size += len(data)
        assert size == rows * len(line)


def test_a_slow_client_slows_its_backend_down(proxy: Proxy) -> None:
    """A client that asks for a gigabyte and does not read: the proxy does not buffer it."""
    connection = proxy.connect()
    with proxy.connect() as other:
        pg = connection.pgconn
        before = resident_bytes()
        pg.send_query(b"SELECT repeat('x', 1000) FROM generate_series(1, 1000000)")
        pg.flush()
        time.sleep(2)
        assert resident_bytes() - before < 30_000_000
        assert branch_of(other) == "main"
    connection.cancel_safe(timeout=10)
    connection.close()


def test_a_slow_backend_slows_its_client_down(proxy: Proxy, main: Backend) -> None:
    """A client that keeps sending while its backend does not read: the proxy does not buffer it."""
    connection = proxy.connect()
    with main.direct() as direct:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row
        before = resident_bytes()
        os.kill(row[0], signal.SIGSTOP)
        try:
            sock = socket.socket(fileno=os.dup(connection.pgconn.socket))
            sock.setblocking(False)
            sent, deadline = 0, time.monotonic() + 2
            while time.monotonic() < deadline and sent < 200_000_000:
                try:
                    sent += sock.send(b"d" + struct.pack("!I", 4 + 60000) + b"x" * 60000)
                except BlockingIOError:
                    time.sleep(0.01)
            sock.close()
            assert sent < 30_000_000
            assert resident_bytes() - before < 30_000_000
        finally:
            os.kill(row[0], signal.SIGCONT)
        assert branch_of(direct) == "main"
        connection.close()


# The branch that a client names


@pytest.mark.parametrize(
    "options", ["-c dbranch.branch=feature-x", "-c work_mem=8MB --dbranch.branch=feature-x"]
)
def test_a_named_branch_is_reached_and_shown(proxy: Proxy, options: str) -> None:
    with proxy.connect(options=options) as connection:
        assert branch_of(connection) == "feature-x"
        assert connection.execute("SHOW dbranch.branch").fetchone() == ("feature-x",)
        proxy.apply(active="feature-x")
        proxy.apply(active="main")
        assert branch_of(connection) == "feature-x"


def test_a_named_branch_by_startup_parameter(proxy: Proxy) -> None:
    parameters = {"user": USER, "database": "postgres", "dbranch.branch": "feature-x"}
    with proxy.raw() as sock:
        sock.sendall(build_startup(parameters))
        assert sock.recv(1) == b"R"
        assert proxy.counts() == (1, 0)
        assert [s.backend.branch for s in proxy.switchboard.sessions if s.backend] == ["feature-x"]


def test_an_unknown_branch_is_rejected_with_a_list_of_branches(proxy: Proxy) -> None:
    error = connect_error(proxy, options="-c dbranch.branch=mian")
    assert 'branch "mian" does not exist in project shop' in error
    assert "Branches that exist: feature-x, main." in error
    with proxy.raw() as sock:
        sock.sendall(build_startup({"user": USER, "dbranch.branch": "mian"}))
        assert error_fields(read_all(sock))["C"] == "3D000"


# Waiting


def test_a_session_waits_for_a_starting_branch(
    proxy: Proxy, feature: Backend, threads: ThreadPoolExecutor
) -> None:
    targets = {**proxy.table.targets, "feature-x": Target("feature-x", "Starting")}
    proxy.apply(active="feature-x", targets=targets)
    waiting = threads.submit(proxy.connect)
    time.sleep(0.5)
    assert not waiting.done()
    proxy.apply(targets={**targets, "feature-x": feature.target()})
    with waiting.result(5) as connection:
        assert branch_of(connection) == "feature-x"


def test_a_session_waits_for_a_postgres_that_does_not_listen_yet(
    proxy: Proxy, feature: Backend, threads: ThreadPoolExecutor
) -> None:
    """The route says Ready, but nothing listens yet."""
    feature.stop()
    try:
        proxy.apply(active="feature-x")
        waiting = threads.submit(proxy.connect)
        time.sleep(0.5)
        assert not waiting.done()
    finally:
        feature.start()
    with waiting.result(15) as connection:
        assert branch_of(connection) == "feature-x"


def test_a_wait_ends_after_start_timeout_and_says_for_what(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(start_timeout=1.0)
    proxy.apply(active="new", targets={**proxy.table.targets, "new": Target("new", "Starting")})
    started_at = time.monotonic()
    with proxy.raw() as sock:
        sock.sendall(build_startup({"user": USER}))
        error = error_fields(read_all(sock))
    assert 0.9 < time.monotonic() - started_at < 3
    assert error["C"] == "57P03" and error["S"] == "FATAL"
    assert error["M"] == 'waited 1 s for branch "new" of project shop to start'


def test_a_wait_for_a_backend_that_does_not_answer_is_bounded(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(start_timeout=1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        closed = Target("closed", "Ready", "127.0.0.1", 1)
        mute = Target("mute", "Ready", "127.0.0.1", port)
        proxy.apply(targets={**proxy.table.targets, "closed": closed, "mute": mute})
        assert "Connection refused" in connect_error(proxy, options="-c dbranch.branch=closed")
        started_at = time.monotonic()
        assert "no answer to the startup packet" in connect_error(proxy, options="-c dbranch.branch=mute")
        assert time.monotonic() - started_at < 4


def test_a_stopped_branch_says_how_to_resume(proxy: Proxy) -> None:
    proxy.apply(targets={**proxy.table.targets, "main": Target("main", "Stopped")})
    error = connect_error(proxy)
    assert 'branch "main" of project shop is stopped' in error
    assert "dbranch resume main" in error


def test_a_client_that_disconnects_while_it_waits_leaves_no_session(proxy: Proxy) -> None:
    proxy.apply(targets={**proxy.table.targets, "main": Target("main", "Starting")})
    with proxy.raw() as sock:
        sock.sendall(build_startup({"user": USER}))
        wait_until(lambda: proxy.switchboard.sessions)
    wait_until(lambda: not proxy.switchboard.sessions)
