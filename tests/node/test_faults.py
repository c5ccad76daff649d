"""Images, loop devices and mounts that something else changed. The project reports the fault, another project on the
same node goes on, and the deletion of the project completes.
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
from tests.node.world import ROOT, AgentProcess, World

from dbranch.agent.linux.loops import loops_of, loops_of_deleted
from dbranch.agent.linux.mounts import mounts_at, read_mounts
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.pool import image
from dbranch.agent.server import Readiness
from dbranch.agent.status import failed_pool_finding
from dbranch.api.conditions import Reason
from dbranch.api.errors import Busy


def run(*argv: object) -> str:
    completed = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, f"{argv}: {completed.stderr}"
    return completed.stdout.strip()


def storage_finding(world: World) -> tuple[str, str]:
    """Return reason and message of the project's storage."""
    finding = (world.api.get(f"{PROJECTS}/{world.name}") or {})["status"]["node"]["storage"]
    return finding["reason"], finding["message"]


def set_state(world: World, state: str) -> None:
    world.api.merge(f"{PROJECTS}/{world.name}", {"spec": {"state": state}})


@pytest.fixture
def other(world: World) -> World:
    """A second project on the node, which has to go on whatever happens to the first."""
    other = world.for_project("other")
    other.make_project()
    other.run_agent()
    other.sql("main", "create table item as select generate_series(1, 100) as id")
    return other


def assert_goes_on(other: World) -> None:
    reason = other.branch("main")["status"]["node"]["postgres"]["reason"]
    assert (reason, storage_finding(other)[0]) == ("Accepting", "PoolMounted")
    assert other.sql("main", "select count(*) from item") == [(100,)]


def assert_deletable(world: World, project: str, other: World) -> None:
    """Delete the project; the deletion completes and leaves nothing of it on the node."""
    file, point = world.node.layout.image(project), world.node.layout.pool(project)
    world.delete_project()
    assert world.api.get(f"{PROJECTS}/{world.name}") is None
    assert not file.exists() and not point.exists() and mounts_at(point) == ()
    assert loops_of_deleted(file) == ()
    # Of the other one: its branch's pod; the slot that waits is nobody's.
    assert len(world.pods()) == 1
    assert_goes_on(other)


def test_an_image_deleted_under_its_mount(world: World, other: World) -> None:
    project = world.make_project()
    world.run_agent()
    world.node.layout.image(project).unlink()
    world.run_rounds()
    reason, message = storage_finding(world)
    assert reason == "PoolLost" and "is missing" in message
    assert len(loops_of_deleted(world.node.layout.image(project))) == 1
    # Postgres runs on, on a file without a name; nothing is created in its place.
    assert world.sql("main", "select 1") == [(1,)] and not world.node.layout.image(project).exists()
    assert_goes_on(other)
    assert_deletable(world, project, other)


def test_an_image_deleted_under_its_mount_is_copied_back_by_hand(world: World) -> None:
    """As docs/storage.md describes it."""
    project = world.make_project()
    world.run_agent()
    world.sql("main", "create table item as select generate_series(1, 1000) as id")
    file, point = world.node.layout.image(project), world.node.layout.pool(project)
    file.unlink()
    (loop,) = loops_of_deleted(file)
    run("fsfreeze", "--freeze", point)
    try:
        run("dd", f"if={loop.path}", f"of={file}", "bs=16M", "conv=sparse,fsync")
    finally:
        run("fsfreeze", "--unfreeze", point)
    world.run_rounds()
    # Its image exists again, but another one is mounted.
    assert storage_finding(world)[0] == "AttachFailed"
    set_state(world, "Stopped")
    world.run_agent()
    assert loops_of(file) == () == loops_of_deleted(file)
    set_state(world, "Running")
    world.run_agent()
    assert world.sql("main", "select count(*) from item") == [(1000,)]
    world.assert_consistent(project, running=1, stored=1)


def test_a_truncated_image(world: World, other: World) -> None:
    project = world.make_project()
    world.run_agent()
    file = world.node.layout.image(project)
    # What is still to be written would make the file longer again.
    run("sync", "--file-system", world.node.layout.pool(project))
    os.truncate(file, 128 * 2**20)
    world.run_rounds()
    reason, message = storage_finding(world)
    # Writes behind its end may have made it longer since.
    assert reason == "PoolDamaged" and "its filesystem 268435456: its end is lost" in message
    assert file.stat().st_size < 268435456, "the lost part was replaced by zeros"
    set_state(world, "Stopped")
    world.run_rounds()
    set_state(world, "Running")
    world.run_rounds()
    assert storage_finding(world)[0] == "PoolDamaged"
    assert_goes_on(other)
    assert_deletable(world, project, other)


NEEDLE = b"a-needle-in-a-stack-of-blocks."


def test_flipped_bytes_of_data(world: World, other: World) -> None:
    project = world.make_project()
    world.run_agent()
    world.sql(
        "main",
        f"create table struck as select repeat('{NEEDLE.decode()}', 40) as text from generate_series(1, 100)",
    )
    world.sql("main", "create table whole as select generate_series(1, 100) as id")
    set_state(world, "Stopped")
    world.run_agent()
    file = world.node.layout.image(project)
    assert flip(file, NEEDLE) > 0
    set_state(world, "Running")
    world.run_agent()
    assert world.sql("main", "select count(*) from whole") == [(100,)]
    with pytest.raises(psycopg.Error):
        world.sql("main", "select count(*) from struck where text like '%x%'")
    world.run_rounds()
    reason, message = storage_finding(world)
    assert reason == "PoolDamaged" and "btrfs scrub" in message
    # Not Ready, but no crash loop: what can be read is served.
    pods = [pod["metadata"]["uid"] for pod in world.api.find(PODS)]
    world.run_rounds()
    assert [pod["metadata"]["uid"] for pod in world.api.find(PODS)] == pods
    assert world.sql("main", "select count(*) from whole") == [(100,)]
    assert_goes_on(other)
    # A person has checked the pool and resets the counters.
    run("btrfs", "device", "stats", "--reset", world.node.layout.pool(project))
    world.run_rounds()
    assert storage_finding(world)[0] == "PoolMounted"
    assert_deletable(world, project, other)


def flip(file: Path, needle: bytes) -> int:
    """Flip a byte at each occurrence of the needle in the (sparse) image; return the number of occurrences."""
    flipped = 0
    with file.open("r+b", buffering=0) as handle:
        end = start = 0
        while True:
            try:
                start = os.lseek(handle.fileno(), end, os.SEEK_DATA)
            except OSError as error:
                assert error.errno == errno.ENXIO
                return flipped
            end = os.lseek(handle.fileno(), start, os.SEEK_HOLE)
            extent = os.pread(handle.fileno(), end - start, start)
            offset = extent.find(needle)
            while offset >= 0:
                os.pwrite(handle.fileno(), bytes([extent[offset] ^ 1]), start + offset)
                flipped += 1
                offset = extent.find(needle, offset + 1)


def test_flipped_bytes_of_metadata(world: World, other: World) -> None:
    project = world.make_project()
    world.run_agent()
    set_state(world, "Stopped")
    world.run_agent()
    file = world.node.layout.image(project)
    # All but the superblocks at 64 KiB and 64 MiB.
    with file.open("r+b", buffering=0) as handle:
        for mebibyte in (*range(1, 64), *range(65, 256)):
            handle.seek(mebibyte * 2**20)
            handle.write(b"\xaa" * 2**20)
    set_state(world, "Running")
    for _ in range(2):
        world.run_rounds()
        reason, message = storage_finding(world)
        assert reason == "AttachFailed" and "mount failed" in message
    assert mount_sources_of(world, project) == []
    assert_goes_on(other)
    assert_deletable(world, project, other)


def mount_sources_of(world: World, project: str) -> list[str]:
    return [mount.source for mount in mounts_at(world.node.layout.pool(project))]


def test_a_copied_image_with_the_same_filesystem(world: World, other: World) -> None:
    """As if the other's image was restored by hand: kernels mount the second one separately, or refuse it."""
    project = world.make_project()
    world.run_agent()
    set_state(world, "Stopped")
    world.run_agent()
    other_uid = str((other.api.get(f"{PROJECTS}/other") or {})["metadata"]["uid"])
    run("sync", "-f", world.node.layout.pool(other_uid))
    shutil.copyfile(world.node.layout.image(other_uid), world.node.layout.image(project))
    set_state(world, "Running")
    world.run_rounds()
    reason, message = storage_finding(world)
    assert reason == "PoolLost" and "holds filesystem" in message
    # Also if the status records that filesystem as its own.
    uuid = (other.api.get(f"{PROJECTS}/other") or {})["status"]["node"]["poolUUID"]
    world.api.merge(f"{PROJECTS}/shop/status", {"status": {"node": {"poolUUID": uuid}}})
    world.run_rounds()
    assert storage_finding(world)[0] in ("PoolMounted", "AttachFailed")
    copied, original = world.node.layout.pool(project), world.node.layout.pool(other_uid)
    if storage_finding(world)[0] == "PoolMounted":
        (copied / "mine").write_text("")
    assert not (original / "mine").exists()
    devices = {mount.source for point in (copied, original) for mount in mounts_at(point)}
    assert len(devices) == len(mounts_at(copied)) + 1
    assert_goes_on(other)
    assert_deletable(world, project, other)


def test_loop_devices_that_something_else_attached(world: World) -> None:
    project = world.make_project()
    world.run_agent()
    file = world.node.layout.image(project)
    set_state(world, "Stopped")
    world.run_agent()
    foreign_device = run("losetup", "--find", "--show", file)
    set_state(world, "Running")
    world.run_agent()
    assert [loop.path for loop in loops_of(file)] == [foreign_device] == mount_sources_of(world, project)
    world.assert_consistent(project, running=1, stored=1)
    set_state(world, "Stopped")
    world.run_agent()
    assert loops_of(file) == ()
    devices = [run("losetup", "--find", "--show", file) for _ in range(2)]
    set_state(world, "Running")
    for _ in range(2):
        world.run_rounds()
        reason, message = storage_finding(world)
        assert reason == "AttachFailed" and all(device in message for device in devices)
        assert mount_sources_of(world, project) == [] and len(loops_of(file)) == 2
    run("losetup", "--detach", devices[0])
    world.run_agent()
    assert storage_finding(world)[0] == "PoolMounted" and mount_sources_of(world, project) == [devices[1]]
    world.assert_consistent(project, running=1, stored=1)


def test_something_else_at_the_mount_point(world: World) -> None:
    project = world.make_project()
    world.run_agent()
    set_state(world, "Stopped")
    world.run_agent()
    point = world.node.layout.pool(project)
    point.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=1M", "theirs", point)
    set_state(world, "Running")
    world.run_rounds()
    reason, message = storage_finding(world)
    assert reason == "AttachFailed" and "theirs" in message and len(mounts_at(point)) == 1
    unmount(str(point))
    world.run_agent()
    world.assert_consistent(project, running=1, stored=1)


def test_a_pool_that_a_process_works_in_is_not_stopped_and_reports_it(world: World) -> None:
    project = world.make_project()
    world.run_agent()
    point = world.node.layout.pool(project)
    holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, cwd=point)
    try:
        set_state(world, "Stopped")
        for _ in range(5):
            world.run_rounds()
            if storage_finding(world)[0] == "Pending":
                break
        reason, message = storage_finding(world)
        assert reason == "Pending" and "busy" in message and len(mounts_at(point)) == 1
    finally:
        holder.kill()
        holder.wait()
    world.run_agent()
    assert storage_finding(world)[0] == "Stopped" and mounts_at(point) == ()


def test_no_loop_device_left(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left() -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(image, "free_loop", none_left)
    with pytest.raises(Busy, match="no loop device is available") as caught:
        node.ensure_pool()
    finding = failed_pool_finding(caught.value, "shop")
    assert finding.reason == Reason.ATTACH_FAILED and "losetup --list" in finding.message
    monkeypatch.undo()
    node.ensure_pool()


# Runs a process whose mounts no other process sees.
IN_PRIVATE_NAMESPACE = ("unshare", "--mount", "--propagation", "private")
BARE_DEV = """
set -e
mount -t tmpfs -o mode=755 none /dev
mknod /dev/null c 1 3; mknod /dev/zero c 1 5; mknod /dev/urandom c 1 9; ln -s /proc/self/fd /dev/fd
exec "$@"
"""
MAKE_POOL = """
import sys
from pathlib import Path
from dbranch.agent.layout import Layout
from dbranch.agent.linux.loops import loops_of
from dbranch.agent.pool import effect as pool
layout = Layout(Path(sys.argv[1]))
pool.ensure_pool(layout, sys.argv[2], 2**28, None, None)
print([loop.path for loop in loops_of(layout.image(sys.argv[2]))], list(map(str, Path('/dev').glob('loop*'))))
pool.ensure_pool_down(layout, sys.argv[2])
"""


def test_missing_device_nodes_are_created(node: Node) -> None:
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
    output = run(*words, sys.executable, "-c", MAKE_POOL, node.layout.base, node.project)
    assert output.count("/dev/loop") >= 3 and "/dev/loop-control" in output
    assert loops_of(node.layout.image(node.project)) == ()


def reason_not_ready(node: Node, *wrapper: str) -> str:
    """Return the readiness that an agent in a process of its own reports; `wrapper` are commands that run it."""
    script = (
        "import sys; from pathlib import Path; from dbranch.agent.layout import Layout\n"
        "from dbranch.agent.server import Readiness; from dbranch.agent.metrics import AgentMetrics\n"
        "readiness = Readiness(Layout(Path(sys.argv[1])), AgentMetrics()); readiness.started.set()\n"
        "print(readiness.reason_not_ready())"
    )
    return run(
        *wrapper, "env", f"PYTHONPATH={ROOT / 'operator'}", sys.executable, "-c", script, node.layout.base
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
        assert reason_not_ready(node) == "None"
        assert "do not reach the node" in reason_not_ready(node, *IN_PRIVATE_NAMESPACE)
        without_capability = reason_not_ready(node, "setpriv", "--bounding-set", "-linux_immutable")
        assert "cannot be made immutable" in without_capability
        readiness = Readiness(node.layout, AgentMetrics())
        server = readiness.serve(port=0)
        try:
            address = f"http://127.0.0.1:{server.server_address[1]}"
            url = f"{address}/readyz"
            with pytest.raises(urllib.error.HTTPError, match="503"):
                urllib.request.urlopen(url, timeout=5)
            readiness.started.set()
            with urllib.request.urlopen(url, timeout=5) as answer:
                assert answer.read() == b"ready\n"
            with urllib.request.urlopen(f"{address}/metrics", timeout=5) as answer:
                assert b"dbranch_agent_warm_slots_desired 0.0" in answer.read()
        finally:
            server.shutdown()


def postgres_finding(world: World, branch: str) -> dict[str, str]:
    node = world.branch(branch)["status"].get("node") or {}
    return node.get("postgres") or {}


def test_a_bind_mount_that_does_not_reach_the_pod_is_reported(world: World) -> None:
    project = world.make_project()
    world.run_agent()
    world.make_branch("unseen", "main")
    agent = world.start_agent(0, 10000, within=IN_PRIVATE_NAMESPACE)
    try:
        deadline = time.monotonic() + 30
        while (world.branch("unseen")["status"].get("node", {}).get("postgres") or {}).get(
            "reason"
        ) != "MountNotPropagated":
            assert time.monotonic() < deadline, world.branch("unseen")["status"]
            time.sleep(0.2)
    finally:
        agent.kill()
        agent.wait_for_output()
    message = world.branch("unseen")["status"]["node"]["postgres"]["message"]
    assert "Bidirectional" in message
    # An agent that is started correctly repairs that.
    world.run_agent()
    world.assert_consistent(project, running=2, stored=2, warm_have_run=False)


def test_two_agents_at_once(world: World, soak: bool) -> None:
    """Both do everything: there are never two devices, two mounts or two bind mounts of one thing."""
    for number in range(10 if soak else 1):
        project = world.make_project()
        agents = ConcurrentAgents(world, project)
        agents.run()
        world.assert_consistent(project, running=1, stored=1)
        world.sql("main", "create table item as select generate_series(1, 100) as id")
        for name in ("a", "b"):
            world.make_branch(f"{name}{number}", "main")
        agents.run()
        world.assert_consistent(project, running=3, stored=3)
        assert world.sql(f"b{number}", "select count(*) from item") == [(100,)]
        world.patch_spec(f"a{number}", state="Stopped")
        agents.run()
        world.delete_project(agents.run)
        assert not world.node.layout.image(project).exists() and world.api.find(PODS) == []
        assert list(world.node.layout.locks.iterdir()) == []


def test_two_agents_never_work_on_one_branch_at_once(world: World) -> None:
    """One is stopped when its snapshot is clean, while another takes the same snapshot again: if the first went on
    with that, the branch would be a copy that was never cleaned."""
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
            _, failed = life.wait_for_output()
            assert life.returncode == 0, failed
    assert world.sql("copy", "select count(*) from pg_replication_slots") == [(0,)]
    world.assert_consistent(project, running=2, stored=2)


def await_stopped(life: AgentProcess, seconds: float) -> None:
    """Wait until the process is stopped, for at most `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if Path(f"/proc/{life.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return
        time.sleep(0.05)


class ConcurrentAgents:
    """Two agents that run at the same time, with checks all the time."""

    def __init__(self, world: World, project: str) -> None:
        self._world, self._project = world, project

    def run(self) -> None:
        lives = [self._world.start_agent() for _ in range(2)]
        layout = self._world.node.layout
        while any(life.poll() is None for life in lives):
            assert len(loops_of(layout.image(self._project))) <= 1
            points = [m.point for m in read_mounts() if m.point.startswith(f"{layout.base}/")]
            assert len(points) == len(set(points)), points
            time.sleep(0.01)
        for life in lives:
            _, failed = life.wait_for_output(120)
            assert life.returncode == 0, failed
