"""Where a project lives, and whether a branch can be made: nodes and neighbours -> a binding or a reason. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.conditions import Finding, Reason
from dbranch.api.project import Project
from dbranch.api.quantity import format_bytes

# Free bytes that a node's disk must have for a new project: less is used up at once by the first writes.
LEAST_FREE = 512 * 2**20


@dataclass(frozen=True)
class NodeFacts:
    """A node and its agent. `open`: neither cordoned nor tainted against ordinary pods.

    `agent`: whether the node has an agent's pod at all; `agent_ready` whether that is Ready.
    `free`: free bytes of the disk under the base directory, as the agent told; `promised`: bytes of it that the
    pools of projects there may still grow into; `retained`: the pools that lie there since their project was
    deleted.
    """

    name: str
    exists: bool = True
    ready: bool = True
    open: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)
    agent: bool = False
    agent_ready: bool = False
    free: int | None = None
    promised: int = 0
    retained: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Binding:
    """What `status.nodeName` (and a branch's `status.sourceUID`) is to be."""

    node: str
    source_uid: str | None = None


def bind_project(project: Project, nodes: Iterable[NodeFacts]) -> Binding | Finding:
    """The node with the most room that is promised to nobody, of those that may hold the project, or why
    there is none."""
    all_nodes = sorted(nodes, key=lambda node: node.name)
    who = f"project {project.name}"
    with_agent = [n for n in all_nodes if n.agent_ready and n.ready]
    if not with_agent:
        return _nowhere(who, "no node has a ready agent", "see the pods of the DaemonSet dbranch-agent")
    if project.adopt:
        # A cordoned node, or a full one, holds it all the same.
        holds = [n for n in with_agent if project.adopt in n.retained]
        lacks = f"no node with a ready agent has a retained pool {project.adopt}"
        return Binding(holds[0].name) if holds else _nowhere(who, lacks, "see spec.storage.adopt")
    chosen = [n for n in with_agent if project.node_selector.items() <= n.labels.items()]
    if not chosen:
        wanted = ", ".join(f"{k}={v}" for k, v in sorted(project.node_selector.items()))
        return _nowhere(
            who, f"no node with a ready agent has the labels {wanted}", "see storage.nodeSelector"
        )
    chosen = [n for n in chosen if n.open]
    if not chosen:
        return _nowhere(who, "every node with a ready agent is cordoned or tainted", "uncordon one")
    roomy = [n for n in chosen if n.free is not None and n.free >= LEAST_FREE]
    if not roomy:
        most = max((n.free or 0 for n in chosen), default=0)
        needs = f"no node has {format_bytes(LEAST_FREE)} free, the most is {format_bytes(most)}"
        return _nowhere(who, needs, "free space on a node")
    # Thin pools may promise more than there is; then the node where that is least so.
    return Binding(max(roomy, key=lambda n: ((n.free or 0) - n.promised, n.name)).name)


def committed_bytes(project: Project) -> int:
    """What the project's pool may still grow into, in bytes."""
    return max(0, project.size - (project.node.used_bytes or 0))


def _nowhere(who: str, why: str, advice: str) -> Finding:
    return Finding(Reason.NO_ELIGIBLE_NODE, f"{who}: {why}; it is bound to no node yet; {advice}")


def node_trouble(node: NodeFacts) -> Finding | None:
    """Why nothing is known of what is bound to this node; None where its agent reports."""
    if not node.exists and not node.agent:
        text = f"node {node.name} does not exist any more; what it held is out of reach; bring the node back"
        return Finding(Reason.NODE_GONE, text)
    if not node.exists or not node.ready:
        return Finding(Reason.NODE_NOT_READY, f"node {node.name} is not Ready; its state is not known")
    if not node.agent_ready:
        text = f"the agent of node {node.name} is not Ready; its state is not known"
        return Finding(Reason.AGENT_NOT_REPORTING, text)
    return None


def is_abandoned(node: NodeFacts, annotations: Mapping[str, str]) -> bool:
    """Whether nobody will ever tidy up there: the Node object and its agent are gone, or a person said so."""
    trouble = node_trouble(node)
    gone = trouble is not None and trouble.reason == Reason.NODE_GONE
    return gone or annotations.get(names.ABANDON_NODE) == node.name


def bind_branch(project: Project | None, branch: Branch, siblings: Iterable[Branch]) -> Binding | Finding:
    """The node and the source of a branch that has none yet, or what it waits for."""
    if project is None or project.deleting:
        what = "does not exist" if project is None else "is being deleted"
        return Finding(
            Reason.PROJECT_NOT_FOUND,
            f"project {branch.project} {what}; nothing is made yet; apply the DBProject {branch.project}",
        )
    if project.node_name is None:
        return Finding(
            Reason.PROJECT_NOT_READY, f"project {project.name} is bound to no node yet; nothing is made"
        )
    if branch.is_root:
        return Binding(project.node_name)
    there = {b.name: b for b in siblings if not b.deleting}
    source = there.get(branch.source or "")
    if source is None or source.uid == branch.uid:
        known = ", ".join(sorted(name for name, b in there.items() if b.uid != branch.uid)) or "none yet"
        return Finding(
            Reason.SOURCE_NOT_FOUND,
            f'source "{branch.source}" does not exist in project {project.name}; '
            f"nothing was made; name one of: {known}",
        )
    if source.node.snapshot_time is None:
        return Finding(
            Reason.SOURCE_NOT_READY,
            f'source "{branch.source}" of project {project.name} is not stored yet; nothing was made',
        )
    return Binding(project.node_name, source.uid)
