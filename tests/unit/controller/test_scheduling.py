"""Which node a project is bound to, and when a branch can be bound."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

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
    bytes_committed_to,
    is_abandoned,
    not_reporting_finding,
)

GIB = 2**30
SHOP = Project("team", "shop", "p")
BOUND = replace(SHOP, node_name="n1")
NODE = NodeFacts("n1", has_agent=True, agent_ready=True, free_bytes=10 * GIB)
STORED = BranchNode(snapshot_time="2026-01-01T00:00:00Z")
MAIN = Branch("team", "shop-main", "m", "shop", node_name="n1", node=STORED)
COPY = Branch("team", "shop-x", "x", "shop", "main")


def test_a_project_is_bound_to_the_node_with_the_most_uncommitted_space() -> None:
    nodes = [NODE, replace(NODE, name="n2", free_bytes=20 * GIB), replace(NODE, name="n3", free_bytes=None)]
    assert bind_project(SHOP, nodes) == Binding("n2")
    nodes[1] = replace(nodes[1], committed_bytes=15 * GIB)
    assert bind_project(SHOP, nodes) == Binding("n1")
    # Thin pools may be committed more than is free.
    assert bind_project(SHOP, [replace(NODE, committed_bytes=15 * GIB)]) == Binding("n1")
    selective = replace(SHOP, node_selector={"disk": "fast"})
    assert bind_project(selective, [*nodes, replace(NODE, name="n4", labels={"disk": "fast"})]) == Binding(
        "n4"
    )


def test_the_bytes_committed_to_a_project_are_what_its_pool_may_still_grow_into() -> None:
    assert bytes_committed_to(SHOP) == 10 * GIB
    assert bytes_committed_to(replace(SHOP, node=ProjectNode(used_bytes=4 * GIB))) == 6 * GIB
    assert bytes_committed_to(replace(SHOP, size=GIB, node=ProjectNode(used_bytes=2 * GIB))) == 0


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (None, "no node has a ready agent"),
        (replace(NODE, agent_ready=False), "no node has a ready agent"),
        (replace(NODE, ready=False), "no node has a ready agent"),
        (replace(NODE, schedulable=False), "cordoned"),
        (replace(NODE, free_bytes=GIB // 4), "256Mi"),
    ],
)
def test_an_unbound_project_reports_why(node: NodeFacts | None, text: str) -> None:
    finding = bind_project(SHOP, [node] if node else [])
    assert (
        isinstance(finding, Finding) and finding.reason == Reason.NO_ELIGIBLE_NODE and text in finding.message
    )


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (NODE, None),
        (replace(NODE, schedulable=False), None),
        (replace(NODE, agent_ready=False), Reason.AGENT_NOT_REPORTING),
        (replace(NODE, ready=False), Reason.NODE_NOT_READY),
        (replace(NODE, exists=False, ready=False), Reason.NODE_NOT_READY),
        (NodeFacts("n1", exists=False, ready=False), Reason.NODE_GONE),
    ],
)
def test_a_node_with_an_agent_that_does_not_report(node: NodeFacts, reason: Reason | None) -> None:
    finding = not_reporting_finding(node)
    assert (finding.reason if finding else None) == reason


def test_a_branch_is_bound_to_its_projects_node_and_to_one_very_source() -> None:
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
def test_an_unbound_branch_reports_what_it_waits_for(
    project: Project | None, siblings: list[Branch], reason: Reason
) -> None:
    finding = bind_branch(project, COPY, [*siblings, COPY])
    assert isinstance(finding, Finding) and finding.reason == reason and not finding.done


def test_a_missing_source_is_reported_with_the_sources_that_exist() -> None:
    finding = bind_branch(BOUND, replace(COPY, source="mian"), [MAIN, COPY])
    assert isinstance(finding, Finding)
    assert (
        finding.message == 'source "mian" does not exist in project shop; nothing was made; name one of: main'
    )


def test_a_node_is_abandoned_only_if_it_is_gone_or_a_person_says_so() -> None:
    gone = NodeFacts("n1", exists=False, ready=False)
    assert is_abandoned(gone, {})
    # An agent that still runs there cleans up itself; a node that is only away comes back.
    assert not is_abandoned(replace(gone, has_agent=True), {})
    away = NodeFacts("n1", ready=False, has_agent=True)
    assert not is_abandoned(away, {}) and not is_abandoned(away, {names.ABANDON_NODE: "n2"})
    assert is_abandoned(away, {names.ABANDON_NODE: "n1"})


def test_the_branch_that_is_too_many_is_refused_by_the_order_of_their_creation() -> None:
    def numbered(number: int, **fields: Any) -> Branch:
        return replace(
            COPY, uid=f"u{number}", object_name=f"shop-b{number:04}", created="2026-01-01T00:00:00Z", **fields
        )

    waiting = [numbered(i) for i in range(1001)]
    everyone = [MAIN, *waiting]
    assert isinstance(bind_branch(BOUND, waiting[998], everyone), Binding)
    for last in (waiting[999], waiting[1000]):
        finding = bind_branch(BOUND, last, everyone)
        assert isinstance(finding, Finding) and finding.reason == Reason.LIMIT_EXCEEDED
        assert f"branch {last.name} is not made" in finding.message
    # One that is bound keeps its place, whenever it was created.
    bound = [replace(item, node_name="n1") for item in waiting[1:1000]]
    assert isinstance(bind_branch(BOUND, waiting[0], [MAIN, *bound, waiting[0]]), Finding)
