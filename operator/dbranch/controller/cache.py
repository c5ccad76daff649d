"""What the controller's watches have brought, asked without a request. Filled by kopf's indices."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from dbranch.api.branch import Branch
from dbranch.api.project import Project
from dbranch.controller.nodes import AgentPod, NodeObject, node_facts
from dbranch.controller.scheduling import NodeFacts, committed_bytes

T = TypeVar("T")
Index = Mapping[Any, Any]


@dataclass(frozen=True)
class Cache:
    """kopf's indices: nodes and agents by node name, projects and branches by (namespace, project)."""

    nodes: Index
    agents: Index
    projects: Index
    branches: Index

    def node(self, name: str, promised: int = 0) -> NodeFacts:
        """A node that may not be there any more. `promised`: as in NodeFacts."""
        nodes: list[NodeObject] = _values(self.nodes, name)
        agents: list[AgentPod] = _values(self.agents, name)
        ready = sorted(agents, key=lambda agent: not agent.ready)
        return node_facts(name, nodes[0] if nodes else None, ready[0] if ready else None, promised)

    def all_nodes(self) -> list[NodeFacts]:
        """The nodes, with what they have promised to the projects there."""
        promised: dict[str, int] = defaultdict(int)
        for project in self.all_projects():
            promised[project.node_name or ""] += committed_bytes(project)
        return [self.node(name, promised[name]) for name in _settled(lambda: list(self.nodes))]

    def branches_of(self, namespace: str, project: str) -> tuple[Branch, ...]:
        """The branches of one project, by name."""
        found: list[Branch] = _values(self.branches, (namespace, project))
        return tuple(sorted(found, key=lambda branch: branch.name))

    def project(self, namespace: str, name: str) -> Project | None:
        found: list[Project] = _values(self.projects, (namespace, name))
        return found[0] if found else None

    def all_projects(self) -> list[Project]:
        keys = _settled(lambda: list(self.projects))
        return [project for key in keys for project in _values(self.projects, key)]

    def all_branches(self) -> list[Branch]:
        keys = _settled(lambda: list(self.branches))
        return [branch for key in keys for branch in _values(self.branches, key)]


def _values(index: Index, key: Any) -> list[Any]:
    return _settled(lambda: list(index.get(key, ())))


def _settled(read: Callable[[], T]) -> T:
    """A read that another thread's write may disturb: then once more."""
    while True:
        try:
            return read()
        except RuntimeError:
            time.sleep(0)
