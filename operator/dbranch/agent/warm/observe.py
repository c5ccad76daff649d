"""What is true of the slots that wait on a node, and of what would use them. Reads only."""

from __future__ import annotations

from typing import Any

from dbranch.agent.context import NodeContext
from dbranch.agent.slot.pod_status import PodFacts, pod_facts
from dbranch.agent.warm.plan import Waiting, is_free
from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.project import Project, parse_project
from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.clock import seconds_since

_FREE = f"{names.LABEL_SLOT},!{names.LABEL_BRANCH_UID}"


def observe_free_pods(cluster: Cluster, context: NodeContext, word: str, form: str) -> tuple[PodFacts, ...]:
    """The running, unclaimed pods of one class and form on the node, uncached."""
    found = _unclaimed(cluster, context, f"{_FREE},{names.LABEL_CLASS}={word}")
    pods = (pod_facts(body) for body in found)
    return tuple(pod for pod in pods if is_free(pod, form))


def observe_warm_pods(cluster: Cluster, context: NodeContext) -> tuple[Waiting, ...]:
    """Everything that waits on the node, uncached."""
    return tuple(
        Waiting(pod_facts(body), seconds_since(body["metadata"].get("creationTimestamp")))
        for body in _unclaimed(cluster, context, _FREE)
    )


def observe_scheduled_here(cluster: Cluster, context: NodeContext) -> tuple[Project | Branch, ...]:
    """The projects and branches that are bound to the node, uncached: all their bodies, so not to be asked often."""
    here = f"status.nodeName={context.node}"
    projects = cluster.find(path_of(names.API_VERSION, names.PROJECTS), fields=here)
    branches = cluster.find(path_of(names.API_VERSION, names.BRANCHES), fields=here)
    return (*map(parse_project, projects), *map(parse_branch, branches))


def _unclaimed(cluster: Cluster, context: NodeContext, labels: str) -> list[dict[str, Any]]:
    return cluster.find(path_of("v1", "pods", context.namespace), labels, f"spec.nodeName={context.node}")
