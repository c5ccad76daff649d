"""The pool: made once, adopted, grown, taken down; never made twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tests.node.machine import AS_TENANT, OWNER, SIZE, Node, new_uid

from dbranch.agent.linux.loops import loops_of
from dbranch.agent.linux.mounts import mounts_at
from dbranch.agent.machine import observe_machine
from dbranch.agent.pool import effect as pool
from dbranch.agent.pool import mount
from dbranch.agent.pool.observe import observe_pool, observe_pools
from dbranch.agent.pool.tombstone import ensure_tombstone
from dbranch.agent.slot import effect as slot
from dbranch.api.errors import Busy, CommandFailed, DbranchError, PoolDamaged, PoolLost, Unsafe
from dbranch.runtime.file_lock import held_temporary


def remove_pool(node: Node) -> None:
    """Remove the project's pool on request."""
    ensure_tombstone(node.layout, node.project)
    pool.ensure_pool_removed(node.layout, node.project)


def test_a_pool_is_created_once_and_adopted_after_that(node: Node) -> None:
    uuid = node.ensure_pool()
    facts = observe_pool(node.layout, node.project)
    assert facts.mounted and facts.uuid == uuid and len(facts.loops) == 1
    assert facts.total_bytes == SIZE == facts.image_bytes
    assert node.ensure_pool() == uuid
    assert observe_pool(node.layout, node.project).loops == facts.loops
    assert observe_pools(node.layout) == (node.project,)


def test_a_machine_keeps_its_id(node: Node) -> None:
    facts = observe_machine(node.layout)
    assert facts.machine_id == pool.ensure_base(node.layout) and facts.btrfs and facts.loop
    assert 0 < facts.host_free_bytes < facts.host_total_bytes


def test_concurrent_attempts_attach_one_device(node: Node) -> None:
    failed: list[Exception] = []

    def attempt() -> None:
        try:
            pool.ensure_pool(node.layout, node.project, SIZE, None, None)
        except (DbranchError, OSError) as error:
            failed.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(loops_of(node.layout.image(node.project))) == 1
    assert len(mounts_at(node.layout.pool(node.project))) == 1


def test_an_attached_device_is_adopted_after_a_restart_of_the_node(up: Node) -> None:
    before = observe_pool(up.layout, up.project).loops
    subprocess.run(["umount", str(up.layout.pool(up.project))], check=True)
    up.ensure_pool()
    assert observe_pool(up.layout, up.project).loops == before


def test_growing_enlarges_each_part_that_is_smaller(up: Node) -> None:
    larger = SIZE + 64 * 2**20
    # As if a reconcile was cut off after it enlarged the image.
    os.truncate(up.layout.image(up.project), larger)
    pool.ensure_pool(up.layout, up.project, larger, up.pool_uuid, None)
    assert observe_pool(up.layout, up.project).total_bytes == larger
    pool.ensure_pool(up.layout, up.project, SIZE, up.pool_uuid, None)
    assert observe_pool(up.layout, up.project).total_bytes == larger


def test_taking_a_pool_down_and_removing_it_leaves_nothing(up: Node) -> None:
    image = up.layout.image(up.project)
    pool.ensure_pool_down(up.layout, up.project)
    facts = observe_pool(up.layout, up.project)
    assert facts.image_exists and not facts.mounted and facts.loops == ()
    assert not up.layout.pool(up.project).exists()
    pool.ensure_pool_down(up.layout, up.project)
    # Nothing goes without the request for it.
    pool.ensure_pool_removed(up.layout, up.project)
    assert image.exists()
    remove_pool(up)
    assert not image.exists() and not up.layout.pool(up.project).exists()
    remove_pool(up)


def test_an_empty_image_file_is_completed(node: Node) -> None:
    """A reconcile that is cut off between creating the file and setting its size leaves such a file."""
    pool.ensure_base(node.layout)
    node.layout.image(node.project).touch()
    node.ensure_pool()
    facts = observe_pool(node.layout, node.project)
    assert facts.mounted and facts.image_bytes == SIZE


def test_a_removal_that_was_requested_leaves_another_image_of_that_name_alone(up: Node) -> None:
    layout, image = up.layout, up.layout.image(up.project)
    pool.ensure_pool_down(layout, up.project)
    ensure_tombstone(layout, up.project)
    image.rename(image.with_suffix(".away"))
    pool.ensure_pool(layout, up.project, SIZE, None, None)
    pool.ensure_pool_removed(layout, up.project)
    assert image.exists() and not layout.tombstone(up.project).exists()


def test_a_foreign_mount_at_the_place_of_a_pool_is_left_alone(up: Node) -> None:
    layout, point = up.layout, up.layout.pool(up.project)
    pool.ensure_pool_down(layout, up.project)
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)
    with pytest.raises(Unsafe, match="none mounted, which is not the pool"):
        pool.ensure_pool_down(layout, up.project)
    assert len(mounts_at(point)) == 1


def test_a_pool_in_use_stays(up: Node) -> None:
    branch = up.create_root()
    slot.ensure_slot(up.layout, "slot-a", OWNER)
    slot.ensure_bound(up.layout, "slot-a", up.project, branch)
    with pytest.raises(Busy, match="slot-a"):
        remove_pool(up)
    assert observe_pool(up.layout, up.project).mounted


def test_a_lost_pool_is_never_created_again(up: Node) -> None:
    pool.ensure_pool_down(up.layout, up.project)
    image = up.layout.image(up.project)
    aside = image.with_suffix(".aside")
    image.rename(aside)
    with pytest.raises(PoolLost, match="missing"):
        up.ensure_pool()
    assert not image.exists()
    image.write_bytes(b"\0" * SIZE)
    with pytest.raises(PoolDamaged):
        up.ensure_pool()
    image.unlink()
    aside.rename(image)
    up.ensure_pool()


def test_another_filesystem_or_machine_is_rejected(up: Node) -> None:
    with pytest.raises(PoolLost, match="holds filesystem"):
        pool.ensure_pool(up.layout, up.project, SIZE, "00000000-0000-0000-0000-000000000000", None)
    with pytest.raises(PoolLost, match="disk"):
        pool.ensure_pool(up.layout, up.project, SIZE, up.pool_uuid, "another-machine")


def test_a_copied_image_never_mixes_with_the_other(node: Node) -> None:
    """Two projects with one filesystem UUID: some kernels mount the second separately, others refuse it."""
    uuid = node.ensure_pool()
    copy = Node(node.layout)
    subprocess.run(["sync", "-f", str(node.layout.pool(node.project))], check=True)
    shutil.copyfile(node.layout.image(node.project), node.layout.image(copy.project))
    with suppress(CommandFailed):
        pool.ensure_pool(node.layout, copy.project, SIZE, uuid, None)
        (node.layout.pool(copy.project) / "theirs").write_text("")
    assert observe_pool(node.layout, node.project).mounted
    assert not (node.layout.pool(node.project) / "theirs").exists()


def test_a_slow_mount_holds_up_no_other_project(
    node: Node, monkeypatch: pytest.MonkeyPatch, threads: ThreadPoolExecutor
) -> None:
    other = replace(node, project=new_uid())
    mounting, go_on = threading.Event(), threading.Event()
    run_command = mount.run

    def replay_log(argv: list[object]) -> str:
        if str(node.project) in str(argv[-1]):
            mounting.set()
            assert go_on.wait(30)
        return run_command(argv)

    monkeypatch.setattr(mount, "run", replay_log)
    slow = threads.submit(node.ensure_pool)
    try:
        assert mounting.wait(30)
        other_pool = threads.submit(other.ensure_pool)
        other_pool.result(20)
        pool.ensure_pool_down(node.layout, other.project)
        # The same pool is not touched meanwhile.
        with (
            pytest.raises(Busy),
            held_temporary(node.layout.pool_lock(node.project), timeout=0),
        ):
            pass
    finally:
        go_on.set()
    slow.result(30)
    assert observe_pool(node.layout, node.project).mounted
    assert list(node.layout.locks.iterdir()) == []


def test_nobody_on_the_node_gets_into_a_slot(node: Node) -> None:
    slot.ensure_slot(node.layout, "slot-a", OWNER)
    # As release 0.1.0 made it.
    node.layout.slots.chmod(0o711)
    paths = node.layout.wake("slot-a"), node.layout.run("slot-a"), node.layout.data("slot-a")
    assert all(tenant_reaches(path) for path in paths)
    pool.ensure_base(node.layout)
    assert not any(tenant_reaches(path) for path in paths)


def tenant_reaches(path: Path) -> bool:
    """True if a user of the node with the user ID of a Postgres pod reaches the path."""
    return subprocess.run([*AS_TENANT, "test", "-e", path], check=False).returncode == 0
