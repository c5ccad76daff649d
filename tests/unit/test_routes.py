from __future__ import annotations

from dataclasses import replace

import pytest

from dbranch.api.project import ProxyLimits, Target, parse_project
from dbranch.proxy.routes import (
    Backend,
    Drain,
    End,
    Go,
    Reject,
    Stay,
    Table,
    Wait,
    cancel_candidates,
    decide,
    decide_fate,
    is_newer,
    reject_branch,
    reject_session,
    still_leads,
    table_of,
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


def test_the_table_of_a_project() -> None:
    project = parse_project(
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
    assert table_of(project) == Table(
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
    table = table_of(parse_project({"metadata": {"name": "shop"}, "spec": {}}))
    assert decide(table, None) == Wait("project shop to have an active branch")


@pytest.mark.parametrize(
    "named, decision",
    [
        (None, Go("main", "10.0.0.1", 21733)),
        ("main", Go("main", "10.0.0.1", 21733)),
        ("pr-1", Go("pr-1", "10.0.0.2", 21734)),
        ("new", Wait('branch "new" of project shop to start')),
        ("half", Wait('branch "half" of project shop to start')),
    ],
)
def test_where_a_session_goes(named: str | None, decision: object) -> None:
    assert decide(TABLE, named) == decision


@pytest.mark.parametrize(
    "named, code, said",
    [
        ("mian", "3D000", ['"mian"', "Branches that exist: bye, half, main, new, off, pr-1."]),
        ("off", "57P03", ["is stopped", "dbranch resume off", "shop-off"]),
        ("bye", "57P01", ["is being deleted"]),
    ],
)
def test_who_is_refused(named: str, code: str, said: list[str]) -> None:
    decision = decide(TABLE, named)
    assert isinstance(decision, Reject) and decision.code == code
    assert all(s in f"{decision.message} {decision.hint}" for s in said)


def test_an_active_branch_without_a_target_waits_and_a_deleted_project_refuses() -> None:
    assert isinstance(decide(replace(TABLE, active="later"), None), Wait)
    gone = decide(Table("shop", gone=True), None)
    assert isinstance(gone, Reject) and gone.code == "57P01"


MAIN = Backend("main", "10.0.0.1", 21733, named=False)
SWITCHED = replace(TABLE, active="pr-1", generation=8)


@pytest.mark.parametrize(
    "table, place, fate",
    [
        (TABLE, MAIN, Stay),
        (SWITCHED, MAIN, End),
        (replace(SWITCHED, on_switch="Drain", drain_timeout=5), MAIN, Drain),
        (replace(SWITCHED, on_switch="Keep"), MAIN, Stay),
        (SWITCHED, replace(MAIN, named=True), Stay),
        (SWITCHED, Backend("pr-1", "10.0.0.2", 21734, named=False), Stay),
        (replace(TABLE, active=None, generation=0), MAIN, Stay),
        (TABLE, Backend("bye", "10.0.0.3", 21735, named=True), End),
        (TABLE, Backend("dropped", "10.0.0.9", 21735, named=True), End),
        (replace(SWITCHED, on_switch="Keep", targets={}), MAIN, End),
        (Table("shop", gone=True), MAIN, End),
        # Its Postgres stops or starts elsewhere: a stop says so itself, another address proves the end.
        (replace(TABLE, targets={"main": Target("main", "Stopped")}), MAIN, Stay),
        (replace(TABLE, targets={"main": Target("main", "Starting")}), MAIN, Stay),
        (replace(TABLE, targets={"main": Target("main", "Ready", "10.0.0.8", 21733)}), MAIN, End),
    ],
)
def test_what_a_change_means_to_a_session(table: Table, place: Backend, fate: type) -> None:
    assert type(decide_fate(table, place)) is fate


def test_the_fates_say_why() -> None:
    ended = decide_fate(SWITCHED, MAIN)
    assert isinstance(ended, End) and 'switched to branch "pr-1"' in ended.message
    drained = decide_fate(replace(SWITCHED, on_switch="Drain", drain_timeout=5), MAIN)
    assert isinstance(drained, Drain) and drained.timeout == 5


def test_an_older_table_is_not_taken_back() -> None:
    assert is_newer(TABLE, None)
    assert is_newer(SWITCHED, TABLE) and is_newer(TABLE, TABLE)
    assert not is_newer(TABLE, SWITCHED)
    assert is_newer(replace(TABLE, uid="made again", generation=1), SWITCHED)
    assert is_newer(TABLE, Table("shop", gone=True))


@pytest.mark.parametrize("on_switch", ["Terminate", "Drain", "Keep"])
def test_who_is_not_let_in_yet_ends_at_a_switch_whatever_it_says(on_switch: str) -> None:
    table = replace(SWITCHED, on_switch=on_switch)
    assert isinstance(decide_fate(table, MAIN, greeted=False), End)
    assert decide_fate(table, replace(MAIN, named=True), greeted=False) == Stay()
    assert decide_fate(replace(TABLE, on_switch=on_switch), MAIN, greeted=False) == Stay()


def test_who_is_on_the_way_is_asked_again_when_the_way_changes() -> None:
    assert still_leads(TABLE, MAIN)
    assert not still_leads(SWITCHED, MAIN)
    assert still_leads(SWITCHED, replace(MAIN, named=True))
    assert not still_leads(replace(TABLE, targets={"main": Target("main", "Starting")}), MAIN)
    assert not still_leads(Table("shop", gone=True), MAIN)


def test_the_limits() -> None:
    table = replace(TABLE, limits=ProxyLimits(sessions=10, sessions_per_address=3, sessions_per_branch=5))
    assert reject_session(table, 9, "10.1.1.1", 2) is None
    assert reject_branch(table, "main", 4) is None
    for refusal, reason, said in (
        (reject_session(table, 10, "10.1.1.1", 0), "limit_sessions", "project shop has 10 sessions"),
        (reject_session(table, 9, "10.1.1.1", 3), "limit_address", "10.1.1.1 has 3 sessions"),
        (reject_branch(table, "main", 5), "limit_branch", 'branch "main" has 5 sessions'),
    ):
        assert refusal and (refusal.code, refusal.reason) == ("53300", reason)
        assert said in refusal.message and "spec.proxy.limits" in refusal.hint
    assert reject_session(TABLE, 999, "10.1.1.1", 999) is None
    assert reject_branch(TABLE, "main", 10_000) is None


def test_where_a_cancel_that_is_not_known_here_may_belong() -> None:
    assert [p.branch for p in cancel_candidates(TABLE, ("pr-1",), 32)] == ["main", "pr-1", "bye"]
    assert [p.branch for p in cancel_candidates(TABLE, (), 1)] == ["main"]
    assert cancel_candidates(replace(TABLE, active=None, targets={}), ("main",), 32) == []
