"""What is decided and said of a node: jobs of a copy, fitness, damage, names of tenants' files."""

from __future__ import annotations

from pathlib import Path

import pytest

from dbranch.agent.pool.space import Space, pool_finding
from dbranch.agent.preflight import not_ready_reason
from dbranch.agent.status import drop_insignificant, size_fields
from dbranch.agent.volume.marker import Role
from dbranch.agent.volume.settings import Settings, render_postgresql_conf
from dbranch.api.conditions import Finding, Reason, printable


@pytest.mark.parametrize(
    ("own", "lines"),
    [
        (frozenset(), 2),
        ({"shared_preload_libraries"}, 1),
        ({"timescaledb.max_background_workers"}, 1),
        ({"shared_preload_libraries", "timescaledb.max_background_workers"}, 0),
    ],
)
def test_a_copy_has_no_jobs_but_those_it_asks_for_itself(own: set[str], lines: int) -> None:
    # What the project says is the source's word, not the branch's.
    parameters = {
        "shared_preload_libraries": "pg_cron,timescaledb",
        "timescaledb.max_background_workers": "8",
    }
    settings = Settings("postgres", 20000, parameters, own=frozenset(own))
    text = render_postgresql_conf(settings, Role.COPY)
    assert text.count(" in a copy: ") == lines
    assert ("# Not loaded in a copy: pg_cron " in text) == ("shared_preload_libraries" not in own)
    assert " in a copy: " not in render_postgresql_conf(settings, Role.ROOT)


def test_a_value_cannot_pass_for_a_line_that_the_start_reads() -> None:
    forged = {"application_name": "x\n# Set in a copy: fsync=off"}
    text = render_postgresql_conf(Settings("postgres", 20000, forged), Role.ROOT)
    assert not any(line.startswith("# Set in a copy") for line in text.splitlines())


def test_an_agent_says_what_its_node_lacks() -> None:
    base = Path("/var/lib/dbranch")
    assert not_ready_reason(base, propagates=True, immutable=True) is None
    assert "Bidirectional" in str(not_ready_reason(base, propagates=False, immutable=False))
    assert "immutable" in str(not_ready_reason(base, propagates=True, immutable=False))


def test_damage_is_said_before_fullness() -> None:
    full = Space(2**30, 2**20, 2**40, 2**39)
    assert pool_finding(full, "shop", damaged=True).reason == Reason.POOL_DAMAGED
    assert pool_finding(full, "shop").reason == Reason.POOL_LOW


def test_names_of_a_tenant_steer_no_terminal() -> None:
    step = Finding(Reason.SOURCE_UNSAFE, "a\x1b[2J\nb\udcff")
    assert step.as_dict()["message"] == "a\\x1b[2J b\\udcff"
    assert printable("plain, ünïcode") == "plain, ünïcode"


def test_sizes_are_told_when_they_read_otherwise() -> None:
    now = size_fields("unique", 10_000_000)
    assert drop_insignificant(now, size_fields("unique", 10_000_100)) == {"uniqueSize": now["uniqueSize"]}
    assert drop_insignificant(now, size_fields("unique", 20_000_000))["uniqueBytes"] == 20_000_000


def test_the_free_bytes_of_others_disk_are_told_when_they_changed_by_much() -> None:
    now = size_fields("hostFree", 100 * 2**30)
    assert drop_insignificant(now, size_fields("hostFree", 97 * 2**30)) == {}
    assert drop_insignificant(now, size_fields("hostFree", 90 * 2**30)) == size_fields("hostFree", 90 * 2**30)
    assert drop_insignificant({}, now) == now
