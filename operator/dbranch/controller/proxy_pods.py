"""Facts about the proxies of a project, from their pods and their Deployment. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from dbranch.api.conditions import is_ready
from dbranch.controller.failure import sentence_of

_PULL_REASONS: Final = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_CREATE_REASONS: Final = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
)


@dataclass(frozen=True)
class ProxyPod:
    """A proxy's pod that exists, also while it is Terminating (then it is not `ready`).

    `has_ended`: its container has ended and is restarted, if at all; a proxy reads the project before it serves.
    `trouble`: why it does not run, in words. `addresses`: its IP addresses, one of each family.
    """

    name: str
    ready: bool
    has_ended: bool = False
    trouble: str | None = None
    addresses: tuple[str, ...] = ()


def proxy_pod_of(body: Mapping[str, Any]) -> ProxyPod | None:
    """Parse a proxy's pod; None if its containers have ended for good."""
    meta, status = body["metadata"], body.get("status") or {}
    if status.get("phase") in ("Succeeded", "Failed"):
        return None
    containers = status.get("containerStatuses") or ()
    is_ended = bool(containers) and all(map(_has_ended, containers))
    ready = is_ready(body) and not meta.get("deletionTimestamp")
    addresses = tuple(entry["ip"] for entry in status.get("podIPs") or () if entry.get("ip"))
    return ProxyPod(meta["name"], ready, is_ended, None if ready else _trouble(status), addresses)


def _has_ended(container: Mapping[str, Any]) -> bool:
    state, last = container.get("state") or {}, container.get("lastState") or {}
    return "terminated" in state or ("waiting" in state and "terminated" in last)


def _trouble(status: Mapping[str, Any]) -> str | None:
    for container in status.get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason")
        if reason in _PULL_REASONS:
            return f"the node cannot pull the image {container.get('image', '')}"
        if reason in _CREATE_REASONS:
            return sentence_of(waiting.get("message") or reason)
        if reason == "CrashLoopBackOff":
            return "its container ends again and again"
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return sentence_of(condition.get("message") or "no node takes it")
    return None


def refused_pods(deployment: Mapping[str, Any] | None) -> str | None:
    """Return the API server's sentence if it refuses the pods of a Deployment (a quota, a policy); None if not."""
    for condition in ((deployment or {}).get("status") or {}).get("conditions") or ():
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            # Without the pod's name, which is another one at each try.
            return sentence_of(condition.get("message") or condition.get("reason") or "")
    return None


def switch_state(entries: Any) -> frozenset[tuple[Any, ...]]:
    """Return of `status.proxies` what a switch waits for: each pod's generation, and whether it is draining.

    >>> switch_state([{"pod": "p", "generation": 3, "sessions": 7}]) == switch_state([{"pod": "p", "generation": 3}])
    True
    """
    return frozenset((e.get("pod"), e.get("generation"), e.get("draining", 0) > 0) for e in entries or ())
