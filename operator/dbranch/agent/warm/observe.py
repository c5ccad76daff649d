"""Read a node's warm pods, and the projects and branches that could use them. Reads only."""

from __future__ import annotations

from typing import Any

from dbranch.agent.context import NodeContext
from dbranch.agent.slot.pod_status import PodFacts, pod_facts
from dbranch.agent.warm.plan import WarmPodFacts, is_free
from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.project import Project, parse_project
from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.clock import seconds_since

_WARM_PODS = f"{names.LABEL_SLOT},!{names.LABEL_BRANCH_UID}"


def observe_free_pods(
    cluster: Cluster, context: NodeContext, class_hash: str, template_hash: str
) -> tuple[PodFacts, ...]:
    """Return the node's pods of this class and template that a branch can claim now, uncached."""
    bodies = _find_pods(cluster, context, f"{_WARM_PODS},{names.LABEL_CLASS}={class_hash}")
    return tuple(pod for pod in map(pod_facts, bodies) if is_free(pod, template_hash))


def observe_warm_pods(cluster: Cluster, context: NodeContext) -> tuple[WarmPodFacts, ...]:
    """Return all pods of the node that no branch has claimed, uncached."""
    return tuple(
        WarmPodFacts(pod_facts(body), seconds_since(body["metadata"].get("creationTimestamp")))
        for body in _find_pods(cluster, context, _WARM_PODS)
    )


def observe_scheduled_here(cluster: Cluster, context: NodeContext) -> tuple[Project | Branch, ...]:
    """Return the projects and branches scheduled to the node, uncached. Reads all their bodies, so call it rarely."""
    this_node = f"status.nodeName={context.node}"
    projects = cluster.find(path_of(names.API_VERSION, names.PROJECTS), fields=this_node)
    branches = cluster.find(path_of(names.API_VERSION, names.BRANCHES), fields=this_node)
    return (*map(parse_project, projects), *map(parse_branch, branches))


def _find_pods(cluster: Cluster, context: NodeContext, labels: str) -> list[dict[str, Any]]:
    return cluster.find(path_of("v1", "pods", context.namespace), labels, f"spec.nodeName={context.node}")
