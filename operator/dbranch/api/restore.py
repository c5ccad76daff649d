"""A DBRestore, and what a DBBranch says of its restores, as frozen dataclasses parsed from the API server's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from dbranch.api import names
from dbranch.api.conditions import Condition, Finding, find_condition
from dbranch.api.enums import NodeRestoreState, RestorePhase, RestoreSourceKind, RestoreState, Undo
from dbranch.api.errors import InvalidInput
from dbranch.api.quantity import parse_seconds

# The phases in which nothing more is done.
FINISHED_PHASES: Final = frozenset({RestorePhase.COMPLETE, RestorePhase.FAILED, RestorePhase.REJECTED})


@dataclass(frozen=True)
class Restore:
    """A DBRestore. `object_name`: of the object; `branch`, `source`: names of branches; times: RFC 3339.

    `scheduled_for`: the UID of the DBBranch whose refresh has made it. `failure`: what its condition Failed says.
    `source_snapshot`: the name of a DBSnapshot's object. `source_text`: `status.source`, what it was bound to.
    """

    namespace: str
    object_name: str
    uid: str
    project: str
    branch: str
    source: str | None = None
    source_snapshot: str | None = None
    undo: Undo | None = None
    starting_deadline: str = "10m"
    ttl_after_finished: str | None = None
    generation: int = 1
    resource_version: str = ""
    created: str | None = None
    deleted: str | None = None
    finalizers: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    scheduled_for: str | None = None
    failure: Finding | None = None
    phase: RestorePhase | None = None
    branch_uid: str | None = None
    source_uid: str | None = None
    source_text: str | None = None
    start_time: str | None = None
    completion_time: str | None = None
    undo_snapshot: str | None = None
    data_time: str | None = None
    status: Mapping[str, Any] = field(default_factory=dict)

    @property
    def deleting(self) -> bool:
        """True if the object has a deletionTimestamp."""
        return self.deleted is not None

    @property
    def finished(self) -> bool:
        """True if it is a record only: complete, failed or rejected."""
        return self.phase in FINISHED_PHASES

    @property
    def starting_deadline_seconds(self) -> float:
        """How long it may wait from its creation on."""
        return _seconds(self.starting_deadline) or 0.0

    @property
    def ttl_seconds(self) -> float | None:
        """How long the object stays after it is finished; None: until somebody deletes it."""
        return _seconds(self.ttl_after_finished)


@dataclass(frozen=True)
class RestoreSource:
    """`status.restore.source` of a branch: what is copied. `name`: of the branch, or of the DBSnapshot's object."""

    kind: RestoreSourceKind
    name: str
    uid: str

    @property
    def text(self) -> str:
        """What people read: a branch's name, or `snapshot/` and a DBSnapshot's."""
        return f"snapshot/{self.name}" if self.kind == RestoreSourceKind.SNAPSHOT else self.name

    def as_dict(self) -> dict[str, str]:
        return {"kind": self.kind.value, "name": self.name, "uid": self.uid}


@dataclass(frozen=True)
class BranchRestore:
    """`status.restore` of a branch: what its agent is to do. `undo_snapshot`, `undo_uid`: None with Discard."""

    name: str
    uid: str
    state: RestoreState
    source: RestoreSource
    undo: Undo
    undo_snapshot: str | None = None
    undo_uid: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as the API server stores it."""
        fields: dict[str, Any] = {
            "name": self.name,
            "uid": self.uid,
            "state": self.state.value,
            "source": self.source.as_dict(),
            "undo": self.undo.value,
        }
        if self.undo_snapshot and self.undo_uid:
            fields |= {"undoSnapshot": self.undo_snapshot, "undoUID": self.undo_uid}
        return fields


@dataclass(frozen=True)
class NodeRestore:
    """`status.node.restore` of a branch: how far its agent is with the restore of this UID.

    `finding`: the step, or why it failed. `data_time`: RFC 3339, the time as of which the new data is.
    """

    uid: str
    state: NodeRestoreState
    finding: Finding | None = None
    data_time: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as the API server stores it."""
        fields: dict[str, Any] = {"uid": self.uid, "state": self.state.value}
        fields |= self.finding.as_dict() if self.finding else {}
        return fields | ({"dataTime": self.data_time} if self.data_time else {})


@dataclass(frozen=True)
class RestoreRecord:
    """An entry of `status.restores` of a branch: a restore that is complete. `source`: as people read it."""

    name: str
    uid: str
    source: str | None = None
    completion_time: str | None = None
    undo_snapshot: str | None = None

    def as_dict(self) -> dict[str, str]:
        """Return it as the API server stores it."""
        fields = {
            "name": self.name,
            "uid": self.uid,
            "source": self.source,
            "completionTime": self.completion_time,
            "undoSnapshot": self.undo_snapshot,
        }
        return {key: value for key, value in fields.items() if value is not None}


@dataclass(frozen=True)
class BranchData:
    """`status.data` of a branch: what its data is of since its last restore, whose name `restore` is."""

    source_uid: str | None = None
    source: str | None = None
    time: str | None = None
    restore: str | None = None

    def as_dict(self) -> dict[str, str]:
        """Return it as the API server stores it."""
        fields = {
            "sourceUID": self.source_uid,
            "source": self.source,
            "time": self.time,
            "restore": self.restore,
        }
        return {key: value for key, value in fields.items() if value is not None}


def parse_restore(body: Mapping[str, Any]) -> Restore:
    """Parse a DBRestore as the API server returns it. The schema's defaults apply here, too."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    return Restore(
        namespace=meta.get("namespace", ""),
        object_name=meta["name"],
        uid=meta.get("uid", ""),
        project=spec["project"],
        branch=spec["branch"],
        source=spec.get("source"),
        source_snapshot=spec.get("sourceSnapshot"),
        undo=parse_undo(spec.get("undo")),
        starting_deadline=str(spec.get("startingDeadline", Restore.starting_deadline)),
        ttl_after_finished=spec.get("ttlAfterFinished"),
        generation=int(meta.get("generation", 1)),
        resource_version=meta.get("resourceVersion", ""),
        created=meta.get("creationTimestamp"),
        deleted=meta.get("deletionTimestamp"),
        finalizers=tuple(meta.get("finalizers") or ()),
        labels=dict(meta.get("labels") or {}),
        annotations=dict(meta.get("annotations") or {}),
        scheduled_for=_branch_owner(meta),
        failure=Finding.from_dict(find_condition(status, Condition.FAILED)),
        phase=RestorePhase(status["phase"]) if status.get("phase") else None,
        branch_uid=status.get("branchUID"),
        source_uid=status.get("sourceUID"),
        source_text=status.get("source"),
        start_time=status.get("startTime"),
        completion_time=status.get("completionTime"),
        undo_snapshot=status.get("undoSnapshot"),
        data_time=status.get("dataTime"),
        status=status,
    )


def _branch_owner(meta: Mapping[str, Any]) -> str | None:
    """Return the UID of the DBBranch that owns the object as its controller; policies let only dbranch set it."""
    for owner in meta.get("ownerReferences") or ():
        is_ours = str(owner.get("apiVersion", "")).startswith(f"{names.GROUP}/")
        if is_ours and owner.get("kind") == names.BRANCH_KIND and owner.get("controller"):
            return str(owner.get("uid"))
    return None


def parse_undo(raw: Any) -> Undo | None:
    """Parse `spec.undo` of a branch or DBRestore. A value that only a newer release knows discards nothing."""
    if raw is None:
        return None
    return Undo.DISCARD if raw == Undo.DISCARD else Undo.KEEP


def parse_branch_restore(raw: Any) -> BranchRestore | None:
    """Parse `status.restore` of a branch; None if there is none, or one without what this release needs of it."""
    try:
        source = raw["source"]
        return BranchRestore(
            str(raw["name"]),
            str(raw["uid"]),
            RestoreState(raw["state"]),
            RestoreSource(RestoreSourceKind(source["kind"]), str(source["name"]), str(source["uid"])),
            parse_undo(raw.get("undo")) or Undo.KEEP,
            raw.get("undoSnapshot"),
            raw.get("undoUID"),
        )
    except (KeyError, TypeError, ValueError):
        return None


def parse_node_restore(raw: Any) -> NodeRestore | None:
    """Parse `status.node.restore` of a branch; None if there is none, or one without its UID or state."""
    try:
        return NodeRestore(
            str(raw["uid"]), NodeRestoreState(raw["state"]), Finding.from_dict(raw), raw.get("dataTime")
        )
    except (KeyError, TypeError, ValueError):
        return None


def parse_records(raw: Any) -> tuple[RestoreRecord, ...]:
    """Parse `status.restores` of a branch; entries without a name or UID are left out."""
    return tuple(
        RestoreRecord(
            str(entry["name"]),
            str(entry["uid"]),
            entry.get("source"),
            entry.get("completionTime"),
            entry.get("undoSnapshot"),
        )
        for entry in (raw if isinstance(raw, list) else ())
        if isinstance(entry, Mapping) and {"name", "uid"} <= {*entry}
    )


def parse_data(raw: Any) -> BranchData | None:
    """Parse `status.data` of a branch."""
    if not isinstance(raw, Mapping):
        return None
    return BranchData(raw.get("sourceUID"), raw.get("source"), raw.get("time"), raw.get("restore"))


def done_before(records: tuple[RestoreRecord, ...], name: str, uid: str) -> RestoreRecord | None:
    """Return the record of another DBRestore that had this name, the last one; None if the name is not used up."""
    return next((record for record in reversed(records) if record.name == name and record.uid != uid), None)


def _seconds(text: str | None) -> float | None:
    """Parse a duration; None for none, and for one that the schema's pattern does not admit."""
    try:
        return None if text is None else parse_seconds(text)
    except InvalidInput:
        return None
