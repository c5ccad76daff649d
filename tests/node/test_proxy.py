"""The proxy between real clients and real Postgres servers; only its tables are made by hand."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.node.proxy_backend import (
    PASSWORD,
    USER,
    Backend,
    Client,
    Proxy,
    branch_of,
    make_certificate,
    running_backend,
    trusting,
    wait_until,
)

from dbranch.api.project import Target
from dbranch.proxy import wire
from dbranch.proxy.routes import Table

MakeProxy = Callable[..., Proxy]


@pytest.fixture(scope="module")
def main() -> Iterator[Backend]:
    with running_backend("main") as backend:
        yield backend


@pytest.fixture(scope="module")
def feature() -> Iterator[Backend]:
    with running_backend("feature-x") as backend:
        yield backend


@pytest.fixture
def make_proxy(main: Backend, feature: Backend) -> Iterator[MakeProxy]:
    made: list[Proxy] = []

    def make(tls: Path | None = None, **more: Any) -> Proxy:
        table = Table(
            "shop",
            uid="u",
            generation=1,
            active="main",
            targets={b.branch: b.target() for b in (main, feature)},
            start_timeout=10,
        )
        made.append(Proxy(table.__class__(**{**table.__dict__, **more}), tls))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()
    assert [p.trouble for p in made] == [[] for _ in made]


@pytest.fixture
def proxy(make_proxy: MakeProxy) -> Proxy:
    return make_proxy()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


def refused(proxy: Proxy, **more: Any) -> str:
    with pytest.raises(psycopg.OperationalError) as caught:
        proxy.connect(**more)
    return str(caught.value)


def ended(connection: Client) -> str:
    """The SQLSTATE and message with which the connection was ended, waiting for it a little."""
    until = time.monotonic() + 5
    with pytest.raises(psycopg.OperationalError) as caught:
        while time.monotonic() < until:
            connection.execute("SELECT 1")
            time.sleep(0.02)
    assert connection.closed
    if caught.value.sqlstate:
        return f"{caught.value.sqlstate} {caught.value}"
    assert connection.heard, f"no ErrorResponse: {caught.value}"
    return connection.heard[-1]


# Forwarding


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


def test_a_wrong_password_is_said_by_postgres(proxy: Proxy) -> None:
    assert 'password authentication failed for user "ann"' in refused(proxy, password="wrong")


def test_a_large_copy_is_whole_both_ways(proxy: Proxy) -> None:
    """100 MB in and out, and their checksum as the server sees it."""
    line = b"0123456789abcdef" * 64 + b"\n"
    count = 100_000_000 // len(line)
    with proxy.connect() as connection:
        connection.execute("CREATE TEMP TABLE big (line text)")
        with connection.cursor().copy("COPY big FROM STDIN") as copy:
            for _ in range(count // 100):
                copy.write(line * 100)
        rows = count // 100 * 100
        got = connection.execute("SELECT count(*), count(DISTINCT line), min(line) FROM big").fetchone()
        assert got == (rows, 1, line[:-1].decode())
        size = 0
        with connection.cursor().copy("COPY big TO STDOUT") as copy:
            for data in copy:
                assert bytes(data) == line
                size += len(data)
        assert size == rows * len(line)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_slow_client_holds_its_backend_back(proxy: Proxy) -> None:
    """A client that asks for 200 MB and does not read: the proxy does not buffer it."""
    connection = proxy.connect()
    with proxy.connect() as other:
        pg = connection.pgconn
        before = resident_bytes()
        pg.send_query(b"SELECT repeat('x', 1000) FROM generate_series(1, 200000)")
        pg.flush()
        time.sleep(2)
        assert resident_bytes() - before < 30_000_000
        assert branch_of(other) == "main"
    connection.cancel_safe(timeout=10)
    connection.close()


def test_a_slow_backend_holds_its_client_back(proxy: Proxy, main: Backend) -> None:
    """A client that sends without end while the backend does not read."""
    connection = proxy.connect()
    with main.direct() as direct:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row
        before = resident_bytes()
        os.kill(row[0], signal.SIGSTOP)
        try:
            sock = socket.socket(fileno=os.dup(connection.pgconn.socket))
            sock.setblocking(False)
            sent, until = 0, time.monotonic() + 2
            while time.monotonic() < until and sent < 200_000_000:
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
        sock.sendall(startup(parameters))
        assert sock.recv(1) == b"R"
        assert proxy.counts() == (1, 0)
        assert [s.place.branch for s in proxy.board.sessions if s.place] == ["feature-x"]


def test_an_unknown_branch_is_refused_with_those_that_exist(proxy: Proxy) -> None:
    said = refused(proxy, options="-c dbranch.branch=mian")
    assert 'branch "mian" does not exist in project shop' in said
    assert "Branches that exist: feature-x, main." in said
    with proxy.raw() as sock:
        sock.sendall(startup({"user": USER, "dbranch.branch": "mian"}))
        assert error_of(read_all(sock))["C"] == "3D000"


# Waiting


def test_a_starting_branch_is_waited_for(proxy: Proxy, feature: Backend, pool: ThreadPoolExecutor) -> None:
    targets = {**proxy.table.targets, "feature-x": Target("feature-x", "Starting")}
    proxy.apply(active="feature-x", targets=targets)
    waiting = pool.submit(proxy.connect)
    time.sleep(0.5)
    assert not waiting.done()
    proxy.apply(targets={**targets, "feature-x": feature.target()})
    with waiting.result(5) as connection:
        assert branch_of(connection) == "feature-x"


def test_a_postgres_that_comes_up_late_is_waited_for(
    proxy: Proxy, feature: Backend, pool: ThreadPoolExecutor
) -> None:
    """The route says Ready, but nothing listens yet."""
    feature.stop()
    try:
        proxy.apply(active="feature-x")
        waiting = pool.submit(proxy.connect)
        time.sleep(0.5)
        assert not waiting.done()
    finally:
        feature.start()
    with waiting.result(15) as connection:
        assert branch_of(connection) == "feature-x"


def test_a_wait_is_bounded_and_says_for_what(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(start_timeout=1.0)
    proxy.apply(active="new", targets={**proxy.table.targets, "new": Target("new", "Starting")})
    began = time.monotonic()
    with proxy.raw() as sock:
        sock.sendall(startup({"user": USER}))
        error = error_of(read_all(sock))
    assert 0.9 < time.monotonic() - began < 3
    assert error["C"] == "57P03" and error["S"] == "FATAL"
    assert error["M"] == 'waited 1 s for branch "new" of project shop to start'


def test_a_wait_for_who_does_not_answer_is_bounded(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(start_timeout=1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        closed = Target("closed", "Ready", "127.0.0.1", 1)
        mute = Target("mute", "Ready", "127.0.0.1", port)
        proxy.apply(targets={**proxy.table.targets, "closed": closed, "mute": mute})
        assert "Connection refused" in refused(proxy, options="-c dbranch.branch=closed")
        began = time.monotonic()
        assert "no answer to the startup packet" in refused(proxy, options="-c dbranch.branch=mute")
        assert time.monotonic() - began < 4


def test_a_stopped_branch_says_how_to_resume(proxy: Proxy) -> None:
    proxy.apply(targets={**proxy.table.targets, "main": Target("main", "Stopped")})
    said = refused(proxy)
    assert 'branch "main" of project shop is stopped' in said
    assert "dbranch resume main" in said


def test_a_client_that_goes_while_it_waits_leaves_nothing(proxy: Proxy) -> None:
    proxy.apply(targets={**proxy.table.targets, "main": Target("main", "Starting")})
    with proxy.raw() as sock:
        sock.sendall(startup({"user": USER}))
        wait_until(lambda: proxy.board.sessions)
    wait_until(lambda: not proxy.board.sessions)


# Switches


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


def test_terminate_ends_a_running_statement(proxy: Proxy, main: Backend, pool: ThreadPoolExecutor) -> None:
    """It is told at once, and the statement does not go on behind it."""
    connection = proxy.connect()
    running = pool.submit(connection.execute, "SELECT pg_sleep(60)")
    with main.direct() as direct:
        wait_until(lambda: sleepers(direct) == 1)
        began = time.monotonic()
        proxy.apply(active="feature-x")
        with pytest.raises(psycopg.errors.AdminShutdown):
            running.result(10)
        wait_until(lambda: sleepers(direct) == 0)
        assert time.monotonic() - began < 3


def test_terminate_within_a_result_that_streams(proxy: Proxy, pool: ThreadPoolExecutor) -> None:
    connection = proxy.connect()
    size = "SELECT repeat('x', 1000) FROM generate_series(1, 3000000)"

    def read() -> None:
        with connection.cursor() as cursor:
            for _ in cursor.stream(size):
                pass

    reading = pool.submit(read)
    time.sleep(0.7)
    proxy.apply(active="feature-x")
    with pytest.raises(psycopg.OperationalError):
        reading.result(20)
    wait_until(lambda: proxy.counts() == (0, 0))
    # What the client hears is an error of Postgres' or of the proxy, never a broken stream.
    said = ended(connection) if not connection.closed else ""
    assert not said or said.startswith("57P01")


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


def test_drain_lets_a_statement_under_way_finish(make_proxy: MakeProxy, pool: ThreadPoolExecutor) -> None:
    """Not in a transaction block, and with a notice sent before its end."""
    proxy = make_proxy(on_switch="Drain", drain_timeout=30.0)
    connection = proxy.connect()
    work = "DO $$ BEGIN RAISE NOTICE 'begun'; PERFORM pg_sleep(1.5); END $$"
    running: Future[Any] = pool.submit(connection.execute, work)
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


def test_keep_leaves_sessions_and_sends_new_ones_on(make_proxy: MakeProxy, pool: ThreadPoolExecutor) -> None:
    proxy = make_proxy(on_switch="Keep")
    with proxy.connect() as old:
        proxy.apply(active="feature-x")
        assert branch_of(old) == "main"
        with proxy.connect() as new:
            assert branch_of(new) == "feature-x"
        # Its cancel still goes to its own backend.
        running = pool.submit(old.execute, "SELECT pg_sleep(60)")
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
    make_proxy: MakeProxy, pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture, on_switch: str
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

    clients = [pool.submit(client) for _ in range(6)]
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
    make_proxy: MakeProxy, pool: ThreadPoolExecutor, on_switch: str
) -> None:
    """The old backend has taken the startup packet and not answered yet."""
    proxy = make_proxy(on_switch=on_switch)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mute = Target("main", "Ready", "127.0.0.1", silent.getsockname()[1])
        proxy.apply(targets={**proxy.table.targets, "main": mute})
        waiting = pool.submit(proxy.connect)
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


# Cancel, loss, ends


def test_a_cancel_reaches_its_backend(proxy: Proxy, pool: ThreadPoolExecutor) -> None:
    with proxy.connect() as connection, proxy.connect() as other:
        running = pool.submit(connection.execute, "SELECT pg_sleep(60)")
        beside = pool.submit(other.execute, "SELECT pg_sleep(1.5)")
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


# TLS


@pytest.fixture
def tls(tmp_path: Path) -> Path:
    make_certificate(tmp_path)
    return tmp_path


def test_tls_with_a_checked_certificate(make_proxy: MakeProxy, tls: Path, pool: ThreadPoolExecutor) -> None:
    proxy = make_proxy(tls)
    with proxy.connect(sslmode="verify-full", sslrootcert=str(tls / "tls.crt")) as connection:
        assert branch_of(connection) == "main"
        assert connection.execute("SELECT length(repeat('x', 20000000))").fetchone() == (20000000,)
        row = connection.execute("SELECT repeat('x', 20000000)").fetchone()
        assert row and len(row[0]) == 20000000
        running = pool.submit(connection.execute, "SELECT pg_sleep(60)")
        time.sleep(0.5)
        connection.cancel_safe(timeout=10)
        with pytest.raises(psycopg.errors.QueryCanceled):
            running.result(5)
        proxy.apply(active="feature-x")
        assert ended(connection).startswith("57P01")
    with proxy.connect(sslmode="disable") as connection:
        assert branch_of(connection) == "feature-x"


def test_required_tls_refuses_plain_with_28000(make_proxy: MakeProxy, tls: Path) -> None:
    proxy = make_proxy(tls, tls_required=True)
    assert "project shop takes only TLS connections" in refused(proxy, sslmode="disable")
    with proxy.raw() as sock:
        sock.sendall(startup({"user": USER}))
        assert error_of(read_all(sock))["C"] == "28000"
    with proxy.connect(sslmode="require") as connection:
        assert branch_of(connection) == "main"


def test_direct_tls(make_proxy: MakeProxy, tls: Path) -> None:
    proxy = make_proxy(tls)
    context = trusting(tls)
    with context.wrap_socket(proxy.raw(), server_hostname="shop") as sock:
        assert sock.selected_alpn_protocol() == "postgresql"
        sock.sendall(startup({"user": USER, "database": "postgres"}))
        assert sock.recv(1) == b"R"
    context.set_alpn_protocols(["http/1.1"])
    with pytest.raises(OSError), context.wrap_socket(proxy.raw(), server_hostname="shop") as sock:
        sock.sendall(startup({"user": USER}))
        assert error_of(read_all(sock))["C"] == "08P01"
        raise OSError


def test_without_a_certificate_tls_is_declined(proxy: Proxy) -> None:
    assert "server does not support SSL" in refused(proxy, sslmode="require")
    with proxy.raw() as sock:
        sock.sendall(struct.pack("!II", 8, wire.GSS_CODE))
        assert sock.recv(1) == b"N"
        sock.sendall(struct.pack("!II", 8, wire.SSL_CODE))
        assert sock.recv(1) == b"N"
        sock.sendall(startup({"user": USER, "database": "postgres"}))
        assert sock.recv(1) == b"R"


def test_a_renewed_certificate_is_used(make_proxy: MakeProxy, tls: Path, tmp_path_factory: Any) -> None:
    proxy = make_proxy(tls)
    old = tmp_path_factory.mktemp("old")
    shutil.copy(tls / "tls.crt", old)
    proxy.connect(sslmode="verify-ca", sslrootcert=str(old / "tls.crt")).close()
    make_certificate(tls)
    time.sleep(1.1)
    proxy.connect(sslmode="verify-ca", sslrootcert=str(tls / "tls.crt")).close()
    assert "certificate verify failed" in refused(
        proxy, sslmode="verify-ca", sslrootcert=str(old / "tls.crt")
    )


def test_a_tls_handshake_that_fails_leaves_nothing(make_proxy: MakeProxy, tls: Path) -> None:
    proxy = make_proxy(tls)
    for first in (struct.pack("!II", 8, wire.SSL_CODE), b""):
        with proxy.raw() as sock:
            if first:
                sock.sendall(first)
                assert sock.recv(1) == b"S"
            sock.sendall(b"\x16\x03\x01\x00\x05hello" * 20)
            read_all(sock)
    with proxy.connect(sslmode="require") as connection:
        assert branch_of(connection) == "main"


# Bad starts


@pytest.mark.parametrize(
    "sent, code",
    [
        (b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n", "08P01"),
        (b"\x00\x00\x00\x07", "08P01"),
        (struct.pack("!II", 8, 2 << 16), "0A000"),
        (struct.pack("!II", 8, wire.SSL_CODE) + b"user", "08P01"),
        (b"\x16\x03\x01\x00\x05hello", "08P01"),
    ],
)
def test_a_start_that_is_none_is_answered(proxy: Proxy, sent: bytes, code: str) -> None:
    with proxy.raw() as sock:
        sock.sendall(sent)
        assert error_of(read_all(sock))["C"] == code


def test_random_bytes_do_not_end_the_proxy(make_proxy: MakeProxy, tls: Path) -> None:
    proxy = make_proxy(tls)
    chance = random.Random(20)
    heads = [
        b"",
        b"\x16\x03\x01",
        struct.pack("!II", 100, 3 << 16),
        struct.pack("!II", 8, wire.SSL_CODE),
        struct.pack("!II", 16, wire.CANCEL_CODE),
        startup({"user": USER}),
    ]
    for _ in range(3000):
        with proxy.raw() as sock:
            sock.sendall(chance.choice(heads) + chance.randbytes(chance.randrange(200)))
            if chance.random() < 0.2:
                sock.shutdown(socket.SHUT_WR)
    with proxy.connect() as connection:
        assert branch_of(connection) == "main"
    wait_until(lambda: not proxy.board.sessions, 30)


# Bytes by hand


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", 4 + len(body)) + body


def startup(parameters: dict[str, str]) -> bytes:
    body = b"".join(w.encode() + b"\0" for pair in parameters.items() for w in pair) + b"\0"
    return struct.pack("!II", 8 + len(body), 3 << 16) + body


def read_all(sock: socket.socket) -> bytes:
    """Until the peer closes; a reset is an error, except on a socket that the test itself has broken."""
    parts: list[bytes] = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def error_of(data: bytes) -> dict[str, str]:
    """The fields of the last message, which has to be an ErrorResponse."""
    at = data.rindex(b"E\x00\x00")
    length = int.from_bytes(data[at + 1 : at + 5], "big")
    assert at + 1 + length == len(data), data
    return {f[:1].decode(): f[1:].decode() for f in data[at + 5 : -2].split(b"\0")}


def sleepers(direct: psycopg.Connection[Any]) -> int:
    sql = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%'"
    row = direct.execute(sql).fetchone()
    assert row
    count: int = row[0]
    return count
