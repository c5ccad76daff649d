"""The data of a restore on a real btrfs: prepared beside a branch's own, exchanged in one step, kept or destroyed."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from tests.node.machine import new_uid
from tests.node.restore_pool import COPY_NAMES, NEXT_DAY, NOW, Pool

from dbranch.agent.layout import MARKER, PGDATA, SubvolumeKind, SubvolumeName
from dbranch.agent.linux import btrfs
from dbranch.agent.linux.quotas import group_of, read_groups, subvolume_id
from dbranch.agent.volume import copies, tenant
from dbranch.agent.volume import effect as subvolume
from dbranch.agent.volume.copies import copying
from dbranch.agent.volume.marker import (
    FROM_BRANCH,
    FROM_SNAPSHOT,
    UNDO_DISCARD,
    Role,
    SnapshotMarker,
    render_marker,
)
from dbranch.agent.volume.observe import observe_subvolumes
from dbranch.agent.volume.origins.adopt import ensure_branch_adopted, retained_branch
from dbranch.agent.volume.quotas import POOL_GROUP
from dbranch.agent.volume.restore_rules import VolumeState
from dbranch.agent.volume.restores import (
    ensure_exchanged,
    ensure_old_trashed,
    ensure_restore_destroyed,
    ensure_restore_finished,
    observe_restore,
)
from dbranch.agent.volume.sizes import observe_sizes
from dbranch.agent.volume.snapshots import ensure_kept_as_snapshot, ensure_snapshot_taken
from dbranch.api import names
from dbranch.api.errors import Busy, SourceUnsafe, StorageUnclear, Unsafe


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
    assert pool.read(pool.x) == "main"


def nest(pool: Pool) -> Path:
    """Nest subvolumes in the data of `x`, one in the other; return the path of a file in the inner one, in PGDATA."""
    outer, path = pool.path(pool.x) / PGDATA / "out er", Path("out er/directory/inner/said")
    btrfs.create_subvolume(outer)
    (outer / "said").write_text("outer")
    (outer / "directory").mkdir()
    btrfs.create_subvolume(outer / "directory" / "inner")
    (pool.path(pool.x) / PGDATA / path).write_text("inner")
    return path


def test_data_with_subvolumes_nested_in_it_is_put_aside_and_comes_back_whole(pool: Pool) -> None:
    path, restore_ref, undo = nest(pool), pool.restore_ref(), pool.restore_ref()
    with pytest.raises(SourceUnsafe, match="out er is a subvolume"):
        pool.take(pool.restore_ref(), pool.x, pool.root)
    pool.restore(restore_ref)
    assert pool.read(pool.x) == "main" and not (pool.path(pool.x) / PGDATA / "out er").exists()
    kept = pool.path(restore_ref.undo_uid) / PGDATA
    pool.restore(undo, restore_ref.undo_uid)
    data = pool.path(pool.x) / PGDATA
    assert pool.read(pool.x) == "x" and (data / path).read_text() == "inner"
    assert (data / "out er" / "said").read_text() == "outer"
    # They are copies: each is charged to the branch, and what is written there does not reach the record.
    groups, parents = (
        read_groups(pool.layout.pool(pool.project)).parents,
        group_of(1, subvolume_id(data.parent)),
    )
    for nested in (data / "out er", data / "out er" / "directory" / "inner"):
        assert set(groups[group_of(0, subvolume_id(nested))]) == {parents, POOL_GROUP}
    (data / path).write_text("changed")
    assert (kept / path).read_text() == "inner"
    # Undone once more without a copy, it goes with everything that is nested in it.
    discard = pool.restore_ref(UNDO_DISCARD)
    pool.take(discard, undo.undo_uid)
    pool.exchange(discard)
    ensure_old_trashed(pool.layout, pool.project, pool.x)
    subvolume.ensure_trash_emptied(pool.layout, pool.project)
    assert pool.read(pool.x) == "main"
    facts = observe_subvolumes(pool.layout, pool.project)
    assert facts.unfinished == () and set(facts.snapshots) == {restore_ref.undo_uid, undo.undo_uid}


def test_nested_subvolumes_that_cannot_be_copied_are_said(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    nest(pool)
    restore_ref = pool.restore_ref()
    pool.restore(restore_ref)
    monkeypatch.setattr(tenant, "NESTED_LIMIT", 1)
    with pytest.raises(SourceUnsafe, match="has more than 1 subvolumes nested in it"):
        pool.take(pool.restore_ref(), restore_ref.undo_uid)

    create = btrfs.create_snapshot_at

    def fail(source: int, directory: int, name: str) -> None:
        if name == "out er":
            raise OSError(errno.ENOSPC, "No space left on device")
        create(source, directory, name)

    # A full pool is no fault of the source.
    monkeypatch.setattr(btrfs, "create_snapshot_at", fail)
    with pytest.raises(OSError, match="No space left"):
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
