"""Which roles a statement names, and what is put in their place; nothing within quotes, bodies and data."""

from __future__ import annotations

from time import process_time

import pytest

from dbranch_cli.dump_facts import DumpFacts
from dbranch_cli.dump_roles import RoleRewriter, roles_in
from dbranch_cli.dump_script import Script, UnsafeScript


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("ALTER TABLE public.t OWNER TO bob", ["bob"]),
        ('alter function f(text, int) owner to "Bob ""B"', ['Bob "B']),
        ("ALTER TABLE t RENAME owner TO holder", []),
        ("ALTER TABLE t RENAME COLUMN owner TO holder", []),
        ("ALTER TABLE t ALTER c SET DEFAULT 'x OWNER TO bob'", []),
        (
            "GRANT SELECT(a,b),INSERT ON TABLE public.t TO bob, GROUP ann, PUBLIC WITH GRANT OPTION",
            ["bob", "ann"],
        ),
        ("GRANT bob TO ann WITH INHERIT TRUE GRANTED BY postgres", ["bob", "ann", "postgres"]),
        ("REVOKE ALL ON SCHEMA public FROM PUBLIC", []),
        ("REVOKE GRANT OPTION FOR SELECT ON t FROM bob CASCADE", ["bob"]),
        ("REVOKE ADMIN OPTION FOR bob FROM ann", ["bob", "ann"]),
        (
            "ALTER DEFAULT PRIVILEGES FOR ROLE bob IN SCHEMA public GRANT SELECT ON TABLES TO ann",
            ["bob", "ann"],
        ),
        ("ALTER DEFAULT PRIVILEGES FOR ROLE bob REVOKE ALL ON FUNCTIONS FROM PUBLIC", ["bob"]),
        ("SET ROLE bob", ["bob"]),
        ("SET SESSION AUTHORIZATION 'Bob'", ["Bob"]),
        ("SET LOCAL ROLE none", []),
        ("SET SESSION AUTHORIZATION DEFAULT", []),
        ("CREATE POLICY p ON t FOR SELECT TO bob USING ((owner = 'x'::text))", ["bob"]),
        ("CREATE SCHEMA sales AUTHORIZATION bob", ["bob"]),
        ("CREATE USER MAPPING FOR bob SERVER s", ["bob"]),
        ("CREATE ROLE bob LOGIN IN ROLE ann", ["bob", "ann"]),
        ("ALTER ROLE bob SET search_path TO a, b", ["bob"]),
        ("REASSIGN OWNED BY bob TO ann", ["bob", "ann"]),
        ("DROP ROLE IF EXISTS bob, ann", ["bob", "ann"]),
        ("CREATE DATABASE d WITH TEMPLATE = template0 OWNER = bob", ["bob"]),
        ("GRANT SELECT ON t /* TO ann */ TO bob -- , ann", ["bob"]),
    ],
)
def test_roles_of_a_statement(statement: str, names: list[str]) -> None:
    assert [role.name for role in roles_in(statement.encode())] == names


def load(text: str, size: int = 7, **options: object) -> str:
    rewriter = RoleRewriter(**{"existing": ["postgres", "app"], **options})  # type: ignore[arg-type]
    data = text.encode()
    script = Script(True, rewriter.rewrite)
    return b"".join(script.pass_on(data[i : i + size] for i in range(0, len(data), size))).decode()


UNTOUCHED = r"""
select 'alter table t owner to bob;';
insert into t values ('
grant select on t to bob;
', 1);
create function f() returns void language plpgsql as $$ begin
  alter table t owner to bob; grant bob to ann;
end $$;
create function g() returns int begin atomic; select 1; end;
copy t (a) from stdin;
ALTER TABLE public.t OWNER TO bob;
\.
-- GRANT SELECT ON t TO bob;
/* SET ROLE
bob; */
comment on table t is 'grant all to
bob;';
"""


@pytest.mark.parametrize("size", [1, 7, 100000])
@pytest.mark.parametrize(
    "options", [{"role_map": {"bob": "app"}}, {"no_owner": True}, {"create_missing": True}], ids=str
)
def test_what_only_looks_like_a_role_is_left_alone(size: int, options: dict[str, object]) -> None:
    assert load(UNTOUCHED, size, **options) == UNTOUCHED


@pytest.mark.parametrize("size", [1, 7, 100000])
def test_a_role_is_named_in_place_of_another(size: int) -> None:
    text = (
        'GRANT SELECT\n  ON t -- to bob;\n  TO bob, "ann";\n'
        "select 1; alter table t owner to bob; select 2;\nset role bob"
    )
    assert load(text, size, role_map={"bob": 'a"b', "ann": "app"}).rstrip("\n;") == (
        'GRANT SELECT\n  ON t -- to bob;\n  TO "a""b", "app";\n'
        'select 1; alter table t owner to "a""b"; select 2;\nset role "a""b"'
    )


def test_without_owners_the_loader_owns_all_and_grants_of_missing_roles_are_left_out() -> None:
    text = (
        "alter table t owner to bob;\ngrant select on t to bob;\ngrant select on t to app;\nset role bob;\n"
    )
    assert (
        load(text, no_owner=True) == "alter table t owner to current_user;\n\ngrant select on t to app;\n\n"
    )


def test_missing_roles_are_created_before_they_are_named() -> None:
    text = "alter table t owner to bob;\ngrant select on t to bob, ann, pg_monitor, app;\n"
    assert load(text, create_missing=True) == (
        'create role "bob" nologin; alter table t owner to bob;\n'
        'create role "ann" nologin; grant select on t to bob, ann, pg_monitor, app;\n'
    )


def test_a_cluster_dump_leaves_alone_what_exists_and_what_dbranch_keeps() -> None:
    text = (
        "CREATE ROLE postgres;\nALTER ROLE postgres WITH SUPERUSER PASSWORD 'SCRAM-SHA-256$4096:x';\n"
        "CREATE ROLE app;\nALTER ROLE app WITH LOGIN PASSWORD 'md5x';\nALTER ROLE app SET work_mem TO '8MB';\n"
        "CREATE ROLE bob;\nALTER ROLE bob WITH LOGIN;\nCREATE DATABASE dbranch OWNER = bob;\n"
    )
    loaded = load(text, managed={"postgres", "app"}, databases=["dbranch"])
    assert loaded.split("\n") == [
        *([""] * 4),
        "ALTER ROLE app SET work_mem TO '8MB';",
        "CREATE ROLE bob;",
        "ALTER ROLE bob WITH LOGIN;",
        "",
        "",
    ]


def test_a_setting_that_only_a_newer_server_has_is_left_out() -> None:
    assert load("SET transaction_timeout = 0;\n", server_major=16) == "\n"
    assert load("SET transaction_timeout = 0;\n", server_major=17) == "SET transaction_timeout = 0;\n"


@pytest.mark.parametrize("end", ["rollback", "rollback -- x", "commit", "abort\n"])
def test_a_last_command_without_a_semicolon_is_judged_too(end: str) -> None:
    # psql executes it; a rollback there undid all, and the load was called done.
    with pytest.raises(UnsafeScript, match="ends the transaction"):
        load(f"create table t ();\n{end}")


def test_a_command_that_never_ends_is_not_kept_without_bound() -> None:
    with pytest.raises(UnsafeScript, match="64 KiB"):
        load("grant select on t\n" + "to a,\n" * 20000, 100000)


def test_a_command_of_ten_thousand_lines_is_read_once() -> None:
    names = [f"r{number}" for number in range(9000)]
    text = "grant select on t\nto " + "\n,".join(names) + ";\nselect 1;\n"
    before = process_time()
    loaded = load(text, 100000, role_map={"r8999": "app"})
    assert process_time() - before < 3
    assert loaded == text.replace("r8999", '"app"')


@pytest.mark.parametrize("size", [1, 100000])
def test_quotes_and_comments_within_a_held_command(size: int) -> None:
    text = (
        "alter table t -- it's; (\n  add check (a <> 'x;\n(y' /* ; '\n\" */),\n  owner to\n bob; alter role\n"
        " bob; select 1;\ncomment on table t is 'owner to bob;';\n"
    )
    expected = text.replace(" bob; alter role\n bob", ' "app"; alter role\n "app"')
    assert load(text, size, role_map={"bob": "app"}) == expected


def test_facts_of_a_dump() -> None:
    facts = DumpFacts("SQL", "gzip")
    facts.read_beginning(
        b"--\n-- PostgreSQL database dump\n--\n\n-- Dumped from database version 9.6.24\n"
        b"-- Dumped by pg_dump version 15.3 (Debian 15.3-1)\n\nSET client_encoding = 'LATIN1';\n"
    )
    for statement in (
        b'CREATE EXTENSION IF NOT EXISTS "uuid-ossp" WITH SCHEMA public',
        b"ALTER TABLE t OWNER TO bob",
        b"CREATE ROLE made",
        b"GRANT made TO ann",
        b"GRANT SELECT ON t TO pg_monitor",
    ):
        facts.observe(statement)
    assert facts.server_major == 9
    assert facts.lines() == [
        "SQL, packed with gzip by pg_dump 15.3 of Postgres 9.6.24, encoding LATIN1",
        "4 roles: bob, made, ann, pg_monitor",
        "1 extension: uuid-ossp",
    ]
    assert facts.missing_roles(["app"], {"bob": "app"}, no_owner=False) == ["ann"]
    assert facts.missing_roles([], {}, no_owner=True) == []


@pytest.mark.parametrize(
    ("beginning", "name"),
    [
        (b"-- MySQL dump 10.13  Distrib 8.0\n", "MySQL"),
        (b"PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\n", "SQLite"),
        (b"PK\x03\x04\x14", "zip"),
        (b"\x04\x22\x4d\x18", "lz4"),
    ],
)
def test_a_dump_of_something_else_is_named(beginning: bytes, name: str) -> None:
    with pytest.raises(UnsafeScript, match=name):
        DumpFacts("SQL").read_beginning(beginning)
