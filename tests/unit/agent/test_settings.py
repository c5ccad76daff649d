"""postgresql.conf of a branch: the jobs of a copy, and values that cannot forge a line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dbranch.agent.volume.marker import Role
from dbranch.agent.volume.settings import (
    Settings,
    check_parameters,
    initdb_settings_in,
    render_hba,
    render_postgresql_conf,
)
from dbranch.api.errors import InvalidInput


@pytest.mark.parametrize(
    ("own", "lines"),
    [
        (frozenset(), 2),
        ({"shared_preload_libraries"}, 1),
        ({"timescaledb.max_background_workers"}, 1),
        ({"shared_preload_libraries", "timescaledb.max_background_workers"}, 0),
    ],
)
def test_a_copy_has_no_jobs_but_those_of_its_own_parameters(own: set[str], lines: int) -> None:
    # The project's parameters are the source's, not the branch's own.
    parameters = {
        "shared_preload_libraries": "pg_cron,timescaledb",
        "timescaledb.max_background_workers": "8",
    }
    settings = Settings(20000, parameters, own=frozenset(own))
    text = render_postgresql_conf(settings, Role.COPY)
    assert text.count(" in a copy: ") == lines
    assert ("# Not loaded in a copy: pg_cron " in text) == ("shared_preload_libraries" not in own)
    assert " in a copy: " not in render_postgresql_conf(settings, Role.ROOT)


def test_a_value_cannot_forge_a_line_that_the_start_script_reads() -> None:
    forged = {"application_name": "x\n# Set in a copy: fsync=off"}
    text = render_postgresql_conf(Settings(20000, forged), Role.ROOT)
    assert not any(line.startswith("# Set in a copy") for line in text.splitlines())


def test_what_initdb_chose_holds_below_the_parameters() -> None:
    settings = Settings(20000, {"timezone": "Europe/Vienna"})
    initdb = {"timezone": "Etc/UTC", "default_text_search_config": "pg_catalog.english"}
    text = render_postgresql_conf(settings, Role.ROOT, 0, initdb)
    assert "timezone = 'Europe/Vienna'\n" in text and "Etc/UTC" not in text
    assert "default_text_search_config = 'pg_catalog.english'\n" in text


@pytest.mark.parametrize(
    "line",
    [
        "shared_buffers = 128MB",
        "port = 5432",
        "include_dir = '/tmp'",
        "#timezone = 'Etc/UTC'",
        "timezone = 'a''b'",
        "timezone = 'x\\n'",
        "default_text_search_config = ",
    ],
)
def test_nothing_else_is_taken_from_the_file_of_initdb(line: str) -> None:
    assert initdb_settings_in(f"{line}\n") == {}


@pytest.mark.parametrize(
    "name", ["app.settings.secret", "a..b", "a.", ".b", "Work_Mem", "a-b", "1a", "a.1b", "a\n"]
)
def test_a_name_that_no_settings_file_takes_is_rejected(name: str) -> None:
    with pytest.raises(InvalidInput, match="no name"):
        check_parameters({name: "1"})
    check_parameters({"pg_stat_statements.track": "all", "_x1": "1"})


def test_until_a_branch_is_opened_only_the_agent_is_let_in() -> None:
    closed, opened = render_hba("alice", False).splitlines(), render_hba("alice", True).splitlines()
    assert closed[1:] == ['local all "alice" peer map=agent']
    assert 'local all "alice" peer map=pod' in opened and "host replication all all md5" in opened
    # Who is let in without a password comes first, and is the superuser by the socket only.
    assert [line for line in opened if "peer" not in line][1:] == [
        f"{kind} {database} {'all ' * (kind == 'host')}all md5"
        for kind in ("local", "host")
        for database in ("all", "replication")
    ]


def test_a_brake_beats_what_the_spec_says_of_read_only_transactions() -> None:
    settings = Settings(20000, {"default_transaction_read_only": "off"}, read_only=True)
    assert "default_transaction_read_only = 'on'\n" in render_postgresql_conf(settings, Role.COPY)
    settings = replace(settings, read_only=False)
    assert "default_transaction_read_only = 'off'\n" in render_postgresql_conf(settings, Role.COPY)
