"""What an agent plans for a snapshot, and which changes of it ask for a reconcile."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from tests.factories import NODE, project, snapshot
from tests.fakes.api import FakeApi

from dbranch.agent.context import NodeContext
from dbranch.agent.pool.space import Space
from dbranch.agent.snapshot.plan import (
    AdoptSnapshot,
    SnapshotFacts,
    TakeSnapshot,
    plan_snapshot,
)
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


RECORDS = ({"reason": "Restore", "restoreUID": "r"}, {"reason": "Deletion"}, {"reason": "OfALaterRelease"})


@pytest.mark.parametrize("origin", RECORDS)
def test_a_record_is_never_taken_it_waits_for_its_data(origin: dict[str, str]) -> None:
    record = BOUND.spec(origin=origin).parsed()
    waiting = plan_snapshot(SHOP, record, replace(UP, awaited=True))
    assert waiting.action is None and waiting.storage is None and waiting.retry_after
    lost = plan_snapshot(SHOP, record, UP)
    assert lost.action is None and lost.storage and lost.storage.reason == Reason.SNAPSHOT_LOST
    # Whatever was said before: once it is there, it is there.
    stored = plan_snapshot(SHOP, record, replace(UP, marker=SnapshotMarker(DATA, "shop-before")))
    assert stored.storage and stored.storage.reason == Reason.STORED


def test_a_scheduled_snapshot_is_taken_within_ten_minutes_or_never() -> None:
    scheduled = BOUND.spec(origin={"reason": "Schedule", "time": "2026-01-01T00:00:00Z"}).parsed()
    # Without a CHECKPOINT: nobody waits for it.
    assert plan_snapshot(SHOP, scheduled, replace(UP, seconds_late=600.0)).action == TakeSnapshot("b", False)
    for late in (601.0, None):
        plan = plan_snapshot(SHOP, scheduled, replace(UP, seconds_late=late))
        assert plan.action is None and plan.storage and plan.storage.reason == Reason.SNAPSHOT_MISSED
        assert len(plan.storage.message) <= 256 and plan.retry_after is None


def test_the_marker_says_when_a_snapshot_is_to_go() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert BOUND.spec(ttl="24h").parsed().expiration_at(now) == "2026-01-02T00:00:00Z"
    for spec in ({}, {"ttl": "Never"}, {"ttl": "24h", "protection": "Enabled"}):
        assert BOUND.spec(**spec).parsed().expiration_at(now) == ""


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
