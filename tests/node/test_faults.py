"""A machine that is not as it was left: images, loop devices and mounts under the agent's feet. The project says
what is the matter, another one on the same node goes on, and its deletion ends.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from tests.node.agent_life import PODS, PROJECTS
from tests.node.machine import Node, unmount
from tests.node.world import ROOT, World

from dbranch.agent.linux.loops import loops_of, loops_of_deleted
from dbranch.agent.linux.mounts import mounts_at, read_mounts
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.pool import image
from dbranch.agent.server import Readiness
from dbranch.agent.status import failed_pool_finding
from dbranch.api.conditions import Reason
from dbranch.api.errors import Busy


def run(*argv: object) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout.strip()


def says(world: World) -> tuple[str, str]:
    """Reason and message of the project's storage."""
    step = (world.api.get(f"{PROJECTS}/{world.name}") or {})["status"]["node"]["storage"]
    return step["reason"], step["message"]


def switch(world: World, state: str) -> None:
    world.api.merge(f"{PROJECTS}/{world.name}", {"spec": {"state": state}})


@pytest.fixture
def other(world: World) -> World:
    """A second project of the node, which goes on whatever happens to the first."""
    other = world.for_project("other")
    other.make_project()
    other.run_agent()
    other.sql("main", "create table item as select generate_series(1, 100) as id")
    return other


def goes_on(other: World) -> None:
    reason = other.branch("main")["status"]["node"]["postgres"]["reason"]
    assert (reason, says(other)[0]) == ("Accepting", "PoolMounted")
    assert other.sql("main", "select count(*) from item") == [(100,)]


def ends(world: World, project: str, other: World) -> None:
    """The project's deletion ends, and leaves nothing of it on the node."""
    file, point = world.node.layout.image(project), world.node.layout.pool(project)
    world.delete_project()
    assert world.api.get(f"{PROJECTS}/{world.name}") is None
    assert not file.exists() and not point.exists() and mounts_at(point) == ()
    assert loops_of_deleted(file) == ()
    # Of the other one: its branch's pod; the slot that waits is nobody's.
    assert len(world.pods()) == 1
    goes_on(other)


def test_an_image_deleted_under_its_mount(world: World, other: World) -> None:
    project = world.make_project()
    world.run_agent()
    world.node.layout.image(project).unlink()
    world.run_rounds()
    reason, message = says(world)
    assert reason == "PoolLost" and "is missing" in message
    assert len(loops_of_deleted(world.node.layout.image(project))) == 1
    # What runs goes on, on a file without a name; nothing is made in its place.
    assert world.sql("main", "select 1") == [(1,)] and not world.node.layout.image(project).exists()
    goes_on(other)
    ends(world, project, other)


def test_an_image_deleted_under_its_mount_is_copied_back_by_hand(world: World) -> None:
    """As docs/storage.md says it."""
    project = world.make_project()
    world.run_agent()
    world.sql("main", "create table item as select generate_series(1, 1000) as id")
    file, point = world.node.layout.image(project), world.node.layout.pool(project)
    file.unlink()
    (gone,) = loops_of_deleted(file)
    run("fsfreeze", "--freeze", point)
    try:
        run("dd", f"if={gone.path}", f"of={file}", "bs=16M", "conv=sparse,fsync")
    finally:
        run("fsfreeze", "--unfreeze", point)
    world.run_rounds()
    # Its image is there, and another one is mounted.
    assert says(world)[0] == "AttachFailed"
    switch(world, "Stopped")
    world.run_agent()
    assert loops_of(file) == () == loops_of_deleted(file)
    switch(world, "Running")
    world.run_agent()
    assert world.sql("main", "select count(*) from item") == [(1000,)]
    world.assert_consistent(project, running=1, stored=1)


def test_a_truncated_image(world: World, other: World) -> None:
    project = world.make_project()
    world.run_agent()
    file = world.node.layout.image(project)
    os.truncate(file, 128 * 2**20)
    world.run_rounds()
    reason, message = says(world)
    # It may have got longer since, by what was written behind its end.
    assert reason == "PoolDamaged" and "its filesystem 268435456: its end is lost" in message
    assert file.stat().st_size == 128 * 2**20, "what was lost is not covered up with zeros"
    switch(world, "Stopped")
    world.run_rounds()
    switch(world, "Running")
    world.run_rounds()
    assert says(world)[0] == "PoolDamaged"
    goes_on(other)
    ends(world, project, other)


NEEDLE = b"a-needle-in-a-stack-of-blocks."


def test_flipped_bytes_of_data(world: World, other: World) -> None:
    project = world.make_project()
    world.run_agent()
    world.sql(
        "main",
        f"create table struck as select repeat('{NEEDLE.decode()}', 40) as text from generate_series(1, 100)",
    )
    world.sql("main", "create table whole as select generate_series(1, 100) as id")
    switch(world, "Stopped")
    world.run_agent()
    file = world.node.layout.image(project)
    assert flip(file, NEEDLE) > 0
    switch(world, "Running")
    world.run_agent()
    assert world.sql("main", "select count(*) from whole") == [(100,)]
    with pytest.raises(psycopg.Error):
        world.sql("main", "select count(*) from struck where text like '%x%'")
    world.run_rounds()
    reason, message = says(world)
    assert reason == "PoolDamaged" and "btrfs scrub" in message
    # Not Ready, and no crash loop: what can be read is.
    pods = [pod["metadata"]["uid"] for pod in world.api.find(PODS)]
    world.run_rounds()
    assert [pod["metadata"]["uid"] for pod in world.api.find(PODS)] == pods
    assert world.sql("main", "select count(*) from whole") == [(100,)]
    goes_on(other)
    # A person has looked: the counts are reset.
    run("btrfs", "device", "stats", "--reset", world.node.layout.pool(project))
    world.run_rounds()
    assert says(world)[0] == "PoolMounted"
    ends(world, project, other)


def flip(file: Path, needle: bytes) -> int:
    """Flips a byte in each place where the (sparse) image has the needle; their number."""
    flipped = 0
    with file.open("r+b", buffering=0) as handle:
        end = at = 0
        while True:
            try:
                at = os.lseek(handle.fileno(), end, os.SEEK_DATA)
            except OSError as error:
                assert error.errno == errno.ENXIO
                return flipped
            end = os.lseek(handle.fileno(), at, os.SEEK_HOLE)
            block = os.pread(handle.fileno(), end - at, at)
            found = block.find(needle)
            while found >= 0:
                os.pwrite(handle.fileno(), bytes([block[found] ^ 1]), at + found)
                flipped += 1
                found = block.find(needle, found + 1)


def test_flipped_bytes_of_metadata(world: World, other: World) -> None:
    project = world.make_project()
    world.run_agent()
    switch(world, "Stopped")
    world.run_agent()
    file = world.node.layout.image(project)
    # All but the superblocks at 64 KiB and 64 MiB.
    with file.open("r+b", buffering=0) as handle:
        for at in (*range(1, 64), *range(65, 256)):
            handle.seek(at * 2**20)
            handle.write(b"\xaa" * 2**20)
    switch(world, "Running")
    for _ in range(2):
        world.run_rounds()
        reason, message = says(world)
        assert reason == "AttachFailed" and "mount failed" in message
    assert read_mounts_of(world, project) == []
    goes_on(other)
    ends(world, project, other)


def read_mounts_of(world: World, project: str) -> list[str]:
    return [mount.source for mount in mounts_at(world.node.layout.pool(project))]


def test_a_copied_image_with_the_same_filesystem(world: World, other: World) -> None:
    """As a restore of the other's image by hand: kernels mount the second one apart, or refuse it."""
    project = world.make_project()
    world.run_agent()
    switch(world, "Stopped")
    world.run_agent()
    of_other = str((other.api.get(f"{PROJECTS}/other") or {})["metadata"]["uid"])
    run("sync", "-f", world.node.layout.pool(of_other))
    shutil.copyfile(world.node.layout.image(of_other), world.node.layout.image(project))
    switch(world, "Running")
    world.run_rounds()
    reason, message = says(world)
    assert reason == "PoolLost" and "holds filesystem" in message
    # Also where it passes for its own.
    uuid = (other.api.get(f"{PROJECTS}/other") or {})["status"]["node"]["poolUUID"]
    world.api.merge(f"{PROJECTS}/shop", {"status": {"node": {"poolUUID": uuid}}})
    world.run_rounds()
    assert says(world)[0] in ("PoolMounted", "AttachFailed")
    here, there = world.node.layout.pool(project), world.node.layout.pool(of_other)
    if says(world)[0] == "PoolMounted":
        (here / "mine").write_text("")
    assert not (there / "mine").exists()
    devices = {mount.source for point in (here, there) for mount in mounts_at(point)}
    assert len(devices) == len(mounts_at(here)) + 1
    goes_on(other)
    ends(world, project, other)


def test_devices_that_others_attached(world: World) -> None:
    project = world.make_project()
    world.run_agent()
    file = world.node.layout.image(project)
    switch(world, "Stopped")
    world.run_agent()
    theirs = run("losetup", "--find", "--show", file)
    switch(world, "Running")
    world.run_agent()
    assert [loop.path for loop in loops_of(file)] == [theirs] == read_mounts_of(world, project)
    world.assert_consistent(project, running=1, stored=1)
    switch(world, "Stopped")
    world.run_agent()
    assert loops_of(file) == ()
    two = [run("losetup", "--find", "--show", file) for _ in range(2)]
    switch(world, "Running")
    for _ in range(2):
        world.run_rounds()
        reason, message = says(world)
        assert reason == "AttachFailed" and all(device in message for device in two)
        assert read_mounts_of(world, project) == [] and len(loops_of(file)) == 2
    run("losetup", "--detach", two[0])
    world.run_agent()
    assert says(world)[0] == "PoolMounted" and read_mounts_of(world, project) == [two[1]]
    world.assert_consistent(project, running=1, stored=1)


def test_something_else_at_the_mount_point(world: World) -> None:
    project = world.make_project()
    world.run_agent()
    switch(world, "Stopped")
    world.run_agent()
    point = world.node.layout.pool(project)
    point.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=1M", "theirs", point)
    switch(world, "Running")
    world.run_rounds()
    reason, message = says(world)
    assert reason == "AttachFailed" and "theirs" in message and len(mounts_at(point)) == 1
    unmount(str(point))
    world.run_agent()
    world.assert_consistent(project, running=1, stored=1)


def test_a_pool_that_somebody_works_in_is_not_stopped_and_says_so(world: World) -> None:
    project = world.make_project()
    world.run_agent()
    point = world.node.layout.pool(project)
    holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, cwd=point)
    try:
        switch(world, "Stopped")
        for _ in range(5):
            world.run_rounds()
            if says(world)[0] == "Pending":
                break
        reason, message = says(world)
        assert reason == "Pending" and "busy" in message and len(mounts_at(point)) == 1
    finally:
        holder.kill()
        holder.wait()
    world.run_agent()
    assert says(world)[0] == "Stopped" and mounts_at(point) == ()


def test_no_loop_device_left(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left() -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(image, "free_loop", none_left)
    with pytest.raises(Busy, match="no loop device is available") as caught:
        node.ensure_pool()
    step = failed_pool_finding(caught.value, "shop")
    assert step.reason == Reason.ATTACH_FAILED and "losetup --list" in step.message
    monkeypatch.undo()
    node.ensure_pool()


# A process whose mounts nobody else sees.
ALONE = ("unshare", "--mount", "--propagation", "private")
BARE_DEV = """
set -e
mount -t tmpfs -o mode=755 none /dev
mknod /dev/null c 1 3; mknod /dev/zero c 1 5; mknod /dev/urandom c 1 9; ln -s /proc/self/fd /dev/fd
exec "$@"
"""
MAKE_POOL = """
import sys
from pathlib import Path
from dbranch.effect import pool
from dbranch.linux.loops import loops_of
from dbranch.plan.layout import Layout
layout = Layout(Path(sys.argv[1]))
pool.ensure_pool(layout, sys.argv[2], 2**28, None, None)
print([loop.path for loop in loops_of(layout.image(sys.argv[2]))], list(map(str, Path('/dev').glob('loop*'))))
pool.ensure_pool_down(layout, sys.argv[2])
"""


def test_nodes_of_devices_that_are_missing_are_made(node: Node) -> None:
    words = (
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        BARE_DEV,
        "sh",
        "env",
        f"PYTHONPATH={ROOT / 'operator'}",
    )
    said = run(*words, sys.executable, "-c", MAKE_POOL, node.layout.base, node.project)
    assert said.count("/dev/loop") >= 3 and "/dev/loop-control" in said
    assert loops_of(node.layout.image(node.project)) == ()


def lack(node: Node, *within: str) -> str:
    """What a readiness in a process of its own says."""
    look = (
        "import sys; from pathlib import Path; from dbranch.plan.layout import Layout\n"
        "from dbranch.run.agent_ready import Readiness; from dbranch.run.agent_metrics import AgentMetrics\n"
        "readiness = Readiness(Layout(Path(sys.argv[1])), AgentMetrics()); readiness.started.set()\n"
        "print(readiness.lack())"
    )
    return run(
        *within, "env", f"PYTHONPATH={ROOT / 'operator'}", sys.executable, "-c", look, node.layout.base
    )


@contextmanager
def shared(point: Path) -> Iterator[None]:
    run("mount", "--bind", point, point)
    try:
        run("mount", "--make-shared", point)
        yield
    finally:
        unmount(str(point))


def test_an_agent_is_ready_only_where_mounts_and_flags_work(node: Node) -> None:
    with shared(node.layout.base):
        assert lack(node) == "None"
        assert "do not reach the node" in lack(node, *ALONE)
        unflagged = lack(node, "setpriv", "--bounding-set", "-linux_immutable")
        assert "cannot be made immutable" in unflagged
        readiness = Readiness(node.layout, AgentMetrics())
        server = readiness.serve(port=0)
        try:
            at = f"http://127.0.0.1:{server.server_port}"
            url = f"{at}/readyz"
            with pytest.raises(urllib.error.HTTPError, match="503"):
                urllib.request.urlopen(url, timeout=5)
            readiness.started.set()
            with urllib.request.urlopen(url, timeout=5) as answer:
                assert answer.read() == b"ready\n"
            with urllib.request.urlopen(f"{at}/metrics", timeout=5) as answer:
                assert b"dbranch_agent_warm_slots_desired 0.0" in answer.read()
        finally:
            server.shutdown()


def postgres_finding(world: World, branch: str) -> dict[str, str]:
    node = world.branch(branch)["status"].get("node") or {}
    return node.get("postgres") or {}


def test_binds_that_do_not_reach_the_pod_are_said(world: World) -> None:
    project = world.make_project()
    world.run_agent()
    world.make_branch("unseen", "main")
    alone = world.start_agent(0, 10000, within=ALONE)
    try:
        until = time.monotonic() + 30
        while (world.branch("unseen")["status"].get("node", {}).get("postgres") or {}).get(
            "reason"
        ) != "MountNotPropagated":
            assert time.monotonic() < until, world.branch("unseen")["status"]
            time.sleep(0.2)
    finally:
        alone.kill()
        alone.communicate()
    message = world.branch("unseen")["status"]["node"]["postgres"]["message"]
    assert "Bidirectional" in message
    # Restarted as it should be, it mends that.
    world.run_agent()
    world.assert_consistent(project, running=2, stored=2)


def test_two_agents_at_once(world: World, soak: bool) -> None:
    """Both live the whole life: never two devices, two mounts or two binds of one thing."""
    for number in range(10 if soak else 1):
        project = world.make_project()
        watched = Watched(world, project)
        watched.together()
        world.assert_consistent(project, running=1, stored=1)
        world.sql("main", "create table item as select generate_series(1, 100) as id")
        for name in ("a", "b"):
            world.make_branch(f"{name}{number}", "main")
        watched.together()
        world.assert_consistent(project, running=3, stored=3)
        assert world.sql(f"b{number}", "select count(*) from item") == [(100,)]
        world.set(f"a{number}", state="Stopped")
        watched.together()
        world.delete_project(watched.together)
        assert not world.node.layout.image(project).exists() and world.api.find(PODS) == []
        assert list(world.node.layout.locks.iterdir()) == []


def test_two_agents_never_work_on_one_branch_at_once(world: World) -> None:
    """One stands still when its snapshot is clean, another one makes the same snapshot anew meanwhile: if the
    first went on with that, the branch would be a copy that nobody cleaned."""
    project = world.make_project()
    world.run_agent()
    world.sql("main", "select pg_create_physical_replication_slot('theirs', true)")
    world.make_branch("copy", "main")
    first = world.start_agent(r"~^open .*marker\.json")
    await_stopped(first, 30)
    second = world.start_agent(r"~^os\.remove .*marker\.json")
    try:
        await_stopped(second, 5)
    finally:
        for life in (first, second):
            life.send_signal(signal.SIGCONT)
            _, failed = life.communicate(timeout=60)
            assert life.returncode == 0, failed
    assert world.sql("copy", "select count(*) from pg_replication_slots") == [(0,)]
    world.assert_consistent(project, running=2, stored=2)


def await_stopped(life: subprocess.Popen[str], seconds: float) -> None:
    """Until it stands still, or is known not to."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if Path(f"/proc/{life.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return
        time.sleep(0.05)


class Watched:
    """Agents that live at once, looked at all the while."""

    def __init__(self, world: World, project: str) -> None:
        self._world, self._project = world, project

    def together(self) -> None:
        lives = [self._world.start_agent() for _ in range(2)]
        layout = self._world.node.layout
        while any(life.poll() is None for life in lives):
            assert len(loops_of(layout.image(self._project))) <= 1
            points = [m.point for m in read_mounts() if m.point.startswith(f"{layout.base}/")]
            assert len(points) == len(set(points)), points
            time.sleep(0.01)
        for life in lives:
            _, failed = life.communicate()
            assert life.returncode == 0, failed
