"""Files of a hostile tenant that cost whoever reads them: the agent's work on them is bounded."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.node.machine import OWNER, Node, owner_session, postgres_directory, unmount
from tests.node.test_sql_sessions import resident_peak
from tests.node.test_tenant import as_tenant

from dbranch.agent.linux import files
from dbranch.agent.linux.files import entries_of, opened_directory, walk_beneath
from dbranch.agent.slot import effect as slot
from dbranch.agent.slot.observe import observe_slot, observe_slots
from dbranch.agent.volume import effect as subvolume
from dbranch.agent.volume.sizes import observe_sizes
from dbranch.agent.volume.tenant import max_prepared_of_server
from dbranch.api.errors import Busy, SourceUnsafe

NAMES = 100_000


def longest_standstill(work: Callable[[], object]) -> float:
    """Return for how long this thread stood still, in seconds, while another one did the work."""
    thread = threading.Thread(target=work)
    longest, last = 0.0, time.monotonic()
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    thread.join()
    return longest


@pytest.fixture
def pgdata(up: Node) -> Iterator[tuple[Node, str, Path]]:
    branch = up.create_root(max_prepared_transactions="7")
    yield up, branch, up.layout.branch(up.project, branch) / "pgdata"


def test_a_settings_file_of_newlines_stops_nobody(pgdata: tuple[Node, str, Path]) -> None:
    node, branch, directory = pgdata
    (directory / "postgresql.auto.conf").write_text("\n" * 2**20)
    began = time.monotonic()
    assert longest_standstill(lambda: node.create_copy(branch)) < 2
    assert time.monotonic() - began < 60


def test_a_copy_has_the_prepared_transactions_that_its_source_ran_with(
    pgdata: tuple[Node, str, Path],
) -> None:
    node, branch, directory = pgdata
    main = node.start_postgres(branch)
    with owner_session(node.layout, main) as session:
        session.execute("alter system set max_prepared_transactions = 40")
    node.stop_postgres(main.slot)
    main = node.start_postgres(branch, main.slot)
    with owner_session(node.layout, main, "dbranch") as session:
        for number in range(30):
            session.execute(f"begin; create table t{number} (); prepare transaction 'half{number}'")
        # The file is lowered, and the server is not restarted.
        session.execute("alter system set max_prepared_transactions = 1")
    assert max_prepared_of_server(node.layout.branch(node.project, branch)) == 40
    control = subprocess.run(
        [postgres_directory() / "pg_controldata", directory], capture_output=True, text=True, check=True
    )
    assert "max_prepared_xacts setting:           40" in control.stdout
    assert node.start_postgres(node.create_copy(branch))


@pytest.mark.parametrize(
    ("damage", "reason"), [(b"", "it has 0 bytes"), (bytes(9000), "it has 8193"), (None, "checksum")]
)
def test_a_damaged_pg_control_makes_no_copy(
    pgdata: tuple[Node, str, Path], damage: bytes | None, reason: str
) -> None:
    node, branch, directory = pgdata
    control = directory / "global" / "pg_control"
    data = bytearray(control.read_bytes())
    data[192] ^= 1
    control.write_bytes(bytes(data) if damage is None else damage)
    with pytest.raises(SourceUnsafe, match=reason):
        node.create_copy(branch)
    # Of another version than this release knows: Postgres' business.
    data[8:12] = b"\xff\xff\0\0"
    control.write_bytes(bytes(data))
    node.create_copy(branch)


def run_of_first_release(node: Node, name: str) -> Path:
    """Make a slot with a `run` as release 0.1.0 made it: no filesystem of its own, so any number of files."""
    slot.ensure_slot(node.layout, name, OWNER)
    run = node.layout.run(name)
    unmount(str(run))
    os.chown(run, OWNER, OWNER)
    return run


def test_a_run_directory_of_many_names_costs_little(node: Node) -> None:
    run_of_first_release(node, "slot-x")
    script = f"for i in range({NAMES}): open(f'n{{i:0200}}', 'w').close()"
    as_tenant(script, node.layout.run("slot-x"))
    resident_peak()
    before = resident_peak()
    assert observe_slot(node.layout, "slot-x").exists and observe_slots(node.layout) == ("slot-x",)

    def remove() -> None:
        # It ends after some seconds, and goes on at the next call.
        while observe_slots(node.layout):
            with suppress(Busy):
                slot.ensure_slot_removed(node.layout, "slot-x")

    assert longest_standstill(remove) < 2
    assert observe_slots(node.layout) == ()
    assert resident_peak() - before < 8 * 2**20


def test_a_tree_is_walked_in_bounded_memory_and_time(
    pgdata: tuple[Node, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, branch, directory = pgdata
    as_tenant(
        f"os.mkdir('wide'); os.chdir('wide')\nfor i in range({NAMES}): os.mknod(f'n{{i:0200}}')", directory
    )
    resident_peak()
    before = resident_peak()
    assert observe_sizes(node.layout, node.project, branch)
    assert resident_peak() - before < 8 * 2**20
    as_tenant("for i in range(3000): os.mkdir(f'd{i:0200}')", directory)
    monkeypatch.setattr(files, "PENDING_LIMIT", 100_000)
    with pytest.raises(OSError, match="too many directories"):
        observe_sizes(node.layout, node.project, branch)
    with pytest.raises(SourceUnsafe, match="too many directories"):
        node.create_copy(branch)
    monkeypatch.undo()
    with pytest.raises(OSError, match="too many"):
        observe_sizes(node.layout, node.project, branch, seconds=0.05)
    with opened_directory(directory) as top, pytest.raises(OSError, match="too many files"):
        for _, _, entries in walk_beneath(top, seconds=0.0):
            list(entries)


def test_emptying_a_directory_ends_and_goes_on_at_the_next_call(node: Node) -> None:
    run = run_of_first_release(node, "slot-x")
    as_tenant("os.mkdir('in')\nfor i in range(5000): os.mknod(f'{i}'); os.mknod(f'in/{i}')", run)
    with opened_directory(run) as top:
        with pytest.raises(Busy, match="it is tried again"):
            files.empty_directory(top, seconds=0.0)
        files.empty_directory(top)
        assert next(entries_of(top), None) is None


def test_the_trash_of_a_tenants_tree_is_emptied(pgdata: tuple[Node, str, Path]) -> None:
    node, branch, directory = pgdata
    copy = node.create_copy(branch)
    as_tenant("for i in range(5000): os.mkdir(f'd{i:0200}')", directory)
    subvolume.ensure_trashed(node.layout, node.project, copy)
    subvolume.ensure_trash_emptied(node.layout, node.project)
