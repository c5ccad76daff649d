"""A pool that is low: copies of undone data make room, one at a time, and nothing else does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from tests.factories import NAMESPACE, SnapshotBuilder, ago, branch, project, snapshot
from tests.unit.controller.rig import SNAPSHOTS, Rig

from dbranch.api import names
from dbranch.api.conditions import Finding, Reason
from dbranch.controller.snapshot.pressure import next_to_remove
from dbranch.controller.snapshot.relief import UNDO_REMOVED, PoolRelief
from dbranch.kube.client import Cluster, path_of

NOW = datetime.now(UTC)
RESTORES = path_of(names.API_VERSION, names.RESTORES, NAMESPACE)


def copy(name: str, hours: float = 2, reason: str = "Deletion", unique: int = 2**20) -> SnapshotBuilder:
    """Return a copy of a branch that is gone, taken so many hours ago."""
    taken = snapshot(name, "gone", origin={"reason": reason}).taken_of("gone-uid", ago(hours * 3600))
    return taken.node(uniqueBytes=unique)


def chosen(*copies: SnapshotBuilder, branches: Any = (), named: tuple[str, ...] = ()) -> str | None:
    first = next_to_remove([each.parsed() for each in copies], [b.parsed() for b in branches], named, NOW)
    return first.name if first else None


BOUND = branch("b").spec(source=None, sourceSnapshot="shop-a").bound().of("shop-a-uid")
RESTORED = branch("b").status(
    restore={
        "name": "r",
        "uid": "r",
        "state": "Preparing",
        "source": {"kind": "Snapshot", "name": "shop-a", "uid": "shop-a-uid"},
        "undo": "Keep",
        "undoSnapshot": "shop-u",
        "undoUID": "shop-u-uid",
    }
)


def test_the_oldest_copy_goes_first() -> None:
    assert chosen(copy("a", 2), copy("b", 3, "Restore"), copy("c", 2.5)) == "b"


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param(copy("a", 0.9), id="younger than an hour"),
        pytest.param(copy("a", unique=0), id="frees nothing"),
        pytest.param(copy("a", reason="Requested"), id="somebody asked for it"),
        pytest.param(copy("a", reason="Schedule"), id="of a schedule"),
        pytest.param(copy("a").spec(protection="Enabled"), id="protected"),
        pytest.param(copy("a").node(uniqueBytes=None), id="not measured"),
    ],
)
def test_others_never_go_to_make_room(kept: SnapshotBuilder) -> None:
    assert chosen(kept) is None
    assert chosen(kept, copy("b")) == "b"


def test_what_is_needed_stays() -> None:
    assert chosen(copy("a"), branches=[BOUND]) is None
    assert chosen(copy("a"), branches=[BOUND.stored()]) == "a"
    assert chosen(copy("a"), branches=[RESTORED]) is None
    assert chosen(copy("u"), branches=[RESTORED]) is None
    assert chosen(copy("a"), named=("shop-a",)) is None


def test_the_next_waits_until_one_is_gone() -> None:
    assert chosen(copy("a").deleting(), copy("b")) is None


class Relieved(Rig):
    """A project with copies; `seconds`: of the monotonic clock."""

    def __init__(self) -> None:
        super().__init__()
        self.ready()
        self.seconds = 0.0
        cluster = cast(Cluster, self.api)
        self.relief = PoolRelief(
            cluster,
            self.cache,
            lambda: NOW,
            self.emit,
            monotonic=lambda: self.seconds,  # type: ignore[arg-type]
        )
        self.put(copy("a", 4), copy("b", 3), copy("kept", 5, "Requested"))
        self.events.clear()

    def is_low(self, low: bool = True) -> None:
        storage = Finding(Reason.POOL_LOW if low else Reason.POOL_MOUNTED, "pool").as_dict()
        self.agent_reports(project().up().node(storage=storage))

    def deleted(self) -> list[str]:
        """Relieve; return the snapshots that are being deleted, whose agent then has done its part."""
        self.relief.relieve()
        going = [b["metadata"] for b in self.api.find(SNAPSHOTS) if b["metadata"].get("deletionTimestamp")]
        for meta in going:
            self.api.merge(f"{SNAPSHOTS}/{meta['name']}", {"metadata": {"finalizers": []}})
        return [meta["name"] for meta in going]


def test_they_go_one_at_a_time_each_with_an_event_until_there_is_room() -> None:
    rig = Relieved()
    assert rig.deleted() == []
    rig.is_low()
    assert rig.deleted() == ["shop-a"]
    assert rig.events == [("Warning", UNDO_REMOVED)] * 2
    # The pool is measured first.
    assert rig.deleted() == []
    rig.seconds += 149
    assert rig.deleted() == []
    rig.seconds += 2
    assert rig.deleted() == ["shop-b"]
    rig.seconds += 1000
    assert rig.deleted() == [] and rig.exists(f"{SNAPSHOTS}/shop-kept")


def test_a_pool_with_room_again_keeps_the_rest_and_is_not_asked_for() -> None:
    rig = Relieved()
    rig.is_low()
    assert rig.deleted() == ["shop-a"]
    rig.is_low(False)
    rig.seconds += 1000
    rig.api.take_requests()
    rig.relief.relieve()
    # But for those by which the rig plays the cache.
    assert [request.verb for request in rig.api.take_requests() if request.verb != "find"] == []


def test_a_copy_that_a_restore_waits_for_or_somebody_protects_just_now_stays() -> None:
    rig = Relieved()
    rig.is_low()
    spec = {"project": "shop", "branch": "x", "sourceSnapshot": "shop-a"}
    rig.api.put(RESTORES, {"kind": "DBRestore", "metadata": {"name": "r"}, "spec": spec})
    rig.api.before(
        "get", "shop-b$", lambda: rig.api.merge(f"{SNAPSHOTS}/shop-b", {"spec": {"protection": "Enabled"}})
    )
    assert rig.deleted() == [] and rig.events == []
    rig.api.merge(f"{RESTORES}/r/status", {"status": {"phase": "Complete"}})
    assert rig.deleted() == ["shop-a"]


def test_an_old_copy_of_some_days_ago_is_no_reason_to_look_at_the_disk() -> None:
    rig = Relieved()
    rig.put(copy("old", timedelta(days=9).total_seconds() / 3600))
    rig.api.take_requests()
    rig.relief.relieve()
    # But for those by which the rig plays the cache.
    assert [request.verb for request in rig.api.take_requests() if request.verb != "find"] == []
