"""Conditions: Ready copies the first step that fails; a status that is the same is written the same."""

from __future__ import annotations

from dataclasses import replace

from dbranch.agent.status import changed_fields, drop_insignificant
from dbranch.api.branch import Branch, BranchNode
from dbranch.api.conditions import Condition, Finding, Reason
from dbranch.api.project import Project, ProjectNode, Route, Target
from dbranch.controller.branch.status import branch_findings
from dbranch.controller.conditions import phase_of, ready_finding, report_conditions
from dbranch.controller.project.status import is_outdated, project_findings

SHOP = Project(
    "team", "shop", "p", node=ProjectNode(initialized=True, storage=Finding(Reason.POOL_MOUNTED, ""))
)
UP = BranchNode(storage=Finding(Reason.STORED, ""), postgres=Finding(Reason.ACCEPTING, ""))
MAIN = Branch("team", "shop-main", "m", "shop", node_name="n1", node=UP)
BOUND, ROUTED = Finding(Reason.BOUND, ""), Finding(Reason.ROUTED, "")


def test_ready_copies_the_first_step_that_fails() -> None:
    steps = project_findings(SHOP, BOUND, ROUTED, Route(1, "main"), [MAIN])
    assert ready_finding(steps, "all").reason == Reason.AVAILABLE
    failed = project_findings(SHOP, BOUND, Finding(Reason.PROXY_NOT_READY, "late"), Route(1, "main"), [MAIN])
    assert ready_finding(failed, "all") == Finding(Reason.PROXY_NOT_READY, "late")


def test_a_project_tells_why_its_first_image_cannot_be_pulled() -> None:
    stuck = BranchNode(
        storage=Finding(Reason.INITIALIZING, ""), postgres=Finding(Reason.IMAGE_PULL_FAILED, "no image")
    )
    new = replace(SHOP, node=replace(SHOP.node, initialized=False))
    steps = project_findings(new, BOUND, ROUTED, None, [replace(MAIN, node=stuck)])
    assert ready_finding(steps, "").reason == Reason.IMAGE_PULL_FAILED


def test_a_change_that_the_agent_has_not_acted_on_is_not_at_rest_yet() -> None:
    stopping = branch_findings(SHOP, replace(MAIN, state="Stopped"), BOUND)
    assert ready_finding(stopping, "").reason == Reason.PENDING
    asleep = replace(MAIN, node=replace(UP, postgres=Finding(Reason.STOPPED, "")))
    assert ready_finding(branch_findings(SHOP, asleep, BOUND), "").reason == Reason.PENDING
    stopped = branch_findings(SHOP, replace(asleep, state="Stopped"), BOUND)
    assert ready_finding(stopped, "").reason == Reason.STOPPED


def conditions(ready: Finding, before: list[dict[str, object]], now: str) -> list[dict[str, object]]:
    return report_conditions(before, [(Condition.SCHEDULED, BOUND)], ready, 3, now)


def test_a_condition_that_stays_keeps_its_time_and_a_list_that_stays_is_equal() -> None:
    ok = Finding(Reason.AVAILABLE, "fine")
    first = conditions(ok, [], "2026-01-01T00:00:00Z")
    assert conditions(ok, first, "2026-01-02T00:00:00Z") == first
    later = conditions(Finding(Reason.PENDING, "hm"), first, "2026-01-02T00:00:00Z")
    assert [c["lastTransitionTime"][:10] for c in later if c["type"] == "Ready"] == ["2026-01-02"]  # type: ignore[index]
    assert [c["lastTransitionTime"][:10] for c in later if c["type"] == "Scheduled"] == ["2026-01-01"]  # type: ignore[index]


def test_reconciling_and_stalled_are_there_only_when_they_apply() -> None:
    def kinds(reason: Reason) -> set[object]:
        return {c["type"] for c in conditions(Finding(reason, ""), [], "2026-01-01T00:00:00Z")} - {
            "Ready",
            "Scheduled",
        }

    assert kinds(Reason.AVAILABLE) == kinds(Reason.STOPPED) == kinds(Reason.DELETING) == set()
    assert kinds(Reason.SOURCE_NOT_FOUND) == {"Reconciling"}
    assert kinds(Reason.POOL_LOST) == {"Stalled"}
    assert [
        phase_of(Finding(r, "")) for r in (Reason.AVAILABLE, Reason.STOPPED, Reason.POOL_LOST, Reason.PENDING)
    ] == [
        "Ready",
        "Stopped",
        "Stalled",
        "Pending",
    ]


def test_sizes_that_read_the_same_are_not_written_again() -> None:
    now = {"usedBytes": 1000, "usedSize": "1000", "freeBytes": 5_000_000, "freeSize": "4.8Mi"}
    same = {"freeBytes": 5_000_100, "freeSize": "4.8Mi"}
    assert changed_fields(now, drop_insignificant(now, same)) == {}
    other = {"freeBytes": 9_000_000, "freeSize": "8.6Mi"}
    assert changed_fields(now, drop_insignificant(now, other)) == other


def test_a_project_is_outdated_while_a_branch_says_something_else_of_itself() -> None:
    main = replace(MAIN, node=replace(UP, address="10.0.0.1", port=6000), status={"conditions": [{}]})
    step = {"type": "PostgresReady", "status": "True", "reason": "Accepting"}
    told = replace(
        SHOP,
        routes=(Target("main", "Ready", "10.0.0.1", 6000),),
        route=Route(1, "main"),
        status={"branches": 1, "conditions": [step]},
    )
    assert not is_outdated(told, [main])
    moved = replace(main, node=replace(main.node, address="10.0.0.2"))
    assert is_outdated(told, [moved])
    assert is_outdated(told, [replace(main, deleted="2026-01-01T00:00:00Z")])
    assert is_outdated(told, [])
    # One that is bound is in the routes; one that waits is only counted, from its own first visit on.
    new = replace(main, object_name="shop-new", uid="n", node_name=None, status={})
    assert not is_outdated(told, [main, new])
    assert is_outdated(told, [main, replace(new, node_name="n1", node=BranchNode())])
    waits = replace(new, status={"conditions": [{}]})
    assert is_outdated(told, [main, waits])
    assert not is_outdated(replace(told, status={**told.status, "branches": 2}), [main, waits])
    # The same routes, and another reason why Postgres is not there.
    down = replace(main, node=BranchNode(postgres=Finding(Reason.IMAGE_PULL_FAILED, "no image")))
    starting = replace(told, routes=(Target("main", "Starting"),))
    assert is_outdated(starting, [down])
    pulled = {**step, "status": "False", "reason": "ImagePullFailed"}
    assert not is_outdated(replace(starting, status={"branches": 1, "conditions": [pulled]}), [down])


def test_a_project_that_was_never_visited_or_ends_is_not_outdated() -> None:
    assert not is_outdated(SHOP, [MAIN])
    step = {"type": "PostgresReady", "status": "True", "reason": "Accepting"}
    ending = replace(SHOP, deleting=True, status={"branches": 0, "conditions": [step]})
    assert not is_outdated(ending, [MAIN])
