"""Pods in the nodes' namespace, made and deleted by the agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dbranch.agent.slot.pod_status import PodFacts, pod_facts
from dbranch.api.errors import ApiError, SlotTaken
from dbranch.kube.client import Cluster, path_of

# Seconds of grace for a pod that only waits.
_WAITING_END = 2


def ensure_pod(cluster: Cluster, body: Mapping[str, Any]) -> None:
    """The pod is there; one of that name already there stays as it is."""
    try:
        cluster.create(path_of("v1", "pods", body["metadata"]["namespace"]), body)
    except ApiError as error:
        if error.reason != "AlreadyExists":
            raise


def delete_pod(cluster: Cluster, namespace: str, pod: PodFacts, grace: int | None = None) -> None:
    """The pod's end is asked for, of this very one. `grace`: seconds, the pod's own where None."""
    cluster.delete(path_of("v1", "pods", namespace, pod.name), uid=pod.uid or None, grace=grace)


def delete_warm_pod(cluster: Cluster, namespace: str, pod: PodFacts) -> None:
    """The end of a waiting pod is asked for; one that has changed since it was seen (claimed, say) stays."""
    path = path_of("v1", "pods", namespace, pod.name)
    cluster.delete(path, uid=pod.uid or None, grace=_WAITING_END, version=pod.version or None)


def ensure_claimed(cluster: Cluster, namespace: str, pod: PodFacts, claim: list[dict[str, Any]]) -> PodFacts:
    """The waiting pod is the branch's that `claim` names; as it is then. SlotTaken where another one was faster."""
    try:
        return pod_facts(cluster.json_patch(path_of("v1", "pods", namespace, pod.name), claim))
    except ApiError as error:
        if error.status not in (404, 409, 422):
            raise
        raise SlotTaken(f"slot {pod.name} is not free any more ({error})") from error
