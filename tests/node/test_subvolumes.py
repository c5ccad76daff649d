"""Names and owners in a pool: all that a UID owns is deleted with it, and a newer release's data is left alone."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from tests.node.agent_life import BRANCHES, NODE
from tests.node.machine import Node, new_uid
from tests.node.world import World

from dbranch.agent.context import NodeContext
from dbranch.agent.housekeeping.isolation import Isolation
from dbranch.agent.housekeeping.sweep import Sweeper
from dbranch.agent.layout import MARKER, SubvolumeKind, SubvolumeName
from dbranch.agent.linux import btrfs
from dbranch.agent.timing import ORPHAN_ROUNDS
from dbranch.agent.volume import effect as subvolume
from dbranch.agent.volume.marker import Marker, NewerMarker
from dbranch.agent.volume.observe import observe_subvolumes
from dbranch.agent.volume.sizes import observe_sizes
from dbranch.api.errors import StorageUnclear
from dbranch.kube.client import Cluster

CONTEXT = NodeContext(NODE, "node-uid", "dbranch-nodes", "dbranch")
# A kind that this release does not know.
NEWER_KIND = "future"


def make(node: Node, owner_uid: str, kind: str | None, project: str | None = None) -> Path:
    """Create an empty subvolume of this owner and kind."""
    path = node.layout.subvolume(project or node.project, SubvolumeName(owner_uid, kind))
    btrfs.create_subvolume(path)
    return path


def set_read_only(path: Path, read_only: bool = True) -> None:
    subprocess.run(["btrfs", "property", "set", path, "ro", str(read_only).lower()], check=True)


def edit_marker(path: Path, **keys: object) -> dict[str, Any]:
    """Rewrite keys of a subvolume's marker, as another release would; return all of them."""
    raw = {**json.loads((path / MARKER).read_text()), **keys}
    (path / MARKER).write_text(json.dumps(raw))
    return raw


def test_all_that_a_uid_owns_is_deleted_with_it_and_no_more(up: Node) -> None:
    root = up.create_root()
    copy = up.create_copy(root)
    for kind in (SubvolumeKind.NEW, SubvolumeKind.INIT, SubvolumeKind.RESTORE):
        make(up, copy, kind)
    make(up, root, SubvolumeKind.NEW)
    future = make(up, copy, NEWER_KIND)
    subvolume.ensure_trashed(up.layout, up.project, copy)
    facts = observe_subvolumes(up.layout, up.project)
    assert set(facts.branches) == {root} and facts.owners_of(SubvolumeKind.TRASH) == (copy,) * 4
    # A second call changes nothing.
    subvolume.ensure_trashed(up.layout, up.project, copy)
    assert observe_subvolumes(up.layout, up.project) == facts
    subvolume.ensure_trash_emptied(up.layout, up.project)
    facts = observe_subvolumes(up.layout, up.project)
    assert facts.unfinished == (SubvolumeName(copy, NEWER_KIND), SubvolumeName(root, SubvolumeKind.NEW))
    assert future.is_dir() and facts.of_newer_release == (SubvolumeName(copy, NEWER_KIND),)


def test_a_read_only_subvolume_becomes_trash_and_is_destroyed(up: Node) -> None:
    root = up.create_root()
    copy = up.create_copy(root)
    path = up.layout.branch(up.project, copy)
    nested = path / "pgdata" / "nested"
    btrfs.create_subvolume(nested)
    for read_only in (nested, path):
        set_read_only(read_only)
    with pytest.raises(OSError, match="Read-only"):
        (path / "file").touch()
    subvolume.ensure_trashed(up.layout, up.project, copy)
    (name,) = observe_subvolumes(up.layout, up.project).unfinished
    assert (name.owner_uid, name.kind) == (copy, SubvolumeKind.TRASH)
    subvolume.ensure_trash_emptied(up.layout, up.project)
    facts = observe_subvolumes(up.layout, up.project)
    assert set(facts.branches) == {root} and facts.unfinished == ()


def test_branches_that_are_deleted_together_do_not_fail_by_each_others_trash(up: Node) -> None:
    owners = [new_uid() for _ in range(8)]

    def delete_four(owner: str) -> None:
        for _ in range(4):
            make(up, owner, SubvolumeKind.NEW)
            subvolume.ensure_trashed(up.layout, up.project, owner)
            subvolume.ensure_trash_emptied(up.layout, up.project)

    with ThreadPoolExecutor(len(owners)) as threads:
        assert list(threads.map(delete_four, owners)) == [None] * len(owners)
    facts = observe_subvolumes(up.layout, up.project)
    assert facts.unfinished == () and not list(up.layout.locks.glob("trash-*"))


def test_sizes_are_of_all_that_a_branch_owns(up: Node) -> None:
    copy = up.create_copy(up.create_root())
    alone = observe_sizes(up.layout, up.project, copy)
    restore = make(up, copy, SubvolumeKind.RESTORE)
    (restore / "file").write_bytes(b"x" * 2**20)
    trash = make(up, copy, SubvolumeKind.TRASH)
    (trash / "file").write_bytes(b"x" * 2**20)
    subprocess.run(["sync", "-f", restore], check=True)
    both = observe_sizes(up.layout, up.project, copy)
    assert alone and both and both.logical_bytes - alone.logical_bytes == 2**20
    assert both.unique_bytes - alone.unique_bytes == 2**20


def test_other_files_in_a_pool_are_left_alone(up: Node) -> None:
    copy = up.create_copy(up.create_root())
    pool = up.layout.pool(up.project)
    others = [pool / "reserve", pool / f".trash-{copy}-0", pool / f"{copy}.old", pool / ".trash"]
    for path in others:
        path.write_text("")
    subvolume.ensure_trashed(up.layout, up.project, copy)
    subvolume.ensure_trash_emptied(up.layout, up.project)
    assert all(path.exists() for path in others)


def test_a_rewritten_marker_keeps_the_keys_of_others(up: Node) -> None:
    copy = up.create_copy(up.create_root())
    path = up.layout.branch(up.project, copy)
    before = edit_marker(path, future={"workers": True}, cleaned=False)
    before = edit_marker(path, origin={**before["origin"], "future": 4})
    for change in (
        Marker.with_cleaned,
        Marker.with_opened,
        lambda marker: marker.with_password_version("v2"),
    ):
        subvolume.ensure_recorded(up.layout, up.project, copy, change)
    after = json.loads((path / MARKER).read_text())
    assert after == {**before, "cleaned": True, "opened": True, "password": "v2"}
    # A copy is another branch: those keys were said of its source.
    second = up.create_copy(copy)
    assert "future" not in json.loads((up.layout.branch(up.project, second) / MARKER).read_text())


def test_what_a_newer_release_wrote_is_neither_copied_nor_rewritten_nor_destroyed(up: Node) -> None:
    root = up.create_root()
    copy = up.create_copy(root)
    path = up.layout.branch(up.project, copy)
    snapshot = make(up, root, SubvolumeKind.NEW)
    edit_marker(path, format=3)
    text = (path / MARKER).read_text()
    assert observe_subvolumes(up.layout, up.project).branches[copy] == NewerMarker(3)
    for act in (
        lambda: up.create_copy(copy),
        lambda: up.take_snapshot(root, copy),
        lambda: subvolume.ensure_settings(up.layout, up.project, copy, up.settings(copy)),
        lambda: subvolume.ensure_hba_open(up.layout, up.project, copy),
        lambda: subvolume.ensure_recorded(up.layout, up.project, copy, Marker.with_opened),
        lambda: subvolume.ensure_trashed(up.layout, up.project, copy),
    ):
        with pytest.raises(StorageUnclear, match=r"newer release of dbranch \(format 3\)"):
            act()
    assert (path / MARKER).read_text() == text
    # If it wrote only a part of what an owner has, all of it stays.
    (snapshot / MARKER).write_text('{"format": 3}')
    with pytest.raises(StorageUnclear):
        subvolume.ensure_trashed(up.layout, up.project, root)
    assert root in observe_subvolumes(up.layout, up.project).branches and snapshot.exists()


def test_an_agent_older_than_the_data_of_a_branch(world: World) -> None:
    project = world.make_project()
    world.run_agent()
    world.make_branch("copy", "main")
    world.run_agent()
    pods = [pod["metadata"]["uid"] for pod in world.pods()]
    path = world.node.layout.branch(project, world.uid("copy"))
    edit_marker(path, format=3)
    world.run_rounds()
    storage = world.branch("copy")["status"]["node"]["storage"]
    assert storage["reason"] == "StorageUnclear" and "upgrade the agent of node here" in storage["message"]
    # Its Postgres runs on, and no branch is made from it.
    assert [pod["metadata"]["uid"] for pod in world.pods()] == pods
    assert world.sql("copy", "select 1") == [(1,)]
    world.make_branch("second", "copy")
    world.run_rounds()
    assert world.branch("second")["status"]["node"]["storage"]["reason"] == "StorageUnclear"
    world.api.delete(f"{BRANCHES}/shop-second")
    world.run_rounds()
    # Its deletion waits and says why.
    world.api.delete(f"{BRANCHES}/shop-copy")
    world.run_rounds()
    world.run_rounds()
    body = world.branch("copy")
    assert body["metadata"]["finalizers"] and path.exists()
    assert body["status"]["node"]["storage"]["reason"] == "StorageUnclear"
    # As if the newer agent ran: the deletion completes.
    edit_marker(path, format=2)
    world.run_agent()
    world.assert_consistent(project, running=1, stored=1)


def test_the_sweep_takes_what_was_being_made_and_nothing_of_a_newer_release(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    project = world.make_project()
    world.run_agent()
    node, layout, cluster = world.node, world.node.layout, cast(Cluster, world.api)
    root = world.uid("main")
    orphan, newer, of_newer_kind = (f"{number}0000000-0000-4000-8000-000000000000" for number in (1, 2, 3))
    for kind in (SubvolumeKind.NEW, SubvolumeKind.INIT, SubvolumeKind.RESTORE):
        make(node, orphan, kind, project)
    (make(node, newer, None, project) / MARKER).write_text('{"format": 3}')
    make(node, newer, SubvolumeKind.NEW, project)
    make(node, of_newer_kind, NEWER_KIND, project)
    sweeper = Sweeper(cluster, layout, CONTEXT, Isolation())
    for _ in range(ORPHAN_ROUNDS - 1):
        sweeper.sweep()
    assert observe_subvolumes(layout, project).owners_of(SubvolumeKind.INIT) == (orphan,)
    for _ in range(2):
        sweeper.sweep()
    facts = observe_subvolumes(layout, project)
    # What a restore has may be all that is left of a branch.
    assert facts.owners_of(SubvolumeKind.RESTORE) == (orphan,) and facts.owners_of(SubvolumeKind.INIT) == ()
    assert facts.owners == {root, newer, orphan} and isinstance(facts.branches[root], Marker)
    assert {str(name) for name in facts.of_newer_release} == {newer, f".future-{of_newer_kind}"}
    assert facts.owners_of(SubvolumeKind.NEW) == (newer,)
    # Once each, however often it is swept.
    assert len([text for text in caplog.messages if "written by a newer release" in text]) == 2
    assert [shown.uid for shown in sweeper.orphans] == [orphan]


def test_a_snapshot_is_no_write_and_what_is_synced_is_one_at_once(up: Node) -> None:
    """Schedules go by the numbers of btrfs' transactions: that took a snapshot, and that changed a branch."""
    uids = [str(uuid.uuid4()) for _ in range(3)]
    path = make(up, uids[0], None)
    file = path / "file"
    write_synced(file, b"one")
    before = btrfs.transactions_of(path).changed
    snapshots = []
    for uid in uids[1:]:
        snapshot = up.layout.branch(up.project, uid)
        btrfs.create_snapshot(path, snapshot)
        # Its marker, flag and name.
        write_synced(snapshot / "marker", b"x")
        set_read_only(snapshot)
        btrfs.sync_and_clean(path.parent)
        snapshots.append(btrfs.transactions_of(snapshot).created)
        file.read_bytes()
        assert btrfs.transactions_of(path).changed == before <= snapshots[-1]
    write_synced(file, b"two")
    assert btrfs.transactions_of(path).changed > snapshots[1] > snapshots[0]


def write_synced(file: Path, data: bytes) -> None:
    with file.open("wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())
