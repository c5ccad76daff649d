"""The controller's view of nodes, agents, proxies, projects and branches: kopf's indices, read without a request.

Of snapshots and restores, which kopf does not watch, it has the records of the controller's own watches.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dbranch.api.branch import Branch
from dbranch.api.project import Project
from dbranch.controller.nodes import AgentPod, NodeObject, node_facts
from dbranch.controller.proxy_pods import ProxyPod
from dbranch.controller.restore_records import RestoreRecords
from dbranch.controller.scheduling import NodeFacts, bytes_committed_to
from dbranch.controller.snapshot_records import SnapshotRecords

T = TypeVar("T")
Index = Mapping[Any, Any]


@dataclass(frozen=True)
class Cache:
    """kopf's indices: nodes and agents by node name, projects and branches by (namespace, project).

    `proxies`: the pods of projects' proxies that have not ended, by the project's UID.
    """

    nodes: Index
    agents: Index
    projects: Index
    branches: Index
    proxies: Index
    snapshots: SnapshotRecords = field(default_factory=SnapshotRecords)
    restores: RestoreRecords = field(default_factory=RestoreRecords)

    def node(self, name: str, committed_bytes: int = 0) -> NodeFacts:
        """Return the facts about a node, which need not exist any more. `committed_bytes`: as in NodeFacts."""
        nodes: list[NodeObject] = _values(self.nodes, name)
        agents: list[AgentPod] = _values(self.agents, name)
        agents.sort(key=lambda agent: not agent.ready)
        return node_facts(name, nodes[0] if nodes else None, agents[0] if agents else None, committed_bytes)

    def all_nodes(self) -> list[NodeFacts]:
        """Return the facts about every Node, with the bytes committed to the projects on it."""
        committed: dict[str, int] = defaultdict(int)
        for project in self.all_projects():
            committed[project.node_name or ""] += bytes_committed_to(project)
        return [self.node(name, committed[name]) for name in _stable_read(lambda: list(self.nodes))]

    def branches_of(self, namespace: str, project: str) -> tuple[Branch, ...]:
        """Return the branches of one project, sorted by name."""
        branches: list[Branch] = _values(self.branches, (namespace, project))
        return tuple(sorted(branches, key=lambda branch: branch.name))

    def branch(self, namespace: str, object_name: str) -> Branch | None:
        """Return a branch by its object's name; None if it is not known (yet)."""
        # The name of its project is the first part of it.
        parts = object_name.split("-")
        for count in range(1, len(parts)):
            branches: list[Branch] = _values(self.branches, (namespace, "-".join(parts[:count])))
            for branch in branches:
                if branch.object_name == object_name:
                    return branch
        return None

    def proxies_of(self, project_uid: str) -> tuple[ProxyPod, ...]:
        """Return the proxy pods of one project, sorted by name."""
        pods: list[ProxyPod] = _values(self.proxies, project_uid)
        return tuple(sorted(pods, key=lambda pod: pod.name))

    def project(self, namespace: str, name: str) -> Project | None:
        projects: list[Project] = _values(self.projects, (namespace, name))
        return projects[0] if projects else None

    def projects_in(self, namespace: str) -> list[Project]:
        return [project for project in self.all_projects() if project.namespace == namespace]

    def branches_in(self, namespace: str) -> list[Branch]:
        """Return the branches of all projects of a namespace."""
        keys = _stable_read(lambda: [key for key in self.branches if key[0] == namespace])
        return [branch for key in keys for branch in _values(self.branches, key)]

    def all_projects(self) -> list[Project]:
        keys = _stable_read(lambda: list(self.projects))
        return [project for key in keys for project in _values(self.projects, key)]

    def all_branches(self) -> list[Branch]:
        keys = _stable_read(lambda: list(self.branches))
        return [branch for key in keys for branch in _values(self.branches, key)]


def _values(index: Index, key: Any) -> list[Any]:
    return _stable_read(lambda: list(index.get(key, ())))


def _stable_read(read: Callable[[], T]) -> T:
    """Return `read()`, retried while a write of kopf's thread disturbs the iteration (RuntimeError)."""
    while True:
        try:
            return read()
        except RuntimeError:
            time.sleep(0)
