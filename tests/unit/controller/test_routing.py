"""Routes: each branch's target, when the route moves, whether every proxy obeys it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dbranch.api import names
from dbranch.api.branch import Acknowledgement, Branch, BranchNode, BranchRoute
from dbranch.api.conditions import Finding, Reason
from dbranch.api.enums import TargetState
from dbranch.api.project import Project, ProxyEntry, Route, RouteTarget, Target
from dbranch.controller.proxy_pods import ProxyPod, proxy_pod_of
from dbranch.controller.routing import (
    is_withdrawn,
    laggards,
    plan_branch_route,
    plan_route,
    routed_finding,
    table_of,
    target_of,
    targets_of,
)

UP = BranchNode(postgres=Finding(Reason.ACCEPTING, ""), address="10.0.0.1", port=20001)
MAIN = Branch("team", "shop-main", "m", "shop", node_name="n1", node=UP)
COPY = Branch("team", "shop-x", "x", "shop", "main", node_name="n1", node=replace(UP, address="10.0.0.2"))
SHOP = Project("team", "shop", "p")
ON_MAIN = replace(SHOP, route=Route(4, "main"))


@pytest.mark.parametrize(
    ("branch", "state"),
    [
        (MAIN, "Ready"),
        # Whoever repairs it has to reach it.
        (replace(MAIN, node=replace(UP, postgres=Finding(Reason.ROLE_NOT_FOUND, ""))), "Ready"),
        (replace(MAIN, node=BranchNode()), "Starting"),
        (replace(MAIN, node=replace(UP, postgres=Finding(Reason.RECOVERING, ""))), "Starting"),
        (replace(MAIN, state="Stopped"), "Stopped"),
        (replace(MAIN, deleted="2026-01-01T00:00:00Z"), "Deleting"),
    ],
)
def test_the_state_of_a_target(branch: Branch, state: str) -> None:
    target = target_of(SHOP, branch)
    assert target and target.state == state
    assert (target.address is not None) == (state == "Ready")


def test_an_unbound_branch_has_no_target_and_a_stopped_project_stops_all() -> None:
    assert target_of(SHOP, replace(MAIN, node_name=None)) is None
    assert [t.state for t in targets_of(replace(SHOP, state="Stopped"), [COPY, MAIN])] == [
        "Stopped",
        "Stopped",
    ]


def written(branch: Branch) -> Branch:
    """Return the branch with its route as its own reconcile writes it."""
    return replace(branch, route=plan_branch_route(SHOP, branch))


STARTING = replace(COPY, node=BranchNode())


def test_the_route_moves_only_to_a_ready_branch() -> None:
    ready = [written(MAIN), written(COPY)]
    assert plan_route(SHOP, ready) == Route(1, "main", RouteTarget("m", 1))
    assert plan_route(SHOP, [written(replace(MAIN, node=BranchNode()))]) is None
    switching = replace(ON_MAIN, active_branch="x")
    assert plan_route(switching, ready) == Route(5, "x", RouteTarget("x", 1))
    assert plan_route(switching, [written(MAIN), written(STARTING)]) == Route(4, "main")
    assert plan_route(replace(ON_MAIN, active_branch="nowhere"), ready) == Route(4, "main")


def test_the_route_moves_only_when_the_branch_itself_says_that_it_is_ready() -> None:
    """Proxies read the route of the branch: a switch that they read first must name what they wait for."""
    switching = replace(ON_MAIN, active_branch="x")
    restarted = replace(written(COPY), node=replace(UP, address="10.0.0.3"))
    assert plan_route(switching, [MAIN, COPY]) == Route(4, "main")
    assert plan_route(switching, [written(MAIN), restarted]) == Route(4, "main")
    assert plan_route(switching, [written(MAIN), written(restarted)]) == Route(5, "x", RouteTarget("x", 2))


def test_the_route_stays_on_a_branch_that_restarts() -> None:
    assert plan_route(ON_MAIN, [replace(MAIN, node=BranchNode())]) == Route(4, "main")


def test_a_branch_made_again_under_the_name_of_the_active_one_is_a_switch() -> None:
    on_main = replace(SHOP, route=Route(4, "main", RouteTarget("m", 7)))
    assert plan_route(on_main, [written(MAIN)]) == on_main.route
    assert plan_route(on_main, [written(replace(MAIN, uid="n"))]) == Route(5, "main", RouteTarget("n", 1))
    # Release 0.1.0 does not say which it was.
    assert plan_route(ON_MAIN, [written(MAIN)]) == ON_MAIN.route


GOING = replace(COPY, deleted="2026-01-01T00:00:00Z")
NEW, OLD = ProxyEntry("a", 4, features=(names.PROXY_FOLLOWS_BRANCHES,)), ProxyEntry("old", 4)


def test_a_branch_that_begins_to_be_deleted_raises_the_generation_once_for_a_proxy_of_the_last_release() -> (
    None
):
    branches = [written(MAIN), GOING]
    assert plan_route(replace(ON_MAIN, proxies=(NEW,)), branches) == Route(4, "main")
    mixed = replace(ON_MAIN, proxies=(NEW, OLD))
    assert plan_route(mixed, branches) == Route(5, "main")
    reported = replace(mixed, route=Route(5, "main"), routes=targets_of(SHOP, branches))
    assert plan_route(reported, branches) == Route(5, "main")


def test_a_branch_is_withdrawn_when_every_proxy_has_acknowledged_its_own_route() -> None:
    project, withdrawn = replace(ON_MAIN, proxies=(NEW,)), written(GOING)
    acknowledged = replace(withdrawn, proxies=(Acknowledgement("a", 1),))
    assert not is_withdrawn(project, GOING, ())
    assert not is_withdrawn(project, withdrawn, ())
    assert is_withdrawn(project, acknowledged, ())
    # A generation of before counts no more, and nor does a proxy that has ended.
    raised = replace(acknowledged, route=BranchRoute(2, TargetState.DELETING))
    assert not is_withdrawn(project, raised, ())
    assert is_withdrawn(project, raised, [ProxyPod("a", False, has_ended=True)])
    # One of the last release acknowledges the project's route, with the table that says Deleting.
    mixed = replace(project, proxies=(NEW, OLD), routes=targets_of(SHOP, [MAIN, COPY]))
    assert not is_withdrawn(mixed, acknowledged, ())
    mixed = replace(mixed, routes=targets_of(SHOP, [MAIN, GOING]), route=Route(5, "main"))
    assert not is_withdrawn(mixed, acknowledged, ())
    assert is_withdrawn(replace(mixed, proxies=(NEW, replace(OLD, generation=5))), acknowledged, ())


def test_routed_is_true_only_when_every_existing_proxy_obeys() -> None:
    ready = targets_of(SHOP, [MAIN, COPY])
    route = Route(4, "main")
    pods = [ProxyPod("a", True), ProxyPod("b", False)]
    both = replace(ON_MAIN, proxies=(ProxyEntry("a", 4), ProxyEntry("b", 4)))
    assert routed_finding(both, route, ready, pods).reason == Reason.ROUTED
    late = replace(ON_MAIN, proxies=(ProxyEntry("a", 4), ProxyEntry("b", 3)))
    finding = routed_finding(late, route, ready, pods)
    assert not finding.done and "b" in finding.message and laggards(route, pods, late.proxies) == ("b",)
    silent = replace(ON_MAIN, proxies=(ProxyEntry("a", 4),))
    assert laggards(route, [ProxyPod("a", True), ProxyPod("b", True)], silent.proxies) == ("b",)
    assert routed_finding(both, route, ready, [ProxyPod("b", False)]).reason == Reason.PROXY_NOT_READY
    assert routed_finding(both, route, ready, []).reason == Reason.PROXY_NOT_READY


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (None, Reason.BRANCH_NOT_FOUND),
        ("Starting", Reason.BRANCH_NOT_READY),
        ("Stopped", Reason.BRANCH_STOPPED),
        ("Deleting", Reason.BRANCH_DELETING),
    ],
)
def test_a_switch_that_cannot_happen_reports_why_and_that_the_old_route_stays(
    state: str | None, reason: Reason
) -> None:
    switching = replace(ON_MAIN, active_branch="x")
    targets = [Target("main", "Ready", "a", 1), *([Target("x", state)] if state else [])]
    finding = routed_finding(switching, ON_MAIN.route, targets, [ProxyPod("a", True)])
    assert finding.reason == reason and "still reach main" in finding.message


CREATED = {"phase": "Pending", "conditions": [{"type": "Ready", "status": "False"}]}
STARTED = {**CREATED, "phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}
CRASHED = {
    **STARTED,
    "containerStatuses": [
        {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {}}}
    ],
}


@pytest.mark.parametrize(
    ("status", "entry", "holds"),
    [
        (CREATED, None, False),
        (STARTED, None, False),
        # It runs, or its container has just ended: what it has written says what it obeys.
        (STARTED, 3, True),
        (STARTED, 4, False),
        (CRASHED, 3, False),
    ],
    ids=["never ran", "created after the route", "older route", "obeys", "ended"],
)
def test_only_a_proxy_that_may_obey_an_older_route_holds_a_switch(
    status: dict[str, object], entry: int | None, holds: bool
) -> None:
    pod = proxy_pod_of({"metadata": {"name": "b"}, "status": status})
    assert pod is not None
    entries = (ProxyEntry("a", 4), *([ProxyEntry("b", entry)] if entry is not None else ()))
    project = replace(ON_MAIN, proxies=entries)
    finding = routed_finding(project, Route(4, "main"), targets_of(SHOP, [MAIN]), [ProxyPod("a", True), pod])
    assert finding.done != holds


def test_a_proxy_that_does_not_answer_is_named_with_the_command_that_helps() -> None:
    late = replace(ON_MAIN, proxies=(ProxyEntry("a", 4), ProxyEntry("b", 3)))
    pods = [ProxyPod("a", True), ProxyPod("b", False)]
    message = routed_finding(late, Route(4, "main"), targets_of(SHOP, [MAIN]), pods).message
    assert message.endswith("if its node is lost: kubectl delete pod b -n team --force")


WAITING = {"state": {"waiting": {"reason": "ImagePullBackOff"}}, "image": "registry/proxy:1"}
UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: 1 cordoned."}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"containerStatuses": [WAITING]}, "cannot pull the image registry/proxy:1"),
        ({"conditions": [UNSCHEDULABLE]}, "0/1 nodes are available"),
        (CRASHED, "ends again and again"),
    ],
)
def test_why_no_proxy_runs_is_reported(status: dict[str, object], words: str) -> None:
    pod = proxy_pod_of({"metadata": {"name": "b"}, "status": status})
    assert pod is not None
    finding = routed_finding(ON_MAIN, Route(4, "main"), targets_of(SHOP, [MAIN]), [pod])
    assert finding.reason == Reason.PROXY_NOT_READY and words in finding.message
    assert "the connection string does not answer" in finding.message


def test_more_branches_than_fit_leave_out_stopped_ones_first() -> None:
    stopped = [replace(COPY, object_name=f"shop-a{i}", state="Stopped") for i in range(1200)]
    targets = table_of(ON_MAIN, targets_of(ON_MAIN, [*stopped, COPY, MAIN]))
    assert len(targets) == 1000 and {"main", "x"} <= {target.branch for target in targets}
    assert list(targets) == sorted(targets, key=lambda target: target.branch)


def test_a_branch_that_was_never_bound_is_in_no_route_when_it_is_deleted() -> None:
    assert target_of(SHOP, replace(COPY, node_name=None, deleted="2026-01-01T00:00:00Z")) is None
