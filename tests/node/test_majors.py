"""Every supported major version on a real server: made, copied, cleaned, opened, logged in to; others are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.node.machine import APP, PASSWORDS, USER, VERIFIERS, Node, new_uid
from tests.node.majors import BOUNDARIES, programs_of

from dbranch.agent.layout import INITDB_DONE
from dbranch.agent.postgres import session
from dbranch.agent.postgres.cleaning import Cleaned, ensure_cleaned
from dbranch.agent.postgres.opening import ensure_opened
from dbranch.agent.postgres.password import ensure_passwords
from dbranch.agent.postgres.server import observe_server
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.volume.effect import ensure_settings, marker_of
from dbranch.agent.volume.settings import render_ident
from dbranch.api.parameters import NEWEST_MAJOR, OLDEST_MAJOR
from dbranch.api.scram import version_of


def connect(node: Node, endpoint: Endpoint, user: str = APP, **options: Any) -> psycopg.Connection[Any]:
    """Log in as a client in the network does, by default as the application."""
    defaults = {"password": PASSWORDS.get(user, ""), "dbname": "dbranch", "user": user}
    host = node.address_of(endpoint.slot)
    return psycopg.connect(host=host, port=endpoint.port, autocommit=True, **{**defaults, **options})


def one(connection: psycopg.Connection[Any], query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    return row and (row[0] if len(row) == 1 else row)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "supported" in metafunc.fixturenames:
        is_long = metafunc.config.getoption("--soak")
        metafunc.parametrize("supported", range(OLDEST_MAJOR, NEWEST_MAJOR + 1) if is_long else BOUNDARIES)


def test_a_supported_major_version_is_a_root_and_a_copy(up: Node, supported: int) -> None:
    up.programs = programs_of(supported)
    try:
        be_a_root_and_a_copy(up, supported)
    finally:
        up.tear_down()
        shutil.rmtree(up.programs.parents[1])


def be_a_root_and_a_copy(node: Node, major: int) -> None:
    root = node.create_root(max_prepared_transactions="5")
    main = node.start_postgres(root)
    assert (main.user, main.major) == (USER, major)
    with connect(node, main) as app, connect(node, main, USER) as superuser:
        attributes = (
            "select rolsuper, rolcreatedb, rolcanlogin, rolreplication from pg_roles where rolname = 'app'"
        )
        assert one(app, attributes) == (False, True, True, False)
        # The database and its schema are the application's.
        app.execute("create table item as select 1 as id")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            app.execute("checkpoint" if major < 15 else "alter system set work_mem = '1MB'")
        # As the image's own initdb.
        assert one(app, "show default_text_search_config") == "pg_catalog.english"
        assert one(app, "show data_checksums") == "on" and one(app, "show datestyle") == "ISO, MDY"
        # A client of the server itself that names no host.
        superuser.execute("create extension dblink")
        login = f"dbname=dbranch user=app password=''{PASSWORDS[APP]}''"
        query = f"select u from dblink('{login}', 'select current_user::text') as t (u text)"
        assert one(superuser, query) == APP
        assert one(app, reach_by_foreign_server(superuser, "main")) == "main"
        superuser.execute("set password_encryption = md5")
        superuser.execute("create role old login replication password 'secret'")
        superuser.execute("begin; create table half (); prepare transaction 'half'")
    for database in ({}, {"replication": "true"}):
        with connect(node, main, "old", password="secret", **database) as connection:
            assert one(connection, "IDENTIFY_SYSTEM" if database else "select 1")
    copy = node.create_copy(root, work_mem="7MB")
    branch = node.start_postgres(copy)
    with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry"):
        connect(node, branch)
    assert ensure_cleaned(node.layout, node.project, copy, branch) == Cleaned(0, 1)
    ensure_opened(node.layout, node.project, copy, branch)
    with connect(node, branch) as app:
        assert one(app, "select count(*) from item") == 1 and one(app, "show work_mem") == "7MB"
        # In a copy, too, what names no host is the branch itself.
        app.execute("update place set name = 'copy'")
        assert one(app, "select name from far") == "copy"
        app.execute("alter role app password 'of the dump'")
    versions = {role: version_of(verifier) for role, verifier in VERIFIERS.items()}
    assert observe_server(node.layout, branch, list(versions)).passwords != versions
    ensure_passwords(node.layout, node.project, copy, branch, VERIFIERS)
    assert observe_server(node.layout, branch, list(versions)).passwords == versions
    ensure_settings(node.layout, node.project, copy, node.settings(copy, work_mem="9MB"))
    assert session.reload(node.layout, branch)
    with connect(node, branch) as app:
        assert one(app, "show work_mem") == "9MB"


def reach_by_foreign_server(superuser: psycopg.Connection[Any], name: str) -> str:
    """Make a table of this one row and a foreign server without a host that has it; return the query by that."""
    superuser.execute(
        f"create extension postgres_fdw; create table place as select '{name}' as name;"
        "alter table place owner to app;"
        "create server here foreign data wrapper postgres_fdw options (dbname 'dbranch');"
        f"create user mapping for app server here options (user 'app', password '{PASSWORDS[APP]}');"
        "create foreign table far (name text) server here options (table_name 'place');"
        "alter foreign table far owner to app"
    )
    return "select name from far"


@pytest.mark.parametrize("major", [OLDEST_MAJOR - 1, NEWEST_MAJOR + 1])
def test_another_major_version_is_refused_before_initdb(up: Node, tmp_path: Path, major: int) -> None:
    (tmp_path / "postgres").write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {major}.4'\n")
    for path in (tmp_path, *tmp_path.parents):
        if path != Path("/tmp") and path.stat().st_uid == 0 and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o011)
    (tmp_path / "postgres").chmod(0o755)
    up.programs, branch = tmp_path, new_uid()
    assert up.run_initdb(branch) == 1
    assert f"PostgreSQL {major} is not supported" in up.stderr_of(f"initdb-{up.project}")
    assert not list((up.layout.initdb_area(up.project, branch) / "pgdata").iterdir())


@pytest.mark.parametrize(
    "environment",
    [
        {"DBRANCH_DATABASE": "template1"},
        {"DBRANCH_DATABASE": "d" * 32 + '"'},
        {"DBRANCH_USER": "pg_owner"},
    ],
    ids=["a database that exists", "a statement that is none", "a role that is refused"],
)
def test_an_initdb_with_a_failing_statement_is_not_done(up: Node, environment: dict[str, str]) -> None:
    branch = new_uid()
    assert up.run_initdb(branch, **environment) != 0
    assert not (up.layout.initdb_area(up.project, branch) / "pgdata" / INITDB_DONE).exists()
    assert "ERROR:" in up.stderr_of(f"initdb-{up.project}") or "FATAL:" in up.stderr_of(
        f"initdb-{up.project}"
    )


def test_the_options_of_initdb_are_those_of_the_project(up: Node) -> None:
    environment = {"DBRANCH_PROVIDER": "icu", "DBRANCH_LOCALE": "de-AT"}
    arguments = ("--wal-segsize=64", "--text-search-config=german", "--lc-messages=C")
    root = up.create_root(*arguments, environment=environment, datestyle="SQL, DMY")
    settings = marker_of(up.layout.branch(up.project, root)).initdb_settings
    assert settings["default_text_search_config"] == "pg_catalog.german" and settings["lc_messages"] == "C"
    with connect(up, up.start_postgres(root)) as app:
        locale = "select datlocprovider::text, daticulocale from pg_database where datname = 'dbranch'"
        assert one(app, locale) == ("i", "de-AT")
        assert one(app, "show wal_segment_size") == "64MB"
        assert one(app, "show default_text_search_config") == "pg_catalog.german"
        # Parameters stand above what initdb wrote.
        assert one(app, "show datestyle") == "SQL, DMY"


def test_data_of_the_first_release_keeps_its_superuser(up: Node) -> None:
    root = up.create_root()
    main = up.start_postgres(root)
    with connect(up, main, USER) as superuser:
        superuser.execute("create role other superuser")
        superuser.execute("set session authorization other")
        superuser.execute("alter role postgres rename to alice")
    up.stop_postgres(main.slot)
    files = up.layout.branch(up.project, root)
    # As that release left them: only pg_ident.conf and pg_hba.conf name the superuser.
    (files / "pg_ident.conf").write_text(render_ident("alice"))
    marker = json.loads((files / "marker.json").read_text())
    for key in ("superuser", "initdb_settings"):
        del marker[key]
    (files / "marker.json").write_text(json.dumps(marker))
    assert marker_of(files).superuser == "alice"
    copy = up.create_copy(root)
    branch = up.start_postgres(copy)
    assert (
        branch.user
        == "alice"
        == json.loads((up.layout.branch(up.project, copy) / "marker.json").read_text())["superuser"]
    )
    ensure_cleaned(up.layout, up.project, copy, branch)
    ensure_passwords(up.layout, up.project, copy, branch, {"alice": VERIFIERS[APP]})
    ensure_opened(up.layout, up.project, copy, branch)
    with connect(up, branch, "alice", password=PASSWORDS[APP]) as alice:
        assert one(alice, "show is_superuser") == "on"
        # What initdb wrote is not known, and so nothing changes.
        assert one(alice, "show default_text_search_config") == "pg_catalog.simple"
