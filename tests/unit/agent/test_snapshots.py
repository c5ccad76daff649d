"""What an agent plans for a snapshot, and which changes of it ask for a reconcile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
from tests.factories import NODE, project, snapshot
from tests.fakes.api import FakeApi

from dbranch.agent.context import NodeContext
from dbranch.agent.pool.space import Space
from dbranch.agent.snapshot.plan import AdoptSnapshot, SnapshotFacts, TakeSnapshot, plan_snapshot
from dbranch.agent.snapshot.watch import SnapshotRecords, follow_snapshots, needs_reconcile, record_of
from dbranch.agent.volume.marker import (
    FROM_BRANCH,
    BranchNames,
    Marker,
    NewerMarker,
    Origin,
    Role,
    SnapshotMarker,
)
from dbranch.agent.volume.snapshots import retained_snapshot
from dbranch.api import names
from dbranch.api.conditions import Finding, Reason
from dbranch.kube.client import Cluster, path_of

SHOP = project().bound().up().parsed()
BOUND = snapshot().bound().status(branchUID="b")
ROOM = Space(2**30, 2**29, 2**40, 2**39)
UP = SnapshotFacts(True, ROOM)
DATA = Marker(
    "p", "s", Role.COPY, Origin(FROM_BRANCH, "b", "t"), "t", 17, True, names=BranchNames("team", "shop", "b")
)
SNAPSHOTS = path_of(names.API_VERSION, names.SNAPSHOTS, "team")


def test_a_snapshot_is_taken_of_its_branch() -> None:
    plan = plan_snapshot(SHOP, BOUND.parsed(), UP)
    assert plan.action == TakeSnapshot("b") and plan.storage and plan.storage.reason == Reason.STORED
    plan = plan_snapshot(SHOP, BOUND.parsed(), replace(UP, marker=SnapshotMarker(DATA, "shop-before")))
    assert plan.action is None and plan.retry_after is None


@pytest.mark.parametrize(
    ("facts", "changes", "reason"),
    [
        ({"pool_mounted": False}, {}, Reason.BRANCH_NOT_READY),
        ({"space": Space(2**30, 2**20, 2**40, 2**39)}, {}, Reason.POOL_FULL),
        ({"space": Space(2**30, 2**29, 2**40, 2**20)}, {}, Reason.NODE_DISK_LOW),
        ({"source_problem": Finding(Reason.SOURCE_UNSAFE, "x")}, {}, Reason.SOURCE_UNSAFE),
        ({"marker": NewerMarker(3)}, {}, Reason.STORAGE_UNCLEAR),
        ({}, {"origin": {"reason": "Deletion"}}, Reason.SNAPSHOT_LOST),
    ],
)
def test_what_is_in_the_way(facts: dict[str, Any], changes: dict[str, Any], reason: Reason) -> None:
    plan = plan_snapshot(SHOP, BOUND.spec(**changes).parsed(), replace(UP, **facts))
    assert plan.action is None and plan.storage and plan.storage.reason == reason
    assert len(plan.storage.message) <= 256


def test_what_was_taken_once_is_not_taken_again() -> None:
    taken = snapshot().taken_of("b").parsed()
    plan = plan_snapshot(SHOP, taken, UP)
    assert plan.action is None and plan.storage and plan.storage.reason == Reason.SNAPSHOT_LOST
    # A pool that is down says nothing.
    assert plan_snapshot(SHOP, taken, replace(UP, pool_mounted=False)).storage is None


def test_what_an_adopted_pool_retains_comes_first() -> None:
    retained = replace(UP, retained_uid="old")
    for bound in (BOUND, snapshot().bound()):
        assert plan_snapshot(SHOP, bound.parsed(), retained).action == AdoptSnapshot("old")
    plan = plan_snapshot(SHOP, snapshot().bound().parsed(), UP)
    assert plan.action is None and plan.storage and plan.storage.reason == Reason.BRANCH_NOT_FOUND


def test_the_newest_retained_snapshot_of_the_name() -> None:
    def marker(time: str, **changes: Any) -> SnapshotMarker:
        return SnapshotMarker(replace(DATA, project_uid="old", snapshot_time=time, **changes), "shop-before")

    markers = {"a": marker("1"), "b": marker("3"), "c": marker("2")}
    assert retained_snapshot(markers, {"old"}, "shop-before", "new") == "b"
    assert retained_snapshot(markers, {"old"}, "shop-after", "new") is None
    assert retained_snapshot(markers, {"other"}, "shop-before", "new") is None
    # An adoption that was cut off behind its marker.
    markers["c"] = marker("2", owner_uid="new")
    assert retained_snapshot(markers, {"old"}, "shop-before", "new") == "c"


def test_the_watch_asks_for_those_that_are_not_at_rest_and_for_changes() -> None:
    api, requested = FakeApi(), list[str]()
    api.put(SNAPSHOTS, BOUND.body())
    api.put(SNAPSHOTS, snapshot("stored").taken_of("b").body())
    api.put(SNAPSHOTS, snapshot("elsewhere").bound("n2").status(branchUID="b").body())
    context = NodeContext(NODE, "uid", "dbranch-nodes", "dbranch")
    records = SnapshotRecords()
    watch = api.watch

    def ends_at_sync(*args: Any, **options: Any) -> Any:
        for event in watch(*args, **options):
            yield event
            if event["type"] == "SYNCED":
                return

    api.watch = ends_at_sync  # type: ignore[method-assign]
    follow_snapshots(cast(Cluster, api), context, records, lambda _, name: requested.append(name))
    assert requested == ["shop-before"]
    assert set(records.of_project("team", "shop")) == {"shop-before", "shop-stored"}
    old = record_of(snapshot().taken_of("b").body())
    assert not needs_reconcile(old, record_of(snapshot().taken_of("b").node(uniqueBytes=5).body()))
    assert needs_reconcile(old, record_of(snapshot().taken_of("b").deleting().body()))
    assert needs_reconcile(old, record_of(snapshot().taken_of("c").body()))
    assert needs_reconcile(
        old, record_of(snapshot().taken_of("b").annotated(**{names.AGENT_REQUESTED_AT: "x"}).body())
    )
