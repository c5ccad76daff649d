"""postgresql.conf of a branch: the jobs of a copy, and values that cannot forge a line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dbranch.agent.volume.marker import Role
from dbranch.agent.volume.settings import Settings, render_postgresql_conf


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
    settings = Settings("postgres", 20000, parameters, own=frozenset(own))
    text = render_postgresql_conf(settings, Role.COPY)
    assert text.count(" in a copy: ") == lines
    assert ("# Not loaded in a copy: pg_cron " in text) == ("shared_preload_libraries" not in own)
    assert " in a copy: " not in render_postgresql_conf(settings, Role.ROOT)


def test_a_value_cannot_forge_a_line_that_the_start_script_reads() -> None:
    forged = {"application_name": "x\n# Set in a copy: fsync=off"}
    text = render_postgresql_conf(Settings("postgres", 20000, forged), Role.ROOT)
    assert not any(line.startswith("# Set in a copy") for line in text.splitlines())


def test_a_brake_beats_what_the_spec_says_of_read_only_transactions() -> None:
    settings = Settings("postgres", 20000, {"default_transaction_read_only": "off"}, read_only=True)
    assert "default_transaction_read_only = 'on'\n" in render_postgresql_conf(settings, Role.COPY)
    settings = replace(settings, read_only=False)
    assert "default_transaction_read_only = 'off'\n" in render_postgresql_conf(settings, Role.COPY)
