"""A DBSnapshot as frozen dataclasses, parsed from the API server's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from dbranch.api import names
from dbranch.api.conditions import NO_PROGRESS_REASONS, Finding, Reason
from dbranch.api.enums import Protection, SnapshotReason
from dbranch.api.expiry import NEVER, format_time, parse_ttl


@dataclass(frozen=True)
class SnapshotNode:
    """`status.node`: what the snapshot's agent reports of its subvolume.

    `transaction`: of the pool's filesystem, the one that took it; of a scheduled one.
    `generation`: `status.node.generation` of the branch when it had this data.
    """

    snapshot_time: str | None = None
    storage: Finding | None = None
    postgres_version: str | None = None
    logical_bytes: int | None = None
    unique_bytes: int | None = None
    transaction: int | None = None
    deletion: Finding | None = None
    generation: int | None = None

    @property
    def stored(self) -> bool:
        """True if the data is on the disk."""
        return self.storage is not None and self.storage.reason == Reason.STORED


@dataclass(frozen=True)
class Snapshot:
    """A DBSnapshot. `object_name`: of the object; `deleted`: RFC 3339. `branch`: the name of the branch.

    `origin_branch_uid`, `restore_uid`, `origin_time`, `branch_spec` (of a deleted branch), `origin_project_uid` (of a
    deleted project, of which it is the record; it has no data): `spec.origin`, which the controller alone writes.
    `schedules`: of a scheduled one, whose run it is.
    """

    namespace: str
    object_name: str
    uid: str
    project: str
    branch: str
    ttl: str = NEVER
    protection: Protection = Protection.DISABLED
    reason: SnapshotReason = SnapshotReason.REQUESTED
    schedules: tuple[str, ...] = ()
    origin_branch_uid: str | None = None
    restore_uid: str | None = None
    origin_time: str | None = None
    branch_spec: Mapping[str, Any] = field(default_factory=dict)
    origin_project_uid: str | None = None
    generation: int = 1
    resource_version: str = ""
    created: str | None = None
    deleted: str | None = None
    finalizers: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    node_name: str | None = None
    branch_uid: str | None = None
    expiration_time: str | None = None
    observed_generation: int = 0
    node: SnapshotNode = field(default_factory=SnapshotNode)
    status: Mapping[str, Any] = field(default_factory=dict)

    @property
    def deleting(self) -> bool:
        """True if the object has a deletionTimestamp."""
        return self.deleted is not None

    @property
    def name(self) -> str:
        """The name that people read: what follows the project's."""
        return names.snapshot_short_name(self.project, self.object_name)

    @property
    def awaits_data(self) -> bool:
        """True if it is bound and still to be taken, and can be."""
        storage = self.node.storage
        is_over = self.deleting or self.node.snapshot_time is not None
        return not is_over and not (storage and storage.reason in NO_PROGRESS_REASONS)

    @property
    def is_record(self) -> bool:
        """True if it is never taken: it gets the data that a restore or a deletion leaves."""
        return self.reason not in (SnapshotReason.REQUESTED, SnapshotReason.SCHEDULE)

    @property
    def protected(self) -> bool:
        return self.protection == Protection.ENABLED

    @property
    def lifetime(self) -> timedelta | None:
        """How long it is kept from its snapshot on; None: until somebody deletes it."""
        return parse_ttl(self.ttl)

    def expiration_at(self, now: datetime) -> str:
        """Return when it is to go by its present spec if its data is as of `now` (RFC 3339); empty: never."""
        if self.lifetime is None or self.protected:
            return ""
        return format_time(now + self.lifetime)


def parse_snapshot(body: Mapping[str, Any]) -> Snapshot:
    """Parse a DBSnapshot as the API server returns it. The schema's defaults apply here, too."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    origin = spec.get("origin") or {}
    return Snapshot(
        namespace=meta.get("namespace", ""),
        object_name=meta["name"],
        uid=meta.get("uid", ""),
        project=spec["project"],
        branch=spec["branch"],
        ttl=str(spec.get("ttl", NEVER)),
        protection=Protection(spec.get("protection", Snapshot.protection)),
        reason=SnapshotReason(origin.get("reason", Snapshot.reason)),
        schedules=tuple(map(str, origin.get("schedules") or ())),
        origin_branch_uid=origin.get("branchUID"),
        restore_uid=origin.get("restoreUID"),
        branch_spec=dict(origin.get("branchSpec") or {}),
        origin_project_uid=origin.get("projectUID"),
        origin_time=origin.get("time"),
        generation=int(meta.get("generation", 1)),
        resource_version=meta.get("resourceVersion", ""),
        created=meta.get("creationTimestamp"),
        deleted=meta.get("deletionTimestamp"),
        finalizers=tuple(meta.get("finalizers") or ()),
        labels=dict(meta.get("labels") or {}),
        annotations=dict(meta.get("annotations") or {}),
        node_name=status.get("nodeName"),
        branch_uid=status.get("branchUID"),
        expiration_time=status.get("expirationTime"),
        observed_generation=int(status.get("observedGeneration", 0)),
        node=_parse_node(status.get("node") or {}),
        status=status,
    )


def _parse_node(raw: Mapping[str, Any]) -> SnapshotNode:
    return SnapshotNode(
        snapshot_time=raw.get("snapshotTime"),
        storage=Finding.from_dict(raw.get("storage")),
        postgres_version=raw.get("postgresVersion"),
        logical_bytes=raw.get("logicalBytes"),
        unique_bytes=raw.get("uniqueBytes"),
        transaction=raw.get("transaction"),
        deletion=Finding.from_dict(raw.get("deletion")),
        generation=raw.get("generation"),
    )
