"""What the controller remembers of every snapshot: a short record each, since there may be hundreds for a project."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dbranch.api import names
from dbranch.api.conditions import STALLED_REASONS, Condition, Finding, Reason, find_condition
from dbranch.api.snapshot import Snapshot, parse_snapshot
from dbranch.api.versions import is_newer
from dbranch.runtime.limited import LimitedDict

# Namespace and name of an object.
ObjectKey = tuple[str, str]
# Branches whose last run was refused are remembered until so many others were.
MAX_REFUSED = 1000
# The states by which metrics count snapshots.
STATES = ("ready", "pending", "stalled", "deleting")


@dataclass(frozen=True)
class SnapshotRecord:
    """A snapshot without its labels, annotations and conditions. `ready`: what its condition Ready says.

    `at_rest`: only an event can change what is said of it. `ordered_of`: the UID of the branch, by its label: the
    controller makes scheduled ones with it.
    """

    snapshot: Snapshot
    ready: Finding | None
    at_rest: bool
    ordered_of: str | None = None

    @property
    def version(self) -> tuple[object, ...]:
        """What a change of asks for a reconcile."""
        snapshot = self.snapshot
        return (
            snapshot.generation,
            snapshot.deleted,
            snapshot.node_name,
            snapshot.branch_uid,
            snapshot.node.storage,
            snapshot.node.deletion,
        )

    @property
    def state(self) -> str:
        """One of STATES."""
        if self.snapshot.deleting:
            return "deleting"
        if self.ready is None:
            return "pending"
        if self.ready.done:
            return "ready"
        return "stalled" if self.ready.reason in STALLED_REASONS else "pending"


def record_of(body: Mapping[str, Any]) -> SnapshotRecord:
    """Return the record of a DBSnapshot."""
    snapshot = parse_snapshot(body)
    ready = Finding.from_dict(find_condition(snapshot.status, Condition.READY))
    observed = snapshot.observed_generation == snapshot.generation
    is_final = ready is not None and (
        ready.done or ready.reason in (Reason.SNAPSHOT_LOST, Reason.SNAPSHOT_MISSED)
    )
    at_rest = observed and is_final and not snapshot.deleting
    ordered_of = snapshot.labels.get(names.LABEL_BRANCH_UID)
    return SnapshotRecord(replace(snapshot, status={}, labels={}, annotations={}), ready, at_rest, ordered_of)


class SnapshotRecords:
    """The records of all snapshots. Thread-safe.

    `refused`: by branch UID, what to report of the last run of its schedules where the API server refused it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.refused: LimitedDict[str, Finding] = LimitedDict(MAX_REFUSED)
        self._records: dict[ObjectKey, SnapshotRecord] = {}
        # True once all have been listed: what is not here does not exist.
        self.complete = False

    def put(self, record: SnapshotRecord) -> SnapshotRecord | None:
        """Remember the record, unless a later one of the object is known; return the one before."""
        snapshot = record.snapshot
        key = snapshot.namespace, snapshot.object_name
        with self._lock:
            old = self._records.get(key)
            if old is None or not _is_older(snapshot, old.snapshot):
                self._records[key] = record
            return old

    def forget(self, namespace: str, name: str) -> SnapshotRecord | None:
        """Forget a snapshot that is gone; return its record."""
        with self._lock:
            return self._records.pop((namespace, name), None)

    def keep_only(self, keys: Iterable[ObjectKey]) -> list[SnapshotRecord]:
        """Forget all others, which went while nobody watched; return their records."""
        kept = set(keys)
        with self._lock:
            gone = [record for key, record in self._records.items() if key not in kept]
            self._records = {key: record for key, record in self._records.items() if key in kept}
            self.complete = True
        return gone

    def get(self, namespace: str, name: str) -> Snapshot | None:
        with self._lock:
            record = self._records.get((namespace, name))
        return record.snapshot if record else None

    def all(self) -> list[SnapshotRecord]:
        with self._lock:
            return list(self._records.values())

    def of_project(self, namespace: str, project: str) -> list[SnapshotRecord]:
        """Return the records of a project's snapshots."""
        return [
            record
            for record in self.all()
            if (record.snapshot.namespace, record.snapshot.project) == (namespace, project)
        ]

    def count(self, state: str) -> int:
        """Return how many are in one of STATES."""
        return Counter(record.state for record in self.all())[state]


def _is_older(snapshot: Snapshot, remembered: Snapshot) -> bool:
    """True if it is an earlier version of the same object: a watch delivers what was read from an answer again."""
    return snapshot.uid == remembered.uid and is_newer(remembered.resource_version, snapshot.resource_version)
