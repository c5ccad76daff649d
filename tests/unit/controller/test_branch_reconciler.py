"""The controller's reconciles of a branch, over a fake API server."""

from __future__ import annotations

import base64
from itertools import permutations
from typing import Any

import pytest
from tests.factories import NODE, BranchBuilder, ProjectBuilder, agent_pod, branch, project
from tests.unit.controller.rig import (
    AGENTS,
    BRANCHES,
    NODES,
    PODS,
    PROJECTS,
    SECRETS,
    Rig,
    conditions_of,
    message_of,
)

from dbranch.api import names
from dbranch.api.conditions import Finding, Reason
from dbranch.api.errors import ClusterUnreachable
from dbranch.api.secrets import secret_texts
from dbranch.kube.client import path_of

SERVICES = path_of("v1", "services", "team")
SLICES = path_of("discovery.k8s.io/v1", "endpointslices", "team")
STOPPED = Finding(Reason.STOPPED, "stopped").as_dict()


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def shop(rig: Rig) -> Rig:
    """A rig whose project `shop` is Ready."""
    return rig.ready()


def addresses(rig: Rig, name: str) -> list[str]:
    """Return the addresses in the branch's EndpointSlice."""
    endpoints = rig.existing(f"{SLICES}/shop-{name}")["endpoints"]
    return [address for endpoint in endpoints for address in endpoint["addresses"]]


def test_a_condition_that_is_true_and_a_warning_has_an_event_of_its_own(shop: Rig) -> None:
    shop.branch_up("x")
    shop.events.clear()
    braked = Finding(Reason.WRITES_BRAKED, "the disk is almost full").as_dict()
    for _ in range(2):
        shop.agent_reports(branch("x").accepting("10.0.0.9").node(postgres=braked))
        shop.run()
    assert shop.events == [("Warning", "WritesBraked")]
    assert conditions_of(shop.branch("x"))["Ready"] == "Available"


# Created.


def test_a_new_branch_costs_one_write_for_its_binding_and_one_for_each_object(shop: Rig) -> None:
    shop.put(branch("x"))
    # Its Service before it is bound: if the name is taken, the agent must make nothing.
    assert shop.writes_of(lambda: shop.reconcile_branch("x")) == [
        "create services/shop-x",
        # The agent's finalizer, which it finds in place then.
        "merge dbbranches/shop-x",
        "merge dbbranches/shop-x/status",
        "create secrets/shop-x-conn",
    ]
    # Every node is sent each change of an EndpointSlice, and there is no address yet.
    assert not shop.exists(f"{SLICES}/shop-x")
    status = shop.branch("x")["status"]
    assert status["nodeName"] == NODE and status["sourceUID"] == shop.branch()["metadata"]["uid"]
    assert status["phase"] == "Pending"


def test_a_create_costs_the_controller_these_writes(shop: Rig) -> None:
    """From the DBBranch to Ready, with one report of the agent; more would be sent to everybody who watches."""
    shop.put(branch("x"))
    shop.reconcile_branch("x")
    shop.reconcile_project()
    shop.agent_reports(branch("x").accepting("10.0.0.9", 20009))
    shop.reconcile_branch("x")
    shop.reconcile_project()
    shop.run()
    assert [request for request in shop.api.take_writes() if "/shop-x" not in request] == [
        "merge dbprojects/shop/status",
    ]
    assert conditions_of(shop.branch("x"))["Ready"] == "Available"


def test_the_endpoints_follow_postgres(shop: Rig) -> None:
    shop.branch_up("x", "10.0.0.9")
    assert addresses(shop, "x") == ["10.0.0.9"]
    shop.change_branch("x", state="Stopped")
    shop.reconcile_branch("x")
    assert addresses(shop, "x") == []
    shop.change_branch("x", state="Running")
    shop.agent_reports(branch("x").accepting("10.0.0.10"))
    shop.reconcile_branch("x")
    assert addresses(shop, "x") == ["10.0.0.10"]


def test_endpoints_have_the_family_of_their_service_from_the_beginning() -> None:
    rig = Rig()
    rig.api.ip_family = "IPv6"
    rig.ready()
    rig.branch_up("x", "fd00::9")
    assert rig.existing(f"{SLICES}/shop-x")["addressType"] == "IPv6" and addresses(rig, "x") == ["fd00::9"]
    for state, expected in (("Stopped", []), ("Running", ["fd00::9"])):
        rig.change_branch("x", state=state)
        # A controller that starts knows the family by its list of all Services.
        rig.start()
        rig.owned.preload("v1", "services")
        assert rig.writes_of(lambda: rig.reconcile_branch("x"))
        assert addresses(rig, "x") == expected
        assert rig.existing(f"{SLICES}/shop-x")["addressType"] == "IPv6"


def test_endpoints_of_the_wrong_family_that_an_earlier_release_made_are_made_anew() -> None:
    rig = Rig()
    rig.api.ip_family = "IPv6"
    rig.put(project().bound().up(), branch().bound().stored())
    rig.put(branch("x").bound().stored())
    rig.run()
    made = rig.existing(f"{SLICES}/shop-x")
    rig.api.delete(f"{SLICES}/shop-x")
    rig.api.put(SLICES, {**made, "addressType": "IPv4"})
    rig.start()
    rig.agent_reports(branch("x").accepting("fd00::9"))
    body = rig.reconcile_branch("x", bypass_cache=True)
    assert conditions_of(body)["Ready"] == "Available"
    assert rig.existing(f"{SLICES}/shop-x")["addressType"] == "IPv6" and addresses(rig, "x") == ["fd00::9"]


def test_a_branch_that_has_nothing_to_do_writes_nothing(shop: Rig) -> None:
    for _ in range(2):
        assert shop.writes_of(shop.reconcile_branch) == []
        assert shop.writes_of(lambda: shop.reconcile_branch(bypass_cache=True)) == []
        shop.start()


def test_a_branch_has_its_projects_password(shop: Rig) -> None:
    shop.branch_up("x")
    of_project, of_branch = (
        secret_texts(shop.existing(f"{SECRETS}/{name}-conn")) for name in ("shop", "shop-x")
    )
    assert of_branch["password"] == of_project["password"]
    assert of_branch["host"] == "shop-x.team.svc" and of_project["host"] == "shop.team.svc"


def test_a_changed_password_reaches_every_branchs_secret(shop: Rig) -> None:
    shop.branch_up("x")
    shop.secret("mine", password=base64.b64encode(b"pencil").decode())
    shop.change_project(postgres={"passwordSecret": {"name": "mine"}})
    shop.reconcile_project()
    shop.reconcile_branch("x")
    assert secret_texts(shop.existing(f"{SECRETS}/shop-x-conn"))["password"] == "pencil"


def test_a_connection_secret_of_somebody_else_is_not_read(rig: Rig) -> None:
    rig.secret("shop-conn", password=base64.b64encode(b"theirs").decode())
    rig.put(project().bound(), branch().bound())
    rig.reconcile_branch()
    assert not rig.exists(f"{SECRETS}/shop-main-conn")


# Waiting.


def test_what_a_branch_waits_for_is_reported(rig: Rig) -> None:
    rig.put(branch("x"))
    assert conditions_of(rig.reconcile_branch("x"))["Scheduled"] == "ProjectNotFound"
    rig.put(project())
    assert conditions_of(rig.reconcile_branch("x"))["Scheduled"] == "ProjectNotReady"
    rig.api.merge(f"{PROJECTS}/shop/status", {"status": {"nodeName": NODE}})
    assert conditions_of(rig.reconcile_branch("x"))["Scheduled"] == "SourceNotFound"
    rig.put(branch())
    assert conditions_of(rig.reconcile_branch("x"))["Scheduled"] == "SourceNotReady"
    rig.agent_reports(branch().stored())
    body = rig.reconcile_branch("x")
    assert conditions_of(body)["Scheduled"] == "Bound" and body["status"]["sourceUID"] == "shop-main-uid"
    assert rig.events == [
        ("Normal", reason)
        for reason in ("ProjectNotFound", "ProjectNotReady", "SourceNotFound", "SourceNotReady", "Pending")
    ]


@pytest.mark.parametrize("order", [*permutations(("project", "source", "copy", "second copy"))])
def test_objects_may_be_applied_in_any_order(rig: Rig, order: tuple[str, ...]) -> None:
    builders: dict[str, ProjectBuilder | BranchBuilder] = {
        "project": project(),
        "source": branch(),
        "copy": branch("x"),
        "second copy": branch("y", "x"),
    }
    for name in order:
        rig.put(builders[name])
        rig.run()
    for name in ("main", "x", "y"):
        rig.agent_reports(branch(name).accepting())
        rig.run()
    assert all(rig.branch(name)["status"]["nodeName"] == NODE for name in ("main", "x", "y"))
    assert rig.branch("y")["status"]["sourceUID"] == "shop-x-uid"


def test_a_branch_of_a_project_that_is_being_deleted_is_not_bound(shop: Rig) -> None:
    shop.api.delete(f"{PROJECTS}/shop")
    shop.put(branch("x"))
    assert conditions_of(shop.reconcile_branch("x"))["Scheduled"] == "ProjectNotFound"


def test_a_source_that_was_made_again_is_another_source(shop: Rig) -> None:
    shop.branch_up("x")
    shop.put(branch("y", "x"))
    first = shop.reconcile_branch("y")["status"]["sourceUID"]
    shop.api.remove_pod(f"{BRANCHES}/shop-x")
    shop.put(branch("x").changed(metadata={"uid": "another"}).bound().accepting())
    assert shop.reconcile_branch("y")["status"]["sourceUID"] == first == "shop-x-uid"
    shop.put(branch("z", "x"))
    assert shop.reconcile_branch("z")["status"]["sourceUID"] == "another"


# Prevented.


@pytest.mark.parametrize("owner", ["theirs", "another-project-uid"])
def test_a_branch_with_a_service_name_that_is_taken_is_not_bound(shop: Rig, owner: str) -> None:
    shop.api.put(SERVICES, {"metadata": {"name": "shop-x", "ownerReferences": [{"uid": owner}]}})
    shop.put(branch("x"))
    body = shop.reconcile_branch("x")
    assert conditions_of(body)["Scheduled"] == "NameTaken" and "nodeName" not in body["status"]
    assert conditions_of(body)["Stalled"] == "NameTaken" and body["status"]["phase"] == "Stalled"
    assert shop.writes_of(lambda: shop.reconcile_branch("x")) == []
    shop.api.delete(f"{SERVICES}/shop-x")
    body = shop.reconcile_branch("x")
    assert conditions_of(body)["Scheduled"] == "Bound" and "Stalled" not in conditions_of(body)


def test_a_name_that_is_taken_behind_the_binding_is_reported(shop: Rig) -> None:
    shop.api.put(SLICES, {"metadata": {"name": "shop-x", "ownerReferences": [{"uid": "theirs"}]}})
    shop.put(branch("x"))
    shop.reconcile_branch("x")
    shop.agent_reports(branch("x").accepting())
    body = shop.reconcile_branch("x")
    assert body["status"]["nodeName"] == NODE and conditions_of(body)["Scheduled"] == "NameTaken"
    assert "EndpointSlice shop-x" in message_of(body, "Scheduled")


@pytest.mark.parametrize(
    "lost", ["services/", "dbbranches/shop-x$", "dbbranches/shop-x/status", "endpointslices/", "secrets/"]
)
def test_a_reconcile_that_is_cut_off_is_finished_by_the_next(shop: Rig, lost: str) -> None:
    shop.put(branch("x"))
    for verb in ("create", "merge"):
        shop.api.lose_answer(verb, lost)
    with pytest.raises(ClusterUnreachable):
        shop.reconcile_branch("x")
        shop.agent_reports(branch("x").accepting("10.0.0.9"))
        shop.reconcile_branch("x")
    shop.api.answer_again()
    for _ in range(2):
        shop.reconcile_branch("x")
        shop.agent_reports(branch("x").accepting("10.0.0.9"))
    assert shop.branch("x")["status"]["nodeName"] == NODE and addresses(shop, "x") == ["10.0.0.9"]
    assert shop.exists(f"{SECRETS}/shop-x-conn")


def test_an_endpointslice_is_not_made_for_the_service_of_another_owner(shop: Rig) -> None:
    shop.api.put(SERVICES, {"metadata": {"name": "shop-x", "ownerReferences": [{"uid": "theirs"}]}})
    shop.put(branch("x").bound().accepting())
    assert conditions_of(shop.reconcile_branch("x"))["Scheduled"] == "NameTaken"
    assert not shop.exists(f"{SLICES}/shop-x")


def test_a_branch_that_is_made_again_does_not_wait_for_the_garbage_collector(shop: Rig) -> None:
    shop.branch_up("x")
    shop.api.remove_pod(f"{BRANCHES}/shop-x")
    shop.put(branch("x").changed(metadata={"uid": "another"}))
    assert conditions_of(shop.reconcile_branch("x"))["Scheduled"] == "Bound"
    for path in (f"{SERVICES}/shop-x", f"{SLICES}/shop-x", f"{SECRETS}/shop-x-conn"):
        assert [owner["uid"] for owner in shop.existing(path)["metadata"]["ownerReferences"]] == ["another"]


# Reported.


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rig: rig.agent_of(ready=False), "AgentNotReporting"),
        (lambda rig: rig.api.merge(f"{NODES}/n1/status", {"status": {"conditions": []}}), "NodeNotReady"),
        (
            lambda rig: (rig.api.remove_pod(f"{NODES}/n1"), rig.api.remove_pod(f"{AGENTS}/agent-n1")),
            "NodeGone",
        ),
    ],
    ids=["agent", "node", "gone"],
)
def test_a_branch_reports_that_its_node_does_not(shop: Rig, change: Any, reason: str) -> None:
    change(shop)
    assert conditions_of(shop.reconcile_branch())["Scheduled"] == reason
    shop.api.put(AGENTS, agent_pod("n2"))


def test_each_change_of_the_reason_is_one_event(shop: Rig) -> None:
    shop.put(branch("x"))
    for _ in range(2):
        shop.reconcile_branch("x")
    failing = Finding(Reason.CRASH_LOOPING, "Postgres of branch x ends with exit code 1").as_dict()
    shop.agent_reports(branch("x").stored().node(postgres=failing))
    for _ in range(2):
        shop.reconcile_branch("x")
    shop.agent_reports(branch("x").accepting())
    for _ in range(2):
        shop.reconcile_branch("x")
    # A new branch waits for its agent: that is none.
    assert shop.events == [("Warning", "CrashLooping"), ("Normal", "Available")]


def test_a_branch_is_stopped_when_its_agent_has_stopped_it(shop: Rig) -> None:
    shop.branch_up("x")
    shop.change_branch("x", state="Stopped")
    body = shop.reconcile_branch("x")
    assert conditions_of(body)["Ready"] == "Pending" and "shutting down" in message_of(body, "Ready")
    shop.agent_reports(branch("x").node(postgres=STOPPED))
    body = shop.reconcile_branch("x")
    assert conditions_of(body)["Ready"] == "Stopped" and "Reconciling" not in conditions_of(body)
    assert body["status"]["observedGeneration"] == body["metadata"]["generation"]
    shop.change_branch("x", state="Running")
    assert "being started" in message_of(shop.reconcile_branch("x"), "Ready")


def test_a_branch_without_its_project_reports_that(shop: Rig) -> None:
    shop.api.remove_pod(f"{PROJECTS}/shop")
    body = shop.reconcile_branch()
    assert conditions_of(body)["Ready"] == "Pending" and body["status"]["active"] is False


# Deleted.


def test_the_generation_of_a_branchs_own_route_rises_with_each_change(shop: Rig) -> None:
    shop.put(branch("x"))
    shop.run()
    assert shop.branch("x")["status"]["route"] == {"generation": 1, "state": "Starting"}
    shop.agent_reports(branch("x").accepting("10.0.0.9", 20009))
    ready = {"generation": 2, "state": "Ready", "address": "10.0.0.9", "port": 20009}
    assert shop.reconcile_branch("x")["status"]["route"] == ready
    # What proxies need not know changes nothing.
    shop.agent_reports(branch("x").accepting("10.0.0.9", 20009).node(uniqueBytes=1))
    assert shop.reconcile_branch("x")["status"]["route"] == ready
    shop.change_branch("x", state="Stopped")
    assert shop.reconcile_branch("x")["status"]["route"] == {"generation": 3, "state": "Stopped"}
    shop.change_project(state="Stopped")
    assert shop.reconcile_branch()["status"]["route"]["state"] == "Stopped"


def test_a_branch_that_is_made_stopped_resumed_and_deleted_writes_no_project(shop: Rig) -> None:
    """Its project grows with its branches: 200 bytes of each in every write were 50 KB with 250 of them."""
    shop.branch_up("x")
    # The number of branches.
    shop.run()
    for change in (
        lambda: shop.change_branch("x", state="Stopped"),
        lambda: shop.agent_reports(branch("x").node(postgres=Finding(Reason.STOPPED, "").as_dict())),
        lambda: shop.change_branch("x", state="Running"),
        lambda: shop.agent_reports(branch("x").accepting("10.0.0.10")),
        lambda: shop.api.delete(f"{BRANCHES}/shop-x"),
    ):
        change()
        assert "merge dbprojects/shop/status" not in shop.writes_of(shop.run)


def test_a_branch_goes_when_every_proxy_obeys_a_route_without_it(shop: Rig) -> None:
    shop.branch_up("x")
    shop.proxy("p2")
    shop.proxy_obeys("p2")
    generation = shop.branch("x")["status"]["route"]["generation"]
    shop.api.delete(f"{BRANCHES}/shop-x")
    assert shop.writes_of(lambda: shop.remove_branch("x")) == ["merge dbbranches/shop-x/status"]
    body = shop.branch("x")
    assert conditions_of(body)["Ready"] == "Deleting" and body["status"]["phase"] == "Deleting"
    assert body["status"]["route"] == {"generation": generation + 1, "state": "Deleting"}
    assert shop.writes_of(shop.reconcile_project) == []
    assert not shop.remove_branch("x") and addresses(shop, "x") == ["10.0.0.9"]
    shop.proxy_acknowledges("x", "p1")
    assert not shop.remove_branch("x")
    shop.proxy_acknowledges("x", "p2")
    assert shop.remove_branch("x")
    assert not shop.exists(f"{SLICES}/shop-x")
    # Now the agent destroys it.
    body = shop.branch("x")
    assert body["metadata"]["finalizers"] == [names.AGENT_FINALIZER]
    assert body["status"]["release"] == body["metadata"]["deletionTimestamp"]


def test_without_a_proxy_the_deletion_of_a_branch_waits_for_nothing(shop: Rig) -> None:
    shop.branch_up("x")
    shop.api.remove_pod(f"{PODS}/p1")
    shop.reconcile_project()
    shop.api.delete(f"{BRANCHES}/shop-x")
    assert shop.remove_branch("x")


def test_a_proxy_that_has_ended_is_not_waited_for(shop: Rig) -> None:
    shop.branch_up("x")
    shop.api.delete(f"{BRANCHES}/shop-x")
    assert not shop.remove_branch("x")
    terminated = [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {}}}]
    shop.api.merge(f"{PODS}/p1/status", {"status": {"containerStatuses": terminated}})
    assert shop.remove_branch("x")


def test_a_branch_waits_for_proxies_of_the_last_release_too(shop: Rig) -> None:
    """Those know only the project's table, and acknowledge its generation."""
    shop.branch_up("x")
    shop.proxy("old")
    shop.proxy_obeys("old", is_old=True)
    shop.run()
    shop.proxies_obey()
    shop.api.delete(f"{BRANCHES}/shop-x")
    shop.remove_branch("x")
    shop.proxy_acknowledges("x", "p1")
    assert not shop.remove_branch("x")
    generation = shop.project()["status"]["route"]["generation"]
    status = shop.reconcile_project()["status"]
    assert status["route"]["generation"] == generation + 1 and status["route"]["branch"] == "main"
    assert {"branch": "x", "state": "Deleting"} in status["routes"]
    assert not shop.remove_branch("x") and addresses(shop, "x") == ["10.0.0.9"]
    shop.proxies_obey()
    assert shop.remove_branch("x")


def test_a_branch_waits_until_the_copies_that_are_bound_to_it_are_taken(shop: Rig) -> None:
    shop.branch_up("x")
    shop.put(branch("y", "x"))
    shop.reconcile_branch("y")
    shop.api.delete(f"{BRANCHES}/shop-x")
    shop.withdraw("x")
    assert not shop.remove_branch("x")
    shop.agent_reports(branch("y").stored())
    assert shop.remove_branch("x")


def test_a_deletion_that_waits_long_for_a_copy_says_so(shop: Rig) -> None:
    shop.put(branch("x").bound().accepting().deleting(seconds=60))
    shop.put(branch("y", "x").bound().of("shop-x-uid"))
    assert not shop.remove_branch("x")
    assert conditions_of(shop.branch("x"))["DeletionBlocked"] == "WaitingForAgent"
    shop.api.delete(f"{BRANCHES}/shop-y")
    assert shop.remove_branch("x")


def test_proxies_that_do_not_answer_are_not_waited_for_for_ever(shop: Rig) -> None:
    shop.put(branch("x").bound().accepting().deleting(seconds=29))
    shop.reconcile_project()
    assert not shop.remove_branch("x")
    shop.api.remove_pod(f"{BRANCHES}/shop-x")
    shop.put(branch("x").bound().accepting().deleting(seconds=31))
    assert shop.remove_branch("x")


def test_a_branch_of_a_project_that_is_being_deleted_goes_at_once(shop: Rig) -> None:
    shop.branch_up("x")
    shop.api.delete(f"{PROJECTS}/shop")
    shop.api.delete(f"{BRANCHES}/shop-x")
    assert shop.remove_branch("x")


def test_a_branch_that_was_never_bound_goes_at_once(rig: Rig) -> None:
    """It needs no finalizer; one that a reconcile has left, which was cut off before the binding, is taken off."""
    rig.put(branch("x"))
    rig.reconcile_branch("x")
    assert "finalizers" not in rig.branch("x")["metadata"]
    rig.api.remove_pod(f"{BRANCHES}/shop-x")
    rig.put(branch("x").finalizers(names.AGENT_FINALIZER).deleting())
    assert rig.writes_of(lambda: rig.remove_branch("x")) == ["merge dbbranches/shop-x"]
    assert not rig.exists(f"{BRANCHES}/shop-x")


def test_a_branch_on_a_node_that_is_gone_does_not_wait_for_copies(shop: Rig) -> None:
    shop.put(
        branch("x").bound("lost").accepting().deleting(), branch("y", "x").bound("lost").of("shop-x-uid")
    )
    shop.withdraw("x")
    assert shop.remove_branch("x")


def test_a_branch_becomes_active_when_every_proxy_obeys(shop: Rig) -> None:
    shop.branch_up("x")
    shop.change_project(activeBranch="x")
    shop.reconcile_project()
    assert shop.writes_of(lambda: shop.reconcile_branch("x")) == []
    shop.proxy_obeys()
    assert shop.reconcile_branch("x")["status"]["active"] is True
    assert shop.reconcile_branch()["status"]["active"] is False


def test_a_deletion_reports_once(shop: Rig) -> None:
    shop.branch_up("x")
    shop.api.delete(f"{BRANCHES}/shop-x")
    assert shop.writes_of(lambda: shop.remove_branch("x")) == ["merge dbbranches/shop-x/status"]
    assert shop.writes_of(lambda: shop.remove_branch("x")) == []


def test_the_endpointslice_of_another_owner_stays(shop: Rig) -> None:
    shop.api.put(SLICES, {"metadata": {"name": "shop-x", "ownerReferences": [{"uid": "theirs"}]}})
    shop.put(branch("x").finalizers(names.AGENT_FINALIZER).deleting())
    assert shop.remove_branch("x")
    assert shop.exists(f"{SLICES}/shop-x")


def test_a_copy_that_cannot_be_made_does_not_hold_its_source(shop: Rig) -> None:
    """A source is deleted to free the space that the copy waits for."""
    shop.branch_up("x")
    for name, reason in (("full", Reason.POOL_FULL), ("unsafe", Reason.SOURCE_UNSAFE)):
        shop.put(branch(name, "x"))
        shop.reconcile_branch(name)
        shop.agent_reports(branch(name).node(storage=Finding(reason, "no").as_dict()))
    shop.api.delete(f"{BRANCHES}/shop-x")
    shop.withdraw("x")
    assert shop.remove_branch("x")


def test_a_stopped_project_makes_no_copy_that_would_hold_a_source(shop: Rig) -> None:
    shop.branch_up("x")
    shop.put(branch("y", "x"))
    shop.reconcile_branch("y")
    shop.change_project(state="Stopped")
    shop.api.delete(f"{BRANCHES}/shop-x")
    shop.withdraw("x")
    assert shop.remove_branch("x")


def test_the_copy_that_holds_a_deletion_is_named(shop: Rig) -> None:
    shop.put(branch("x").bound().accepting().deleting(seconds=60))
    shop.put(branch("y", "x").bound().of("shop-x-uid"))
    assert not shop.remove_branch("x")
    assert "waits for branch y" in message_of(shop.branch("x"), "DeletionBlocked")


def test_a_copy_that_was_bound_a_moment_ago_holds_its_source(shop: Rig) -> None:
    """The cache of the source's removal does not have it yet."""
    shop.branch_up("x")
    shop.api.delete(f"{BRANCHES}/shop-x")
    shop.withdraw("x")
    cache = shop.cache()
    shop.put(branch("y", "x").bound().of("shop-x-uid"))
    shop.branches.reconcile("team", "shop-x", cache)
    assert shop.branch("x")["status"]["release"] == "Pending"


def test_no_copy_is_bound_to_a_source_that_was_let_go_of(shop: Rig) -> None:
    """The cache of the copy's reconcile does not know of the deletion yet."""
    shop.branch_up("x")
    shop.put(branch("y", "x"))
    cache = shop.cache()
    shop.api.delete(f"{BRANCHES}/shop-x")
    shop.withdraw("x")
    assert shop.remove_branch("x")
    result = shop.branches.reconcile("team", "shop-y", cache)
    assert "sourceUID" not in (shop.branch("y").get("status") or {}) and result.requeue_after
    assert conditions_of(shop.reconcile_branch("y"))["Scheduled"] == "SourceNotFound"


def test_a_copy_without_a_snapshot_loses_nothing_with_its_source(shop: Rig) -> None:
    lost = Finding(Reason.DATA_LOST, "source has no subvolume").as_dict()
    shop.put(branch("y", "x").bound().of("shop-x-uid").node(storage=lost))
    body = shop.reconcile_branch("y")
    assert conditions_of(body)["Ready"] == conditions_of(body)["Stalled"] == "SourceDeleted"
    assert "nothing is lost" in message_of(body, "Ready")
