"""Pods in the nodes' namespace, made and deleted by the agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dbranch.cluster import Cluster, path_of
from dbranch.errors import Refused
from dbranch.plan.pod_trouble import PodFacts


def ensure_pod(cluster: Cluster, body: Mapping[str, Any]) -> None:
    """The pod is there; one of that name already there stays as it is."""
    try:
        cluster.create(path_of("v1", "pods", body["metadata"]["namespace"]), body)
    except Refused as error:
        if error.reason != "AlreadyExists":
            raise


def ensure_pod_ending(cluster: Cluster, namespace: str, pod: PodFacts, grace: int | None = None) -> None:
    """The pod's end is asked for, of this very one. `grace`: seconds, the pod's own where None."""
    cluster.delete(path_of("v1", "pods", namespace, pod.name), uid=pod.uid or None, grace=grace)
