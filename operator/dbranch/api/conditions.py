"""Conditions, their reasons and what each reason says of the status: the table of the API.

A part that observes something reports a `Finding` (reason and message); this table says whether the
reason makes the condition True, False or Unknown, and whether a person has to act (`Stalled`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dbranch.api.enums import ConditionStatus

MESSAGE_LIMIT = 256


class Condition(StrEnum):
    """The types of conditions of both kinds."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    SCHEDULED = "Scheduled"
    STORAGE_READY = "StorageReady"
    POSTGRES_READY = "PostgresReady"
    ROUTED = "Routed"
    DELETION_BLOCKED = "DeletionBlocked"


class Reason(StrEnum):
    """Every reason that a condition or an Event may carry."""

    AVAILABLE = "Available"
    PENDING = "Pending"
    STOPPED = "Stopped"
    DELETING = "Deleting"
    # Scheduled
    BOUND = "Bound"
    NO_ELIGIBLE_NODE = "NoEligibleNode"
    NODE_NOT_READY = "NodeNotReady"
    AGENT_NOT_REPORTING = "AgentNotReporting"
    NODE_GONE = "NodeGone"
    PROJECT_NOT_FOUND = "ProjectNotFound"
    PROJECT_NOT_READY = "ProjectNotReady"
    SOURCE_NOT_FOUND = "SourceNotFound"
    SOURCE_NOT_READY = "SourceNotReady"
    NAME_TAKEN = "NameTaken"
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
    STORED = "Stored"
    SNAPSHOTTING = "Snapshotting"
    INITIALIZING = "Initializing"
    SNAPSHOT_FAILED = "SnapshotFailed"
    INITDB_FAILED = "InitdbFailed"
    SOURCE_UNSAFE = "SourceUnsafe"
    DATA_LOST = "DataLost"
    # PostgresReady
    ACCEPTING = "Accepting"
    RESTART_PENDING = "RestartPending"
    WAITING_FOR_SLOT = "WaitingForSlot"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    POD_REJECTED = "PodRejected"
    RECOVERING = "Recovering"
    CRASH_LOOPING = "CrashLooping"
    INVALID_PARAMETERS = "InvalidParameters"
    IMAGE_INCOMPATIBLE = "ImageIncompatible"
    # Routed
    ROUTED = "Routed"
    DRAINING = "Draining"
    BRANCH_NOT_FOUND = "BranchNotFound"
    BRANCH_NOT_READY = "BranchNotReady"
    BRANCH_STOPPED = "BranchStopped"
    BRANCH_DELETING = "BranchDeleting"
    PROXY_NOT_READY = "ProxyNotReady"
    SECRET_NOT_FOUND = "SecretNotFound"
    TLS_SECRET_NOT_FOUND = "TLSSecretNotFound"
    TLS_SECRET_INVALID = "TLSSecretInvalid"
    # DeletionBlocked
    WAITING_FOR_AGENT = "WaitingForAgent"


# The reasons with which their condition is True. DeletionBlocked's are True whenever it is there.
TRUE_REASONS = frozenset(
    {
        Reason.AVAILABLE,
        Reason.BOUND,
        Reason.POOL_MOUNTED,
        Reason.POOL_LOW,
        Reason.STORED,
        Reason.ACCEPTING,
        Reason.RESTART_PENDING,
        Reason.ROUTED,
        Reason.DRAINING,
        Reason.WAITING_FOR_AGENT,
    }
)
# Nothing is known: the node or its agent does not say.
UNKNOWN_REASONS = frozenset({Reason.PENDING, Reason.NODE_NOT_READY, Reason.AGENT_NOT_REPORTING})
# Waiting does not help: a person has to act.
STALLED_REASONS = frozenset(
    {
        Reason.NODE_GONE,
        Reason.NAME_TAKEN,
        Reason.POOL_LOST,
        Reason.POOL_DAMAGED,
        Reason.BTRFS_MISSING,
        Reason.SOURCE_UNSAFE,
        Reason.DATA_LOST,
        Reason.INVALID_PARAMETERS,
        Reason.IMAGE_INCOMPATIBLE,
    }
)
# Worth a Warning among the Events, though waiting or a retry may help.
WARNING_REASONS = STALLED_REASONS | {
    Reason.NO_ELIGIBLE_NODE,
    Reason.NODE_NOT_READY,
    Reason.AGENT_NOT_REPORTING,
    Reason.ATTACH_FAILED,
    Reason.POOL_FULL,
    Reason.NODE_DISK_LOW,
    Reason.MOUNT_NOT_PROPAGATED,
    Reason.SNAPSHOT_FAILED,
    Reason.INITDB_FAILED,
    Reason.IMAGE_PULL_FAILED,
    Reason.POD_REJECTED,
    Reason.CRASH_LOOPING,
    Reason.BRANCH_NOT_FOUND,
    Reason.SECRET_NOT_FOUND,
    Reason.TLS_SECRET_NOT_FOUND,
    Reason.TLS_SECRET_INVALID,
}
# Asked for by the user, so neither Reconciling nor Stalled.
AT_REST_REASONS = frozenset({Reason.STOPPED})


@dataclass(frozen=True)
class Finding:
    """What one part says of one step: `{reason, message}` in `status.node.storage`, `.postgres`.

    The message is `<object> <fact with value>; <effect>; <next step>`: at most 256 characters, no
    timestamps, counters or secrets, the same on every visit.
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
        return self.reason in TRUE_REASONS

    def as_dict(self) -> dict[str, str]:
        return {"reason": self.reason.value, "message": clip(self.message)}

    @classmethod
    def from_dict(cls, raw: Any) -> Finding | None:
        """The step that an agent wrote, or None where it wrote none (yet)."""
        if not raw or not raw.get("reason"):
            return None
        return cls(Reason(raw["reason"]), raw.get("message", ""))


def printable(text: str) -> str:
    r"""The text with an escape for each character that is no letter, sign or blank: names of a tenant's files.

    >>> printable("a\x1b[2Jb\n")
    'a\\x1b[2Jb\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def clip(message: str) -> str:
    """The message within the API's bound, on one line, without what would steer a terminal."""
    line = printable(" ".join(message.split()))
    return line if len(line) <= MESSAGE_LIMIT else line[: MESSAGE_LIMIT - 1] + "…"


def find_condition(status: Any, kind: Condition) -> dict[str, Any] | None:
    """A condition of an object's status, as it stands in the list."""
    for entry in (status or {}).get("conditions") or ():
        if entry.get("type") == kind:
            return dict(entry)
    return None


def is_condition_true(status: Any, kind: Condition) -> bool:
    """Whether a condition is there and True."""
    entry = find_condition(status, kind)
    return entry is not None and entry.get("status") == ConditionStatus.TRUE


def is_ready(body: Mapping[str, Any]) -> bool:
    """True if the condition Ready of an object (a pod, a Node, a project, a branch) is True."""
    return is_condition_true(body.get("status"), Condition.READY)
