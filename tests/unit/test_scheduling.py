"""Where a project goes, and when a branch can be made."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dbranch.api import names
from dbranch.api.branch import Branch, BranchNode
from dbranch.api.conditions import Finding, Reason
from dbranch.api.project import Project, ProjectNode
from dbranch.controller.scheduling import (
    Binding,
    NodeFacts,
    bind_branch,
    bind_project,
    committed_bytes,
    is_abandoned,
    node_trouble,
)

GIB = 2**30
SHOP = Project("team", "shop", "p")
BOUND = replace(SHOP, node_name="n1")
NODE = NodeFacts("n1", agent=True, agent_ready=True, free=10 * GIB)
STORED = BranchNode(snapshot_time="2026-01-01T00:00:00Z")
MAIN = Branch("team", "shop-main", "m", "shop", node_name="n1", node=STORED)
COPY = Branch("team", "shop-x", "x", "shop", "main")


def test_the_node_with_the_most_room() -> None:
    nodes = [NODE, replace(NODE, name="n2", free=20 * GIB), replace(NODE, name="n3", free=None)]
    assert bind_project(SHOP, nodes) == Binding("n2")
    nodes[1] = replace(nodes[1], promised=15 * GIB)
    assert bind_project(SHOP, nodes) == Binding("n1")
    # More is promised than there is: that is what thin pools are for.
    assert bind_project(SHOP, [replace(NODE, promised=15 * GIB)]) == Binding("n1")
    chosen = replace(SHOP, node_selector={"disk": "fast"})
    assert bind_project(chosen, [*nodes, replace(NODE, name="n4", labels={"disk": "fast"})]) == Binding("n4")


def test_what_a_pool_may_still_grow_into() -> None:
    assert committed_bytes(SHOP) == 10 * GIB
    assert committed_bytes(replace(SHOP, node=ProjectNode(used_bytes=4 * GIB))) == 6 * GIB
    assert committed_bytes(replace(SHOP, size=GIB, node=ProjectNode(used_bytes=2 * GIB))) == 0


@pytest.mark.parametrize(
    ("node", "says"),
    [
        (None, "no node has a ready agent"),
        (replace(NODE, agent_ready=False), "no node has a ready agent"),
        (replace(NODE, ready=False), "no node has a ready agent"),
        (replace(NODE, open=False), "cordoned"),
        (replace(NODE, free=GIB // 4), "256Mi"),
    ],
)
def test_no_node_says_why(node: NodeFacts | None, says: str) -> None:
    step = bind_project(SHOP, [node] if node else [])
    assert isinstance(step, Finding) and step.reason == Reason.NO_ELIGIBLE_NODE and says in step.message


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (NODE, None),
        (replace(NODE, open=False), None),
        (replace(NODE, agent_ready=False), Reason.AGENT_NOT_REPORTING),
        (replace(NODE, ready=False), Reason.NODE_NOT_READY),
        (replace(NODE, exists=False, ready=False), Reason.NODE_NOT_READY),
        (NodeFacts("n1", exists=False, ready=False), Reason.NODE_GONE),
    ],
)
def test_trouble_of_a_node(node: NodeFacts, reason: Reason | None) -> None:
    step = node_trouble(node)
    assert (step.reason if step else None) == reason


def test_a_branch_is_bound_to_its_project_and_to_one_very_source() -> None:
    assert bind_branch(BOUND, COPY, [MAIN, COPY]) == Binding("n1", "m")
    assert bind_branch(BOUND, replace(MAIN, node_name=None), []) == Binding("n1")


@pytest.mark.parametrize(
    ("project", "siblings", "reason"),
    [
        (None, [], Reason.PROJECT_NOT_FOUND),
        (replace(BOUND, deleting=True), [MAIN], Reason.PROJECT_NOT_FOUND),
        (SHOP, [MAIN], Reason.PROJECT_NOT_READY),
        (BOUND, [], Reason.SOURCE_NOT_FOUND),
        (BOUND, [replace(MAIN, deleted="2026-01-01T00:00:00Z")], Reason.SOURCE_NOT_FOUND),
        (BOUND, [replace(MAIN, node=BranchNode())], Reason.SOURCE_NOT_READY),
    ],
)
def test_what_a_branch_waits_for(project: Project | None, siblings: list[Branch], reason: Reason) -> None:
    step = bind_branch(project, COPY, [*siblings, COPY])
    assert isinstance(step, Finding) and step.reason == reason and not step.done


def test_a_missing_source_is_answered_with_those_that_exist() -> None:
    step = bind_branch(BOUND, replace(COPY, source="mian"), [MAIN, COPY])
    assert isinstance(step, Finding)
    assert step.message == 'source "mian" does not exist in project shop; nothing was made; name one of: main'


def test_only_a_node_that_is_gone_or_given_up_is_abandoned() -> None:
    gone = NodeFacts("n1", exists=False, ready=False)
    assert is_abandoned(gone, {})
    # An agent that still runs there tidies up itself; a node that is only away comes back.
    assert not is_abandoned(replace(gone, agent=True), {})
    away = NodeFacts("n1", ready=False, agent=True)
    assert not is_abandoned(away, {}) and not is_abandoned(away, {names.ABANDON_NODE: "n2"})
    assert is_abandoned(away, {names.ABANDON_NODE: "n1"})
