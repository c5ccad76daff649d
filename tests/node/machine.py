"""A base directory with a project of its own: real btrfs on real loop devices, and a real Postgres."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from dbranch.agent.layout import Layout
from dbranch.agent.linux.mounts import read_mounts
from dbranch.agent.pool import effect as pool
from dbranch.agent.postgres.session import Endpoint, await_accepting
from dbranch.agent.slot import effect as slot
from dbranch.agent.slot.scripts import read_initdb, read_slot_start
from dbranch.agent.volume import effect as subvolume
from dbranch.agent.volume.marker import BranchNames, Marker
from dbranch.agent.volume.settings import Settings
from dbranch.api import names

SIZE = 512 * 2**20
# initdb asks for the name of who runs it.
OWNER = pwd.getpwnam("nobody").pw_uid
USER = "postgres"
AS_TENANT = ("setpriv", "--reuid", str(OWNER), "--regid", str(OWNER), "--clear-groups")


def postgres_directory() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    assert found, "no Postgres on this machine: apt-get install postgresql"
    return found[-1].parent


def new_uid() -> str:
    return str(uuid.uuid4())


@dataclass
class Node:
    """A base directory of a test's own, with a project; what it starts it ends."""

    layout: Layout
    project: str = field(default_factory=new_uid)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    pool_uuid: str | None = None

    def up(self) -> str:
        self.pool_uuid = pool.ensure_pool(self.layout, self.project, SIZE, self.pool_uuid, None)
        return self.pool_uuid

    def settings(self, branch: str, **parameters: str) -> Settings:
        return Settings(USER, names.branch_port(branch), {"shared_buffers": "16MB", **parameters})

    def root(self, **parameters: str) -> str:
        """A root branch, made by the real initdb.sh."""
        branch, name = new_uid(), f"initdb-{self.project}"
        subvolume.ensure_initdb_area(self.layout, self.project, branch, OWNER)
        slot.ensure_slot(self.layout, name, OWNER)
        slot.ensure_initdb_bound(self.layout, name, self.project, branch)
        made = self.script(name, read_initdb())
        assert made.wait(120) == 0, self.said(name)
        slot.ensure_slot_removed(self.layout, name)
        subvolume.ensure_initdb_promoted(
            self.layout,
            self.project,
            branch,
            replace(
                self.settings(branch, **parameters), names=BranchNames("team", "shop", names.ROOT_BRANCH)
            ),
            "2026-01-01T00:00:00Z",
        )
        return branch

    def snapshot(self, source: str, **parameters: str) -> str:
        branch = new_uid()
        self.take(source, branch, **parameters)
        return branch

    def take(self, source: str, branch: str, **parameters: str) -> Marker:
        settings = self.settings(branch, **parameters)
        return subvolume.ensure_snapshot(
            self.layout, self.project, source, branch, settings, "2026-01-01T00:00:00Z"
        )

    def script(self, name: str, text: str) -> subprocess.Popen[bytes]:
        """A pod's script as its container runs it, unprivileged, with the slot at its place on this machine."""
        verifier = self.layout.base / "verifier"
        verifier.write_text("SCRAM-SHA-256$4096:MDAwMDAwMDAwMDAwMDAwMA==$YQ==:Yg==\n")
        script = text.replace("/verifier/verifier", str(verifier)).replace(
            "/slot", str(self.layout.slot(name))
        )
        process = subprocess.Popen(
            # A shell cannot trap what was ignored when it began, as SIGINT is under a job in the background.
            [
                *("env", "--default-signal=INT,QUIT,TERM"),
                *(*AS_TENANT, "sh", "-c", script),
            ],
            env={
                **os.environ,
                "PATH": f"{postgres_directory()}:{os.environ['PATH']}",
                "DBRANCH_USER": USER,
                "DBRANCH_DATABASE": "dbranch",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self.layout.base / f"{name}.log").open("ab"),
            cwd="/",
        )
        self.running[name] = process
        return process

    def said(self, name: str) -> str:
        """What the scripts in a slot wrote on standard error."""
        return (self.layout.base / f"{name}.log").read_text()

    def start(self, branch: str, name: str | None = None) -> Endpoint:
        """The branch's Postgres in a slot of its own, once it accepts."""
        name = name or names.slot_name(branch, "1")
        slot.ensure_slot(self.layout, name, OWNER)
        self.script(name, read_slot_start())
        slot.ensure_bound(self.layout, name, self.project, branch)
        marker = subvolume.read_marker(self.layout.branch(self.project, branch))
        assert marker
        endpoint = Endpoint(name, names.branch_port(branch), USER, marker.major)
        assert await_accepting(self.layout, endpoint, 30), self.said(name)
        return endpoint

    def stop(self, name: str) -> None:
        process = self.running.pop(name)
        process.send_signal(2)
        process.wait(30)

    def end(self) -> None:
        for process in self.running.values():
            # Immediate shutdown: the postmaster waits for its children, which hold the mount.
            process.send_signal(signal.SIGQUIT)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
        for mount in reversed(read_mounts()):
            if mount.point.startswith(f"{self.layout.base}/"):
                unmount(mount.point)
        # By what the kernel says: an image may be deleted under its device.
        for held in Path("/sys/block").glob("loop*/loop/backing_file"):
            with suppress(OSError):
                if held.read_text().startswith(f"{self.layout.pools}/"):
                    subprocess.run(["losetup", "-d", f"/dev/{held.parts[3]}"], check=False)
        for data in self.layout.slots.glob("*/data"):
            subprocess.run(["chattr", "-i", str(data)], check=False, capture_output=True)


def children_of(pid: int) -> dict[int, str]:
    """The processes of a postmaster: PID -> its title."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            title = (path.parent / "cmdline").read_text().replace("\0", " ").strip()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found[int(path.parent.name)] = title
    return found


@contextmanager
def stopped(pids: Iterable[int]) -> Iterator[None]:
    """Processes that stand still meanwhile."""
    there = tuple(pids)
    assert there
    _tell(there, signal.SIGSTOP)
    try:
        yield
    finally:
        _tell(there, signal.SIGCONT)


def _tell(pids: Iterable[int], what: signal.Signals) -> None:
    for pid in pids:
        # A worker may have ended by itself since it was seen.
        with suppress(ProcessLookupError):
            os.kill(pid, what)


def unmount(point: str) -> None:
    for _ in range(100):
        if subprocess.run(["umount", point], check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    raise AssertionError(f"{point} stays mounted")
