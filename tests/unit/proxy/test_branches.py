"""The table that a project and its branches make together, whichever the proxy has read first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dbranch.api.branch import BranchRoute
from dbranch.api.enums import TargetState
from dbranch.api.errors import InvalidInput
from dbranch.api.project import RouteTarget, Target
from dbranch.proxy.branches import ProxyBranch, compose, is_older, read_branch, with_last_address
from dbranch.proxy.project import ProxyProject
from dbranch.proxy.routes import (
    Backend,
    Dial,
    End,
    Reject,
    Stay,
    Table,
    Wait,
    cancel_candidates,
    decide,
    decide_fate,
)

UP = BranchRoute(3, TargetState.READY, "10.0.0.1", 20001)


def proxy_branch(name: str, route: BranchRoute | None = UP, uid: str = "") -> ProxyBranch:
    return ProxyBranch(name, f"shop-{name}", uid or name, route, {})


def by_name(*branches: ProxyBranch) -> dict[str, ProxyBranch]:
    return {branch.object_name: branch for branch in branches}


MAIN = proxy_branch("main")
SHOP = ProxyProject(Table("shop", "u", 5, "main"), switched_to=RouteTarget("main", 3))


def test_a_table_has_the_branches_that_have_a_route() -> None:
    stopped = proxy_branch("x", BranchRoute(2, TargetState.STOPPED))
    table = compose(SHOP, by_name(MAIN, stopped, proxy_branch("new", None)))
    assert table.targets == {
        "main": Target("main", TargetState.READY, "10.0.0.1", 20001),
        "x": Target("x", TargetState.STOPPED),
    }
    assert table.is_active_seen and table.obeyed_generation == 5
    assert decide(table, None) == Dial("main", "10.0.0.1", 20001)


@pytest.mark.parametrize(
    "of_before",
    [
        proxy_branch("main", BranchRoute(2, TargetState.READY, "10.0.0.7", 20001)),
        proxy_branch("main", BranchRoute(2, TargetState.STOPPED)),
        proxy_branch("main", BranchRoute(2, TargetState.DELETING)),
        proxy_branch("main", UP, "one before"),
        proxy_branch("main", None),
        None,
    ],
    ids=["address of before", "stopped", "deleting", "another object", "no route", "unread"],
)
def test_new_sessions_wait_until_the_active_branch_is_read_as_of_the_switch(
    of_before: ProxyBranch | None,
) -> None:
    table = compose(SHOP, by_name(of_before) if of_before else {})
    assert isinstance(decide(table, None), Wait)
    # The generation before is obeyed in any case: no session reaches where that led.
    assert table.obeyed_generation == 4


@pytest.mark.parametrize("state", TargetState)
def test_what_the_branch_says_after_the_switch_counts(state: TargetState) -> None:
    newer = replace(
        UP, generation=4, state=state, **({} if state == "Ready" else {"address": None, "port": None})
    )
    table = compose(SHOP, by_name(proxy_branch("main", newer)))
    assert table.is_active_seen and table.targets["main"].state == state


def test_a_switch_once_seen_stays_so() -> None:
    """Its branch is gone, or made again before the route names that: its sessions end, and nothing is taken back."""
    table = compose(SHOP, {}, seen_generation=5)
    assert table.obeyed_generation == 5 and isinstance(decide(table, None), Wait)
    backend = Backend("main", "10.0.0.1", 20001, requested=False)
    assert isinstance(decide_fate(table, backend), End)
    remade = compose(SHOP, by_name(proxy_branch("main", UP, "remade")), seen_generation=5)
    assert decide(remade, None) == Dial("main", "10.0.0.1", 20001)
    assert not compose(SHOP, {}, seen_generation=4).is_active_seen


def test_sessions_on_a_branch_that_is_restarted_stay_while_the_switch_to_it_is_unseen() -> None:
    table = compose(SHOP, by_name(proxy_branch("main", BranchRoute(2, TargetState.READY, "10.0.0.1", 20001))))
    assert decide_fate(table, Backend("main", "10.0.0.1", 20001, requested=True)) == Stay()


def test_a_switch_of_the_last_release_names_no_object() -> None:
    project = replace(SHOP, switched_to=None)
    assert decide(compose(project, by_name(MAIN)), None) == Dial("main", "10.0.0.1", 20001)
    assert isinstance(decide(compose(project, {}), None), Wait)


def test_a_table_in_the_project_counts_and_what_is_being_deleted_besides() -> None:
    of_before = proxy_branch("x", BranchRoute(9, TargetState.STOPPED))
    going = proxy_branch("y", BranchRoute(9, TargetState.DELETING))
    targets = {name: Target(name, TargetState.READY, "10.0.0.2", 2) for name in ("main", "x", "y")}
    project = ProxyProject(replace(SHOP.table, targets=targets), True, RouteTarget("unknown", 99))
    table = compose(project, by_name(of_before, going))
    assert decide(table, None) == Dial("main", "10.0.0.2", 2) and table.is_active_seen
    assert decide(table, "x") == Dial("x", "10.0.0.2", 2)
    assert isinstance(decide(table, "y"), Reject)


RESTORING = BranchRoute(4, TargetState.STARTING, "10.0.0.1", 20001, "restore-uid")


def test_a_branch_that_is_restored_holds_new_sessions_and_keeps_the_open_ones() -> None:
    restored = proxy_branch("main", RESTORING)
    table = compose(SHOP, by_name(restored))
    awaited = Wait('the restore of branch "main" of project shop to end')
    assert decide(table, None) == decide(table, "main") == awaited
    assert restored.awaited_acknowledgement() == 4
    open_session = Backend("main", "10.0.0.1", 20001, requested=False)
    assert decide_fate(table, open_session) == Stay()
    # One that is still logging in would come to the old data behind the acknowledgement.
    assert isinstance(decide_fate(table, open_session, greeted=False), End)
    ready = proxy_branch("main", BranchRoute(5, TargetState.READY, "10.0.0.9", 20001))
    table = compose(SHOP, by_name(ready))
    assert decide(table, None) == Dial("main", "10.0.0.9", 20001)
    assert ready.awaited_acknowledgement() is None


@pytest.mark.parametrize(
    "route",
    [
        replace(RESTORING, state=TargetState.READY),
        replace(RESTORING, state=TargetState.STOPPED),
        replace(RESTORING, restore=None),
    ],
)
def test_only_a_route_that_is_starting_and_names_a_restore_is_held_for_it(route: BranchRoute) -> None:
    branch = proxy_branch("main", route)
    assert not branch.restoring and branch.awaited_acknowledgement() is None
    assert not compose(SHOP, by_name(branch)).restoring


def test_a_cancel_finds_a_branch_that_is_restored_where_it_was() -> None:
    """Its route may name no address meanwhile."""
    restored = proxy_branch("main", replace(RESTORING, address=None, port=None))
    table = compose(SHOP, by_name(with_last_address(restored, MAIN)))
    assert [(b.address, b.port) for b in cancel_candidates(table, (), 32)] == [("10.0.0.1", 20001)]
    assert isinstance(decide(table, None), Wait)
    assert with_last_address(restored, None) == restored
    assert with_last_address(restored, proxy_branch("main", UP, "another object")) == restored
    stopped = proxy_branch("main", BranchRoute(4, TargetState.STOPPED))
    assert with_last_address(stopped, MAIN) == stopped


def test_a_restore_holds_new_sessions_though_a_table_in_the_project_says_ready() -> None:
    """That is there for the proxies of release 0.1.0, and this one acknowledges the branch's own route."""
    targets = {"main": Target("main", TargetState.READY, "10.0.0.1", 20001)}
    project = ProxyProject(replace(SHOP.table, targets=targets), has_targets=True)
    table = compose(project, by_name(proxy_branch("main", RESTORING)))
    assert "the restore" in str(decide(table, None))


def test_a_lagging_api_server_takes_no_route_back() -> None:
    older = proxy_branch("main", replace(UP, generation=2))
    assert is_older(older, MAIN) and is_older(proxy_branch("main", None), MAIN)
    assert not is_older(MAIN, older) and not is_older(MAIN, MAIN) and not is_older(MAIN, None)
    assert not is_older(replace(older, uid="again"), MAIN)


def body(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "shop-x", "uid": "u"}, "spec": {"project": "shop"}, "status": status}


def test_a_branch_is_read_with_who_has_acknowledged_it() -> None:
    entries = [{"pod": "a", "generation": 2}, {"pod": "b"}, "text"]
    branch = read_branch(body(route={"generation": 2, "state": "Deleting"}, proxies=entries))
    assert branch.acknowledged == {"a": 2} and branch.awaited_acknowledgement() == 2
    assert read_branch(body(route={"generation": 2, "state": "Ready"})).awaited_acknowledgement() is None


@pytest.mark.parametrize("route", [None, "text", {"state": "Ready"}, {"generation": "two", "state": "Ready"}])
def test_a_route_that_cannot_be_read_is_none(route: object) -> None:
    assert read_branch(body(route=route)).target is None


def test_a_state_of_a_newer_release_is_waited_for() -> None:
    branch = read_branch(body(route={"generation": 3, "state": "Suspended", "new": {"a": 1}}))
    assert isinstance(decide(compose(SHOP, by_name(MAIN, branch)), "x"), Wait)


@pytest.mark.parametrize(
    "broken", [{}, {"metadata": {"name": "other-x", "uid": "u"}, "spec": {"project": "shop"}}]
)
def test_a_branch_of_no_name_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        read_branch(broken)
