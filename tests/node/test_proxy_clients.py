"""Real programs and drivers through the proxy: each part of the protocol that they use works."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.node.proxy_backend import (
    PASSWORD,
    USER,
    Backend,
    MakeProxy,
    Proxy,
    branch_of,
    trusting_context,
    wait_until,
)
from tests.node.proxy_talk import environment, resident_bytes

FEATURE_OPTIONS = "-c dbranch.branch=feature-x"


@pytest.fixture
def programs(main: Backend) -> Path:
    return main.programs


def run(proxy: Proxy, program: Path, *args: str) -> str:
    """Run a program that connects through the proxy, and return its output."""
    process = subprocess.run(
        [str(program), *args], env=environment(proxy), capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_psql_by_url(proxy: Proxy, programs: Path) -> None:
    url = f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{proxy.port}/postgres"
    show = ("-XAtc", "SHOW cluster_name")
    assert run(proxy, programs / "psql", *show, url) == "main\n"
    named = f"{url}?options=-c%20dbranch.branch%3Dfeature-x"
    assert run(proxy, programs / "psql", *show, named) == "feature-x\n"
    assert run(proxy, programs / "psql", *show, f"{url}?application_name=own&sslmode=prefer") == "main\n"


def test_application_name_is_not_changed(proxy: Proxy) -> None:
    with proxy.connect(application_name="shop web 1") as connection:
        assert connection.execute("SHOW application_name").fetchone() == ("shop web 1",)


@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
def test_pgbench(proxy: Proxy, programs: Path, mode: str) -> None:
    run(proxy, programs / "pgbench", "-i", "-q", "-s", "1")
    output = run(proxy, programs / "pgbench", "-n", "-M", mode, "-c", "4", "-j", "2", "-t", "100")
    assert "number of transactions actually processed: 400/400" in output
    assert "number of failed transactions: 0 " in output
    sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(delta) FROM pgbench_history)"
    with proxy.connect() as connection:
        row = connection.execute(sums).fetchone()
        assert row and row[0] == row[1]
        assert connection.execute("SELECT count(*) FROM pgbench_history").fetchone() == (400,)


def test_pgbench_with_a_connection_per_transaction(proxy: Proxy, programs: Path) -> None:
    run(proxy, programs / "pgbench", "-i", "-q", "-s", "1")
    output = run(proxy, programs / "pgbench", "-n", "-S", "-C", "-c", "2", "-t", "50")
    assert "number of transactions actually processed: 100/100" in output


def test_psycopg_with_server_side_cursors_and_notifications(proxy: Proxy) -> None:
    with proxy.connect() as listener, proxy.connect(autocommit=False) as connection:
        listener.execute("LISTEN channel_1")
        with connection.cursor("far") as cursor:
            cursor.itersize = 100
            cursor.execute("SELECT g, repeat('x', g %% 100) FROM generate_series(1, %s) g", [5000])
            assert sum(row[0] for row in cursor) == 5000 * 5001 // 2
        with connection.cursor(binary=True) as binary:
            assert binary.execute("SELECT %b::int8, %b::bytea", [7, b"\0\xff"]).fetchone() == (7, b"\0\xff")
        connection.execute("SELECT pg_notify('channel_1', 'payload')")
        connection.commit()
        notification = next(iter(listener.notifies(timeout=10, stop_after=1)))
        assert (notification.channel, notification.payload) == ("channel_1", "payload")


def test_a_notice_arrives(proxy: Proxy) -> None:
    with proxy.connect() as connection:
        connection.execute("DO $$ BEGIN RAISE NOTICE 'so far'; END $$")
        assert [n for n in connection.notices_received if "so far" in n]


async def _asyncpg(proxy: Proxy, **options: Any) -> asyncpg.Connection[Any]:
    return await asyncpg.connect(
        host="127.0.0.1", port=proxy.port, user=USER, password=PASSWORD, database="postgres", **options
    )


def test_asyncpg(make_proxy: MakeProxy, tls: Path) -> None:
    """Prepared statements, its own COPY, a time-out (which is a cancel), notifications; with and without TLS."""
    proxy = make_proxy(tls)

    async def work(**options: Any) -> None:
        connection = await _asyncpg(proxy, **options)
        try:
            assert await connection.fetchval("SHOW cluster_name") == "main"
            statement = await connection.prepare("SELECT $1::int + 1")
            assert [await statement.fetchval(i) for i in range(100)] == list(range(1, 101))
            await connection.execute("CREATE TEMP TABLE t (a int, b text)")
            rows = [(i, "x" * (i % 50)) for i in range(5000)]
            await connection.copy_records_to_table("t", records=rows)
            assert await connection.fetchval("SELECT count(*) FROM t") == 5000
            with pytest.raises(asyncio.TimeoutError):
                await connection.execute("SELECT pg_sleep(60)", timeout=0.5)
            payloads: asyncio.Queue[object] = asyncio.Queue()
            await connection.add_listener("channel_1", lambda *args: payloads.put_nowait(args[3]))
            await connection.execute("SELECT pg_notify('channel_1', 'payload')")
            assert await asyncio.wait_for(payloads.get(), 10) == "payload"
        finally:
            await connection.close()

    asyncio.run(work(ssl=False))
    asyncio.run(work(ssl=trusting_context(tls)))
    asyncio.run(work(ssl=trusting_context(tls), direct_tls=True))
    wait_until(lambda: not proxy.switchboard.sessions)


def test_copy_both_ways(proxy: Proxy, programs: Path, tmp_path: Path) -> None:
    source, back = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("".join(f"{i},{'x' * (i % 300)}\n" for i in range(50_000)))
    sql = ["CREATE TABLE copied (a int, b text)", f"\\copy copied FROM '{source}' CSV"]
    sql += [f"\\copy (SELECT * FROM copied ORDER BY a) TO '{back}' CSV", "DROP TABLE copied"]
    run(proxy, programs / "psql", "-X", "-v", "ON_ERROR_STOP=1", *(w for s in sql for w in ("-c", s)))
    assert back.read_text() == source.read_text()


def test_large_objects(proxy: Proxy, programs: Path, tmp_path: Path) -> None:
    """psql transfers them with FunctionCall messages."""
    source, back = tmp_path / "in", tmp_path / "out"
    source.write_bytes(os.urandom(3_000_000))
    output = run(proxy, programs / "psql", "-X", "-c", f"\\lo_import '{source}'")
    oid = output.split()[-1]
    run(proxy, programs / "psql", "-X", "-c", f"\\lo_export {oid} '{back}'", "-c", f"\\lo_unlink {oid}")
    assert back.read_bytes() == source.read_bytes()


def test_a_dump_of_one_branch_into_another(proxy: Proxy, programs: Path) -> None:
    with proxy.connect() as connection:
        connection.execute("CREATE SCHEMA dumped")
        connection.execute(
            "CREATE TABLE dumped.t AS SELECT g, md5(g::text) m FROM generate_series(1, 20000) g"
        )
    dump = subprocess.Popen(
        [str(programs / "pg_dump"), "-Fc", "-n", "dumped"], env=environment(proxy), stdout=subprocess.PIPE
    )
    restore = subprocess.run(
        [str(programs / "pg_restore"), "-d", "postgres", "--single-transaction"],
        env=environment(proxy, PGOPTIONS=FEATURE_OPTIONS),
        stdin=dump.stdout,
        check=False,
    )
    assert (dump.wait(30), restore.returncode) == (0, 0)
    sql = "SELECT count(*), md5(string_agg(m, '' ORDER BY g)) FROM dumped.t"
    with proxy.connect() as source, proxy.connect(options=FEATURE_OPTIONS) as restored:
        assert branch_of(restored) == "feature-x"
        assert source.execute(sql).fetchone() == restored.execute(sql).fetchone()
        for connection in (source, restored):
            connection.execute("DROP SCHEMA dumped CASCADE")


def test_a_base_backup_with_its_wal(proxy: Proxy, programs: Path, tmp_path: Path) -> None:
    """The replication protocol: two walsenders, COPY BOTH."""
    run(
        proxy,
        programs / "pg_basebackup",
        "-D",
        str(tmp_path / "copy"),
        "-X",
        "stream",
        "-c",
        "fast",
        "--no-sync",
    )
    assert (tmp_path / "copy" / "PG_VERSION").read_text().strip()
    assert list((tmp_path / "copy" / "pg_wal").glob("0000*"))
    run(proxy, programs / "pg_verifybackup", str(tmp_path / "copy"))


@pytest.fixture
def replication_slot(proxy: Proxy) -> Iterator[str]:
    """The name of a replication slot, which is dropped after the test."""
    yield "through_the_proxy"
    with proxy.connect() as connection:
        connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
            ["through_the_proxy"],
        )


@contextmanager
def receiving(proxy: Proxy, program: Path, *args: str) -> Iterator[None]:
    """Run a program that receives until SIGINT; it has to exit with 0 then."""
    process = subprocess.Popen([str(program), *args, "--no-loop"], env=environment(proxy))
    try:
        yield
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_wal_is_received(proxy: Proxy, programs: Path, replication_slot: str, tmp_path: Path) -> None:
    receive = programs / "pg_receivewal"
    run(proxy, receive, "--create-slot", "--slot", replication_slot)
    with (
        receiving(proxy, receive, "-D", str(tmp_path), "--slot", replication_slot),
        proxy.connect() as connection,
    ):

        def a_segment_is_complete() -> bool:
            connection.execute("SELECT pg_logical_emit_message(false, 'x', repeat('y', 100000))")
            connection.execute("SELECT pg_switch_wal()")
            time.sleep(0.2)
            return any(p.suffix != ".partial" for p in tmp_path.iterdir())

        wait_until(a_segment_is_complete, 30)


def test_changes_are_decoded(proxy: Proxy, programs: Path, replication_slot: str, tmp_path: Path) -> None:
    receive, out = programs / "pg_recvlogical", tmp_path / "changes"
    common = ("--slot", replication_slot, "-d", "postgres")
    run(proxy, receive, *common, "--create-slot", "-P", "test_decoding")
    with receiving(proxy, receive, *common, "--start", "-f", str(out)), proxy.connect() as connection:
        connection.execute("CREATE TABLE decoded AS SELECT 'read me' AS words")
        wait_until(lambda: out.exists() and "read me" in out.read_text(), 30)
        connection.execute("DROP TABLE decoded")


def test_a_thousand_sessions_one_after_the_other(proxy: Proxy) -> None:
    """No state is left of them, and the proxy's memory does not grow."""
    for _ in range(100):
        proxy.connect().close()
    before = resident_bytes()
    for _ in range(1000):
        proxy.connect().close()
    wait_until(lambda: not proxy.switchboard.sessions)
    assert (
        proxy.switchboard.cancel_keys,
        proxy.switchboard.sessions_by_address,
        proxy.switchboard.sessions_by_branch,
    ) == ({}, {}, {})
    assert resident_bytes() - before < 15_000_000
    with proxy.connect() as connection:
        assert branch_of(connection) == "main"
