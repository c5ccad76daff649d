"""kopf's indices of nodes, agents, proxies, projects and branches, and the cache that reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import kopf

from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.project import Project, parse_project
from dbranch.controller.cache import Cache
from dbranch.controller.nodes import AgentPod, NodeObject, agent_pod, node_object
from dbranch.controller.proxy_pods import ProxyPod, proxy_pod_of
from dbranch.controller.restore_records import RestoreRecords
from dbranch.controller.snapshot_records import SnapshotRecords

PROJECT: Final[Any] = (names.GROUP, names.VERSION, names.PROJECTS)
BRANCH: Final[Any] = (names.GROUP, names.VERSION, names.BRANCHES)


def register_indices(registry: kopf.OperatorRegistry, nodes_namespace: str) -> None:
    """Register the indices as coroutines: kopf would run each function in a thread, also those that do nothing."""
    options: Any = {"registry": registry}

    @kopf.index("v1", "nodes", id="node_index", **options)
    async def node_index(body: kopf.Body, **_: Any) -> dict[str, NodeObject]:
        return {body["metadata"]["name"]: node_object(body)}

    @kopf.index("v1", "pods", id="agent_index", **options)
    async def agent_index(
        body: kopf.Body, namespace: Any, labels: kopf.Labels, **_: Any
    ) -> dict[str, AgentPod]:
        is_agent = namespace == nodes_namespace and labels.get(names.LABEL_COMPONENT) == names.COMPONENT_AGENT
        agent = agent_pod(body) if is_agent else None
        return {agent.node: agent} if agent else {}

    @kopf.index("v1", "pods", id="proxy_index", **options)
    async def proxy_index(body: kopf.Body, labels: kopf.Labels, **_: Any) -> dict[str, ProxyPod]:
        proxy = proxy_pod_of(body) if labels.get(names.LABEL_COMPONENT) == names.COMPONENT_PROXY else None
        return {labels.get(names.LABEL_PROJECT_UID, ""): proxy} if proxy else {}

    @kopf.index(*PROJECT, id="project_index", **options)
    async def project_index(body: kopf.Body, **_: Any) -> dict[tuple[str, str], Project]:
        project = parse_project(body)
        return {(project.namespace, project.name): project}

    @kopf.index(*BRANCH, id="branch_index", **options)
    async def branch_index(body: kopf.Body, **_: Any) -> dict[tuple[str, str], Branch]:
        branch = parse_branch(body)
        return {(branch.namespace, branch.project): branch}


def cache_of(
    kwargs: Mapping[str, Any],
    snapshots: SnapshotRecords | None = None,
    restores: RestoreRecords | None = None,
) -> Cache:
    """Return the cache over the indices among a handler's keyword arguments, and over the records."""
    indices = (kwargs[f"{noun}_index"] for noun in ("node", "agent", "project", "branch", "proxy"))
    return replace(
        Cache(*indices), snapshots=snapshots or SnapshotRecords(), restores=restores or RestoreRecords()
    )
