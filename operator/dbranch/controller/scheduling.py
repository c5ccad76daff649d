"""Which node a project is bound to, and whether a branch can be bound yet. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.conditions import Finding, Reason
from dbranch.api.project import Project
from dbranch.api.quantity import format_bytes
from dbranch.api.snapshot import Snapshot
from dbranch.controller.limits import turn

# Free bytes that a node's disk must have for a new project: with less, the first writes fill it at once.
MIN_FREE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class NodeFacts:
    """A node and its agent.

    `exists`: there is a Node object; `schedulable`: neither cordoned nor tainted against ordinary pods;
    `has_agent`: there is an agent's pod; `free_bytes`: of the disk under the base directory, as the agent reports;
    `committed_bytes`: into which the pools of the projects on the node may still grow; `retained`: UIDs of the
    deleted projects whose pools are retained there, `publishes_retained`: the agent has said so since it started;
    `features`: what its agent can, names.FEATURE_….
    """

    name: str
    exists: bool = True
    ready: bool = True
    schedulable: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)
    has_agent: bool = False
    agent_ready: bool = False
    free_bytes: int | None = None
    committed_bytes: int = 0
    retained: frozenset[str] = frozenset()
    publishes_retained: bool = True
    features: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Binding:
    """The `status.nodeName` (and, of a branch, the `status.sourceUID`) to write."""

    node: str
    source_uid: str | None = None


def bind_project(project: Project, nodes: Iterable[NodeFacts]) -> Binding | Finding:
    """Bind a project to the eligible node with the most uncommitted free bytes, or say why there is none."""
    all_nodes = sorted(nodes, key=lambda node: node.name)
    subject = f"project {project.name}"
    with_agent = [n for n in all_nodes if n.agent_ready and n.ready]
    if not with_agent:
        return _not_bound(subject, "no node has a ready agent", "see the pods of the DaemonSet dbranch-agent")
    if project.adopt:
        # A retained pool is adopted on its node, even if that is cordoned or full.
        holders = [n for n in with_agent if project.adopt in n.retained]
        if holders:
            return Binding(holders[0].name)
        missing = f"no node with a ready agent has a retained pool {project.adopt}"
        return _not_bound(subject, missing, "see spec.storage.adopt")
    eligible = [n for n in with_agent if project.node_selector.items() <= n.labels.items()]
    if not eligible:
        labels = ", ".join(f"{k}={v}" for k, v in sorted(project.node_selector.items()))
        missing = f"no node with a ready agent has the labels {labels}"
        return _not_bound(subject, missing, "see storage.nodeSelector")
    eligible = [n for n in eligible if n.schedulable]
    if not eligible:
        return _not_bound(subject, "every node with a ready agent is cordoned or tainted", "uncordon one")
    with_room = [n for n in eligible if n.free_bytes is not None and n.free_bytes >= MIN_FREE_BYTES]
    if not with_room:
        most = max((n.free_bytes or 0 for n in eligible), default=0)
        missing = f"no node has {format_bytes(MIN_FREE_BYTES)} free, the most is {format_bytes(most)}"
        return _not_bound(subject, missing, "free space on a node")
    # Pools are thin, so more may be committed than is free; the node where the difference is best is taken then.
    best = max(with_room, key=lambda n: ((n.free_bytes or 0) - n.committed_bytes, n.name))
    return Binding(best.name)


def bytes_committed_to(project: Project) -> int:
    """Return the bytes into which the project's pool may still grow."""
    return max(0, project.size - (project.node.used_bytes or 0))


def _not_bound(subject: str, cause: str, advice: str) -> Finding:
    return Finding(Reason.NO_ELIGIBLE_NODE, f"{subject}: {cause}; it is bound to no node yet; {advice}")


def not_reporting_finding(node: NodeFacts) -> Finding | None:
    """Return why nothing is known of the objects bound to this node; None if its agent reports."""
    if not node.exists and not node.has_agent:
        text = f"node {node.name} does not exist any more; what it held is out of reach; bring the node back"
        return Finding(Reason.NODE_GONE, text)
    if not node.exists or not node.ready:
        return Finding(Reason.NODE_NOT_READY, f"node {node.name} is not Ready; its state is not known")
    if not node.agent_ready:
        text = f"the agent of node {node.name} is not Ready; its state is not known"
        return Finding(Reason.AGENT_NOT_REPORTING, text)
    return None


def agent_too_old_finding(node: NodeFacts, subject: str) -> Finding | None:
    """Return the finding of an object that needs snapshots, if the node's agent knows none."""
    if names.FEATURE_SNAPSHOTS in node.features:
        return None
    text = f"the agent of node {node.name} is of a release without snapshots; {subject} is bound when it is newer"
    return Finding(Reason.AGENT_TOO_OLD, f"{text}; see the rollout of the DaemonSet dbranch-agent")


def is_abandoned(node: NodeFacts, annotations: Mapping[str, str]) -> bool:
    """Return True if no agent will ever clean up an object on this node.

    That is: the Node and its agent's pod are gone, or the node is not Ready and the object's annotation ABANDON_NODE
    names it.
    """
    finding = not_reporting_finding(node)
    if finding is None or finding.reason == Reason.AGENT_NOT_REPORTING:
        return False
    return finding.reason == Reason.NODE_GONE or annotations.get(names.ABANDON_NODE) == node.name


def abandonment_refusal(item: Project | Branch, node: NodeFacts | None) -> str | None:
    """Return why the ABANDON_NODE of an object that is being deleted is not obeyed; None if it is, or is missing."""
    asked = item.deleting and names.AGENT_FINALIZER in item.finalizers
    if not asked or node is None or item.annotations.get(names.ABANDON_NODE) != node.name:
        return None
    if is_abandoned(node, item.annotations):
        return None
    return (
        f"node {node.name} is Ready; it is not given up, and its agent has to remove the data; "
        "wait for the agent, or delete the Node if it will never come back"
    )


def needs_release(item: Project | Branch | Snapshot, node: NodeFacts | None) -> bool:
    """Return True if the object is being deleted and waits for an agent that will never come."""
    waits = item.deleting and names.AGENT_FINALIZER in item.finalizers
    return waits and node is not None and is_abandoned(node, item.annotations)


def missing_finalizers(branch: Branch, node: NodeFacts) -> tuple[str, ...]:
    """Return the finalizers that a branch needs on this node and has not: the agent's, where it is bound.

    An agent of a release without FEATURE_RELEASE knows only the controller's finalizer as a sign that the branch must
    not be touched yet. It puts its own on the branch itself, and takes one that has it already for one that it has
    handled (tried: it never looked at it). A bound branch gets the controller's when such an agent is Ready, as
    behind the roll-back of a DaemonSet; an unbound one gets both while nobody knows what a starting agent can do.
    """
    is_old = names.FEATURE_RELEASE not in node.features
    if not is_old:
        needed = [names.AGENT_FINALIZER]
    elif node.agent_ready:
        needed = [names.CONTROLLER_FINALIZER]
    else:
        needed = [names.AGENT_FINALIZER, names.CONTROLLER_FINALIZER] if branch.node_name is None else []
    return tuple(name for name in needed if name not in branch.finalizers)


def bind_branch(
    project: Project | None,
    branch: Branch,
    siblings: Iterable[Branch],
    snapshot: Snapshot | None = None,
    node: NodeFacts | None = None,
) -> Binding | Finding:
    """Bind an unbound branch to its project's node and to one very source, or say what it waits for.

    `snapshot`: the one that spec.sourceSnapshot names; `node`: the project's, if the branch is made of a snapshot.
    """
    if project is None or project.deleting:
        fact = "does not exist" if project is None else "is being deleted"
        return Finding(
            Reason.PROJECT_NOT_FOUND,
            f"project {branch.project} {fact}; nothing is made yet; apply the DBProject {branch.project}",
        )
    if project.node_name is None:
        text = f"project {project.name} is bound to no node yet; nothing is made"
        return Finding(Reason.PROJECT_NOT_READY, text)
    siblings = tuple(siblings)
    if _is_too_many(branch, siblings):
        text = f"project {project.name} has {names.MAX_BRANCHES} branches already; branch {branch.name} is not made"
        return Finding(Reason.LIMIT_EXCEEDED, f"{text}; delete one that is not needed any more")
    if branch.is_root:
        return Binding(project.node_name)
    if branch.source_snapshot:
        return _bind_to_snapshot(project, branch, snapshot, node)
    sources = {b.name: b for b in siblings if not b.deleting and b.uid != branch.uid}
    source = sources.get(branch.source or "")
    if source is None:
        existing = ", ".join(sorted(sources)) or "none yet"
        return Finding(
            Reason.SOURCE_NOT_FOUND,
            f'source "{branch.source}" does not exist in project {project.name}; '
            f"nothing was made; name one of: {existing}",
        )
    if source.node.snapshot_time is None:
        return Finding(
            Reason.SOURCE_NOT_READY,
            f'source "{branch.source}" of project {project.name} is not stored yet; nothing was made',
        )
    return Binding(project.node_name, source.uid)


def _bind_to_snapshot(
    project: Project, branch: Branch, snapshot: Snapshot | None, node: NodeFacts | None
) -> Binding | Finding:
    name = branch.source_snapshot
    if snapshot is None or snapshot.project != project.name or snapshot.deleting:
        fact = "is being deleted" if snapshot and snapshot.project == project.name else "does not exist"
        text = (
            f'snapshot "{name}" {fact} in project {project.name}; nothing was made; see dbranch snapshot list'
        )
        return Finding(Reason.SNAPSHOT_NOT_FOUND, text)
    if not snapshot.node.stored or snapshot.node_name is None:
        text = f'snapshot "{name}" of project {project.name} is not stored yet; nothing was made'
        return Finding(Reason.SNAPSHOT_NOT_READY, text)
    node = node or NodeFacts(snapshot.node_name)
    return agent_too_old_finding(node, f"branch {branch.name}") or Binding(snapshot.node_name, snapshot.uid)


def _is_too_many(branch: Branch, siblings: Iterable[Branch]) -> bool:
    """Return True if as many branches as a project can have are bound, or were created before this one."""

    earlier = sum(1 for sibling in siblings if sibling.uid != branch.uid and turn(sibling) < turn(branch))
    return earlier >= names.MAX_BRANCHES
