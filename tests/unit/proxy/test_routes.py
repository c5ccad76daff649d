from __future__ import annotations

from dataclasses import replace

import pytest

from dbranch.api.project import Target
from dbranch.api.proxy_spec import ProxyLimits
from dbranch.proxy.project import read_project
from dbranch.proxy.routes import (
    Backend,
    Dial,
    Drain,
    End,
    Reject,
    Stay,
    Table,
    Wait,
    cancel_candidates,
    check_branch_limit,
    check_session_limits,
    decide,
    decide_fate,
    is_still_routed,
    may_replace,
)

TABLE = Table(
    project="shop",
    uid="u",
    generation=7,
    active="main",
    targets={
        "main": Target("main", "Ready", "10.0.0.1", 21733),
        "pr-1": Target("pr-1", "Ready", "10.0.0.2", 21734),
        "new": Target("new", "Starting"),
        "half": Target("half", "Ready"),
        "off": Target("off", "Stopped"),
        "bye": Target("bye", "Deleting", "10.0.0.3", 21735),
    },
)


def test_a_cancel_at_a_branchs_own_port_is_tried_at_that_branch_alone() -> None:
    assert [b.branch for b in cancel_candidates(TABLE, ("bye",), 32, own_branch="pr-1")] == ["pr-1"]
    assert cancel_candidates(TABLE, ("bye",), 32, own_branch="new") == []
    assert cancel_candidates(TABLE, (), 32, own_branch="gone") == []


def test_the_table_of_a_project() -> None:
    project = read_project(
        {
            "metadata": {"name": "shop", "uid": "u"},
            "spec": {
                "proxy": {
                    "onSwitch": "Drain",
                    "drainTimeout": "90s",
                    "startTimeout": "5s",
                    "handshakeTimeout": "3s",
                    "proxyProtocol": "Required",
                    "limits": {"sessions": 9, "sessionsPerBranch": 4},
                    "tls": {"secretName": "t", "mode": "Required"},
                }
            },
            "status": {
                "route": {"generation": 7, "branch": "main"},
                "routes": [{"branch": "main", "address": "10.0.0.1", "port": 1, "state": "Ready"}],
            },
        }
    )
    main = {"main": Target("main", "Ready", "10.0.0.1", 1)}
    assert project.table == Table(
        "shop",
        "u",
        7,
        "main",
        main,
        "Drain",
        90.0,
        5.0,
        True,
        handshake_timeout=3.0,
        proxy_protocol=True,
        limits=ProxyLimits(9, None, 4),
    )


def test_a_project_without_a_route_waits() -> None:
    table = read_project({"metadata": {"name": "shop"}, "spec": {}}).table
    assert decide(table, None) == Wait("project shop to have an active branch")


@pytest.mark.parametrize(
    "branch, decision",
    [
        (None, Dial("main", "10.0.0.1", 21733)),
        ("main", Dial("main", "10.0.0.1", 21733)),
        ("pr-1", Dial("pr-1", "10.0.0.2", 21734)),
        ("new", Wait('branch "new" of project shop to start')),
        ("half", Wait('branch "half" of project shop to start')),
    ],
)
def test_where_a_new_session_goes(branch: str | None, decision: object) -> None:
    assert decide(TABLE, branch) == decision


@pytest.mark.parametrize(
    "branch, sqlstate, phrases",
    [
        ("mian", "3D000", ['"mian"', "Branches that exist: bye, half, main, new, off, pr-1."]),
        ("off", "57P03", ["is stopped", "dbranch resume off", "shop-off"]),
        ("bye", "57P01", ["is being deleted"]),
    ],
)
def test_a_rejection_says_why(branch: str, sqlstate: str, phrases: list[str]) -> None:
    decision = decide(TABLE, branch)
    assert isinstance(decision, Reject) and decision.sqlstate == sqlstate
    assert all(p in f"{decision.message} {decision.hint}" for p in phrases)


def test_an_active_branch_without_a_target_waits_and_a_deleted_project_rejects() -> None:
    assert isinstance(decide(replace(TABLE, active="unborn"), None), Wait)
    decision = decide(Table("shop", deleted=True), None)
    assert isinstance(decision, Reject) and decision.sqlstate == "57P01"


MAIN = Backend("main", "10.0.0.1", 21733, requested=False)
SWITCHED = replace(TABLE, active="pr-1", generation=8)


@pytest.mark.parametrize(
    "table, backend, fate",
    [
        (TABLE, MAIN, Stay),
        (SWITCHED, MAIN, End),
        (replace(SWITCHED, on_switch="Drain", drain_timeout=5), MAIN, Drain),
        (replace(SWITCHED, on_switch="Keep"), MAIN, Stay),
        (SWITCHED, replace(MAIN, requested=True), Stay),
        (SWITCHED, Backend("pr-1", "10.0.0.2", 21734, requested=False), Stay),
        (replace(TABLE, active=None, generation=0), MAIN, Stay),
        (TABLE, Backend("bye", "10.0.0.3", 21735, requested=True), End),
        (TABLE, Backend("dropped", "10.0.0.9", 21735, requested=True), End),
        (replace(SWITCHED, on_switch="Keep", targets={}), MAIN, End),
        (Table("shop", deleted=True), MAIN, End),
        # Postgres ends its sessions itself when it stops; another address proves that it has stopped.
        (replace(TABLE, targets={"main": Target("main", "Stopped")}), MAIN, Stay),
        (replace(TABLE, targets={"main": Target("main", "Starting")}), MAIN, Stay),
        (replace(TABLE, targets={"main": Target("main", "Ready", "10.0.0.8", 21733)}), MAIN, End),
    ],
)
def test_the_fate_of_a_session_after_a_change(table: Table, backend: Backend, fate: type) -> None:
    assert type(decide_fate(table, backend)) is fate


def test_fates_carry_their_message_and_timeout() -> None:
    end = decide_fate(SWITCHED, MAIN)
    assert isinstance(end, End) and 'switched to branch "pr-1"' in end.message
    drain = decide_fate(replace(SWITCHED, on_switch="Drain", drain_timeout=5), MAIN)
    assert isinstance(drain, Drain) and drain.timeout == 5


def test_an_older_table_does_not_replace_a_newer_one() -> None:
    assert may_replace(None, TABLE)
    assert may_replace(TABLE, SWITCHED) and may_replace(TABLE, TABLE)
    assert not may_replace(SWITCHED, TABLE)
    assert may_replace(SWITCHED, replace(TABLE, uid="made again", generation=1))
    assert may_replace(Table("shop", deleted=True), TABLE)


@pytest.mark.parametrize("on_switch", ["Terminate", "Drain", "Keep"])
def test_a_client_that_is_not_logged_in_ends_at_a_switch_whatever_on_switch_says(on_switch: str) -> None:
    table = replace(SWITCHED, on_switch=on_switch)
    assert isinstance(decide_fate(table, MAIN, greeted=False), End)
    assert decide_fate(table, replace(MAIN, requested=True), greeted=False) == Stay()
    assert decide_fate(replace(TABLE, on_switch=on_switch), MAIN, greeted=False) == Stay()


def test_a_new_session_is_still_routed_to_its_backend_until_the_route_changes() -> None:
    assert is_still_routed(TABLE, MAIN)
    assert not is_still_routed(SWITCHED, MAIN)
    assert is_still_routed(SWITCHED, replace(MAIN, requested=True))
    assert not is_still_routed(replace(TABLE, targets={"main": Target("main", "Starting")}), MAIN)
    assert not is_still_routed(Table("shop", deleted=True), MAIN)


def test_the_limits() -> None:
    table = replace(TABLE, limits=ProxyLimits(sessions=10, sessions_per_address=3, sessions_per_branch=5))
    assert check_session_limits(table, 9, "10.1.1.1", 2) is None
    assert check_branch_limit(table, "main", 4) is None
    for rejection, reason, phrase in (
        (check_session_limits(table, 10, "10.1.1.1", 0), "limit_sessions", "project shop has 10 sessions"),
        (check_session_limits(table, 9, "10.1.1.1", 3), "limit_address", "10.1.1.1 has 3 sessions"),
        (check_branch_limit(table, "main", 5), "limit_branch", 'branch "main" has 5 sessions'),
    ):
        assert rejection and (rejection.sqlstate, rejection.reason) == ("53300", reason)
        assert phrase in rejection.message and "spec.proxy.limits" in rejection.hint
    assert check_session_limits(TABLE, 999, "10.1.1.1", 999) is None
    assert check_branch_limit(TABLE, "main", 10_000) is None


def test_the_backends_that_may_own_an_unknown_cancel_key() -> None:
    assert [b.branch for b in cancel_candidates(TABLE, ("pr-1",), 32)] == ["main", "pr-1", "bye"]
    assert [b.branch for b in cancel_candidates(TABLE, (), 1)] == ["main"]
    assert cancel_candidates(replace(TABLE, active=None, targets={}), ("main",), 32) == []
