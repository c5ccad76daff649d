"""What a tenant writes into its slot takes nothing of the node's disk, whatever is done to the slot meanwhile."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from tests.node.machine import OWNER, Node, unmount
from tests.node.test_tenant import as_tenant

from dbranch.agent.linux.mounts import mounts_at, read_mounts
from dbranch.agent.pool import effect as pool
from dbranch.agent.postgres.session import read_server_version
from dbranch.agent.slot import effect as slot
from dbranch.agent.slot.observe import observe_slots
from dbranch.agent.volume import effect as subvolume
from dbranch.api.errors import Busy

MIB = 2**20

# Every way to take room: blocks, inodes.
FILL = """
import errno
failures = set()
def attempt(function):
    try:
        function()
    except OSError as error:
        failures.add(error.errno)
big = os.open('big', os.O_CREAT | os.O_WRONLY)
attempt(lambda: os.posix_fallocate(big, 0, 64 << 20))
attempt(lambda: [os.write(big, bytes(1 << 20)) for _ in range(64)])
attempt(lambda: [os.close(os.open(f'inode-{n}', os.O_CREAT)) for n in range(2000)])
assert failures == {errno.ENOSPC}, failures
"""


def test_a_tenant_cannot_fill_the_nodes_disk_through_its_run_directory(node: Node) -> None:
    name = "slot-full"
    slot.ensure_slot(node.layout, name, OWNER)
    as_tenant(FILL, node.layout.run(name))
    assert node.layout.run(name).stat().st_dev != node.layout.slot(name).stat().st_dev
    mount = mounts_at(node.layout.run(name))
    # A pod sees it if the filesystem that it lies on is shared, as a node's is.
    below = max(
        (m for m in read_mounts() if node.layout.slot(name).is_relative_to(m.point)),
        key=lambda m: len(m.point),
    )
    assert len(mount) == 1 and mount[0].fstype == "tmpfs" and mount[0].shared == below.shared
    options = Path("/proc/self/mountinfo").read_text().split(f" {node.layout.run(name)} ")[1].splitlines()[0]
    assert {"nosuid", "nodev", "noexec"} <= set(options.split(" ")[0].split(","))
    # Again: nothing is mounted over it, and what is in it stays.
    slot.ensure_slot(node.layout, name, OWNER)
    assert len(mounts_at(node.layout.run(name))) == 1 and (node.layout.run(name) / "big").exists()
    slot.ensure_slot_removed(node.layout, name)
    assert observe_slots(node.layout) == ()
    assert [m.point for m in read_mounts() if m.point.startswith(str(node.layout.slots))] == []


def test_a_run_directory_in_use_is_unmounted_later(node: Node) -> None:
    name = "slot-busy"
    slot.ensure_slot(node.layout, name, OWNER)
    with subprocess.Popen(["sleep", "600"], cwd=node.layout.run(name)) as holder:
        try:
            with pytest.raises(Busy):
                slot.ensure_slot_removed(node.layout, name)
            assert observe_slots(node.layout) == (name,)
        finally:
            holder.kill()
    slot.ensure_slot_removed(node.layout, name)
    assert observe_slots(node.layout) == ()


def test_a_run_directory_is_mounted_again_after_the_node_restarts(up: Node) -> None:
    branch, name = up.create_root(), "slot-again"
    endpoint = up.start_postgres(branch, name)
    up.stop_postgres(name)
    # A restart takes every mount.
    unmount(str(up.layout.data(name)))
    unmount(str(up.layout.run(name)))
    # Before the agent comes by, the disk is out of reach, too.
    with pytest.raises(AssertionError, match="Permission denied"):
        as_tenant("open('file', 'w')", up.layout.run(name))
    assert up.start_postgres(branch, name) == endpoint
    assert len(mounts_at(up.layout.run(name))) == 1
    assert (up.layout.run(name) / f".s.PGSQL.{endpoint.port}").exists()


def test_nothing_is_mounted_over_the_run_directory_of_a_postgres_that_runs(up: Node) -> None:
    """Release 0.1.0 made it a directory of the disk; its Postgres goes on, and its slot is removed as any other."""
    branch, name = up.create_root(), "slot-older"
    slot.ensure_slot(up.layout, name, OWNER)
    unmount(str(up.layout.run(name)))
    os.chown(up.layout.run(name), OWNER, OWNER)
    up.layout.run(name).chmod(0o700)
    slot.ensure_bound(up.layout, name, up.project, branch)
    endpoint = up.start_postgres(branch, name)
    assert mounts_at(up.layout.run(name)) == ()
    slot.ensure_slot(up.layout, name, OWNER)
    assert mounts_at(up.layout.run(name)) == ()
    assert read_server_version(up.layout, endpoint)
    up.stop_postgres(name)
    slot.ensure_slot_removed(up.layout, name)
    assert observe_slots(up.layout) == ()


def test_what_a_deletion_frees_is_back_on_the_disk_within_seconds(up: Node) -> None:
    """By itself btrfs takes half a minute before it begins, and again as long."""
    branch = up.create_copy(up.create_root())
    image = up.layout.image(up.project)
    filler = up.layout.branch(up.project, branch) / "filler"
    filler.write_bytes(os.urandom(150 * MIB))
    os.sync()
    full = image.stat().st_blocks * 512
    subvolume.ensure_trashed(up.layout, up.project, branch)
    subvolume.ensure_trash_emptied(up.layout, up.project)
    began, left = time.monotonic(), 0
    while image.stat().st_blocks * 512 > full - 140 * MIB:
        assert time.monotonic() - began < 25
        left = pool.ensure_trimmed(up.layout, up.project, left)
        time.sleep(0.2)
    print(f"150 MiB were back after {time.monotonic() - began:.1f} s")
    # What btrfs keeps is not trimmed again and again.
    assert pool.ensure_trimmed(up.layout, up.project, left) <= left + 64 * MIB
