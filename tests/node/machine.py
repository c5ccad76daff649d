"""A base directory with a project of its own: real btrfs on real loop devices, and a real Postgres."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import signal
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg
from tests.node.initdb_template import initdb_directory

from dbranch.agent.layout import Layout
from dbranch.agent.linux.mounts import read_mounts
from dbranch.agent.pool import effect as pool
from dbranch.agent.postgres.session import Endpoint, await_accepting
from dbranch.agent.slot import effect as slot
from dbranch.agent.slot.scripts import read_initdb, read_slot_start
from dbranch.agent.volume import effect as subvolume
from dbranch.agent.volume.marker import BranchNames, Marker
from dbranch.agent.volume.origins.initdb import ensure_initdb_area, ensure_initdb_promoted
from dbranch.agent.volume.origins.snapshot import ensure_snapshot
from dbranch.agent.volume.settings import Settings
from dbranch.api import names
from dbranch.api.parameters import NEWEST_MAJOR, OLDEST_MAJOR
from dbranch.api.scram import verifier_of

SIZE = 512 * 2**20
# initdb needs a user with a name.
OWNER = pwd.getpwnam("nobody").pw_uid
# The superuser's and the application's role, with their passwords.
USER, APP = "postgres", "app"
PASSWORDS = {USER: "of the superuser", APP: "of the application"}
VERIFIERS = {role: verifier_of(password, b"0" * 16) for role, password in PASSWORDS.items()}
AS_TENANT = ("setpriv", "--reuid", str(OWNER), "--regid", str(OWNER), "--clear-groups")


def postgres_directory() -> Path:
    """Return the directory of the newest Postgres' programs that the system's packages installed."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    assert programs, "no Postgres on this machine: apt-get install postgresql"
    return programs[-1].parent


def new_uid() -> str:
    return str(uuid.uuid4())


@dataclass
class Node:
    """A base directory of a test's own, with a project; `tear_down` ends what it started."""

    layout: Layout
    project: str = field(default_factory=new_uid)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    pool_uuid: str | None = None
    programs: Path = field(default_factory=postgres_directory)

    def ensure_pool(self) -> str:
        """Create or bring up the project's pool; return its filesystem's UUID."""
        self.pool_uuid = pool.ensure_pool(self.layout, self.project, SIZE, self.pool_uuid, None)
        return self.pool_uuid

    def settings(self, branch: str, **parameters: str) -> Settings:
        return Settings(names.branch_port(branch), {"shared_buffers": "16MB", **parameters})

    def run_initdb(self, branch: str, *args: str, **environment: str) -> int:
        """Run initdb.sh with these arguments in an empty area of the root branch; return its exit code."""
        name = f"initdb-{self.project}"
        ensure_initdb_area(self.layout, self.project, branch, OWNER)
        slot.ensure_slot(self.layout, name, OWNER)
        slot.ensure_initdb_bound(self.layout, name, self.project, branch)
        code = self.run_script(name, read_initdb(), args, environment).wait(120)
        del self.running[name]
        slot.ensure_slot_removed(self.layout, name)
        return code

    def create_root(self, *args: str, environment: Mapping[str, str] | None = None, **parameters: str) -> str:
        """Create the root branch by initdb.sh with these arguments; return its UID."""
        branch, name = new_uid(), f"initdb-{self.project}"
        assert self.run_initdb(branch, *args, **(environment or {})) == 0, self.stderr_of(name)
        ensure_initdb_promoted(
            self.layout,
            self.project,
            branch,
            replace(
                self.settings(branch, **parameters), names=BranchNames("team", "shop", names.ROOT_BRANCH)
            ),
            "2026-01-01T00:00:00Z",
        )
        return branch

    def create_copy(self, source: str, **parameters: str) -> str:
        """Create a branch from the branch with the UID `source`; return its UID."""
        branch = new_uid()
        self.take_snapshot(source, branch, **parameters)
        return branch

    def take_snapshot(self, source: str, branch: str, **parameters: str) -> Marker:
        settings = self.settings(branch, **parameters)
        return ensure_snapshot(self.layout, self.project, source, branch, settings, "2026-01-01T00:00:00Z")

    def address_of(self, name: str) -> str:
        """Return the address on which a slot's Postgres listens: a loopback address of its own."""
        drawn = hashlib.sha256(f"{self.layout.base}/{name}".encode()).digest()
        return "127." + ".".join(str(byte % 254 + 1) for byte in drawn[:3])

    def run_script(
        self,
        name: str,
        text: str,
        args: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Run a pod's script as its container does, unprivileged, with `/slot` replaced by a way to the slot.

        That is a descriptor, as a pod's is a mount: on the node itself nobody but root gets into `slots`.
        `environment`: of the pod's container, over that of the tests' default project.
        """
        verifiers = self.layout.base / "verifier"
        verifiers.mkdir(exist_ok=True)
        (verifiers / "verifier").write_text(VERIFIERS[APP])
        (verifiers / "superuser").write_text(VERIFIERS[USER])
        opened = os.open(self.layout.slot(name), os.O_PATH | os.O_DIRECTORY)
        # Beyond the numbers that the scripts use themselves.
        handle = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, 100)
        os.close(opened)
        directory = f"/proc/self/fd/{handle}"
        script = text.replace("/verifier/", f"{verifiers}/").replace("/slot", directory)
        # A pod has addresses of its own; here the ports of other tests' branches may be the same.
        script = script.replace("listen_addresses='*'", f"listen_addresses={self.address_of(name)}")
        pod = {
            **{"DBRANCH_USER": APP, "DBRANCH_DATABASE": "dbranch"},
            **{"DBRANCH_OLDEST_MAJOR": str(OLDEST_MAJOR), "DBRANCH_NEWEST_MAJOR": str(NEWEST_MAJOR)},
            **{"PGHOST": "/slot/run", **(environment or {})},
        }
        process = subprocess.Popen(
            # A shell cannot trap a signal that was ignored when it started, as SIGINT is in a background job.
            [
                *("env", "--default-signal=INT,QUIT,TERM"),
                *(*AS_TENANT, "sh", "-c", script, "initdb", *args),
            ],
            env={
                **os.environ,
                "PATH": f"{initdb_directory(self.programs, OWNER)}:{self.programs}:{os.environ['PATH']}",
                **{variable: value.replace("/slot", directory) for variable, value in pod.items()},
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self.layout.base / f"{name}.log").open("ab"),
            cwd="/",
            pass_fds=[handle],
        )
        os.close(handle)
        self.running[name] = process
        return process

    def stderr_of(self, name: str) -> str:
        """Return what the scripts in a slot wrote to standard error."""
        return (self.layout.base / f"{name}.log").read_text()

    def start_postgres(self, branch: str, name: str | None = None) -> Endpoint:
        """Start the branch's Postgres in a slot of its own; return its endpoint once it accepts."""
        name = name or names.slot_name(branch, "1")
        slot.ensure_slot(self.layout, name, OWNER)
        self.run_script(name, read_slot_start())
        slot.ensure_bound(self.layout, name, self.project, branch)
        marker = subvolume.read_marker(self.layout.branch(self.project, branch))
        assert marker
        endpoint = Endpoint(name, names.branch_port(branch), marker.superuser, marker.major)
        assert await_accepting(self.layout, endpoint, 30), self.stderr_of(name)
        return endpoint

    def stop_postgres(self, name: str) -> None:
        """Stop the Postgres in this slot by a fast shutdown."""
        process = self.running.pop(name)
        process.send_signal(signal.SIGINT)
        process.wait(30)

    def tear_down(self) -> None:
        """End every process, mount and loop device of the base directory."""
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
        # From the kernel: an image may be deleted under its device.
        for backing_file in Path("/sys/block").glob("loop*/loop/backing_file"):
            with suppress(OSError):
                if backing_file.read_text().startswith(f"{self.layout.pools}/"):
                    subprocess.run(["losetup", "-d", f"/dev/{backing_file.parts[3]}"], check=False)
        for data in self.layout.slots.glob("*/data"):
            subprocess.run(["chattr", "-i", str(data)], check=False, capture_output=True)


@contextmanager
def owner_session(
    layout: Layout, endpoint: Endpoint, database: str = "postgres", seconds: float = 60
) -> Iterator[psycopg.Connection[Any]]:
    """Open a session of the project's owner over the slot's socket, in autocommit: what the agent's is not for."""
    run = os.open(layout.run(endpoint.slot), os.O_RDONLY | os.O_DIRECTORY)
    try:
        with psycopg.connect(
            host=f"/proc/self/fd/{run}",
            port=endpoint.port,
            user=endpoint.user,
            dbname=database,
            connect_timeout=max(2, int(seconds)),
            options=f"-c statement_timeout={int(seconds * 1000)}",
            autocommit=True,
        ) as connection:
            yield connection
    finally:
        os.close(run)


def children_of(pid: int) -> dict[int, str]:
    """Return the child processes of a postmaster: PID -> title."""
    children = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            title = (path.parent / "cmdline").read_text().replace("\0", " ").strip()
        except OSError:
            continue
        if int(fields[1]) == pid:
            children[int(path.parent.name)] = title
    return children


@contextmanager
def stopped(pids: Iterable[int]) -> Iterator[None]:
    """Stop the processes (SIGSTOP) for the time of the context."""
    stopped_pids = tuple(pids)
    assert stopped_pids
    _send_signal(stopped_pids, signal.SIGSTOP)
    try:
        yield
    finally:
        _send_signal(stopped_pids, signal.SIGCONT)


def _send_signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        # A worker may have ended by itself since it was listed.
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def unmount(point: str) -> None:
    """Unmount `point`; try again while it is busy: the children of a server that was killed end a moment later."""
    for _ in range(600):
        if subprocess.run(["umount", point], check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    raise AssertionError(f"{point} stays mounted")
