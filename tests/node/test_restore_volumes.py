"""The data of a restore on a real btrfs: prepared beside a branch's own, exchanged in one step, kept or destroyed."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.node.agent_life import EffectCounter, is_effect
from tests.node.machine import OWNER, Node, new_uid, owner_session, postgres_directory
from tests.node.test_cleaning import eventually, sql

from dbranch.agent.layout import MARKER, PGDATA, SubvolumeKind, SubvolumeName
from dbranch.agent.linux import btrfs, mounting
from dbranch.agent.linux.mounts import mounts_at
from dbranch.agent.linux.quotas import group_of, read_groups, subvolume_id
from dbranch.agent.postgres.session import Endpoint, await_accepting
from dbranch.agent.slot import effect as slot
from dbranch.agent.slot.scripts import read_slot_start
from dbranch.agent.volume import copies
from dbranch.agent.volume import effect as subvolume
from dbranch.agent.volume.copies import copying
from dbranch.agent.volume.marker import (
    FROM_BRANCH,
    FROM_SNAPSHOT,
    UNDO_DISCARD,
    UNDO_KEEP,
    BranchNames,
    Marker,
    RestoreRef,
    Role,
    SnapshotMarker,
    render_marker,
)
from dbranch.agent.volume.observe import marker_at, observe_subvolumes
from dbranch.agent.volume.origins.adopt import ensure_branch_adopted, retained_branch
from dbranch.agent.volume.restore_rules import VolumeState
from dbranch.agent.volume.restores import (
    ensure_exchanged,
    ensure_old_kept,
    ensure_old_trashed,
    ensure_restore_destroyed,
    ensure_restore_finished,
    ensure_restore_taken,
    observe_restore,
)
from dbranch.agent.volume.settings import Settings
from dbranch.agent.volume.sizes import observe_sizes
from dbranch.agent.volume.snapshots import ensure_kept_as_snapshot, ensure_snapshot_taken
from dbranch.api import names
from dbranch.api.errors import Busy, SourceUnsafe, StorageUnclear, Unsafe

NOW, NEXT_DAY = "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"
ROOT_NAMES, COPY_NAMES = BranchNames("team", "shop", "main"), BranchNames("team", "shop", "x")


class Pool:
    """A pool with a root branch and a copy of it, `x`, whose data restores replace."""

    def __init__(self, node: Node, root: str, x: str) -> None:
        self.node, self.layout, self.project = node, node.layout, node.project
        self.root, self.x = root, x

    @classmethod
    def make(cls, node: Node) -> Pool:
        pool = cls(node, node.create_root(), new_uid())
        node.take_snapshot(pool.root, pool.x)
        pool.record(pool.x, lambda marker: replace(marker, names=COPY_NAMES, cleaned=True, opened=True))
        return pool

    def record(self, branch: str, change: Callable[[Marker], Marker]) -> None:
        subvolume.ensure_recorded(self.layout, self.project, branch, change)

    def settings(self, branch: str) -> Settings:
        names_of = ROOT_NAMES if branch == self.root else COPY_NAMES
        return replace(self.node.settings(branch), names=names_of)

    def restore_ref(self, undo: str = UNDO_KEEP) -> RestoreRef:
        return RestoreRef(new_uid(), undo, new_uid() if undo == UNDO_KEEP else "")

    def take(self, restore_ref: RestoreRef, source: str | None = None, branch: str | None = None) -> Marker:
        branch = branch or self.x
        return ensure_restore_taken(
            *(self.layout, self.project, branch, source or self.root, restore_ref, self.settings(branch), NOW)
        )

    def exchange(self, restore_ref: RestoreRef, branch: str | None = None) -> Marker:
        return ensure_exchanged(self.layout, self.project, branch or self.x, restore_ref.uid)

    def keep(self, branch: str | None = None) -> SnapshotMarker | None:
        return ensure_old_kept(self.layout, self.project, branch or self.x, "shop-x-undo-abcde", NEXT_DAY)

    def restore(self, restore_ref: RestoreRef, source: str | None = None, branch: str | None = None) -> None:
        """Do all of a restore that keeps the old data."""
        self.take(restore_ref, source, branch)
        self.exchange(restore_ref, branch)
        self.keep(branch)

    def state(self, branch: str | None = None) -> VolumeState:
        return observe_restore(self.layout, self.project, branch or self.x).state

    def path(self, uid: str, kind: SubvolumeKind | None = None) -> Path:
        return self.layout.subvolume(self.project, SubvolumeName(uid, kind))

    def write(self, uid: str, text: str, kind: SubvolumeKind | None = None) -> None:
        """Say in the data of a branch whose it is."""
        (self.path(uid, kind) / PGDATA / "said").write_text(text)

    def read(self, uid: str, kind: SubvolumeKind | None = None) -> str:
        return (self.path(uid, kind) / PGDATA / "said").read_text()

    def marker(self, branch: str) -> Marker:
        marker = marker_at(self.path(branch))
        assert isinstance(marker, Marker)
        return marker


@pytest.fixture
def pool(up: Node) -> Pool:
    made = Pool.make(up)
    made.write(made.root, "main")
    made.write(made.x, "x")
    return made


def test_a_restore_replaces_the_data_of_a_branch_and_keeps_what_it_was(pool: Pool) -> None:
    before, restore_ref = pool.marker(pool.x), pool.restore_ref()
    assert before.generation == 1 and pool.state() is VolumeState.ABSENT
    taken = pool.take(restore_ref)
    # Closed and uncleaned, of the next generation, and the branch's: whatever it came from.
    assert (taken.generation, taken.restore, taken.cleaned, taken.opened) == (2, restore_ref, False, False)
    assert (taken.owner_uid, taken.names, taken.role) == (pool.x, COPY_NAMES, Role.COPY)
    assert (taken.origin.kind, taken.origin.uid, taken.snapshot_time) == (FROM_BRANCH, pool.root, NOW)
    assert taken.lineage == (pool.root,)
    assert pool.state() is VolumeState.COMING and pool.read(pool.x) == "x"
    volume = observe_restore(pool.layout, pool.project, pool.x)
    assert (volume.restore_uid, volume.undo_uid) == (restore_ref.uid, restore_ref.undo_uid)
    # Taken again it is not touched, nor is it any other restore's.
    pool.write(pool.x, "prepared", SubvolumeKind.RESTORE)
    assert pool.take(restore_ref) == taken
    with pytest.raises(Busy, match="another restore"):
        pool.take(pool.restore_ref())
    with pytest.raises(Unsafe, match="nothing is prepared"):
        ensure_exchanged(pool.layout, pool.project, pool.x, new_uid())
    with pytest.raises(Unsafe, match="still to come"):
        pool.keep()
    for _ in range(2):
        # A second call changes nothing back.
        assert pool.exchange(restore_ref).generation == 2
        assert pool.read(pool.x) == "prepared" and pool.read(pool.x, SubvolumeKind.RESTORE) == "x"
    assert pool.state() is VolumeState.OLD
    with pytest.raises(Unsafe, match="was done"):
        pool.take(restore_ref)
    with pytest.raises(Busy, match="has not gone yet"):
        pool.take(pool.restore_ref())
    with pytest.raises(Unsafe, match="was its data"):
        ensure_restore_destroyed(pool.layout, pool.project, pool.x)
    with pytest.raises(Unsafe, match="keeps the old data"):
        ensure_old_trashed(pool.layout, pool.project, pool.x)
    kept = pool.keep()
    assert kept and kept.snapshot == "shop-x-undo-abcde" and kept.data.owner_uid == restore_ref.undo_uid
    assert (kept.data.origin.kind, kept.data.origin.uid) == (FROM_BRANCH, pool.x)
    assert (kept.data.generation, kept.data.snapshot_time) == (1, NEXT_DAY)
    assert kept.data.lineage == (pool.root, pool.x)
    assert btrfs.is_read_only(pool.path(restore_ref.undo_uid)) and pool.read(restore_ref.undo_uid) == "x"
    assert pool.keep() is None and pool.state() is VolumeState.ABSENT
    facts = observe_subvolumes(pool.layout, pool.project)
    assert set(facts.snapshots) == {restore_ref.undo_uid} and facts.unfinished == ()


def test_a_restore_that_discards_trashes_the_old_data(pool: Pool) -> None:
    restore_ref = pool.restore_ref(UNDO_DISCARD)
    pool.take(restore_ref)
    pool.exchange(restore_ref)
    with pytest.raises(Unsafe, match="keeps no old data"):
        pool.keep()
    ensure_old_trashed(pool.layout, pool.project, pool.x)
    ensure_old_trashed(pool.layout, pool.project, pool.x)
    facts = observe_subvolumes(pool.layout, pool.project)
    assert facts.snapshots == {} and facts.owners_of(SubvolumeKind.TRASH) == (pool.x,)
    assert pool.read(pool.x) == "main"


def test_what_is_prepared_is_destroyed_and_the_branch_has_its_data(pool: Pool) -> None:
    pool.take(pool.restore_ref())
    ensure_restore_destroyed(pool.layout, pool.project, pool.x)
    ensure_restore_destroyed(pool.layout, pool.project, pool.x)
    # One that was cut off before it was whole, and one without its name yet.
    for kind in (SubvolumeKind.RESTORE, SubvolumeKind.NEW):
        btrfs.create_subvolume(pool.path(pool.x, kind))
        ensure_restore_destroyed(pool.layout, pool.project, pool.x)
    facts = observe_subvolumes(pool.layout, pool.project)
    assert facts.unfinished == () and set(facts.branches) == {pool.root, pool.x}
    assert pool.read(pool.x) == "x" and pool.marker(pool.x).generation == 1


def test_what_cannot_be_said_is_left_alone(pool: Pool) -> None:
    restore_ref = pool.restore_ref()
    pool.take(restore_ref)
    path = pool.path(pool.x, SubvolumeKind.RESTORE) / MARKER
    good = path.read_text()
    for text in ("{", '{"format": 3}', json.dumps({**json.loads(good), "generation": 1})):
        path.write_text(text)
        for act in (
            lambda: pool.take(restore_ref),
            lambda: pool.exchange(restore_ref),
            pool.keep,
            lambda: ensure_old_trashed(pool.layout, pool.project, pool.x),
            lambda: ensure_restore_destroyed(pool.layout, pool.project, pool.x),
            lambda: ensure_restore_finished(pool.layout, pool.project, pool.x, NOW),
        ):
            with pytest.raises(StorageUnclear, match="nothing is touched"):
                act()
        assert path.read_text() == text and pool.marker(pool.x).generation == 1
    path.write_text(good)
    assert pool.exchange(restore_ref).generation == 2


def test_undo_gives_back_bytes_and_any_other_copy_is_cleaned(pool: Pool) -> None:
    """What only the branch held comes back with its own data; nobody else's copy may have it."""
    restore_ref = pool.restore_ref()
    replication_slot = Path("pg_replslot") / "standby"
    (pool.path(pool.x) / PGDATA / replication_slot).mkdir(parents=True)
    pool.restore(restore_ref)
    assert not (pool.path(pool.x) / PGDATA / replication_slot).exists()
    (pool.path(pool.x) / PGDATA / "postmaster.pid").write_text("1")
    undo, redo = pool.restore_ref(), pool.restore_ref()
    pool.restore(undo, restore_ref.undo_uid)
    assert (pool.path(pool.x) / PGDATA / replication_slot).is_dir() and pool.read(pool.x) == "x"
    marker = pool.marker(pool.x)
    # As it was, but under the closed pg_hba.conf until it is opened again.
    assert marker.cleaned and not marker.opened and marker.generation == 3
    assert (marker.origin.kind, marker.origin.uid) == (FROM_SNAPSHOT, restore_ref.undo_uid)
    assert marker.snapshot_time == NEXT_DAY and marker.expiration_time == ""
    # Undone once more: the data of before, and no trace of its server's process.
    pool.restore(redo, undo.undo_uid)
    assert pool.read(pool.x) == "main" and pool.marker(pool.x).generation == 4
    assert not (pool.path(pool.x) / PGDATA / "postmaster.pid").exists()
    # Another branch that gets the same snapshot gets a cleaned copy.
    pool.restore(pool.restore_ref(), restore_ref.undo_uid, pool.root)
    assert not (pool.path(pool.root) / PGDATA / replication_slot).exists()
    assert not pool.marker(pool.root).cleaned and pool.marker(pool.root).role is Role.ROOT


def test_the_root_is_quiet_until_its_old_data_has_gone(pool: Pool) -> None:
    restore_ref = pool.restore_ref()
    taken = pool.take(restore_ref, pool.x, pool.root)
    assert taken.role is Role.ROOT and taken.quiet
    conf = (pool.path(pool.root, SubvolumeKind.RESTORE) / "postgresql.conf").read_text()
    assert "Not loaded in a copy" in conf
    assert pool.exchange(restore_ref, pool.root).quiet
    pool.keep(pool.root)
    marker = pool.marker(pool.root)
    assert marker.role is Role.ROOT and not marker.quiet and marker.restore == restore_ref


def test_a_request_that_was_obeyed_is_not_obeyed_again_on_other_data(pool: Pool) -> None:
    pool.record(pool.x, lambda marker: marker.with_alter_system_reset("asked once"))
    assert pool.take(pool.restore_ref()).alter_system_reset == "asked once"


def test_a_source_that_is_exchanged_while_it_is_copied_is_copied_again(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its nested subvolumes are looked for beside the copy: these may be other data's by then."""
    nested = pool.path(pool.x) / PGDATA / "nested"
    btrfs.create_subvolume(nested)
    restore_ref = pool.restore_ref()
    pool.take(restore_ref)
    create = copies.create_subvolume

    def create_and_exchange(path: Path, source: Path | None = None) -> None:
        create(path, source)
        pool.exchange(restore_ref)

    monkeypatch.setattr(copies, "create_subvolume", create_and_exchange)
    with (
        pytest.raises(Busy, match="was exchanged"),
        copying(pool.layout, pool.project, pool.x, new_uid()) as copy,
    ):
        raise AssertionError(copy)
    monkeypatch.undo()
    # The old data has the nested one still: it is kept with it, and cannot be copied.
    pool.keep()
    assert (pool.path(restore_ref.undo_uid) / PGDATA / "nested").is_dir()
    with pytest.raises(SourceUnsafe, match="nested is a subvolume"):
        pool.take(pool.restore_ref(), restore_ref.undo_uid)
    assert observe_subvolumes(pool.layout, pool.project).unfinished == ()
    assert pool.read(pool.x) == "main"


def test_the_marker_of_a_copy_is_that_of_the_data_in_it(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source is exchanged just before the copy: the marker that was looked at then is another data's."""
    restore_ref = pool.restore_ref()
    pool.take(restore_ref)
    source_marker = copies.source_marker

    def look_and_exchange(path: Path) -> Any:
        seen = source_marker(path)
        if path == pool.path(pool.x):
            pool.exchange(restore_ref)
        return seen

    monkeypatch.setattr(copies, "source_marker", look_and_exchange)
    copy, snapshot = new_uid(), new_uid()
    marker = pool.node.take_snapshot(pool.x, copy)
    assert marker.origin.generation == 2 and pool.read(copy) == "main"
    taken = ensure_snapshot_taken(pool.layout, pool.project, pool.x, snapshot, COPY_NAMES, "shop-s", NOW)
    assert taken.data.generation == 2 and pool.read(snapshot) == "main"


def test_all_that_a_branch_has_is_measured_charged_and_removed_with_it(pool: Pool) -> None:
    alone = observe_sizes(pool.layout, pool.project, pool.x)
    restore_ref = pool.restore_ref()
    pool.take(restore_ref)
    both = observe_sizes(pool.layout, pool.project, pool.x)
    assert alone and both and both.logical_bytes > 1.5 * alone.logical_bytes
    numbers = {subvolume_id(pool.path(pool.x, kind)) for kind in (None, SubvolumeKind.RESTORE)}
    pool.exchange(restore_ref)
    assert {subvolume_id(pool.path(pool.x, kind)) for kind in (None, SubvolumeKind.RESTORE)} == numbers
    btrfs.sync_and_clean(pool.layout.pool(pool.project))
    groups = read_groups(pool.layout.pool(pool.project))
    assert all(group_of(1, number) in groups.parents[group_of(0, number)] for number in numbers)
    # The branch goes while its old data still owes itself to the undo snapshot.
    ensure_restore_finished(pool.layout, pool.project, pool.x, NEXT_DAY)
    subvolume.ensure_trashed(pool.layout, pool.project, pool.x)
    facts = observe_subvolumes(pool.layout, pool.project)
    assert set(facts.branches) == {pool.root} and set(facts.snapshots) == {restore_ref.undo_uid}
    name = names.derived_name(names.branch_object_name("shop", "x"), "undo", restore_ref.uid)
    assert facts.snapshots[restore_ref.undo_uid].snapshot == name and pool.read(restore_ref.undo_uid) == "x"


def test_a_deleted_branch_becomes_a_snapshot_once_its_restore_is_finished(pool: Pool) -> None:
    restore_ref, uid, name = pool.restore_ref(), new_uid(), SubvolumeName(pool.x)
    pool.take(restore_ref)
    pool.exchange(restore_ref)

    def keep() -> SnapshotMarker:
        return ensure_kept_as_snapshot(
            pool.layout, pool.project, name, uid, "shop-x-deleted-abcde", NEXT_DAY, "2026-02-01T00:00:00Z"
        )

    with pytest.raises(Unsafe, match="is not finished"):
        keep()
    ensure_restore_finished(pool.layout, pool.project, pool.x, NEXT_DAY)
    kept = keep()
    assert kept == keep() and kept.data.expiration_time == "2026-02-01T00:00:00Z"
    assert kept.data.generation == 2 and kept.data.opened is False
    facts = observe_subvolumes(pool.layout, pool.project)
    assert set(facts.branches) == {pool.root} and set(facts.snapshots) == {restore_ref.undo_uid, uid}


@pytest.mark.parametrize("exchanged", [False, True])
def test_a_pool_that_was_cut_off_in_a_restore_is_adopted_with_the_right_data(
    pool: Pool, exchanged: bool
) -> None:
    restore_ref, adopted = pool.restore_ref(), new_uid()
    pool.take(restore_ref)
    if exchanged:
        pool.exchange(restore_ref)
    facts = observe_subvolumes(pool.layout, pool.project)
    assert retained_branch(facts.branches, {pool.project}, "x", adopted) == pool.x
    ensure_branch_adopted(pool.layout, pool.project, pool.x, adopted, pool.settings(adopted), NEXT_DAY)
    facts = observe_subvolumes(pool.layout, pool.project)
    assert set(facts.branches) == {pool.root, adopted} and facts.unfinished == ()
    assert pool.read(adopted) == ("main" if exchanged else "x")
    assert set(facts.snapshots) == ({restore_ref.undo_uid} if exchanged else set())
    assert pool.marker(adopted).generation == 1 + exchanged


# Kills.


def killed_at(kill_at: int, effects: Path, base: Path, work: Callable[[], None]) -> bool:
    """Do the work in a process that is killed at the effect of this number; return True if it was.

    Its effects are written to the file if it is not.
    """
    child = os.fork()
    if not child:
        try:
            counter = EffectCounter(str(kill_at))
            commands = logging.getLogger("dbranch.command")
            commands.setLevel(logging.INFO)
            commands.addHandler(counter)

            def hook(event: str, args: tuple[Any, ...]) -> None:
                if is_effect(event, args, f"{base}/") and str(args[0]) != str(effects):
                    counter.count(f"{event} {args[0]!r}")

            sys.addaudithook(hook)
            work()
            seen = list(counter.effects)
            effects.write_text("\n".join(seen))
            os._exit(0)
        except BaseException:  # noqa: BLE001 - whatever it is, the parent says it
            effects.write_text(traceback.format_exc())
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or status == 0, effects.read_text()
    return killed


def test_kills_at_every_effect_of_a_restore(pool: Pool, tmp_path: Path, soak: bool) -> None:
    """Taken, exchanged, kept: whoever comes after the kill finds out how far it was, and goes on or cancels."""
    base, effects = pool.layout.base, tmp_path / "effects"
    said = "x"

    def attempt(kill_at: int, cancels: bool) -> bool:
        nonlocal said
        before, restore_ref = pool.marker(pool.x), pool.restore_ref()

        def work() -> None:
            if pool.marker(pool.x).restore != restore_ref:
                pool.take(restore_ref)
                pool.write(pool.x, f"restore {kill_at} {cancels}", SubvolumeKind.RESTORE)
                pool.exchange(restore_ref)
            pool.keep()

        killed = killed_at(kill_at, effects, base, work)
        # At no moment is there no data, and it can always be said what is beside it.
        after = pool.marker(pool.x)
        assert pool.state() is not VolumeState.UNCLEAR
        done = after.restore == restore_ref
        assert after.generation == before.generation + done
        if cancels and not done:
            ensure_restore_destroyed(pool.layout, pool.project, pool.x)
        else:
            work()
        facts = observe_subvolumes(pool.layout, pool.project)
        assert facts.unfinished == () and set(facts.branches) == {pool.root, pool.x}
        if cancels and not done:
            assert restore_ref.undo_uid not in facts.snapshots and pool.read(pool.x) == said
            return killed
        assert pool.read(restore_ref.undo_uid) == said and btrfs.is_read_only(pool.path(restore_ref.undo_uid))
        assert facts.snapshots[restore_ref.undo_uid].data.generation == before.generation
        said = pool.read(pool.x)
        assert said == f"restore {kill_at} {cancels}"
        subvolume.ensure_trashed(pool.layout, pool.project, restore_ref.undo_uid)
        subvolume.ensure_trash_emptied(pool.layout, pool.project)
        return killed

    assert not attempt(0, cancels=False)
    seen = effects.read_text().splitlines()
    assert any("--exchange" in effect for effect in seen) and len(seen) > 10, seen
    points = range(1, len(seen) + 1)
    decisive = [
        number
        for number, effect in enumerate(seen, 1)
        if any(word in effect for word in ("mv ", "property set", "rename"))
    ]
    tried = points if soak else sorted({*decisive, *random.sample(points, 3)})
    kills = sum(attempt(point, cancels) for point in tried for cancels in (False, True))
    print(f"{len(seen)} effects of a restore, {kills} kills")
    assert kills >= len(tried)


# Both Postgres at once.


def start_beside(node: Node, branch: str, name: str) -> Endpoint:
    """Start a Postgres on what is prepared beside the branch's data."""
    slot.ensure_slot(node.layout, name, OWNER)
    mounting.bind_mount(node.layout.restore(node.project, branch), node.layout.data(name))
    node.run_script(name, read_slot_start())
    marker = marker_at(node.layout.restore(node.project, branch))
    assert isinstance(marker, Marker)
    endpoint = Endpoint(name, names.branch_port(branch), marker.superuser, marker.major)
    assert await_accepting(node.layout, endpoint, 30), node.stderr_of(name)
    return endpoint


class Writer(threading.Thread):
    """Inserts rows, and counts those that were acknowledged."""

    def __init__(self, node: Node, endpoint: Endpoint) -> None:
        super().__init__(daemon=True)
        self._node, self._endpoint = node, endpoint
        self.acknowledged, self.begun, self._stopping = 0, threading.Event(), threading.Event()

    def run(self) -> None:
        with (
            suppress(psycopg.Error),
            owner_session(self._node.layout, self._endpoint, "dbranch") as connection,
        ):
            while not self._stopping.is_set():
                connection.execute("insert into item values (%s, repeat('x', 300))", [self.acknowledged + 1])
                self.acknowledged += 1
                if self.acknowledged == 200:
                    self.begun.set()

    def stop(self) -> int:
        self._stopping.set()
        self.join()
        return self.acknowledged


@contextmanager
def writing(pool: Pool) -> Iterator[tuple[Endpoint, Writer]]:
    """Run Postgres on the branch, to which a client writes, and on the root with 1,000 rows."""
    node = pool.node
    old = node.start_postgres(pool.x)
    sql(node, old, "create table item (id int primary key, filler text)")
    source = node.start_postgres(pool.root)
    sql(node, source, "create table item as select generate_series(1, 1000) as id", "checkpoint")
    writer = Writer(node, old)
    writer.start()
    try:
        assert writer.begun.wait(30)
        yield old, writer
    finally:
        writer.stop()


def check_whole(node: Node, endpoint: Endpoint, data: Path) -> None:
    """Compare every index with its table, and after a shutdown every page with its checksum."""
    programs = postgres_directory()
    subprocess.run(
        [
            *(programs / "pg_amcheck", "--all", "--install-missing", "--heapallindexed"),
            *("-h", node.layout.run(endpoint.slot), "-p", str(endpoint.port), "-U", "postgres"),
        ],
        check=True,
    )
    node.stop_postgres(endpoint.slot)
    subprocess.run(
        [programs / "pg_checksums", "--check", "-D", data / PGDATA], check=True, capture_output=True
    )


def test_both_postgres_run_across_the_exchange(pool: Pool) -> None:
    node, layout, restore_ref = pool.node, pool.layout, pool.restore_ref()
    with writing(pool) as (old, writer):
        pool.take(restore_ref)
        new = start_beside(node, pool.x, "beside")
        _exchange_under_writes(pool, restore_ref, old, new, writer)
    count = "select count(*) from item"
    acknowledged = writer.acknowledged
    assert sql(node, old, count) == [(acknowledged,)] and sql(node, new, count) == [(2000,)]
    check_whole(node, old, pool.path(pool.x, SubvolumeKind.RESTORE))
    slot.ensure_slot_removed(layout, old.slot)
    assert pool.keep()
    check_whole(node, new, pool.path(pool.x))
    # What it was comes back whole, with every row that was acknowledged before and behind the exchange.
    slot.ensure_slot_removed(layout, new.slot)
    pool.restore(pool.restore_ref(), restore_ref.undo_uid)
    restarted = node.start_postgres(pool.x)
    assert sql(node, restarted, count) == [(acknowledged,)]
    check_whole(node, restarted, pool.path(pool.x))


def _exchange_under_writes(
    pool: Pool, restore_ref: RestoreRef, old: Endpoint, new: Endpoint, writer: Writer
) -> None:
    node, layout = pool.node, pool.layout

    def roots() -> tuple[str, str]:
        old_root, new_root = (mounts_at(layout.data(each.slot))[-1].root for each in (old, new))
        return old_root, new_root

    assert roots() == (f"/{pool.x}", f"/.restore-{pool.x}")
    # Neither can be destroyed or kept while a Postgres has it.
    with pytest.raises(Busy):
        ensure_restore_destroyed(layout, pool.project, pool.x)
    pool.exchange(restore_ref)
    assert roots() == (f"/.restore-{pool.x}", f"/{pool.x}")
    with pytest.raises(Busy):
        pool.keep()
    # Each goes on with the data that it had.
    before = writer.acknowledged
    sql(node, new, "insert into item select generate_series(1001, 2000)")
    eventually(lambda: writer.acknowledged >= before + 200)


def test_an_old_marker_is_read_and_its_branch_restored(pool: Pool) -> None:
    """Data of an earlier release has no generation: it is the first."""
    path = pool.path(pool.x) / MARKER
    raw = json.loads(render_marker(pool.marker(pool.x)))
    for key in ("generation", "lineage", "quiet", "expiration_time", "verifiers", "verifiers_of", "image"):
        del raw[key]
    del raw["origin"]["generation"]
    path.write_text(json.dumps({**raw, "of_a_later_release": 1}))
    restore_ref = pool.restore_ref()
    assert pool.take(restore_ref).generation == 2
    pool.exchange(restore_ref)
    pool.keep()
    kept = json.loads((pool.path(restore_ref.undo_uid) / MARKER).read_text())
    assert (kept["generation"], kept["of_a_later_release"], kept["kind"]) == (1, 1, "snapshot")
