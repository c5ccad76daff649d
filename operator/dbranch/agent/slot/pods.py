"""Create, claim and delete pods in the nodes' namespace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dbranch.agent.layout import Layout
from dbranch.agent.slot import effect as slot
from dbranch.agent.slot.pod_status import PodFacts, pod_facts
from dbranch.agent.timing import WARM_POD_GRACE_SECONDS
from dbranch.api.errors import ApiError, PodRejected, SlotTaken
from dbranch.kube.client import Cluster, path_of

# Bad request, forbidden (a quota, a policy), too large, invalid: what the pod asks for is at fault.
_REJECTIONS: Final = (400, 403, 413, 422)


def ensure_pod(cluster: Cluster, body: Mapping[str, Any]) -> None:
    """Create the pod; leave an existing pod of that name as it is. Raises PodRejected if it is rejected as it is."""
    try:
        cluster.create(path_of("v1", "pods", body["metadata"]["namespace"]), body)
    except ApiError as error:
        if error.reason == "AlreadyExists":
            return
        if error.status not in _REJECTIONS:
            raise
        raise PodRejected(f"the API server rejects its pod: {error}") from error


def ensure_slot_with_pod(cluster: Cluster, layout: Layout, owner: int, body: Mapping[str, Any]) -> None:
    """Create the slot of the pod's name, then the pod. Raises PodRejected as `ensure_pod` does; then no slot is left.

    After a crash between the two, housekeeping removes the slot.
    """
    name = body["metadata"]["name"]
    slot.ensure_slot(layout, name, owner)
    try:
        ensure_pod(cluster, body)
    except PodRejected:
        slot.ensure_slot_removed(layout, name)
        raise


def delete_pod(cluster: Cluster, namespace: str, pod: PodFacts, grace: int | None = None) -> None:
    """Delete this very pod (by its UID) with `grace` seconds; None: with the pod's own grace period."""
    cluster.delete(path_of("v1", "pods", namespace, pod.name), uid=pod.uid or None, grace=grace)


def delete_warm_pod(cluster: Cluster, namespace: str, pod: PodFacts) -> None:
    """Delete a free pod; do nothing if it has changed since it was read (a branch has claimed it, say)."""
    path = path_of("v1", "pods", namespace, pod.name)
    cluster.delete(
        path, uid=pod.uid or None, grace=WARM_POD_GRACE_SECONDS, version=pod.resource_version or None
    )


def ensure_claimed(cluster: Cluster, namespace: str, pod: PodFacts, claim: list[dict[str, Any]]) -> PodFacts:
    """Apply the JSON patch `claim` to a free pod and return the pod's facts after it.

    Raises SlotTaken if the pod is gone or another branch has claimed it.
    """
    try:
        return pod_facts(cluster.json_patch(path_of("v1", "pods", namespace, pod.name), claim))
    except ApiError as error:
        if error.status not in (404, 409, 422):
            raise
        raise SlotTaken(f"slot {pod.name} is no longer free ({error})") from error
