"""Which scheduled snapshots are kept: as many of each schedule as its `keep` says, fewer only after a grace. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from dbranch.api.conditions import Reason
from dbranch.api.schedule import Kept, Schedule
from dbranch.api.snapshot import Snapshot
from dbranch.controller.snapshot_records import SnapshotRecord

# A smaller `keep` takes effect after this time.
KEEP_GRACE: Final = timedelta(hours=24)


def plan_keep(
    schedules: Sequence[Schedule], current: Sequence[Kept], records: Sequence[SnapshotRecord], now: datetime
) -> tuple[Kept, ...]:
    """Return how many snapshots of each schedule are kept from now on. `current`: as it was said before."""
    before = {kept.name: kept for kept in current}
    counts = {schedule.name: len(_of(schedule.name, records)) for schedule in schedules}
    return tuple(_kept(s, before.get(s.name), counts[s.name], now) for s in schedules)


def _kept(schedule: Schedule, old: Kept | None, count: int, now: datetime) -> Kept:
    """Return the entry of one schedule. `old` None: it is new; `count`: snapshots of one that had its name before."""
    in_force = old.count if old else max(count, schedule.keep)
    if schedule.keep >= in_force:
        return Kept(schedule.name, schedule.keep)
    if old is None or old.next_count is None or old.next_time is None or schedule.keep < old.next_count:
        return Kept(schedule.name, in_force, schedule.keep, now + KEEP_GRACE)
    if now >= old.next_time:
        return Kept(schedule.name, schedule.keep)
    return Kept(schedule.name, in_force, schedule.keep, old.next_time)


def shrinking(before: Sequence[Kept], after: Sequence[Kept]) -> list[Kept]:
    """Return those of which fewer will be kept, which was not said before."""
    reported = {(kept.name, kept.next_count, kept.next_time) for kept in before}
    return [
        kept
        for kept in after
        if kept.next_count is not None and (kept.name, kept.next_count, kept.next_time) not in reported
    ]


def surplus(kept: Sequence[Kept], records: Sequence[SnapshotRecord]) -> list[Snapshot]:
    """Return the snapshots to delete: those that each of their schedules has more than enough newer ones than.

    And those that were not taken in time, and of which a newer one exists. One that is protected, or was changed by
    somebody, never; nor one of a schedule that there is no more.
    """
    counts = {entry.name: entry.count for entry in kept}
    protected: set[str] = set()
    for name, count in counts.items():
        protected.update(record.snapshot.uid for record in _of(name, records)[:count])
    # Their names end with the minute.
    newest = max((record.snapshot.object_name for record in records), default="")
    return [
        record.snapshot
        for record in records
        if _may_go(record.snapshot)
        and (
            _is_beyond(record, counts, protected)
            if record.snapshot.node.stored
            else _was_missed(record) and record.snapshot.object_name != newest
        )
    ]


def _is_beyond(record: SnapshotRecord, counts: dict[str, int], protected: set[str]) -> bool:
    snapshot = record.snapshot
    return (
        bool(snapshot.schedules)
        and all(name in counts for name in snapshot.schedules)
        and snapshot.uid not in protected
    )


def _was_missed(record: SnapshotRecord) -> bool:
    ready, node = record.ready, record.snapshot.node
    return ready is not None and ready.reason == Reason.SNAPSHOT_MISSED and node.snapshot_time is None


def _may_go(snapshot: Snapshot) -> bool:
    """Return True if nobody has protected the snapshot, or changed what the controller had written."""
    return not snapshot.protected and snapshot.generation == 1 and not snapshot.deleting


def _of(name: str, records: Sequence[SnapshotRecord]) -> list[SnapshotRecord]:
    """Return the snapshots that count as one schedule's, the newest first."""
    counted = [
        record
        for record in records
        if name in record.snapshot.schedules and _may_go(record.snapshot) and record.snapshot.node.stored
    ]
    return sorted(counted, key=order_of, reverse=True)


def order_of(record: SnapshotRecord) -> tuple[int, str]:
    """Return by what snapshots of one branch are in the order in which they were taken, whatever the clock said."""
    snapshot = record.snapshot
    return snapshot.node.transaction or -1, snapshot.object_name
