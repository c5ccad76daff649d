"""Simple quotas of a pool: its groups, what they are charged with, and that none is left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.node.machine import SIZE, Node
from tests.node.test_cleaning import eventually
from tests.node.world import World

from dbranch.agent.linux import btrfs, quotas
from dbranch.agent.linux.quotas import Groups, group_of, read_groups, subvolume_id
from dbranch.agent.pool import effect as pool
from dbranch.agent.pool import mount
from dbranch.agent.pool.record import PoolRecord
from dbranch.agent.pool.records import read_record
from dbranch.agent.volume import effect as subvolume
from dbranch.agent.volume.quotas import (
    POOL_GROUP,
    create_subvolume,
    ensure_dead_groups_removed,
    ensure_quotas,
)
from dbranch.agent.volume.sizes import observe_sizes
from dbranch.api.errors import CommandFailed, Unsafe

MIB = 2**20


def path_of(node: Node) -> Path:
    return node.layout.pool(node.project)


def groups(node: Node) -> Groups:
    """Return the pool's groups after a commit."""
    btrfs.sync_and_clean(path_of(node))
    return read_groups(path_of(node))


def write(file: Path, size: int) -> None:
    """Write so many new bytes at the file's beginning, to disk."""
    with file.open("r+b" if file.exists() else "wb") as out:
        out.write(os.urandom(size))
        os.fsync(out.fileno())


def in_pool(node: Node, name: str, source: Path | None = None) -> Path:
    path = path_of(node) / name
    create_subvolume(path, source)
    return path


def numbers(node: Node) -> set[int]:
    """Return the numbers of the subvolumes that have groups, without the top of the pool."""
    return {quotas.level_and_number(group)[1] for group in groups(node).charged if group != POOL_GROUP} - {5}


def test_each_subvolume_is_charged_with_what_it_wrote_and_anybody_still_holds(up: Node) -> None:
    source = in_pool(up, "source")
    number = subvolume_id(source)
    own, kernels = group_of(1, number), group_of(0, number)
    assert groups(up).parents[kernels] == (own, POOL_GROUP) and own not in groups(up).parents
    write(source / "file", 8 * MIB)
    assert 8 * MIB <= groups(up).charged[own] < 9 * MIB
    copy = in_pool(up, "copy", source)
    of_copy = group_of(1, subvolume_id(copy))
    # A copy has written nothing yet, whatever it shares.
    assert groups(up).charged[of_copy] < MIB / 2
    write(copy / "file", 2 * MIB)
    charged = groups(up).charged
    assert 2 * MIB <= charged[of_copy] < 3 * MIB and 10 * MIB <= charged[POOL_GROUP] < 12 * MIB
    # What a tenant nests in a branch is the branch's.
    nested = copy / "nested"
    btrfs.create_subvolume(nested)
    write(nested / "file", 3 * MIB)
    assert 5 * MIB <= groups(up).charged[of_copy] < 6 * MIB
    # The source is gone, and the copy still holds 6 MiB of what it wrote.
    btrfs.destroy_subvolume(source)

    def is_gone() -> bool:
        groups(up)
        return not quotas.subvolume_exists(path_of(up), number)

    eventually(is_gone)
    ensure_dead_groups_removed(up.layout, up.project)
    assert 6 * MIB <= groups(up).charged[own] <= 8 * MIB
    btrfs.destroy_subvolume(nested)
    btrfs.destroy_subvolume(copy)

    def is_clean() -> bool:
        ensure_dead_groups_removed(up.layout, up.project)
        return numbers(up) == set()

    eventually(is_clean)
    assert set(groups(up).charged) == {POOL_GROUP, group_of(0, 5)} and groups(up).charged[POOL_GROUP] == 0


def test_many_groups_are_read_whole(up: Node) -> None:
    for number in range(150):
        in_pool(up, f"s{number}")
    read = groups(up)
    assert len(read.charged) == 2 * 150 + 2 and len(read.parents) == 150


def test_a_branch_says_what_it_wrote(up: Node) -> None:
    root = up.create_root()
    copy = up.create_copy(root)
    btrfs.sync_and_clean(path_of(up))
    of_root, of_copy = (observe_sizes(up.layout, up.project, uid) for uid in (root, copy))
    assert of_root and of_copy and of_root.written_bytes and of_copy.written_bytes
    # Of the root's files the copy shares nearly all: they are unique to none, and the root wrote them.
    assert of_root.written_bytes > of_root.logical_bytes / 2 > of_root.unique_bytes
    assert of_copy.written_bytes < of_root.written_bytes / 4
    subvolume.ensure_trashed(up.layout, up.project, copy)
    subvolume.ensure_trash_emptied(up.layout, up.project)

    def only_root_is_left() -> bool:
        ensure_dead_groups_removed(up.layout, up.project)
        return numbers(up) == {subvolume_id(up.layout.branch(up.project, root))}

    eventually(only_root_is_left)


def test_quotas_come_with_an_empty_pool_only(node: Node) -> None:
    node.pool_uuid = pool.ensure_pool(node.layout, node.project, SIZE, None, None, quotas=False)
    path = path_of(node)
    assert not quotas.simple_quotas_enabled(path) and not quotas.image_has_simple_quotas(
        node.layout.image(node.project)
    )
    branch = in_pool(node, "s")
    write(branch / "file", MIB)
    # As in a pool of release 0.1.0.
    node.ensure_pool()
    assert not quotas.simple_quotas_enabled(path)
    root = node.create_root()
    sizes = observe_sizes(node.layout, node.project, root)
    assert sizes and sizes.written_bytes is None
    ensure_dead_groups_removed(node.layout, node.project)


def test_an_agent_that_was_killed_between_filesystem_and_quotas_is_made_up_for(node: Node) -> None:
    node.pool_uuid = pool.ensure_pool(node.layout, node.project, SIZE, None, None, quotas=False)
    # Killed before the pool's group.
    quotas.enable_simple_quotas(path_of(node))
    assert POOL_GROUP not in groups(node).charged
    ensure_quotas(path_of(node))
    ensure_quotas(path_of(node))
    assert POOL_GROUP in groups(node).charged
    in_pool(node, "s")


def test_a_kernel_without_quotas_makes_pools_without_them_and_says_why_it_mounts_none_with_them(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.ensure_pool()
    assert quotas.image_has_simple_quotas(node.layout.image(node.project))
    pool.ensure_pool_down(node.layout, node.project)
    monkeypatch.setattr(quotas, "simple_quotas_supported", lambda: False)
    monkeypatch.setattr(pool, "simple_quotas_supported", lambda: False)

    def fail(*_: object) -> None:
        raise CommandFailed(["mount"], 32, "wrong fs type")

    with monkeypatch.context() as patch:
        patch.setattr(mount, "ensure_mounted", fail)
        with pytest.raises(Unsafe, match=r"has simple quotas, and kernel .* start the node with Linux 6\.7"):
            node.ensure_pool()
    other = Node(node.layout)
    try:
        other.ensure_pool()
        assert not quotas.simple_quotas_enabled(path_of(other))
    finally:
        pool.ensure_pool_down(node.layout, other.project)


def test_an_agent_with_its_few_capabilities_reports_what_a_branch_wrote(world: World) -> None:
    project = world.make_project()
    world.run_agent()
    assert world.branch("main")["status"]["node"]["writtenBytes"] > MIB
    record = read_record(world.node.layout, project)
    assert isinstance(record, PoolRecord) and record.quotas
