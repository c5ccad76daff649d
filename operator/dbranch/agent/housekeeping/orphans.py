"""What on the disk no object names, and what becomes of it. Nothing is removed because something is unknown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from dbranch.agent.layout import SubvolumeKind, SubvolumeName
from dbranch.agent.pool.record import NewerRecord, PoolRecord
from dbranch.agent.volume.marker import Marker, NewerMarker, SnapshotMarker
from dbranch.api.expiry import parse_time

# A pool that was deleted is kept so long, whatever the disk says.
_MIN_KEPT: Final = timedelta(hours=1)


class Fate(StrEnum):
    """What becomes of something that no object has named for some rounds."""

    # Data: kept for ever, published, offered for adoption.
    KEEP = "keep"
    # A pool in which there never was any data.
    REMOVE_POOL = "remove-pool"
    # A subvolume in which a branch or snapshot was being made that never came to be.
    REMOVE_TEMPORARY = "remove-temporary"
    # What a restore that was cut off left beside a branch's data: it goes, or becomes the undo snapshot.
    FINISH_RESTORE = "finish-restore"


@dataclass(frozen=True)
class StoredPool:
    """A pool on the disk.

    `markers`: of its subvolumes, none if it is not mounted. `pool_uuid`: of the filesystem in the image, None without
    one. `tombstoned`: its removal was requested, and is due; `kept_until`: it is to come then (RFC 3339).
    """

    uid: str
    record: PoolRecord | NewerRecord | None
    markers: Mapping[SubvolumeName, Marker | SnapshotMarker | NewerMarker | None]
    allocated_bytes: int = 0
    pool_uuid: str | None = None
    tombstoned: bool = False
    kept_until: str = ""


@dataclass(frozen=True)
class Existing:
    """The UIDs of the objects that exist in the API, and of the cluster."""

    projects: frozenset[str]
    branches: frozenset[str]
    cluster: str
    snapshots: frozenset[str] = frozenset()

    @property
    def owners(self) -> frozenset[str]:
        """The UIDs of all objects that own subvolumes."""
        return self.branches | self.snapshots


@dataclass(frozen=True)
class Unnamed:
    """Something that no object names, by the UIDs of its owner and of its pool."""

    owner_uid: str
    pool_uid: str
    fate: Fate
    why: str = ""
    # It is expected, and need not be watched for some rounds.
    certain: bool = False
    # Another cluster's, or a newer release's: not even what holds it is touched.
    foreign: bool = False

    @property
    def is_pool(self) -> bool:
        """True if it is a whole pool."""
        temporary = (Fate.REMOVE_TEMPORARY, Fate.FINISH_RESTORE)
        return self.owner_uid == self.pool_uid and self.fate not in temporary


def unnamed(pools: Iterable[StoredPool], existing: Existing) -> Iterator[Unnamed]:
    """Yield what no object names. A pool of which the removal was requested is none of these."""
    for pool in pools:
        if pool.uid in existing.projects:
            yield from _unnamed_in(pool, existing)
        elif not pool.tombstoned:
            yield _unnamed_pool(pool, existing)


def is_adoptable(pool: StoredPool, existing: Existing) -> bool:
    """Return True if a new project could adopt the pool, as far as the node can say."""
    return (
        pool.uid not in existing.projects
        and not pool.tombstoned
        and isinstance(pool.record, PoolRecord)
        and pool.record.initialized
    )


def _unnamed_pool(pool: StoredPool, existing: Existing) -> Unnamed:
    record = pool.record
    if pool.kept_until:
        name = record.project if isinstance(record, PoolRecord) else ""
        why = f"its project was deleted; it is removed at {pool.kept_until}; dbranch undelete-project {name}"
        return Unnamed(pool.uid, pool.uid, Fate.KEEP, why.strip(), certain=True)
    if record is None:
        why = "it has no record (release 0.1.0 wrote none); allow a namespace to adopt it"
        return Unnamed(pool.uid, pool.uid, Fate.KEEP, why)
    if isinstance(record, NewerRecord):
        why = f"a newer release of dbranch wrote its record ({record})"
        return Unnamed(pool.uid, pool.uid, Fate.KEEP, why, foreign=True)
    if pool.pool_uuid != record.pool_uuid and pool.pool_uuid is not None and record.pool_uuid:
        return Unnamed(
            pool.uid, pool.uid, Fate.KEEP, "its image holds another filesystem than its record says"
        )
    if record.cluster and existing.cluster and record.cluster != existing.cluster:
        return Unnamed(
            pool.uid, pool.uid, Fate.KEEP, f"it is of another cluster ({record.cluster})", foreign=True
        )
    has_data = any(name.may_hold_data for name in pool.markers)
    if not record.initialized and not has_data and record.cluster == existing.cluster != "":
        return Unnamed(pool.uid, pool.uid, Fate.REMOVE_POOL)
    if record.retained:
        return Unnamed(
            pool.uid, pool.uid, Fate.KEEP, "it was retained by deletionPolicy Retain", certain=True
        )
    why = "its DBProject is gone, and nobody asked for the removal of the data"
    return Unnamed(pool.uid, pool.uid, Fate.KEEP, why)


def _unnamed_in(pool: StoredPool, existing: Existing) -> Iterator[Unnamed]:
    """Yield what no DBBranch or DBSnapshot names in the pool of a project that exists.

    Names of newer releases are left alone.
    """
    if isinstance(pool.record, NewerRecord):
        return
    newer = {
        name.owner_uid
        for name, marker in pool.markers.items()
        if not name.is_understood or isinstance(marker, NewerMarker)
    }
    owners = sorted({name.owner_uid for name in pool.markers} - existing.owners - newer)
    for owner in owners:
        yield from _unnamed_of(owner, pool)


def _unnamed_of(owner: str, pool: StoredPool) -> Iterator[Unnamed]:
    """Yield what an owner has in the pool that exists no more, or never did."""
    kinds = {name.kind for name in pool.markers if name.owner_uid == owner}
    name = SubvolumeName(owner)
    has_data, marker = name in pool.markers, pool.markers.get(name)
    if has_data:
        why = "its DBBranch is gone, and nobody asked for the removal of the data"
        if isinstance(marker, SnapshotMarker):
            why = "its DBSnapshot is gone, and nobody asked for the removal of the data"
            if marker.data.project_uid != pool.uid:
                why = "no DBSnapshot of the project that adopted the pool names it"
        if isinstance(marker, Marker) and marker.project_uid != pool.uid:
            why = "no DBBranch of the project that adopted the pool names it"
        yield Unnamed(owner, pool.uid, Fate.KEEP, why)
    if SubvolumeKind.RESTORE in kinds and isinstance(marker, Marker):
        yield Unnamed(owner, pool.uid, Fate.FINISH_RESTORE)
    elif SubvolumeKind.RESTORE in kinds and not has_data:
        why = "a restore prepared or replaced it, and the branch's data is gone"
        yield Unnamed(owner, pool.uid, Fate.KEEP, why)
    # Beside data that cannot be read nothing is touched.
    if kinds & {SubvolumeKind.NEW, SubvolumeKind.INIT} and (not has_data or isinstance(marker, Marker)):
        yield Unnamed(owner, pool.uid, Fate.REMOVE_TEMPORARY)


def oldest_kept(requested: Mapping[str, str], now: datetime) -> str | None:
    """Return the UID of the pool that was deleted first, of those that are kept; None if all are too young.

    `requested`: by UID, when the removal was requested (RFC 3339). Whoever made a slip has an hour to notice it.
    """
    times = {uid: parse_time(text) for uid, text in requested.items()}
    old = [(time, uid) for uid, time in times.items() if time is not None and now - time >= _MIN_KEPT]
    return min(old)[1] if old else None


class Rounds:
    """In how many consecutive rounds each thing was seen, in this process."""

    def __init__(self) -> None:
        self._counts: dict[object, int] = {}

    def count(self, seen: Iterable[object]) -> None:
        """Count a round in which these were seen; all others begin anew."""
        self._counts = {item: self._counts.get(item, 0) + 1 for item in seen}

    def of(self, item: object) -> int:
        """Return the number of consecutive rounds, up to the last one, in which it was seen."""
        return self._counts.get(item, 0)
