"""The controller counts what a namespace may have, refuses the newest, and reports what was there before a limit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.factories import GIB, branch, project
from tests.unit.controller.rig import BRANCHES, PROJECTS, Rig, conditions_of, message_of

from dbranch.api.branch import Branch
from dbranch.api.conditions import MESSAGE_LIMIT
from dbranch.api.errors import ApiError, InvalidInput
from dbranch.api.project import Postgres, Project, Proxy
from dbranch.controller.limits import (
    Limits,
    above_finding,
    exceeded_by_branch,
    exceeded_by_project,
    excess,
    refused_finding,
)
from dbranch.controller.places import Places

SHOP = Project("team", "shop", "p", node_name="n1")
COPY = Branch("team", "shop-x", "x", "shop", "main")
SERVICES = "/api/v1/namespaces/team/services"


def with_limits(rig: Rig, **limits: str) -> None:
    """Set limits as an upgrade of the chart does, with which the controller starts again."""
    rig.limits = Limits(limits)
    rig.start()


def aged(number: int) -> dict[str, Any]:
    return {"metadata": {"creationTimestamp": f"2026-01-01T00:00:0{number}Z"}}


# Of the data.


def test_a_namespaces_own_limits_take_the_place_of_those_of_all() -> None:
    limits = Limits({"branches": "2", "images": "a", "team.branches": "", "team.projects": "0"})
    assert limits.of("team").count("branches") is None and limits.of("other").count("branches") == 2
    assert limits.of("team").count("projects") == 0 and limits.of("other").count("projects") is None
    assert limits.of("team").path("branches") == "limits.namespaces.team.branches"
    assert limits.of("other").path("branches") == "limits.branches"
    assert limits.of("team").text("images") == "a" and limits.of("team").text("nodeSelectors") == "*"


@pytest.mark.parametrize("text", ["[]", "x", '{"branches": "many"}', '{"team.cpu": "a lot"}'])
def test_limits_that_cannot_be_read_stop_the_controller_at_its_start(text: str) -> None:
    with pytest.raises(InvalidInput, match="limits cannot be used"):
        Limits.parse(text)


def test_without_limits_nothing_is_exceeded() -> None:
    everything = replace(
        SHOP,
        size=2**44,
        node_selector={"a": "b"},
        proxy=Proxy(replicas=16),
        postgres=Postgres(image="x", resources={"requests": {"nvidia.com/gpu": 8}}),
    )
    assert [*exceeded_by_project(everything, Limits.parse("").of("team"))] == []


def test_a_resource_of_which_nothing_is_said_has_the_charts_default() -> None:
    limits = Limits({"memory": "2Gi", "postgres.defaultResources.limits.memory": "1Gi"}).of("team")
    assert [*exceeded_by_project(SHOP, limits)] == []
    only_requested = replace(SHOP, postgres=Postgres(resources={"requests": {"memory": "1Gi"}}))
    assert [*exceeded_by_project(only_requested, limits)] == [("memory", "no resources.limits.memory")]
    # A branch without resources has its project's.
    assert [*exceeded_by_branch(COPY, Limits({"memory": "2Gi"}).of("team"))] == []


def test_every_message_fits_and_names_the_limit_its_value_and_who_can_raise_it() -> None:
    name, namespace = "n" * 30, "s" * 63
    shop = replace(
        SHOP,
        name=name,
        namespace=namespace,
        size=100 * GIB,
        proxy=Proxy(replicas=9),
        node_selector={"k" * 63: "v" * 63, "l" * 63: "v" * 63},
        postgres=Postgres(image="i" * 512, resources={"limits": {"cpu": "4", "r" * 200: 1}}),
    )
    copy = replace(COPY, namespace=namespace, project=name, object_name=f"{name}-{'b' * 32}", node_name="n1")
    allowed = {
        "storageSize": "50Gi",
        "proxyReplicas": "2",
        "images": " ".join(["ghcr.io/acme/*"] * 20),
        "nodeSelectors": "",
        "cpu": "2",
        "memory": "1Gi",
        "extendedResources": "",
    }
    exceeded = dict(exceeded_by_project(shop, Limits(allowed).of(namespace)))
    assert set(exceeded) == set(allowed)
    for limit in allowed:
        alone = {"images": "*", "nodeSelectors": "*", "extendedResources": "*"} | {limit: allowed[limit]}
        finding = above_finding(shop, Limits(alone).of(namespace), False)
        assert finding and len(finding.message) <= MESSAGE_LIMIT, finding
        assert f"limits.{limit} of the dbranch chart allows" in finding.message
        assert finding.message.endswith("lower it, or ask a cluster administrator")
    own = Limits({f"{namespace}.projects": "3", f"{namespace}.branches": "20"}).of(namespace)
    for item in (shop, copy):
        for finding in (above_finding(item, own, True), refused_finding(item, own)):
            assert finding and len(finding.message) <= MESSAGE_LIMIT, finding
            assert "limits.namespaces." in finding.message and "cluster administrator" in finding.message


def test_who_is_bound_keeps_its_place_and_of_the_others_the_oldest_gets_one() -> None:
    def numbered(number: int, **fields: Any) -> Branch:
        return replace(COPY, uid=f"u{number}", created=f"2026-01-01T00:00:0{number}Z", **fields)

    first, second, third = numbered(1), numbered(2), numbered(3)
    assert excess([third, first, second], None) == frozenset()
    assert excess([third, first, second], 2) == {"u3"}
    assert excess([third, first, numbered(2, node_name="n1")], 1) == {"u1", "u3"}
    # One that is being deleted counts while there may be something of it on its node.
    assert excess([numbered(1, deleted="now"), second], 1) == frozenset()
    assert excess([numbered(1, deleted="now", node_name="n1"), second], 1) == {"u2"}


def test_no_more_are_bound_than_there_are_places_while_the_cache_lags() -> None:
    places = Places(Limits({"branches": "2"}), "branches")
    one, two, three = (replace(COPY, uid=uid) for uid in "abc")
    cached: list[Branch] = [one, two, three]
    assert places.take(one, lambda: cached) and places.take(two, lambda: cached)
    assert places.take(one, lambda: cached), "its own place"
    assert not places.take(three, lambda: cached)
    places.release(two)
    assert places.take(three, lambda: cached)
    # The cache has heard of both, and then of the end of one.
    cached[:] = [replace(one, node_name="n1"), two, replace(three, node_name="n1")]
    assert not places.take(two, lambda: cached)
    cached[:] = [two, replace(three, node_name="n1")]
    assert places.take(two, lambda: cached)
    # Another namespace's are its own.
    assert places.take(replace(three, namespace="other"), lambda: [])


# Of objects.


def test_the_branch_that_is_too_many_is_refused_and_nothing_is_made_for_it() -> None:
    rig = Rig(branches="2").ready()
    rig.branch_up("x")
    rig.put(branch("y").changed(**aged(1)))
    assert rig.writes_of(lambda: rig.reconcile_branch("y")) == ["merge dbbranches/shop-y/status"]
    assert conditions_of(rig.branch("y"))["Ready"] == "LimitExceeded"
    assert message_of(rig.branch("y"), "Ready") == (
        "branch y is not made: limits.branches of the dbranch chart allows 2; "
        "delete one, or ask a cluster administrator to raise it"
    )
    assert ("Warning", "LimitExceeded") in rig.events and not rig.exists(f"{SERVICES}/shop-y")
    assert rig.writes_of(lambda: rig.reconcile_branch("y")) == []
    # The root branch has a place, too. Another's end makes room.
    rig.api.delete(f"{BRANCHES}/shop-x")
    rig.run()
    rig.proxies_obey()
    rig.run()
    rig.api.merge(f"{BRANCHES}/shop-x", {"metadata": {"finalizers": []}})
    rig.run()
    assert conditions_of(rig.branch("y"))["Scheduled"] == "Bound" and rig.exists(f"{SERVICES}/shop-y")


def test_the_project_that_is_too_many_is_refused_and_nothing_is_made_for_it() -> None:
    rig = Rig(projects="1").ready()
    rig.put(project("late"))
    assert rig.writes_of(lambda: rig.reconcile_project("late")) == ["merge dbprojects/late/status"]
    conditions = conditions_of(rig.project("late"))
    assert conditions["Ready"] == conditions["Scheduled"] == "LimitExceeded" and "Stalled" not in conditions
    text = message_of(rig.project("late"), "Ready")
    assert text.startswith("project late is not made: limits.projects of the dbranch chart allows 1;")
    assert rig.writes_of(lambda: rig.reconcile_project("late")) == []
    assert conditions_of(rig.reconcile_project())["Ready"] == "Available"
    with_limits(rig, projects="1", **{"team.projects": "2"})
    rig.run()
    assert conditions_of(rig.project("late"))["Scheduled"] == "Bound"
    assert rig.exists(f"{BRANCHES}/late-main")


def test_a_project_that_is_refused_can_be_deleted() -> None:
    rig = Rig(projects="0")
    rig.put(project())
    rig.run()
    assert conditions_of(rig.project())["Ready"] == "LimitExceeded"
    rig.api.delete(f"{PROJECTS}/shop")
    rig.remove_project()
    assert not rig.exists(f"{PROJECTS}/shop")


def test_a_project_reports_that_its_root_branch_has_no_place() -> None:
    rig = Rig(branches="1").ready()
    rig.put(project("other"))
    rig.run()
    assert conditions_of(rig.branch("main", "other"))["Scheduled"] == "LimitExceeded"
    other = rig.project("other")
    assert conditions_of(other)["PostgresReady"] == "LimitExceeded"
    assert "limits.branches" in message_of(other, "PostgresReady")


def test_what_was_there_before_a_limit_goes_on_and_says_so_once() -> None:
    rig = Rig().ready()
    rig.branch_up("x")
    rig.put(project("twin"))
    rig.run()
    rig.events.clear()
    with_limits(rig, projects="1", branches="1", storageSize="5Gi")
    rig.run()
    assert rig.events.count(("Warning", "AboveLimit")) == 4
    shop, twin, x = rig.project(), rig.project("twin"), rig.branch("x")
    for body in (shop, x):
        assert (
            conditions_of(body)["Scheduled"] == "AboveLimit" and conditions_of(body)["Ready"] == "Available"
        )
        assert conditions_of(body).keys().isdisjoint({"Reconciling", "Stalled"})
    assert (
        "shop: storage.size 10Gi, limits.storageSize of the dbranch chart allows 5Gi; it goes on"
        in message_of(shop, "Scheduled")
    )
    assert "it is one more, limits.projects of the dbranch chart allows 1;" in message_of(twin, "Scheduled")
    assert "it is one more, limits.branches of the dbranch chart allows 1;" in message_of(x, "Scheduled")
    assert conditions_of(rig.branch())["Scheduled"] == "Bound"
    for reconcile in (rig.reconcile_project, rig.reconcile_branch, lambda: rig.reconcile_branch("x")):
        assert rig.writes_of(reconcile) == []
    # It is switched, stopped and made smaller as ever, and once it is no more beyond the limit, it is as any other.
    rig.change_project(activeBranch="x")
    rig.run()
    rig.proxies_obey()
    rig.run()
    assert rig.project()["status"]["route"]["branch"] == "x"
    with_limits(rig)
    rig.run()
    assert conditions_of(rig.project())["Scheduled"] == conditions_of(rig.branch("x"))["Scheduled"] == "Bound"


def test_a_place_is_given_back_if_the_binding_cannot_be_written() -> None:
    rig = Rig(projects="1", branches="2").ready()
    rig.put(branch("x"))
    rig.api.refuse("merge", "dbbranches/shop-x/status", ApiError(500, "InternalError", "no"), times=1)
    with pytest.raises(ApiError):
        rig.reconcile_branch("x")
    rig.put(branch("y"))
    rig.api.delete(f"{BRANCHES}/shop-x")
    rig.api.merge(f"{BRANCHES}/shop-x", {"metadata": {"finalizers": []}})
    assert conditions_of(rig.reconcile_branch("y"))["Scheduled"] == "Bound"


# Audit.


def test_a_switch_is_an_event_with_from_to_and_the_sessions_that_it_touches() -> None:
    rig = Rig().ready()
    rig.branch_up("x")
    entries = [{"branch": "main", "sessions": 13, "draining": 1}, {"branch": "x", "sessions": 5}]
    rig.proxy_obeys(sessions=18, branches=entries)
    rig.events.clear()
    rig.event_texts.clear()
    rig.change_project(activeBranch="x")
    rig.run()
    assert (
        rig.events == [("Normal", "Switched"), ("Warning", "ProxyNotReady")][:1]
        or (
            "Normal",
            "Switched",
        )
        in rig.events
    )
    generation = rig.project()["status"]["route"]["generation"]
    assert rig.event_texts[rig.events.index(("Normal", "Switched"))] == (
        f"new sessions of project shop reach x, no longer main (generation {generation}); "
        "14 sessions on main are ended, as far as the proxies have reported"
    )
    assert rig.events.count(("Normal", "Switched")) == 1
    # A deletion raises the generation of the route, which leads where it led.
    rig.branch_up("y")
    rig.api.delete(f"{BRANCHES}/shop-y")
    rig.run()
    assert rig.events.count(("Normal", "Switched")) == 1


def test_the_first_route_of_a_project_is_no_switch() -> None:
    rig = Rig()
    rig.put(project())
    rig.run()
    rig.agent_reports(project().up())
    rig.agent_reports(branch().accepting())
    rig.run()
    assert rig.project()["status"]["route"]["branch"] == "main"
    assert ("Normal", "Switched") not in rig.events
