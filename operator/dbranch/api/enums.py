"""The string enums of the CRDs. A unit test compares them with crds/*.yaml."""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class OpenEnum(StrEnum):
    """A string enum that also holds values of a newer release, which equal no member known here.

    A role may be older than the one that wrote the object; an unknown value must not stop it from reading the rest.

    >>> class Color(OpenEnum):
    ...     RED = "Red"
    >>> Color("Red") is Color.RED, Color("Blue") == Color.RED, Color("Blue").value
    (True, False, 'Blue')
    """

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str):
            return None
        unknown = str.__new__(cls, value)
        unknown._name_ = unknown._value_ = value
        return unknown

    @property
    def is_known(self) -> bool:
        """True if it is a member of this release."""
        return self._value_ in type(self)._value2member_map_


class State(OpenEnum):
    """`spec.state` of a project or branch."""

    RUNNING = "Running"
    STOPPED = "Stopped"


class Protection(OpenEnum):
    """`spec.protection` of a project or branch."""

    DISABLED = "Disabled"
    ENABLED = "Enabled"


class SnapshotReason(OpenEnum):
    """`spec.origin.reason` of a snapshot: what it was made for.

    Only one that is Requested is taken from a branch. The others are records of what was done once.
    """

    REQUESTED = "Requested"
    SCHEDULE = "Schedule"
    RESTORE = "Restore"
    DELETION = "Deletion"


class ScheduleState(OpenEnum):
    """`state` of a schedule."""

    ACTIVE = "Active"
    PAUSED = "Paused"


class WhenInUse(OpenEnum):
    """`spec.refresh.whenInUse` of a branch: what becomes of a refresh while sessions are open."""

    REPLACE = "Replace"
    SKIP = "Skip"


class Undo(OpenEnum):
    """`spec.undo` of a branch or restore: what becomes of the data that the branch loses."""

    KEEP = "Keep"
    DISCARD = "Discard"


class RestorePhase(OpenEnum):
    """`status.phase` of a restore. Rejected: it never began."""

    PENDING = "Pending"
    RUNNING = "Running"
    COMPLETE = "Complete"
    FAILED = "Failed"
    REJECTED = "Rejected"


class RestoreState(OpenEnum):
    """`status.restore.state` of a branch: what its agent is to do now."""

    PREPARING = "Preparing"
    SWITCHING = "Switching"
    CANCELING = "Canceling"


class RestoreSourceKind(OpenEnum):
    """`status.restore.source.kind` of a branch."""

    BRANCH = "Branch"
    SNAPSHOT = "Snapshot"


class NodeRestoreState(OpenEnum):
    """`status.node.restore.state` of a branch: how far its agent is."""

    PREPARING = "Preparing"
    PREPARED = "Prepared"
    EXCHANGED = "Exchanged"
    DONE = "Done"
    FAILED = "Failed"
    CANCELED = "Canceled"


class DeletionPolicy(OpenEnum):
    """`spec.deletionPolicy` of a project."""

    DELETE = "Delete"
    RETAIN = "Retain"


class LocaleProvider(OpenEnum):
    """`spec.postgres.initdb.provider` of a project."""

    LIBC = "libc"
    ICU = "icu"
    BUILTIN = "builtin"


class ServiceType(OpenEnum):
    """`spec.proxy.serviceType` of a project."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"


class ExternalTrafficPolicy(OpenEnum):
    """`spec.proxy.service.externalTrafficPolicy` of a project."""

    CLUSTER = "Cluster"
    LOCAL = "Local"


class OnSwitch(OpenEnum):
    """`spec.proxy.onSwitch` of a project."""

    TERMINATE = "Terminate"
    DRAIN = "Drain"
    KEEP = "Keep"


class ProxyProtocol(OpenEnum):
    """`spec.proxy.proxyProtocol` of a project."""

    DISABLED = "Disabled"
    REQUIRED = "Required"


class TlsMode(OpenEnum):
    """`spec.proxy.tls.mode` of a project."""

    OPTIONAL = "Optional"
    REQUIRED = "Required"


class TargetState(OpenEnum):
    """`state` of a branch's `status.route`, and of an entry of a project's `status.routes`."""

    READY = "Ready"
    STARTING = "Starting"
    STOPPED = "Stopped"
    DELETING = "Deleting"


class ConditionStatus(OpenEnum):
    """`status` of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"
