"""A thread that watches the snapshots of this node and keeps a short record of each, not the whole object.

A snapshot is hardly ever written once it is stored, and there may be hundreds for each project: at a start only those
are reconciled that are not at rest.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dbranch.agent.context import NodeContext
from dbranch.agent.timing import SNAPSHOT_WATCH_RETRY_SECONDS
from dbranch.api import names
from dbranch.api.snapshot import parse_snapshot
from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.logs import log_error

logger = logging.getLogger(__name__)

# Namespace and name of an object.
ObjectKey = tuple[str, str]


@dataclass(frozen=True)
class SnapshotRecord:
    """What is remembered of a snapshot. `version`: what a change of asks for a reconcile.

    `transaction`: that took a scheduled snapshot of the branch `branch_uid`.
    """

    uid: str
    project: str
    at_rest: bool
    version: tuple[object, ...]
    branch_uid: str | None = None
    transaction: int | None = None


def record_of(body: Mapping[str, Any]) -> SnapshotRecord:
    """Return the record of a DBSnapshot."""
    snapshot = parse_snapshot(body)
    at_rest = snapshot.node.stored and snapshot.node.unique_bytes is not None and not snapshot.deleting
    requested = snapshot.annotations.get(names.AGENT_REQUESTED_AT)
    version = (
        snapshot.branch_uid,
        snapshot.deleted,
        snapshot.finalizers if snapshot.deleting else (),
        requested,
    )
    return SnapshotRecord(
        snapshot.uid, snapshot.project, at_rest, version, snapshot.branch_uid, snapshot.node.transaction
    )


def needs_reconcile(old: SnapshotRecord | None, new: SnapshotRecord) -> bool:
    """Return True if the agent has to reconcile a snapshot after a change from `old` (None: it was not known)."""
    if old is None or old.uid != new.uid:
        return not new.at_rest
    return old.version != new.version


class SnapshotRecords:
    """The snapshots of this node. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[ObjectKey, SnapshotRecord] = {}

    def of_project(self, namespace: str, project: str) -> dict[str, SnapshotRecord]:
        """Return the records of a project's snapshots, by the object's name."""
        with self._lock:
            return {
                name: record
                for (where, name), record in self._records.items()
                if where == namespace and record.project == project
            }

    def last_transactions(self) -> dict[str, int]:
        """Return the transactions that took the last scheduled snapshots, by the branch's UID."""
        last: dict[str, int] = {}
        with self._lock:
            for record in self._records.values():
                if record.branch_uid and record.transaction is not None:
                    last[record.branch_uid] = max(last.get(record.branch_uid, 0), record.transaction)
        return last

    def put(self, key: ObjectKey, record: SnapshotRecord | None) -> SnapshotRecord | None:
        """Set the record (None: forget it); return the one before."""
        with self._lock:
            old = self._records.pop(key, None)
            if record is not None:
                self._records[key] = record
            return old

    def keep_only(self, keys: set[ObjectKey]) -> None:
        """Forget all others: they went while nobody watched."""
        with self._lock:
            self._records = {key: record for key, record in self._records.items() if key in keys}


def watch_snapshots(
    cluster: Cluster,
    context: NodeContext,
    records: SnapshotRecords,
    request: Callable[[str, str], None],
    beat: Callable[[], None],
) -> None:
    """Watch for ever and request reconciles. `request(namespace, name)`; `beat` is called in each round and event."""
    while True:
        beat()
        try:
            follow_snapshots(cluster, context, records, request, beat)
        except Exception as error:  # noqa: BLE001
            log_error(logger, error, "watch of snapshots")
            time.sleep(SNAPSHOT_WATCH_RETRY_SECONDS)


def follow_snapshots(
    cluster: Cluster,
    context: NodeContext,
    records: SnapshotRecords,
    request: Callable[[str, str], None],
    beat: Callable[[], None] = lambda: None,
) -> None:
    """List the node's snapshots and follow them until the server ends the watch."""
    path, listed = path_of(names.API_VERSION, names.SNAPSHOTS), set[ObjectKey]()
    for event in cluster.watch(path, fields=f"status.nodeName={context.node}"):
        beat()
        if event["type"] == "SYNCED":
            records.keep_only(listed)
            continue
        if parse_snapshot(event["object"]).origin_project_uid:
            # The record of a deleted project has no data.
            continue
        meta = event["object"]["metadata"]
        key = meta["namespace"], meta["name"]
        listed.add(key)
        if event["type"] == "DELETED":
            records.put(key, None)
            continue
        record = record_of(event["object"])
        if needs_reconcile(records.put(key, record), record):
            request(*key)
