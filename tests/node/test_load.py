"""What `dbranch load` has psql do, on a real server: who owns what a dump creates, and what is left of the load."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
from tests.node.machine import APP, PASSWORDS, USER, Node, owner_session, postgres_directory

from dbranch.agent.postgres.session import Endpoint
from dbranch_cli import load as loading
from dbranch_cli import load_run
from dbranch_cli.connect import write_stdin
from dbranch_cli.failure import Failure
from dbranch_cli.load_role import LoadRole
from dbranch_cli.load_run import archive_script, psql_arguments

ROLE = LoadRole("dbranch_load_1", APP, USER)
# Each kind of object that has an owner, as pg_dump writes it: with an empty search_path.
DUMP = """
select pg_catalog.set_config('search_path', '', false);
create schema "of the dump";
create extension dblink with schema public;
create extension postgres_fdw with schema public;
create server elsewhere foreign data wrapper postgres_fdw options (host 'elsewhere');
create foreign table public.far (id int) server elsewhere;
create type public.mood as enum ('sad', 'happy');
create type public.pair as (a int, b int);
create domain public.positive as int check (value > 0);
create table "of the dump"."Item" (id int generated always as identity primary key, n serial, mood public.mood);
create index on "of the dump"."Item" (mood);
create view public.seen as select * from "of the dump"."Item";
create materialized view public.stored as select 1 as one;
create sequence public.alone;
create function public.plain(int) returns int language sql as 'select $1';
create procedure public.act() language sql as 'select 1';
create aggregate public.total(int) (sfunc = int4pl, stype = int);
create aggregate public.counted(*) (sfunc = int8inc, stype = int8, initcond = '0');
create operator public.### (function = int4pl, leftarg = int, rightarg = int);
create operator family public.family using btree;
create collation public.german from "C";
create conversion public.latin for 'LATIN1' to 'UTF8' from iso8859_1_to_utf8;
create text search dictionary public.dictionary (template = simple);
create text search configuration public.configuration (copy = pg_catalog.english);
create statistics public.stats on id, n from "of the dump"."Item";
create publication everything for all tables;
create function public.on_ddl() returns event_trigger language plpgsql as 'begin end';
create event trigger on_ddl on ddl_command_end execute function public.on_ddl();
select pg_catalog.lo_create(4711);
create table public.theirs ();
alter table public.theirs owner to postgres;
grant select on public.seen to public;
"""
OWNED = (
    "select i.type || ' ' || i.identity, pg_get_userbyid(d.refobjid) from pg_shdepend d,"
    " lateral pg_identify_object(d.classid, d.objid, 0) i where d.deptype = 'o'"
    " and d.dbid = (select oid from pg_database where datname = current_database())"
)
LEFT = "select rolname from pg_roles where (rolname like 'dbranch_load%' or (rolname = 'app' and rolsuper))"


@pytest.fixture
def server(up: Node) -> tuple[Node, Endpoint]:
    return up, up.start_postgres(up.create_root())


def load(server: tuple[Node, Endpoint], script: str | bytes, transaction: bool = True) -> int:
    """Load a script as the command line does; return psql's exit code."""
    text = script.encode() if isinstance(script, str) else script
    arguments = ["psql", *psql_arguments(ROLE, transaction)]
    return subprocess.run(
        arguments, input=text, env=environment_of(server), stdout=subprocess.DEVNULL, check=False
    ).returncode


def environment_of(server: tuple[Node, Endpoint]) -> dict[str, str]:
    """Return the environment in which a client connects as the superuser."""
    node, endpoint = server
    return {
        **os.environ,
        **{"PGHOST": node.address_of(endpoint.slot), "PGPORT": str(endpoint.port), "PGUSER": USER},
        **{"PGPASSWORD": PASSWORDS[USER], "PGDATABASE": "dbranch"},
    }


def rows(server: tuple[Node, Endpoint], query: str) -> list[tuple[object, ...]]:
    with owner_session(server[0].layout, server[1], "dbranch") as connection:
        return connection.execute(query.encode()).fetchall()


@pytest.mark.parametrize("transaction", [True, False])
def test_the_application_owns_what_the_dump_gives_no_owner(
    server: tuple[Node, Endpoint], transaction: bool
) -> None:
    assert load(server, DUMP, transaction) == 0
    owners = dict(rows(server, OWNED))
    # Postgres keeps no such record of what the superuser of initdb owns: extensions, and what the dump gave it.
    assert len(owners) >= 25 and set(owners.values()) == {APP}, owners
    assert not any("dblink" in name or "postgres_fdw" in name for name in owners)
    assert "table public.theirs" not in owners and "event trigger on_ddl" not in owners
    assert rows(server, LEFT) == []
    # It would lead to the superuser.
    execute = "select has_function_privilege('app', 'public.dblink_connect_u(text)', 'execute')"
    assert rows(server, execute) == [(False,)]


def test_a_dump_that_fails_leaves_nothing(server: tuple[Node, Endpoint]) -> None:
    assert load(server, "create table kept (); select 1/0;") == 3
    assert rows(server, LEFT) == [] and rows(server, "select to_regclass('kept')") == [(None,)]


def test_a_dump_that_commits_makes_nobody_a_superuser(server: tuple[Node, Endpoint]) -> None:
    assert load(server, "begin; create table first (); commit; create table second ();") == 0
    assert rows(server, LEFT) == []
    owners = dict(rows(server, OWNED))
    assert (owners["table public.first"], owners["table public.second"]) == (APP, APP)
    # One that fails behind its own commit leaves a role that cannot log in and has no members.
    load(server, "begin; create table third (); commit; select 1/0;")
    assert rows(server, f"{LEFT} and rolcanlogin") == []
    assert rows(
        server, "select count(*) from pg_auth_members m join pg_roles r on r.oid = m.roleid where rolsuper"
    ) == [(0,)]


def test_an_archive_that_is_cut_off_is_not_loaded(server: tuple[Node, Endpoint], tmp_path: Path) -> None:
    node, endpoint = server
    rows_of_source = "create table item as select n, repeat('x', 500) as x from generate_series(1, 20000) n;"
    assert load(server, rows_of_source) == 0
    pg_dump, address = postgres_directory() / "pg_dump", node.address_of(endpoint.slot)
    dump = subprocess.run(
        [pg_dump, "-Fc", "-Z0", "-h", address, "-p", str(endpoint.port), "-U", USER, "dbranch"],
        env={**os.environ, "PGPASSWORD": PASSWORDS[USER]},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    script = b"".join(archive_script([], iter([dump])))
    assert b"COPY public.item" in script and b"OWNER TO" not in script
    with pytest.raises(Failure, match="nothing was loaded"):
        list(archive_script([], iter([dump[: len(dump) // 2]])))


@pytest.fixture
def command_line(server: tuple[Node, Endpoint], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return `dbranch load`; its clients connect to the server itself, without a port-forward."""

    def run_client(
        invocation: Any,
        program: str,
        arguments: Sequence[str],
        branch: str | None,
        stdin: IO[bytes] | Iterator[bytes] | None = None,
        quiet: bool = False,
        superuser: bool = False,
    ) -> int:
        assert superuser
        chunks = stdin if isinstance(stdin, Iterator) and not hasattr(stdin, "fileno") else None
        client = subprocess.Popen(
            [postgres_directory() / program, *arguments],
            env=environment_of(server),
            stdin=subprocess.PIPE if chunks is not None else subprocess.DEVNULL,
        )
        if chunks is not None:
            write_stdin(client, chunks)
        return client.wait()

    monkeypatch.setattr(loading, "run_client", run_client)
    monkeypatch.setattr(load_run, "run_client", run_client)
    monkeypatch.setattr(loading, "load_role", lambda invocation: ROLE)
    notes: list[str] = []
    invocation = SimpleNamespace(
        project=lambda: {"spec": {"activeBranch": "main"}}, human_output=True, print_note=notes.append
    )
    invocation.confirm = lambda question, yes: None if yes else pytest.fail(question)

    def play(*args: object) -> list[str]:
        notes.clear()
        loading.load.main([*map(str, args)], obj=invocation, standalone_mode=False)
        return notes

    return play


def dump_to(server: tuple[Node, Endpoint], path: Path, *options: str) -> Path:
    """Dump the database into an archive, and drop what it holds."""
    source = "create extension dblink; create table item as select n from generate_series(1, 1000) n;"
    assert load(server, f"{source} create table other (id serial); insert into other values (7);") == 0
    command = [postgres_directory() / "pg_dump", *options, "--file", path, "dbranch"]
    subprocess.run(command, env=environment_of(server), check=True)
    assert load(server, "drop extension dblink; drop table item, other;") == 0
    return path


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (["-Fc"], []),
        (["-Ft"], []),
        (["-Fd"], []),
        # Jobs need an archive in which they can seek.
        (["-Fc"], ["--", "--jobs", "2"]),
        (["-Fd"], ["--", "--jobs", "2"]),
    ],
    ids=["custom", "tar", "directory", "custom-jobs", "directory-jobs"],
)
def test_an_archive_without_a_transaction_is_loaded_for_the_application_too(
    server: tuple[Node, Endpoint], command_line: Any, tmp_path: Path, options: list[str], arguments: list[str]
) -> None:
    archive = dump_to(server, tmp_path / "archive", *options)
    command_line(archive, "--no-transaction", *arguments)
    assert rows(server, "select count(*) from item") == [(1000,)]
    assert rows(server, "select id from other") == [(7,)]
    owners = dict(rows(server, OWNED))
    assert {owners["table public.item"], owners["sequence public.other_id_seq"]} == {APP}
    assert rows(server, "select pg_get_userbyid(extowner) from pg_extension where extname = 'dblink'") == [
        (USER,)
    ]
    assert rows(server, LEFT) == []


def test_an_archive_that_fails_without_a_transaction_leaves_no_role_and_says_so(
    server: tuple[Node, Endpoint], command_line: Any, tmp_path: Path
) -> None:
    archive = dump_to(server, tmp_path / "archive", "-Fc")
    assert load(server, "create table other (theirs int);") == 0
    with pytest.raises(Failure, match="pg_restore failed with exit code 1"):
        command_line(archive, "--no-transaction")
    # What was loaded before that stays, and belongs to the application.
    assert dict(rows(server, OWNED))["table public.item"] == APP
    assert rows(server, LEFT) == []


DUMPS = Path(__file__).parents[1] / "dumps"


@pytest.mark.parametrize(
    ("name", "relations"),
    [
        ("defog-data/geography.sql", 7),
        ("defog-data/academic.sql", 15),
        ("defog-data/atis.sql", 24),
        ("synapse/full.sql", 134),
        ("kea/dhcpdb_create.sql", 55),
    ],
)
def test_dumps_of_well_known_databases_are_loaded(
    server: tuple[Node, Endpoint], command_line: Any, name: str, relations: int
) -> None:
    notes = command_line(DUMPS / name, "--no-owner")
    if name.startswith("defog"):
        assert f"{DUMPS / name}: SQL by pg_dump 15.3 of Postgres 14.8, encoding UTF8" in notes
    count = "select count(*) from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'"
    assert rows(server, count) == [(relations,)]
    assert set(dict(rows(server, OWNED)).values()) == {APP} and rows(server, LEFT) == []


def test_missing_roles_are_named_before_the_first_row_and_created_or_replaced_if_asked_for(
    server: tuple[Node, Endpoint], command_line: Any, tmp_path: Path
) -> None:
    dump = tmp_path / "dump.sql"
    dump.write_text(
        "create table t (owner text);\nalter table t owner to shop;\ngrant select on t to reader, postgres;\n"
        "copy t from stdin;\nalter table t owner to bob;\n\\.\n"
    )
    with pytest.raises(Failure, match="do not exist in branch main: shop, reader;"):
        command_line(dump)
    with pytest.raises(Failure, match="do not exist in branch main: reader;"):
        command_line(dump, "--role-map", "shop=app")
    assert rows(server, "select to_regclass('t')") == [(None,)]
    assert "roles created, without login: reader" in command_line(
        dump, "--role-map", "shop=app", "--create-roles"
    )
    assert rows(server, "select pg_get_userbyid(relowner) from pg_class where relname = 't'") == [(APP,)]
    assert rows(server, "select rolcanlogin from pg_roles where rolname = 'reader'") == [(False,)]
    assert rows(server, "select owner from t") == [("alter table t owner to bob;",)]


@pytest.mark.parametrize("options", [["-Fc"], ["-Fd"], ["-Fp"]], ids=["custom", "directory", "plain"])
def test_owners_of_every_form_are_kept_replaced_or_dropped(
    server: tuple[Node, Endpoint], command_line: Any, tmp_path: Path, options: list[str]
) -> None:
    made = (
        "create role shop; create table held (); alter table held owner to shop; grant select on held to app;"
    )
    assert load(server, made) == 0
    archive = tmp_path / "archive"
    command = [postgres_directory() / "pg_dump", *options, "--file", archive, "dbranch"]
    subprocess.run(command, env=environment_of(server), check=True)
    owner = "select pg_get_userbyid(relowner) from pg_class where relname = 'held'"
    for arguments, expected in (
        (["--create-roles"], "shop"),
        (["--create-roles", "--no-transaction"], "shop"),
        (["--role-map", "shop=postgres"], "postgres"),
        (["--no-owner"], APP),
    ):
        assert load(server, "drop table if exists held; drop role if exists shop;") == 0
        command_line(archive, *arguments)
        assert rows(server, owner) == [(expected,)], arguments


def test_clean_drops_all_that_the_database_holds_and_brings_it_back_if_the_load_fails(
    server: tuple[Node, Endpoint], command_line: Any, tmp_path: Path
) -> None:
    assert load(server, DUMP) == 0
    dump, bad = tmp_path / "dump.sql", tmp_path / "bad.sql"
    dump.write_text("create schema public;\ncreate table public.seen (n int);\n")
    bad.write_text("create table public.seen (n int);\nselect 1/0;\n")
    tables = (
        "select count(*) from pg_class where relkind in ('r', 'v', 'm', 'f', 'S') and relnamespace >= 2200"
    )
    [(before,)] = rows(server, tables)
    with pytest.raises(Failure, match="nothing was loaded"):
        command_line(bad, "--clean", "--yes")
    with pytest.raises(Failure, match="nothing was loaded"):
        command_line(dump)  # over what exists, without --clean
    assert rows(server, "select count(*) from pg_extension where extname = 'dblink'") == [(1,)]
    assert rows(server, f"{tables} and relname = 'seen'") == [(1,)] and before >= 6
    assert command_line(dump, "--clean", "--dry-run")
    command_line(dump, "--clean", "--yes")
    assert [name for name in dict(rows(server, OWNED)) if "default" not in name] == ["table public.seen"]
    assert rows(server, "select count(*) from pg_extension") == [(1,)]
    # The schema public is as it was, so that whoever may use it may go on.
    assert rows(server, "select has_schema_privilege('app', 'public', 'usage')") == [(True,)]


def test_what_the_dump_needs_is_named_before_anything_is_changed(
    server: tuple[Node, Endpoint], command_line: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = tmp_path / "dump.sql"
    dump.write_text("create table t ();\ncreate extension if not exists no_such with schema public;\n")
    with pytest.raises(Failure, match="image of branch main does not have: no_such;"):
        command_line(dump, "--no-transaction")
    dump.write_text(
        "--\n-- PostgreSQL database dump\n--\n\n-- Dumped from database version 99.1\n"
        "-- Dumped by pg_dump version 99.1\n\ncreate table t ();\n--\n-- PostgreSQL database dump complete\n--\n"
    )
    notes = command_line(dump, "--dry-run")
    assert any("Postgres 99.1, newer than the branch's" in note for note in notes)
    assert "would be loaded into branch main" in capsys.readouterr().out
    dump.write_text(dump.read_text().replace("dump complete", "dump comp"))
    with pytest.raises(Failure, match="cut off"):
        command_line(dump, "--no-transaction")
    assert rows(server, "select to_regclass('t')") == [(None,)]


def test_a_script_of_several_databases_is_loaded_without_a_transaction(
    server: tuple[Node, Endpoint], command_line: Any, tmp_path: Path
) -> None:
    assert load(server, "create role dumped login password 'x'; create table item as select 7 as n;") == 0
    dump = tmp_path / "all.sql"
    command = [postgres_directory() / "pg_dumpall", "--file", dump, "--database", "dbname=dbranch"]
    subprocess.run(command, env=environment_of(server), check=True)
    assert load(server, "drop table item; drop role dumped;") == 0
    with pytest.raises(Failure, match="--no-transaction"):
        command_line(dump)
    command_line(dump, "--no-transaction")
    assert rows(server, "select n from item") == [(7,)] and rows(server, LEFT) == []
    assert rows(server, "select rolcanlogin from pg_roles where rolname = 'dumped'") == [(True,)]
