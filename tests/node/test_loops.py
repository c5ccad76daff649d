"""Loop devices and mounts of a pool that somebody has changed by hand: healed where that is safe, else named."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from tests.node.machine import OWNER, Node, unmount

from dbranch.agent.linux.loops import loops_of
from dbranch.agent.linux.mounts import mounts_at
from dbranch.agent.pool import effect as pool
from dbranch.agent.pool.observe import observe_pool
from dbranch.agent.slot import effect as slot
from dbranch.agent.status import failed_pool_finding
from dbranch.api.conditions import Reason
from dbranch.api.errors import Busy, Unsafe


def run(*argv: object) -> str:
    return subprocess.run(
        [str(word) for word in argv], check=True, capture_output=True, text=True
    ).stdout.strip()


def device_of(node: Node) -> str:
    (loop,) = loops_of(node.layout.image(node.project))
    return loop.path


@pytest.fixture
def holder(up: Node) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a mount namespace of its own, which holds every mount of the moment."""
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout and process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    if process.stdin:
        process.stdin.close()


def test_a_detach_by_hand_of_a_mounted_pool_is_taken_back(up: Node) -> None:
    device = device_of(up)
    # `losetup -D` does the same to every device, also to those of other tests.
    run("losetup", "-d", device)
    assert loops_of(up.layout.image(up.project))[0].autoclear
    for _ in range(2):
        up.ensure_pool()
        (loop,) = loops_of(up.layout.image(up.project))
        assert loop.path == device and not loop.autoclear
    assert observe_pool(up.layout, up.project).mounted
    # The device does not vanish with the mount: a stopped pool is detached by the agent, as ever.
    run("umount", up.layout.pool(up.project))
    assert device_of(up) == device


def test_an_unmount_and_a_detach_by_hand_while_a_branch_is_bound(up: Node) -> None:
    branch = up.create_root()
    slot.ensure_slot(up.layout, "slot-a", OWNER)
    slot.ensure_bound(up.layout, "slot-a", up.project, branch)
    device = device_of(up)
    run("umount", up.layout.pool(up.project))
    run("losetup", "-d", device)
    up.ensure_pool()
    (loop,) = loops_of(up.layout.image(up.project))
    assert loop.path == device and not loop.autoclear
    facts = observe_pool(up.layout, up.project)
    assert facts.mounted and facts.bound_slots == ("slot-a",)
    assert (up.layout.data("slot-a") / "marker.json").exists()


def test_a_detached_device_that_only_another_namespace_holds_is_waited_for(
    up: Node, holder: subprocess.Popen[bytes]
) -> None:
    device = device_of(up)
    unmount(str(up.layout.pool(up.project)))
    run("losetup", "-d", device)
    with pytest.raises(Busy, match=f"{device} .*being detached"):
        up.ensure_pool()
    assert loops_of(up.layout.image(up.project))[0].autoclear and mounts_at(up.layout.pool(up.project)) == ()
    holder.kill()
    holder.wait()
    for _ in range(100):
        try:
            up.ensure_pool()
            break
        except Busy:
            continue
    assert observe_pool(up.layout, up.project).mounted


def test_the_devices_of_a_pool_that_is_down_may_be_detached(up: Node) -> None:
    run("umount", up.layout.pool(up.project))
    run("losetup", "-d", device_of(up))
    assert loops_of(up.layout.image(up.project)) == ()
    up.ensure_pool()
    assert observe_pool(up.layout, up.project).mounted


@pytest.mark.parametrize(
    ("options", "limits"),
    [
        (("--offset", "4096"), "from byte 4096 on"),
        (("--sizelimit", str(256 * 2**20)), "up to a size of 268435456 bytes"),
        (("--read-only",), "read-only"),
    ],
    ids=["offset", "size limit", "read-only"],
)
def test_a_device_that_shows_something_else_than_the_image_is_not_adopted(
    up: Node, options: tuple[str, ...], limits: str
) -> None:
    pool.ensure_pool_down(up.layout, up.project)
    file = up.layout.image(up.project)
    device = run("losetup", "--find", "--show", *options, file)
    with pytest.raises(Unsafe) as caught:
        up.ensure_pool()
    assert device in str(caught.value) and limits in str(caught.value)
    assert mounts_at(up.layout.pool(up.project)) == () and len(loops_of(file)) == 1
    finding = failed_pool_finding(caught.value, "shop")
    assert finding.reason == Reason.ATTACH_FAILED and f"losetup -d {device}" in finding.message[:256]
    run("losetup", "-d", device)
    up.ensure_pool()
    assert observe_pool(up.layout, up.project).mounted


def test_another_file_in_the_place_of_a_mounted_image_is_not_attached(up: Node) -> None:
    file = up.layout.image(up.project)
    device = device_of(up)
    run("sync", "-f", up.layout.pool(up.project))
    shutil.copyfile(file, file.with_suffix(".copy"))
    file.with_suffix(".copy").replace(file)
    for _ in range(2):
        with pytest.raises(Unsafe, match=f"{device} mounted, which is not of"):
            up.ensure_pool()
    # Two devices with one filesystem: the kernel could take the one for the other.
    assert (
        loops_of(file) == () and os.path.realpath(mounts_at(up.layout.pool(up.project))[0].source) == device
    )
