"""Read a node's warm pods, and the projects that could use them. Reads only."""

from __future__ import annotations

import logging
from typing import Any

from dbranch.agent.context import NodeContext
from dbranch.agent.slot.pod_spec import SlotClass
from dbranch.agent.slot.pod_status import PodFacts, pod_facts
from dbranch.agent.warm.plan import WarmPodFacts, is_free
from dbranch.api import names
from dbranch.api.project import Project, parse_project
from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.clock import seconds_since
from dbranch.runtime.logs import log_error

logger = logging.getLogger(__name__)

_WARM_PODS = f"{names.LABEL_SLOT},!{names.LABEL_BRANCH_UID}"


def observe_free_pods(
    cluster: Cluster, context: NodeContext, slot_class: SlotClass, template_hash: str
) -> tuple[PodFacts, ...]:
    """Return the node's pods of this class and template that a branch can claim now, uncached."""
    of_class = f"{names.LABEL_CLASS} in ({','.join(slot_class.hashes)})"
    pods = map(pod_facts, _find_pods(cluster, context, f"{_WARM_PODS},{of_class}"))
    return tuple(pod for pod in pods if is_free(pod, template_hash) and slot_class.includes(pod))


def observe_warm_pods(cluster: Cluster, context: NodeContext) -> tuple[WarmPodFacts, ...]:
    """Return all pods of the node that no branch has claimed, uncached."""
    return tuple(
        WarmPodFacts(pod_facts(body), seconds_since(body["metadata"].get("creationTimestamp")))
        for body in _find_pods(cluster, context, _WARM_PODS)
    )


def observe_scheduled_here(cluster: Cluster, context: NodeContext) -> tuple[Project, ...]:
    """Return the projects scheduled to the node, uncached. Reads all their bodies, so call it rarely."""
    path, this_node = path_of(names.API_VERSION, names.PROJECTS), f"status.nodeName={context.node}"
    return tuple(filter(None, map(_parsed, cluster.find(path, fields=this_node))))


def _parsed(body: dict[str, Any]) -> Project | None:
    """Return the project; None if it cannot be read: then no warm slot is kept for it, and the others go on."""
    try:
        return parse_project(body)
    except Exception as error:  # noqa: BLE001
        meta = body.get("metadata") or {}
        log_error(logger, error, f"project {meta.get('namespace')}/{meta.get('name')}")
        return None


def _find_pods(cluster: Cluster, context: NodeContext, labels: str) -> list[dict[str, Any]]:
    return cluster.find(path_of("v1", "pods", context.namespace), labels, f"spec.nodeName={context.node}")
