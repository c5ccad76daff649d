"""The string enums of the CRDs. A unit test compares them with crds/*.yaml."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """`spec.state` of a project or branch."""

    RUNNING = "Running"
    STOPPED = "Stopped"


class Protection(StrEnum):
    """`spec.protection` of a project or branch."""

    DISABLED = "Disabled"
    ENABLED = "Enabled"


class DeletionPolicy(StrEnum):
    """`spec.deletionPolicy` of a project."""

    DELETE = "Delete"
    RETAIN = "Retain"


class ServiceType(StrEnum):
    """`spec.proxy.serviceType` of a project."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"


class OnSwitch(StrEnum):
    """`spec.proxy.onSwitch` of a project."""

    TERMINATE = "Terminate"
    DRAIN = "Drain"
    KEEP = "Keep"


class ProxyProtocol(StrEnum):
    """`spec.proxy.proxyProtocol` of a project."""

    DISABLED = "Disabled"
    REQUIRED = "Required"


class TlsMode(StrEnum):
    """`spec.proxy.tls.mode` of a project."""

    OPTIONAL = "Optional"
    REQUIRED = "Required"


class TargetState(StrEnum):
    """`state` of an entry of a project's `status.routes`."""

    READY = "Ready"
    STARTING = "Starting"
    STOPPED = "Stopped"
    DELETING = "Deleting"


class ConditionStatus(StrEnum):
    """`status` of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"
