"""The types and reasons of conditions, and the status that goes with each reason.

A role that observes something reports a `Finding` (reason and message). The sets below say whether the reason
makes its condition True, False or Unknown, and whether a person has to act (`Stalled`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dbranch.api.enums import ConditionStatus, OpenEnum

MESSAGE_LIMIT = 256


class Condition(StrEnum):
    """The condition types of DBProject, DBBranch, DBSnapshot and DBRestore."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    SCHEDULED = "Scheduled"
    STORAGE_READY = "StorageReady"
    POSTGRES_READY = "PostgresReady"
    ROUTED = "Routed"
    SNAPSHOTTED = "Snapshotted"
    REFRESHED = "Refreshed"
    DELETION_BLOCKED = "DeletionBlocked"
    COMPLETE = "Complete"
    FAILED = "Failed"
    EXPIRATION_BLOCKED = "ExpirationBlocked"


class Reason(OpenEnum):
    """Every reason of a condition or an Event."""

    AVAILABLE = "Available"
    PENDING = "Pending"
    STOPPED = "Stopped"
    DELETING = "Deleting"
    # Scheduled of a branch, Routed of a project
    RECONCILE_FAILED = "ReconcileFailed"
    # Scheduled
    BOUND = "Bound"
    ABOVE_LIMIT = "AboveLimit"
    NO_ELIGIBLE_NODE = "NoEligibleNode"
    NODE_NOT_READY = "NodeNotReady"
    AGENT_NOT_REPORTING = "AgentNotReporting"
    NODE_GONE = "NodeGone"
    PROJECT_NOT_FOUND = "ProjectNotFound"
    PROJECT_NOT_READY = "ProjectNotReady"
    SOURCE_NOT_FOUND = "SourceNotFound"
    SOURCE_NOT_READY = "SourceNotReady"
    NAME_TAKEN = "NameTaken"
    OBJECT_REFUSED = "ObjectRefused"
    WAITING_FOR_DELETION = "WaitingForDeletion"
    LIMIT_EXCEEDED = "LimitExceeded"
    SNAPSHOT_NOT_FOUND = "SnapshotNotFound"
    SNAPSHOT_NOT_READY = "SnapshotNotReady"
    AGENT_TOO_OLD = "AgentTooOld"
    # StorageReady
    POOL_MOUNTED = "PoolMounted"
    POOL_LOW = "PoolLow"
    CREATING_POOL = "CreatingPool"
    ATTACH_FAILED = "AttachFailed"
    POOL_FULL = "PoolFull"
    NODE_DISK_LOW = "NodeDiskLow"
    POOL_LOST = "PoolLost"
    POOL_DAMAGED = "PoolDamaged"
    BTRFS_MISSING = "BtrfsMissing"
    MOUNT_NOT_PROPAGATED = "MountNotPropagated"
    START_BLOCKED = "StartBlocked"
    STORED = "Stored"
    SNAPSHOTTING = "Snapshotting"
    INITIALIZING = "Initializing"
    SNAPSHOT_FAILED = "SnapshotFailed"
    INITDB_FAILED = "InitdbFailed"
    SOURCE_UNSAFE = "SourceUnsafe"
    SOURCE_DELETED = "SourceDeleted"
    DATA_LOST = "DataLost"
    STORAGE_UNCLEAR = "StorageUnclear"
    # Snapshotted
    ON_SCHEDULE = "OnSchedule"
    INVALID_SCHEDULE = "InvalidSchedule"
    # Ready of a snapshot
    SNAPSHOT_MISSED = "SnapshotMissed"
    SNAPSHOT_LOST = "SnapshotLost"
    # Ready of a branch, while a restore exchanges its data
    RESTORING = "Restoring"
    # Reconciling of a restore
    QUEUED = "Queued"
    PROJECT_STOPPED = "ProjectStopped"
    CLEANING = "Cleaning"
    SWITCHING = "Switching"
    STOPPING = "Stopping"
    OPENING = "Opening"
    # Complete of a restore
    RESTORED = "Restored"
    ALREADY_APPLIED = "AlreadyApplied"
    # Failed of a restore
    NO_SOURCE = "NoSource"
    BRANCH_REPLACED = "BranchReplaced"
    QUEUE_FULL = "QueueFull"
    STARTING_DEADLINE_EXCEEDED = "StartingDeadlineExceeded"
    START_FAILED = "StartFailed"
    CANCELED = "Canceled"
    # PostgresReady
    ACCEPTING = "Accepting"
    RESTART_PENDING = "RestartPending"
    SETTINGS_REJECTED = "SettingsRejected"
    SESSION_FAILED = "SessionFailed"
    NOT_ANSWERING = "NotAnswering"
    CLEANING_FAILED = "CleaningFailed"
    WRITES_BRAKED = "WritesBraked"
    WRITER_STOPPED = "WriterStopped"
    WARM_SLOTS_REJECTED = "WarmSlotsRejected"
    IMAGE_CHANGED = "ImageChanged"
    WAITING_FOR_SLOT = "WaitingForSlot"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    POD_REJECTED = "PodRejected"
    RECOVERING = "Recovering"
    CRASH_LOOPING = "CrashLooping"
    INVALID_PARAMETERS = "InvalidParameters"
    IMAGE_INCOMPATIBLE = "ImageIncompatible"
    ROLE_NOT_FOUND = "RoleNotFound"
    # Routed
    ROUTED = "Routed"
    DRAINING = "Draining"
    BRANCH_NOT_FOUND = "BranchNotFound"
    BRANCH_NOT_READY = "BranchNotReady"
    BRANCH_STOPPED = "BranchStopped"
    BRANCH_DELETING = "BranchDeleting"
    PROXY_NOT_READY = "ProxyNotReady"
    SECRET_NOT_FOUND = "SecretNotFound"
    SECRET_INVALID = "SecretInvalid"
    PULL_SECRET_NOT_FOUND = "PullSecretNotFound"
    TLS_SECRET_NOT_FOUND = "TLSSecretNotFound"
    TLS_SECRET_INVALID = "TLSSecretInvalid"
    # DeletionBlocked
    WAITING_FOR_AGENT = "WaitingForAgent"
    UNDO_REFUSED = "UndoRefused"
    # ExpirationBlocked
    ROOT_BRANCH = "RootBranch"
    ACTIVE_BRANCH = "ActiveBranch"
    PROTECTED = "Protected"


# Their condition is True. DeletionBlocked and ExpirationBlocked exist only while they are True.
TRUE_REASONS = frozenset(
    {
        Reason.AVAILABLE,
        Reason.BOUND,
        Reason.ABOVE_LIMIT,
        Reason.POOL_MOUNTED,
        Reason.POOL_LOW,
        Reason.STORED,
        Reason.ON_SCHEDULE,
        Reason.ACCEPTING,
        Reason.RESTART_PENDING,
        Reason.SETTINGS_REJECTED,
        Reason.SESSION_FAILED,
        Reason.WRITES_BRAKED,
        Reason.WARM_SLOTS_REJECTED,
        Reason.IMAGE_CHANGED,
        Reason.ROUTED,
        Reason.DRAINING,
        Reason.RESTORED,
        Reason.ALREADY_APPLIED,
        Reason.WAITING_FOR_AGENT,
        Reason.UNDO_REFUSED,
        Reason.ROOT_BRANCH,
        Reason.ACTIVE_BRANCH,
        Reason.PROTECTED,
    }
)
# Their condition is Unknown: the node or its agent does not report.
UNKNOWN_REASONS = frozenset({Reason.PENDING, Reason.NODE_NOT_READY, Reason.AGENT_NOT_REPORTING})
# Waiting does not help, a person has to act: the object is Stalled.
STALLED_REASONS = frozenset(
    {
        Reason.NODE_GONE,
        Reason.NAME_TAKEN,
        Reason.POOL_LOST,
        Reason.POOL_DAMAGED,
        Reason.BTRFS_MISSING,
        Reason.SOURCE_UNSAFE,
        Reason.SOURCE_DELETED,
        Reason.DATA_LOST,
        Reason.STORAGE_UNCLEAR,
        Reason.INVALID_SCHEDULE,
        Reason.SNAPSHOT_MISSED,
        Reason.SNAPSHOT_LOST,
        Reason.INVALID_PARAMETERS,
        Reason.IMAGE_INCOMPATIBLE,
        Reason.ROLE_NOT_FOUND,
    }
)
# Postgres admits sessions though something is wrong, so that a person can correct it there.
_ADMITTING_REASONS = frozenset(
    {
        Reason.ACCEPTING,
        Reason.RESTART_PENDING,
        Reason.SETTINGS_REJECTED,
        Reason.SESSION_FAILED,
        Reason.NOT_ANSWERING,
        Reason.ROLE_NOT_FOUND,
        Reason.WRITES_BRAKED,
        Reason.IMAGE_CHANGED,
    }
)
# Their Event is a Warning.
WARNING_REASONS = STALLED_REASONS | {
    Reason.NO_ELIGIBLE_NODE,
    Reason.NODE_NOT_READY,
    Reason.AGENT_NOT_REPORTING,
    Reason.ATTACH_FAILED,
    Reason.POOL_FULL,
    Reason.POOL_LOW,
    Reason.NODE_DISK_LOW,
    Reason.WRITES_BRAKED,
    Reason.WRITER_STOPPED,
    Reason.SETTINGS_REJECTED,
    Reason.SESSION_FAILED,
    Reason.NOT_ANSWERING,
    Reason.CLEANING_FAILED,
    Reason.MOUNT_NOT_PROPAGATED,
    Reason.START_BLOCKED,
    Reason.SNAPSHOT_FAILED,
    Reason.INITDB_FAILED,
    Reason.IMAGE_PULL_FAILED,
    Reason.POD_REJECTED,
    Reason.CRASH_LOOPING,
    Reason.BRANCH_NOT_FOUND,
    Reason.OBJECT_REFUSED,
    Reason.LIMIT_EXCEEDED,
    Reason.ABOVE_LIMIT,
    Reason.SECRET_NOT_FOUND,
    Reason.SECRET_INVALID,
    Reason.PULL_SECRET_NOT_FOUND,
    Reason.TLS_SECRET_NOT_FOUND,
    Reason.TLS_SECRET_INVALID,
    Reason.RECONCILE_FAILED,
    Reason.AGENT_TOO_OLD,
}
# No copy of a branch is taken before somebody has done something about it.
NO_PROGRESS_REASONS = frozenset(
    {
        Reason.POOL_FULL,
        Reason.NODE_DISK_LOW,
        Reason.POOL_LOST,
        Reason.POOL_DAMAGED,
        Reason.BTRFS_MISSING,
        Reason.SOURCE_UNSAFE,
        Reason.DATA_LOST,
        Reason.STORAGE_UNCLEAR,
        Reason.SNAPSHOT_LOST,
        Reason.BRANCH_NOT_FOUND,
    }
)
# As the spec asks, so the object is neither Reconciling nor Stalled.
AT_REST_REASONS = frozenset({Reason.STOPPED})


@dataclass(frozen=True)
class Finding:
    """A reason and a message about one condition; an agent writes them as `status.node.storage` and `.postgres`.

    The message is `<object> <fact with value>; <effect>; <next step>`: at most 256 characters, no timestamps,
    counters or secrets, and the same at every reconcile.
    """

    reason: Reason
    message: str

    @property
    def status(self) -> ConditionStatus:
        """The status of the condition that carries this reason."""
        if self.reason in TRUE_REASONS:
            return ConditionStatus.TRUE
        return ConditionStatus.UNKNOWN if self.reason in UNKNOWN_REASONS else ConditionStatus.FALSE

    @property
    def done(self) -> bool:
        """True if the condition that carries this reason is True."""
        return self.reason in TRUE_REASONS

    @property
    def admits(self) -> bool:
        """True if a Postgres of which this is said admits sessions; also where the condition is not True."""
        return self.reason in _ADMITTING_REASONS

    def as_dict(self) -> dict[str, str]:
        return {"reason": self.reason.value, "message": clip(self.message)}

    @classmethod
    def from_dict(cls, raw: Any) -> Finding | None:
        """Parse a finding that an agent wrote; None if it has written none (yet)."""
        if not raw or not raw.get("reason"):
            return None
        return cls(Reason(raw["reason"]), raw.get("message") or "")


def printable(text: str) -> str:
    r"""Escape every unprintable character of a text that a tenant may have chosen, as the name of a file.

    >>> printable("a\x1b[2Jb\n")
    'a\\x1b[2Jb\\n'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def clip(message: str) -> str:
    """Return the message on one line, printable, and cut to what the CRDs allow (MESSAGE_LIMIT)."""
    line = printable(" ".join(message.split()))
    return line if len(line) <= MESSAGE_LIMIT else line[: MESSAGE_LIMIT - 1] + "…"


def find_condition(status: Any, condition_type: Condition) -> dict[str, Any] | None:
    """Return the condition of this type in an object's status; None if it is missing. Its fields are complete."""
    for entry in (status or {}).get("conditions") or ():
        if entry.get("type") == condition_type:
            return {"status": ConditionStatus.UNKNOWN.value, "reason": "", "message": "", **entry}
    return None


def is_condition_true(status: Any, condition_type: Condition) -> bool:
    """Return True if the condition of this type exists and is True."""
    entry = find_condition(status, condition_type)
    return entry is not None and entry.get("status") == ConditionStatus.TRUE


def is_ready(body: Mapping[str, Any]) -> bool:
    """Return True if the condition Ready of an object (pod, Node, project or branch) is True."""
    return is_condition_true(body.get("status"), Condition.READY)
