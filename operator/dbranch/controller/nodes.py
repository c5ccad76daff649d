"""Facts about nodes and agents, from Node and Pod objects. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dbranch.api import names
from dbranch.api.conditions import is_ready
from dbranch.controller.scheduling import NodeFacts


@dataclass(frozen=True)
class AgentPod:
    """An agent's pod. `free_bytes`, `retained` (UIDs of retained pools) and `features` are its annotations.

    `publishes_retained`: it has that annotation.
    """

    node: str
    ready: bool
    free_bytes: int | None
    retained: frozenset[str] = frozenset()
    features: frozenset[str] = frozenset()
    publishes_retained: bool = True


@dataclass(frozen=True)
class NodeObject:
    """A Node. `schedulable`: neither cordoned nor with a taint that keeps pods away."""

    name: str
    ready: bool
    schedulable: bool
    labels: Mapping[str, str]


def agent_pod(body: Mapping[str, Any]) -> AgentPod | None:
    """Parse an agent's pod; None if it is not scheduled yet or is being deleted."""
    node = (body.get("spec") or {}).get("nodeName")
    if not node or body["metadata"].get("deletionTimestamp"):
        return None
    annotations = body["metadata"].get("annotations") or {}
    free, retained = annotations.get(names.AGENT_HOST_FREE), annotations.get(names.AGENT_RETAINED, "")
    return AgentPod(
        node,
        is_ready(body),
        int(free) if free and free.isdecimal() else None,
        frozenset(filter(None, retained.split(","))),
        frozenset(filter(None, annotations.get(names.AGENT_FEATURES, "").split(","))),
        names.AGENT_RETAINED in annotations,
    )


def node_object(body: Mapping[str, Any]) -> NodeObject:
    """Parse a Node."""
    spec = body.get("spec") or {}
    taints = [t for t in spec.get("taints") or () if t.get("effect") in ("NoSchedule", "NoExecute")]
    return NodeObject(
        body["metadata"]["name"],
        is_ready(body),
        not spec.get("unschedulable") and not taints,
        dict(body["metadata"].get("labels") or {}),
    )


def node_facts(
    name: str, node: NodeObject | None, agent: AgentPod | None, committed_bytes: int = 0
) -> NodeFacts:
    """Return the facts about a node from its Node and its agent's pod; either may be missing."""
    return NodeFacts(
        name=name,
        exists=node is not None,
        ready=node.ready if node else False,
        schedulable=node.schedulable if node else False,
        labels=node.labels if node else {},
        has_agent=agent is not None,
        agent_ready=agent.ready if agent else False,
        free_bytes=agent.free_bytes if agent else None,
        committed_bytes=committed_bytes,
        retained=agent.retained if agent else frozenset(),
        publishes_retained=agent is not None and agent.publishes_retained,
        features=agent.features if agent else frozenset(),
    )
