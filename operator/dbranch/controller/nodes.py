"""What is true of nodes and agents, from what the watches brought. Reads only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dbranch.api import names
from dbranch.api.conditions import is_ready
from dbranch.controller.scheduling import NodeFacts


@dataclass(frozen=True)
class AgentPod:
    """An agent's pod: its node, whether it is Ready, the free bytes and the retained pools that it told."""

    node: str
    ready: bool
    free: int | None
    retained: frozenset[str] = frozenset()


@dataclass(frozen=True)
class NodeObject:
    """What is used of a Node."""

    name: str
    ready: bool
    open: bool
    labels: Mapping[str, str]


def agent_pod(body: Mapping[str, Any]) -> AgentPod | None:
    """The agent's pod in `body`; None where it is on no node yet or on its way out."""
    node = (body.get("spec") or {}).get("nodeName")
    if not node or body["metadata"].get("deletionTimestamp"):
        return None
    told = body["metadata"].get("annotations") or {}
    free, retained = told.get(names.AGENT_HOST_FREE), told.get(names.AGENT_RETAINED, "")
    return AgentPod(
        node,
        is_ready(body),
        int(free) if free and free.isdigit() else None,
        frozenset(filter(None, retained.split(","))),
    )


def node_object(body: Mapping[str, Any]) -> NodeObject:
    """The Node in `body`. It is not open while it is cordoned or has a taint that keeps pods away."""
    spec = body.get("spec") or {}
    taints = [t for t in spec.get("taints") or () if t.get("effect") in ("NoSchedule", "NoExecute")]
    return NodeObject(
        body["metadata"]["name"],
        is_ready(body),
        not spec.get("unschedulable") and not taints,
        dict(body["metadata"].get("labels") or {}),
    )


def node_facts(name: str, node: NodeObject | None, agent: AgentPod | None, promised: int = 0) -> NodeFacts:
    """A node and its agent together; either may be missing. `promised`: as in NodeFacts."""
    return NodeFacts(
        name=name,
        exists=node is not None,
        ready=node.ready if node else False,
        open=node.open if node else False,
        labels=node.labels if node else {},
        agent=agent is not None,
        agent_ready=agent.ready if agent else False,
        free=agent.free if agent else None,
        promised=promised,
        retained=agent.retained if agent else frozenset(),
    )
