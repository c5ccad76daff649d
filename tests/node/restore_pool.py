"""A pool whose branch `x` gets other data by the functions of a restore, and Postgres on both of its data."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psycopg
from tests.node.machine import OWNER, Node, new_uid, owner_session, postgres_directory
from tests.node.test_cleaning import sql

from dbranch.agent.layout import PGDATA, SubvolumeKind, SubvolumeName
from dbranch.agent.linux import mounting
from dbranch.agent.postgres.session import Endpoint, await_accepting
from dbranch.agent.slot import effect as slot
from dbranch.agent.slot.scripts import read_slot_start
from dbranch.agent.volume import effect as subvolume
from dbranch.agent.volume.marker import UNDO_KEEP, BranchNames, Marker, RestoreRef, SnapshotMarker
from dbranch.agent.volume.observe import marker_at
from dbranch.agent.volume.restore_rules import VolumeState
from dbranch.agent.volume.restores import (
    ensure_exchanged,
    ensure_old_kept,
    ensure_restore_taken,
    observe_restore,
)
from dbranch.agent.volume.settings import Settings
from dbranch.api import names

NOW, NEXT_DAY = "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"
ROOT_NAMES, COPY_NAMES = BranchNames("team", "shop", "main"), BranchNames("team", "shop", "x")


class Pool:
    """A pool with a root branch and a copy of it, `x`, whose data restores replace."""

    def __init__(self, node: Node, root: str, x: str) -> None:
        self.node, self.layout, self.project = node, node.layout, node.project
        self.root, self.x = root, x

    @classmethod
    def make(cls, node: Node) -> Pool:
        pool = cls(node, node.create_root(), new_uid())
        node.take_snapshot(pool.root, pool.x)
        pool.record(pool.x, lambda marker: replace(marker, names=COPY_NAMES, cleaned=True, opened=True))
        return pool

    def record(self, branch: str, change: Callable[[Marker], Marker]) -> None:
        subvolume.ensure_recorded(self.layout, self.project, branch, change)

    def settings(self, branch: str) -> Settings:
        names_of = ROOT_NAMES if branch == self.root else COPY_NAMES
        return replace(self.node.settings(branch), names=names_of)

    def restore_ref(self, undo: str = UNDO_KEEP) -> RestoreRef:
        return RestoreRef(new_uid(), undo, new_uid() if undo == UNDO_KEEP else "")

    def take(self, restore_ref: RestoreRef, source: str | None = None, branch: str | None = None) -> Marker:
        branch = branch or self.x
        return ensure_restore_taken(
            *(self.layout, self.project, branch, source or self.root, restore_ref, self.settings(branch), NOW)
        )

    def exchange(self, restore_ref: RestoreRef, branch: str | None = None) -> Marker:
        return ensure_exchanged(self.layout, self.project, branch or self.x, restore_ref.uid)

    def keep(self, branch: str | None = None) -> SnapshotMarker | None:
        return ensure_old_kept(self.layout, self.project, branch or self.x, "shop-x-undo-abcde", NEXT_DAY)

    def restore(self, restore_ref: RestoreRef, source: str | None = None, branch: str | None = None) -> None:
        """Do all of a restore that keeps the old data."""
        self.take(restore_ref, source, branch)
        self.exchange(restore_ref, branch)
        self.keep(branch)

    def state(self, branch: str | None = None) -> VolumeState:
        return observe_restore(self.layout, self.project, branch or self.x).state

    def path(self, uid: str, kind: SubvolumeKind | None = None) -> Path:
        return self.layout.subvolume(self.project, SubvolumeName(uid, kind))

    def write(self, uid: str, text: str, kind: SubvolumeKind | None = None) -> None:
        """Say in the data of a branch whose it is."""
        (self.path(uid, kind) / PGDATA / "said").write_text(text)

    def read(self, uid: str, kind: SubvolumeKind | None = None) -> str:
        return (self.path(uid, kind) / PGDATA / "said").read_text()

    def marker(self, branch: str) -> Marker:
        marker = marker_at(self.path(branch))
        assert isinstance(marker, Marker)
        return marker


def start_beside(node: Node, branch: str, name: str) -> Endpoint:
    """Start a Postgres on what is prepared beside the branch's data."""
    slot.ensure_slot(node.layout, name, OWNER)
    mounting.bind_mount(node.layout.restore(node.project, branch), node.layout.data(name))
    node.run_script(name, read_slot_start())
    marker = marker_at(node.layout.restore(node.project, branch))
    assert isinstance(marker, Marker)
    endpoint = Endpoint(name, names.branch_port(branch), marker.superuser, marker.major)
    assert await_accepting(node.layout, endpoint, 30), node.stderr_of(name)
    return endpoint


class Writer(threading.Thread):
    """Inserts rows, and counts those that were acknowledged."""

    def __init__(self, node: Node, endpoint: Endpoint) -> None:
        super().__init__(daemon=True)
        self._node, self._endpoint = node, endpoint
        self.acknowledged, self.begun, self._stopping = 0, threading.Event(), threading.Event()

    def run(self) -> None:
        with (
            suppress(psycopg.Error),
            owner_session(self._node.layout, self._endpoint, "dbranch") as connection,
        ):
            while not self._stopping.is_set():
                connection.execute("insert into item values (%s, repeat('x', 300))", [self.acknowledged + 1])
                self.acknowledged += 1
                if self.acknowledged == 200:
                    self.begun.set()

    def stop(self) -> int:
        self._stopping.set()
        self.join()
        return self.acknowledged


@contextmanager
def writing(pool: Pool) -> Iterator[tuple[Endpoint, Writer]]:
    """Run Postgres on the branch, to which a client writes, and on the root with 1,000 rows."""
    node = pool.node
    old = node.start_postgres(pool.x)
    sql(node, old, "create table item (id int primary key, filler text)")
    source = node.start_postgres(pool.root)
    sql(node, source, "create table item as select generate_series(1, 1000) as id", "checkpoint")
    writer = Writer(node, old)
    writer.start()
    try:
        assert writer.begun.wait(30)
        yield old, writer
    finally:
        writer.stop()


def check_whole(node: Node, endpoint: Endpoint, data: Path) -> None:
    """Compare every index with its table, and after a shutdown every page with its checksum."""
    programs = postgres_directory()
    subprocess.run(
        [
            *(programs / "pg_amcheck", "--all", "--install-missing", "--heapallindexed"),
            *("-h", node.layout.run(endpoint.slot), "-p", str(endpoint.port), "-U", "postgres"),
        ],
        check=True,
    )
    node.stop_postgres(endpoint.slot)
    subprocess.run(
        [programs / "pg_checksums", "--check", "-D", data / PGDATA], check=True, capture_output=True
    )
