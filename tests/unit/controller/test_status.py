"""Findings and conditions: Ready copies the first failure; an unchanged status is written unchanged."""

from __future__ import annotations

from dataclasses import replace

from dbranch.agent.status import changed_fields, drop_insignificant
from dbranch.api.branch import Branch, BranchNode
from dbranch.api.conditions import Condition, Finding, Reason
from dbranch.api.project import Project, ProjectNode, Route
from dbranch.controller.branch.status import branch_findings
from dbranch.controller.conditions import phase_of, ready_finding, report_conditions
from dbranch.controller.project.status import project_findings

SHOP = Project(
    "team", "shop", "p", node=ProjectNode(initialized=True, storage=Finding(Reason.POOL_MOUNTED, ""))
)
UP = BranchNode(storage=Finding(Reason.STORED, ""), postgres=Finding(Reason.ACCEPTING, ""))
MAIN = Branch("team", "shop-main", "m", "shop", node_name="n1", node=UP)
BOUND, ROUTED = Finding(Reason.BOUND, ""), Finding(Reason.ROUTED, "")


def test_ready_copies_the_first_finding_that_is_not_done() -> None:
    findings = project_findings(SHOP, BOUND, ROUTED, Route(1, "main"), [MAIN])
    assert ready_finding(findings, "all").reason == Reason.AVAILABLE
    failed = project_findings(SHOP, BOUND, Finding(Reason.PROXY_NOT_READY, "late"), Route(1, "main"), [MAIN])
    assert ready_finding(failed, "all") == Finding(Reason.PROXY_NOT_READY, "late")


def test_a_project_reports_why_its_first_image_cannot_be_pulled() -> None:
    failing = BranchNode(
        storage=Finding(Reason.INITIALIZING, ""), postgres=Finding(Reason.IMAGE_PULL_FAILED, "no image")
    )
    new = replace(SHOP, node=replace(SHOP.node, initialized=False))
    findings = project_findings(new, BOUND, ROUTED, None, [replace(MAIN, node=failing)])
    assert ready_finding(findings, "").reason == Reason.IMAGE_PULL_FAILED


def test_a_change_of_state_is_pending_until_the_agent_has_acted() -> None:
    stopping = branch_findings(SHOP, replace(MAIN, state="Stopped"), BOUND)
    assert ready_finding(stopping, "").reason == Reason.PENDING
    postgres_stopped = replace(MAIN, node=replace(UP, postgres=Finding(Reason.STOPPED, "")))
    assert ready_finding(branch_findings(SHOP, postgres_stopped, BOUND), "").reason == Reason.PENDING
    stopped = branch_findings(SHOP, replace(postgres_stopped, state="Stopped"), BOUND)
    assert ready_finding(stopped, "").reason == Reason.STOPPED


def conditions(ready: Finding, before: list[dict[str, object]], now: str) -> list[dict[str, object]]:
    return report_conditions(before, [(Condition.SCHEDULED, BOUND)], ready, 3, now)


def test_an_unchanged_condition_keeps_its_transition_time() -> None:
    ok = Finding(Reason.AVAILABLE, "fine")
    first = conditions(ok, [], "2026-01-01T00:00:00Z")
    assert conditions(ok, first, "2026-01-02T00:00:00Z") == first
    changed = conditions(Finding(Reason.PENDING, "hm"), first, "2026-01-02T00:00:00Z")
    assert [c["lastTransitionTime"][:10] for c in changed if c["type"] == "Ready"] == ["2026-01-02"]  # type: ignore[index]
    assert [c["lastTransitionTime"][:10] for c in changed if c["type"] == "Scheduled"] == ["2026-01-01"]  # type: ignore[index]


def test_reconciling_and_stalled_are_listed_only_if_they_apply() -> None:
    def types(reason: Reason) -> set[object]:
        return {c["type"] for c in conditions(Finding(reason, ""), [], "2026-01-01T00:00:00Z")} - {
            "Ready",
            "Scheduled",
        }

    assert types(Reason.AVAILABLE) == types(Reason.STOPPED) == types(Reason.DELETING) == set()
    assert types(Reason.SOURCE_NOT_FOUND) == {"Reconciling"}
    assert types(Reason.POOL_LOST) == {"Stalled"}
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


def test_a_project_stays_ready_while_its_new_pods_are_rejected() -> None:
    rejected = Finding(
        Reason.WARM_SLOTS_REJECTED, "project shop: the API server rejects its pod: exceeded quota"
    )
    warned = replace(SHOP, node=replace(SHOP.node, slots=rejected))
    findings = project_findings(warned, BOUND, ROUTED, Route(1, "main"), [MAIN])
    assert dict(findings)[Condition.POSTGRES_READY] == rejected
    assert ready_finding(findings, "").reason == Reason.AVAILABLE
    # What is wrong with the active branch comes first.
    starting = replace(MAIN, node=replace(UP, postgres=Finding(Reason.RECOVERING, "")))
    findings = project_findings(warned, BOUND, ROUTED, Route(1, "main"), [starting])
    assert dict(findings)[Condition.POSTGRES_READY].reason == Reason.RECOVERING
