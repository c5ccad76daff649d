"""`dbranch dump` of a real server, and that `dbranch load` takes what it writes."""

from __future__ import annotations

import gzip
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from backports import zstd
from tests.node.machine import APP, PASSWORDS, USER, Node, owner_session

from dbranch.agent.postgres.session import Endpoint
from dbranch_cli import forward
from dbranch_cli.failure import Failure
from dbranch_cli.invocation import Invocation
from dbranch_cli.main import cli

ROWS = 3000
SOURCE = f"""
create extension pg_trgm;
create schema sales authorization app;
set role app;
create table item as select n, md5(n::text) as text from generate_series(1, {ROWS}) n;
create table sales.customer (id serial primary key, name text);
insert into sales.customer (name) values ('Zoë'), (null);
create index on item using gin (text public.gin_trgm_ops);
"""
Dbranch = Callable[..., None]


class Tunnel:
    """A local port that leads to a Postgres, in place of the port-forward to a proxy."""

    failure = None

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._copy, args=pair, daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def server(up: Node) -> tuple[Node, Endpoint]:
    endpoint = up.start_postgres(up.create_root())
    with owner_session(up.layout, endpoint, "dbranch") as connection:
        connection.execute(SOURCE.encode())
    return up, endpoint


@pytest.fixture
def dbranch(server: tuple[Node, Endpoint], monkeypatch: pytest.MonkeyPatch) -> Iterator[Dbranch]:
    """Return the command line of the project `shop`, whose branch `main` is the server."""
    node, endpoint = server
    target = node.address_of(endpoint.slot), endpoint.port
    monkeypatch.setattr(forward, "require_permission", lambda *_: None)
    monkeypatch.setattr(forward, "ready_proxy_pod", lambda *_: None)
    monkeypatch.setattr(forward, "PortForward", lambda *_: Tunnel(target))
    branch = {"spec": {"project": "shop"}, "metadata": {"name": "shop-main"}, "status": {}}
    project = {"metadata": {"name": "shop"}, "spec": {"activeBranch": "main"}}

    def secret(user: str) -> dict[str, str]:
        return {"username": user, "password": PASSWORDS[user], "database": "dbranch"}

    invocation = Invocation(project_option="shop", output="table")
    invocation.__dict__["store"] = SimpleNamespace(
        connection=None,
        project=lambda *_: project,
        branch=lambda *_: branch,
        find_branch=lambda *_: branch,
        secret=lambda *_: secret(APP),
        superuser_secret=lambda *_: secret(USER),
    )
    monkeypatch.setattr(Invocation, "namespace", "team")
    yield lambda *words: cli.main([*map(str, words)], obj=invocation, standalone_mode=False)


def query(server: tuple[Node, Endpoint], text: str) -> list[tuple[object, ...]]:
    with owner_session(server[0].layout, server[1], "dbranch") as connection:
        return connection.execute(text.encode()).fetchall()


CONTENTS = (
    "select count(*), max(text) from item",
    "select id, name from sales.customer order by id",
    "select nextval('sales.customer_id_seq')",
    "select schemaname, tablename, tableowner from pg_tables where schemaname in ('public', 'sales') order by 1, 2",
    "select indexdef from pg_indexes where tablename = 'item'",
)


@pytest.mark.parametrize(
    "name",
    ["a.sql", "a.sql.gz", "a.sql.zst", "a.dump", "a", "a.tar", "a.tar.gz", "a.dump.zst", "directory/"],
)
def test_what_is_dumped_can_be_loaded(
    server: tuple[Node, Endpoint], dbranch: Dbranch, tmp_path: Path, name: str
) -> None:
    before = [query(server, text) for text in CONTENTS]
    file = f"{tmp_path}/{name}"
    dbranch("dump", "main", file)
    assert os.listdir(tmp_path) == [name.rstrip("/")]
    if not name.endswith("/"):
        assert Path(file).stat().st_mode & 0o077 == 0
    with owner_session(server[0].layout, server[1], "dbranch") as connection:
        connection.execute(b"drop extension pg_trgm cascade; drop table item; drop schema sales cascade")
    dbranch("load", file, "main")
    after = [query(server, text) for text in CONTENTS]
    assert before[0][0][0] == ROWS and before[1] == [(1, "Zoë"), (2, None)]
    assert after[:2] == before[:2] and after[3:] == before[3:]


def test_parts_of_a_branch_and_the_forms_in_which_they_are_packed(
    dbranch: Dbranch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dbranch("dump", "main", tmp_path / "a.sql.gz", "--schema-only", "--no-owner")
    text = gzip.decompress((tmp_path / "a.sql.gz").read_bytes()).decode()
    assert "CREATE TABLE sales.customer" in text and "COPY" not in text and "OWNER TO" not in text
    dbranch("dump", "main", tmp_path / "b.sql.zst", "--data-only", "--schema", "sales")
    text = zstd.decompress((tmp_path / "b.sql.zst").read_bytes()).decode()
    assert "Zoë" in text and "CREATE TABLE" not in text and "public.item" not in text
    dbranch("dump", "main", tmp_path / "c.dump", "-F", "plain", "-t", "item", "--", "--inserts")
    text = (tmp_path / "c.dump").read_text()
    assert text.count("INSERT INTO public.item") == ROWS and "sales" not in text
    capfd.readouterr()
    dbranch("dump", "main", "-", "-t", "sales.customer")
    out, err = capfd.readouterr()
    assert "Zoë" in out and "dumped into standard output (plain)" in err


def test_a_dump_that_fails_leaves_the_file_that_was_there(
    dbranch: Dbranch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, arguments in (("a.dump", ()), ("a.sql.gz", ()), ("new", ("-F", "directory"))):
        file = tmp_path / name
        if not arguments:
            file.write_text("of yesterday")
        with pytest.raises(Failure, match="pg_dump failed with exit code 1") as failure:
            dbranch("dump", "main", file, "-t", "missing", *arguments)
        assert failure.value.reason == "DumpFailed"
    assert sorted(os.listdir(tmp_path)) == ["a.dump", "a.sql.gz"]
    assert (tmp_path / "a.dump").read_text() == (tmp_path / "a.sql.gz").read_text() == "of yesterday"


def test_what_cannot_be_written_is_refused_before_pg_dump_runs(dbranch: Dbranch, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for arguments, words in (
        ([tmp_path / "full", "-F", "directory"], "not an empty directory"),
        ([tmp_path / "full"], "is a directory"),
        ([tmp_path / "none" / "a.sql"], "does not exist"),
        ([tmp_path / "a.dump", "--schema-only", "--data-only"], "exclude each other"),
        ([tmp_path / "a.dump", "--", "-f", "other"], "is not passed on"),
    ):
        with pytest.raises(Failure, match=words):
            dbranch("dump", "main", *arguments)


def test_a_disk_that_is_full_is_said(dbranch: Dbranch) -> None:
    for arguments in ((), ("-F", "plain")):
        with pytest.raises(Failure, match=r"pg_dump failed|No space left"):
            dbranch("dump", "main", "/dev/full", *arguments)


def test_an_interrupted_dump_ends_and_leaves_nothing(
    server: tuple[Node, Endpoint], dbranch: Dbranch, tmp_path: Path
) -> None:
    """Interrupt it and its pg_dump, as a terminal does, while that waits for a lock."""
    deadline = time.monotonic() + 120

    def interrupt() -> None:
        waiting = "select count(*) from pg_locks where not granted"
        while query(server, waiting) == [(0,)] and time.monotonic() < deadline:
            time.sleep(0.1)
        children = [
            int(pid)
            for file in Path("/proc/self/task").glob("*/children")
            for pid in file.read_text().split()
            if b"pg_dump" in Path("/proc", pid, "cmdline").read_bytes()
        ]
        partial.extend(os.listdir(tmp_path))
        for pid in (*children, os.getpid()):
            os.kill(pid, signal.SIGINT)

    partial: list[str] = []
    with owner_session(server[0].layout, server[1], "dbranch") as holder:
        holder.execute(b"begin; lock table item")
        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        with pytest.raises(click.Abort):
            dbranch("dump", "main", tmp_path / "a.dump")
        interrupter.join()
    assert len(partial) == 1 and partial[0].startswith(".a.dump.")
    assert os.listdir(tmp_path) == []
