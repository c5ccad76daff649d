"""An agent says once behind each scheduled snapshot that something was written; of a branch at rest nothing."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from tests.factories import BranchBuilder, branch, project
from tests.fakes.api import FakeApi

from dbranch.agent.branch import written
from dbranch.agent.branch.written import WrittenWatch
from dbranch.agent.layout import Layout
from dbranch.agent.linux.btrfs import Transactions
from dbranch.api import names
from dbranch.kube.client import Cluster, branch_path, path_of

MAIN = branch().bound().stored().spec(snapshots=[{"name": "hourly", "schedule": "0 * * * *"}])
PATH = branch_path("team", "shop-main")


class Node:
    """A branch on a node: `changed`, the transaction that changed it; `last`, of its last scheduled snapshot."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, builder: BranchBuilder = MAIN) -> None:
        self.api = FakeApi()
        body = self.api.put(path_of(names.API_VERSION, names.BRANCHES, "team"), builder.body())
        self.uid = body["metadata"]["uid"]
        self.changed, self.last = 1, {self.uid: 7}
        self.watch = WrittenWatch(cast(Cluster, self.api), Layout(Path("/base")), lambda: self.last)
        self.watch.follow_project("ADDED", project().body())
        self.follow()
        monkeypatch.setattr(written, "is_subvolume", lambda path: path.name == self.uid)
        monkeypatch.setattr(written, "transactions_of", lambda path: Transactions(0, self.changed))

    def follow(self, event: str = "MODIFIED") -> None:
        self.watch.follow_branch(event, self.api.get(PATH) or {})

    def check(self) -> list[str]:
        """Let the thread look once; return its writes, and deliver their events."""
        self.api.take_requests()
        self.watch.check()
        writes = self.api.take_writes()
        self.follow()
        return writes


def test_what_was_written_is_reported_once_behind_each_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(monkeypatch)
    for node.changed in (1, 7):
        assert node.check() == []
    node.changed = 8
    assert node.check() == ["merge dbbranches/shop-main/status"]
    body = node.api.get(PATH)
    assert body is not None and body["status"]["node"]["transaction"] == 8
    for node.changed in (9, 1000):
        assert node.check() == []
    node.last = {node.uid: 1001}
    assert node.check() == []
    node.changed = 1002
    assert len(node.check()) == 1 and node.check() == []


@pytest.mark.parametrize(
    "builder",
    [
        branch().bound().stored(),
        branch().bound().spec(snapshots=MAIN.body()["spec"]["snapshots"]),
        branch().bound().stored().spec(snapshots=[{"name": "h", "schedule": "0 * * * *", "state": "Paused"}]),
        MAIN.deleting(),
    ],
)
def test_a_branch_that_takes_no_snapshots_is_not_looked_at(
    monkeypatch: pytest.MonkeyPatch, builder: BranchBuilder
) -> None:
    node = Node(monkeypatch, builder)
    node.changed = 8
    node.watch.check()
    assert node.api.take_writes() == []


def test_what_has_no_snapshot_yet_or_no_project_or_is_another_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(monkeypatch)
    node.changed, node.last = 8, {}
    assert node.check() == []
    node.last = {node.uid: 7}
    node.watch.follow_project("DELETED", project().body())
    assert node.check() == []
    node.watch.follow_project("ADDED", project().body())
    # Made again under its name: the event is still to come.
    node.api.merge(PATH, {"metadata": {"finalizers": []}})
    node.api.delete(PATH)
    node.api.put(
        path_of(names.API_VERSION, names.BRANCHES, "team"), MAIN.changed(metadata={"uid": "other"}).body()
    )
    node.api.take_requests()
    node.watch.check()
    assert node.api.take_writes() == []


def test_what_fails_for_one_branch_is_tried_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node(monkeypatch)
    node.changed = 8
    node.api.refuse("merge", "dbbranches", times=1)
    assert node.check() == [] or caplog.records
    assert node.check() == ["merge dbbranches/shop-main/status"]
