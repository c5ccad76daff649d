"""The controller's reconciles of a project, over a fake API server."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from tests.factories import GIB, NAMESPACE, NODE, agent_pod, branch, node, project
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
from dbranch.api.errors import ApiError, ClusterUnreachable, InvalidInput
from dbranch.api.secrets import secret_texts
from dbranch.controller.timing import UNREADY_RESYNC_SECONDS
from dbranch.kube.client import path_of
from dbranch.runtime.result import DONE, Result

SHOP = f"{PROJECTS}/shop"
SERVICE = path_of("v1", "services", "team", "shop")
DEPLOYMENT = path_of("apps/v1", "deployments", "team", "shop-proxy")
POLICY = path_of("networking.k8s.io/v1", "networkpolicies", "dbranch-nodes", "allow-team")
NODE_ACCESS = tuple(
    path_of("rbac.authorization.k8s.io/v1", plural, "dbranch-nodes", "node-shop-uid")
    for plural in ("roles", "rolebindings")
)
VERIFIER = path_of("v1", "secrets", "dbranch-nodes", "verifier-shop-uid")
CONN = f"{SECRETS}/shop-conn"
PENCIL, EMPTY = base64.b64encode(b"pencil").decode(), ""
TLS = {
    "tls.crt": base64.b64encode(b"-----BEGIN CERTIFICATE-----\nMIIB").decode(),
    "tls.key": base64.b64encode(b"-----BEGIN PRIVATE KEY-----\nMIIB").decode(),
}


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def shop(rig: Rig) -> Rig:
    """A rig whose project `shop` is Ready."""
    return rig.ready()


# Created.


def test_a_new_project_costs_one_write_for_each_object_and_one_for_its_status(rig: Rig) -> None:
    rig.put(project())
    assert rig.writes_of(rig.reconcile_project) == [
        "create dbbranches/shop-main",
        f"create serviceaccounts/node-{NODE}",
        "create roles/node-shop-uid",
        "create rolebindings/node-shop-uid",
        "create serviceaccounts/shop-proxy",
        "create roles/shop-proxy",
        "create rolebindings/shop-proxy",
        "create services/shop",
        "create deployments/shop-proxy",
        "create networkpolicies/allow-team",
        "create secrets/shop-conn",
        "create secrets/shop-superuser-conn",
        "create secrets/verifier-shop-uid",
        "merge dbprojects/shop/status",
    ]
    status = rig.project()["status"]
    assert status["nodeName"] == NODE and status["host"] == "shop.team.svc" and status["passwordVersion"]


def test_a_project_that_has_nothing_to_do_writes_nothing(shop: Rig) -> None:
    assert shop.writes_of(shop.reconcile_project) == []
    assert shop.writes_of(lambda: shop.reconcile_project(bypass_cache=True)) == []
    shop.start()
    assert shop.writes_of(shop.reconcile_project) == []


def test_what_is_made_for_a_project_goes_with_it_or_is_labelled_with_it(shop: Rig) -> None:
    for path in (SERVICE, DEPLOYMENT, CONN):
        meta = shop.existing(path)["metadata"]
        assert [owner["uid"] for owner in meta["ownerReferences"]] == ["shop-uid"]
    assert shop.existing(VERIFIER)["metadata"]["labels"][names.LABEL_PROJECT_UID] == "shop-uid"
    assert shop.existing(POLICY)["metadata"]["labels"][names.LABEL_NAMESPACE] == "team"


def test_agents_get_no_password_but_its_verifier(shop: Rig) -> None:
    password = secret_texts(shop.existing(CONN))["password"]
    assert len(password) >= 24
    verifiers = secret_texts(shop.existing(VERIFIER))
    assert sorted(verifiers) == ["branches", "superuser", "verifier"]
    version, *of_branches = verifiers.pop("branches").split()
    assert version == shop.project()["status"]["passwordVersion"]
    texts = [*verifiers.values(), *of_branches]
    assert all(text.startswith("SCRAM-SHA-256$") and password not in text for text in texts)


def test_the_account_of_a_projects_node_alone_may_read_its_secrets_before_the_agent_knows_of_it(
    rig: Rig,
) -> None:
    rig.put(project().spec(postgres={"imagePullSecrets": [{"name": "registry"}]}))
    writes = rig.writes_of(rig.reconcile_project)
    role, binding = map(rig.existing, NODE_ACCESS)
    pull_secret = names.pull_secret_name("shop-uid", "registry")
    assert role["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["secrets"],
            "resourceNames": ["verifier-shop-uid", pull_secret],
            "verbs": ["get"],
        }
    ]
    assert [subject["name"] for subject in binding["subjects"]] == [f"node-{NODE}"]
    assert writes.index("create rolebindings/node-shop-uid") < writes.index("merge dbprojects/shop/status")
    # One without a node gives its Secrets to nobody.
    unbound = Rig()
    unbound.put(project().spec(storage={"nodeSelector": {"no": "node"}}))
    assert not [write for write in unbound.writes_of(unbound.reconcile_project) if "/node-" in write]


def test_a_root_branch_that_the_user_applied_is_used_as_it_is(rig: Rig) -> None:
    rig.put(project(), branch().spec(protection="Enabled"))
    assert "create dbbranches/shop-main" not in rig.writes_of(rig.reconcile_project)
    assert rig.branch()["spec"]["protection"] == "Enabled"


def test_a_root_branch_that_appears_meanwhile_is_no_error(rig: Rig) -> None:
    rig.put(project())
    rig.api.before("create", "dbbranches", lambda: rig.put(branch()))
    assert rig.reconcile_project()["status"]["nodeName"] == NODE


# Bound.


def test_a_project_waits_for_a_node_with_a_ready_agent(rig: Rig) -> None:
    rig.agent_of(ready=False)
    rig.put(project())
    assert conditions_of(rig.reconcile_project())["Scheduled"] == "NoEligibleNode"
    assert rig.events == [("Warning", "NoEligibleNode")]
    rig.agent_of(ready=True)
    assert rig.reconcile_project()["status"]["nodeName"] == NODE


def test_a_project_is_bound_to_the_node_with_the_most_space_that_is_not_committed(rig: Rig) -> None:
    rig.api.put(NODES, node("n2"))
    rig.api.put(AGENTS, agent_pod("n2", free_bytes=105 * GIB))
    rig.put(project("other").bound("n2"), project())
    assert rig.reconcile_project()["status"]["nodeName"] == NODE


def test_a_binding_never_changes(shop: Rig) -> None:
    shop.api.put(NODES, node("n2"))
    shop.api.put(AGENTS, agent_pod("n2", free_bytes=10_000 * GIB))
    shop.agent_of(ready=False)
    assert shop.reconcile_project()["status"]["nodeName"] == NODE


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
def test_a_project_reports_that_its_node_does_not(shop: Rig, change: Any, reason: str) -> None:
    change(shop)
    assert conditions_of(shop.reconcile_project())["Scheduled"] == reason
    assert shop.events == [("Warning", reason)]


# Reached.


def test_the_route_begins_when_the_active_branch_accepts(rig: Rig) -> None:
    rig.put(project())
    rig.run()
    assert rig.project()["status"].get("route") is None
    rig.agent_reports(branch().accepting("10.0.0.1", 20001))
    # The branch says first where it is reached, and the route names that.
    assert "route" not in rig.reconcile_project()["status"]
    generation = rig.reconcile_branch()["status"]["route"]["generation"]
    status = rig.reconcile_project()["status"]
    target = {"uid": rig.branch()["metadata"]["uid"], "generation": generation}
    assert status["route"] == {"generation": 1, "branch": "main", "target": target}
    assert "routes" not in status


def test_a_switch_is_routed_when_every_proxy_has_acknowledged_it(shop: Rig) -> None:
    shop.branch_up("x")
    shop.proxy("p2", ready=False)
    shop.proxy_obeys("p2")
    shop.change_project(activeBranch="x")
    body = shop.reconcile_project()
    assert body["status"]["route"] == {
        "generation": 2,
        "branch": "x",
        "target": {"uid": "shop-x-uid", "generation": shop.branch("x")["status"]["route"]["generation"]},
    }
    assert conditions_of(body)["Routed"] == "ProxyNotReady"
    shop.proxy_obeys("p1")
    body = shop.reconcile_project()
    assert "proxy p2 has not taken the route" in message_of(body, "Routed")
    shop.proxy_obeys("p2")
    assert conditions_of(shop.reconcile_project())["Routed"] == "Routed"


def test_a_switch_costs_one_write_for_the_route_and_one_for_the_acknowledgement(shop: Rig) -> None:
    shop.branch_up("x")
    shop.events.clear()
    shop.change_project(activeBranch="x")
    assert shop.writes_of(shop.reconcile_project) == ["merge dbprojects/shop/status"]
    assert shop.events == [("Normal", "Switched")]
    shop.proxy_obeys()
    shop.api.take_requests()
    shop.run()
    assert shop.events == [("Normal", "Switched"), ("Normal", "Available")]
    writes = shop.api.take_writes()
    assert sorted(writes) == [
        "merge dbbranches/shop-main/status",
        "merge dbbranches/shop-x/status",
        "merge dbprojects/shop/status",
    ]
    assert [shop.branch(name)["status"]["active"] for name in ("main", "x")] == [False, True]


def test_a_switch_is_written_without_a_read_unless_the_cache_is_late(shop: Rig) -> None:
    shop.branch_up("x")
    shop.change_project(activeBranch="x")
    late = shop.cache()
    shop.api.take_requests()
    shop.projects.reconcile(NAMESPACE, "shop", late)
    requests = [str(request) for request in shop.api.take_requests()]
    assert requests == ["merge dbprojects/shop/status"]
    # The event of that write is still to come.
    shop.projects.reconcile(NAMESPACE, "shop", late)
    assert shop.api.take_writes() == [] and shop.project()["status"]["route"]["generation"] == 2
    shop.proxy_obeys()
    shop.run()
    shop.change_project(activeBranch="main")
    late = shop.cache()
    shop.change_project(proxy={"port": 6000})
    shop.api.take_requests()
    shop.projects.reconcile(NAMESPACE, "shop", late)
    writes = [write for write in shop.api.take_writes() if write == "merge dbprojects/shop/status"]
    assert len(writes) == 2 and shop.project()["status"]["route"]["generation"] == 3


def test_a_switch_is_written_before_unrelated_objects_are(shop: Rig) -> None:
    shop.branch_up("x")
    shop.api.delete(DEPLOYMENT)
    shop.change_project(activeBranch="x", proxy={"port": 6000})
    shop.api.refuse("create", "/deployments/")
    shop.start()
    shop.api.take_requests()
    shop.reconcile_project()
    assert shop.api.take_writes() == ["merge dbprojects/shop/status"] and shop.result.requeue_after
    with pytest.raises(ClusterUnreachable):
        shop.reconcile_project()
    route = shop.project()["status"]["route"]
    assert (route["generation"], route["branch"]) == (2, "x")


def test_the_table_of_routes_is_there_while_a_proxy_of_the_last_release_is(shop: Rig) -> None:
    shop.branch_up("x")
    shop.proxy("old")
    shop.proxy_obeys("old", is_old=True)
    status = shop.reconcile_project()["status"]
    assert status["routes"] == [
        {"branch": "main", "state": "Ready", "address": "10.0.0.1", "port": 20001},
        {"branch": "x", "state": "Ready", "address": "10.0.0.9", "port": 20001},
    ]
    # A switch and the table are one write.
    shop.change_project(activeBranch="x")
    assert shop.writes_of(shop.reconcile_project) == ["merge dbprojects/shop/status"]
    assert shop.project()["status"]["routes"] == status["routes"]
    # The rollout has replaced it.
    shop.api.remove_pod(f"{PODS}/old")
    shop.run()
    assert "routes" not in shop.project()["status"]


def test_the_table_of_the_last_release_stays_until_every_branch_has_a_route_of_its_own(shop: Rig) -> None:
    """New proxies are there already; without it they would take the branch for deleted, and end its sessions."""
    shop.put(branch("x").bound().accepting("10.0.0.9"))
    routes = [{"branch": "x", "state": "Ready", "address": "10.0.0.9", "port": 20001}]
    shop.api.merge(f"{SHOP}/status", {"status": {"routes": routes}})
    table = shop.reconcile_project()["status"]["routes"]
    assert [target["branch"] for target in table] == ["main", "x"]
    shop.reconcile_branch("x")
    assert "routes" not in shop.reconcile_project()["status"]


def test_an_active_branch_that_is_made_again_is_a_switch(shop: Rig) -> None:
    """A proxy that still knows the one before sends nobody to where that was."""
    assert shop.project()["status"]["route"]["target"]["uid"] == shop.branch()["metadata"]["uid"]
    shop.api.remove_pod(f"{BRANCHES}/shop-main")
    remade = branch().changed(metadata={"uid": "another"})
    shop.put(remade)
    shop.agent_reports(remade.bound().accepting("10.0.0.3"))
    shop.run()
    route = shop.project()["status"]["route"]
    assert route["generation"] == 2 and route["target"]["uid"] == "another"


def test_a_root_branch_that_waits_for_its_project_exists(rig: Rig) -> None:
    rig.agent_of(ready=False)
    rig.put(project(), branch())
    assert conditions_of(rig.reconcile_project())["Routed"] == "BranchNotReady"


def test_a_switch_to_a_branch_that_is_not_ready_keeps_the_old_route(shop: Rig) -> None:
    shop.put(branch("x").bound())
    shop.change_project(activeBranch="x")
    body = shop.reconcile_project()
    assert (body["status"]["route"]["generation"], body["status"]["route"]["branch"]) == (1, "main")
    assert conditions_of(body)["Routed"] == "BranchNotReady"
    shop.change_project(activeBranch="nowhere")
    assert conditions_of(shop.reconcile_project())["Routed"] == "BranchNotFound"


def test_a_proxy_that_terminates_counts_and_one_that_has_ended_does_not(shop: Rig) -> None:
    shop.proxy("old", ready=False, deleted=True)
    shop.proxy_obeys("old", generation=0)
    assert "proxy old has not taken" in message_of(shop.reconcile_project(), "Routed")
    shop.proxy("old", ready=False, phase="Failed")
    assert conditions_of(shop.reconcile_project())["Routed"] == "Routed"


def test_without_a_ready_proxy_the_connection_string_does_not_answer(shop: Rig) -> None:
    shop.proxy(ready=False)
    body = shop.reconcile_project()
    assert "no proxy of project shop is ready" in message_of(body, "Routed")
    assert conditions_of(body)["Ready"] == "ProxyNotReady"


def test_the_entry_of_a_proxy_that_is_gone_is_removed(shop: Rig) -> None:
    shop.proxy_obeys("gone", generation=1)
    shop.reconcile_project()
    assert [entry["pod"] for entry in shop.project()["status"]["proxies"]] == ["p1"]


def test_sessions_that_drain_are_reported(shop: Rig) -> None:
    shop.proxy_obeys(draining=2)
    assert conditions_of(shop.reconcile_project())["Routed"] == "Draining"


# Healed.


def test_what_others_changed_or_deleted_is_applied_by_the_next_resync(shop: Rig) -> None:
    shop.api.merge(
        SERVICE, {"spec": {"selector": {names.LABEL_COMPONENT: "theirs"}, "clusterIP": "10.1.1.1"}}
    )
    shop.api.delete(DEPLOYMENT)
    assert shop.writes_of(shop.reconcile_project) == []
    assert shop.writes_of(lambda: shop.reconcile_project(bypass_cache=True)) == [
        "apply services/shop",
        "create deployments/shop-proxy",
    ]
    spec = shop.existing(SERVICE)["spec"]
    assert spec["selector"][names.LABEL_COMPONENT] == "proxy" and spec["clusterIP"] == "10.1.1.1"
    assert shop.exists(DEPLOYMENT)


def test_a_default_of_the_api_server_is_no_difference(shop: Rig) -> None:
    ports = shop.existing(SERVICE)["spec"]["ports"]
    shop.api.merge(SERVICE, {"spec": {"ports": [{**ports[0], "nodePort": 30000}], "sessionAffinity": "None"}})
    assert shop.writes_of(lambda: shop.reconcile_project(bypass_cache=True)) == []


def test_a_generated_password_stays_when_the_controller_starts_or_loses_an_answer(rig: Rig) -> None:
    rig.put(project())
    rig.api.lose_answer("create", "secrets/shop-conn")
    with pytest.raises(ClusterUnreachable):
        rig.reconcile_project()
    password = rig.existing(CONN)["data"]["password"]
    rig.start()
    version = rig.reconcile_project()["status"]["passwordVersion"]
    rig.start()
    assert rig.reconcile_project()["status"]["passwordVersion"] == version
    assert rig.existing(CONN)["data"]["password"] == password


@pytest.mark.parametrize("lost", ["services/shop$", "secrets/verifier", "dbprojects/shop/status"])
def test_a_reconcile_that_is_cut_off_is_finished_by_the_next(rig: Rig, lost: str) -> None:
    rig.put(project())
    for verb in ("create", "merge"):
        rig.api.lose_answer(verb, lost)
    with pytest.raises(ClusterUnreachable):
        rig.reconcile_project()
    rig.api.answer_again()
    assert rig.reconcile_project()["status"]["nodeName"] == NODE
    rig.run()
    assert rig.writes_of(rig.run) == []


def test_a_status_that_a_proxy_has_written_meanwhile_is_decided_anew(shop: Rig) -> None:
    shop.branch_up("x")
    shop.change_project(activeBranch="x")
    shop.api.before("merge", "dbprojects/shop/status", lambda: shop.proxy_obeys(sessions=3))
    shop.reconcile_project()
    status = shop.project()["status"]
    assert status["route"]["branch"] == "x" and status["proxies"][0]["sessions"] == 3


def test_a_project_that_others_write_all_the_time_is_retried_as_a_whole(shop: Rig) -> None:
    shop.change_project(activeBranch="nowhere")
    counter = iter(range(1, 100))
    shop.api.before(
        "merge", "dbprojects/shop/status", lambda: shop.proxy_obeys(sessions=next(counter)), times=100
    )
    with pytest.raises(ApiError):
        shop.reconcile_project()


# Prevented.


def test_a_service_of_another_owner_is_left_alone_and_reported(rig: Rig) -> None:
    theirs = {"metadata": {"name": "shop", "ownerReferences": [{"uid": "theirs"}]}, "spec": {"mine": 1}}
    rig.api.put(path_of("v1", "services", "team"), theirs)
    rig.put(project())
    body = rig.reconcile_project()
    assert conditions_of(body)["Routed"] == "NameTaken"
    assert "Service shop in namespace team belongs to somebody else" in message_of(body, "Routed")
    assert rig.existing(SERVICE)["spec"]["mine"] == 1
    rig.api.delete(SERVICE)
    rig.run()
    assert conditions_of(rig.project())["Routed"] == "BranchNotReady" and rig.exists(SERVICE)


def test_no_database_is_made_before_the_users_secret_has_the_password(rig: Rig) -> None:
    rig.put(project().spec(postgres={"passwordSecret": {"name": "mine", "key": "pw"}}))
    body = rig.reconcile_project()
    assert conditions_of(body)["Routed"] == "SecretNotFound" and "passwordVersion" not in body["status"]
    assert not rig.exists(VERIFIER)
    rig.secret("mine", password=PENCIL)
    assert 'the key "pw"' in message_of(rig.reconcile_project(), "Routed")
    rig.api.merge(f"{SECRETS}/mine", {"data": {"pw": PENCIL}})
    rig.run()
    body = rig.project()
    assert body["status"]["passwordVersion"] and conditions_of(body)["Routed"] == "BranchNotReady"
    assert secret_texts(rig.existing(CONN))["password"] == "pencil"


def test_a_changed_password_is_a_new_version(rig: Rig) -> None:
    rig.put(project().spec(postgres={"passwordSecret": {"name": "mine"}}))
    rig.secret("mine", password=PENCIL)
    first = rig.reconcile_project()["status"]["passwordVersion"]
    rig.api.merge(f"{SECRETS}/mine", {"data": {"password": base64.b64encode(b"pen").decode()}})
    assert rig.reconcile_project()["status"]["passwordVersion"] == first
    second = rig.reconcile_project(bypass_cache=True)["status"]["passwordVersion"]
    assert second != first and secret_texts(rig.existing(CONN))["password"] == "pen"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "TLSSecretNotFound"),
        ({"tls.crt": PENCIL}, "TLSSecretInvalid"),
        ({"tls.crt": PENCIL, "tls.key": EMPTY}, "TLSSecretInvalid"),
    ],
)
def test_a_tls_secret_that_is_missing_or_incomplete_is_reported(
    shop: Rig, data: dict[str, str] | None, reason: str
) -> None:
    if data is not None:
        shop.secret("tls", **data)
    shop.change_project(proxy={"tls": {"secretName": "tls"}})
    assert conditions_of(shop.reconcile_project())["Routed"] == reason
    shop.api.delete(f"{SECRETS}/tls")
    shop.secret("tls", **TLS)
    assert conditions_of(shop.reconcile_project())["Routed"] == "Routed"


# Stopped.


def test_a_project_is_stopped_when_its_agent_has_stopped_everything(shop: Rig) -> None:
    shop.change_project(state="Stopped")
    body = shop.reconcile_project()
    assert conditions_of(body)["StorageReady"] == "Pending" and body["status"]["phase"] == "Pending"
    stopped = Finding(Reason.STOPPED, "stopped").as_dict()
    shop.agent_reports(project().node(storage=stopped))
    shop.agent_reports(branch().node(postgres=stopped))
    body = shop.reconcile_project()
    assert conditions_of(body)["Ready"] == "Stopped" and body["status"]["phase"] == "Stopped"
    assert "Reconciling" not in conditions_of(body)
    shop.change_project(state="Running")
    assert conditions_of(shop.reconcile_project())["StorageReady"] == "Pending"


# Deleted.


def test_a_projects_deletion_deletes_its_branches_and_waits_for_them(shop: Rig) -> None:
    shop.put(branch("eu-main", of="other"), project("other"))
    shop.api.delete(SHOP)
    assert not shop.remove_project()
    assert shop.branch()["metadata"]["deletionTimestamp"] and shop.exists(VERIFIER)
    assert all(map(shop.exists, NODE_ACCESS))
    assert "deletionTimestamp" not in shop.branch("eu-main", "other")["metadata"]
    assert shop.writes_of(shop.remove_project) == []
    shop.api.merge(f"{BRANCHES}/shop-main", {"metadata": {"finalizers": []}})
    assert shop.remove_project()
    assert not shop.exists(VERIFIER) and not any(map(shop.exists, NODE_ACCESS))
    # Only the agent's finalizer is left.
    assert shop.project()["metadata"]["finalizers"] == [names.AGENT_FINALIZER]


def test_the_network_policy_goes_with_the_last_project_of_its_namespace(shop: Rig) -> None:
    shop.put(project("other"), project("going").deleting())
    for name, exists in (("shop", True), ("other", False)):
        shop.api.delete(f"{PROJECTS}/{name}")
        for body in shop.api.find(BRANCHES):
            shop.api.remove_pod(f"{BRANCHES}/{body['metadata']['name']}")
        assert shop.remove_project(name)
        assert shop.exists(POLICY) == exists


def test_a_project_that_is_gone_is_not_reconciled(shop: Rig) -> None:
    cache = shop.cache()
    shop.api.remove_pod(SHOP)
    assert shop.writes_of(lambda: shop.projects.reconcile("team", "shop", cache)) == []


# Failed.


def test_a_value_that_cannot_be_used_is_reported_and_tried_again(shop: Rig) -> None:
    error = InvalidInput("a value cannot be used; correct it")
    shop.projects.report_failure("team", "shop", shop.cache(), error)
    body = shop.project()
    assert conditions_of(body)["Ready"] == "ReconcileFailed" and body["status"]["phase"] == "Pending"
    # The connection string works.
    assert conditions_of(body)["Routed"] == "Routed"
    assert "a value cannot be used; correct it" in message_of(body, "Ready")
    assert shop.events == [("Warning", "ReconcileFailed")]
    failed_again = shop.writes_of(lambda: shop.projects.report_failure("team", "shop", shop.cache(), error))
    assert failed_again == []
    assert conditions_of(shop.reconcile_project())["Ready"] == "Available"


@pytest.mark.parametrize("error", [ClusterUnreachable("no answer"), OSError(), ApiError(409, "Conflict", "")])
def test_a_project_is_not_to_blame_for_an_api_server_that_does_not_answer(
    shop: Rig, error: Exception
) -> None:
    assert shop.writes_of(lambda: shop.projects.report_failure("team", "shop", shop.cache(), error)) == []


def test_a_fault_of_the_controller_is_reported_without_its_values(shop: Rig) -> None:
    shop.projects.report_failure("team", "shop", shop.cache(), KeyError("secret"))
    message = message_of(shop.project(), "Ready")
    assert "unexpected KeyError" in message and "secret" not in message


# When it is reconciled without an event.


def test_a_project_is_looked_at_again_while_it_is_not_ready_or_its_password_may_change(shop: Rig) -> None:
    shop.reconcile_project()
    assert shop.result == DONE
    shop.proxy(ready=False)
    shop.reconcile_project()
    assert shop.result == Result(UNREADY_RESYNC_SECONDS, unfinished=True)
    shop.proxy()
    shop.secret("mine", password=PENCIL)
    shop.change_project(postgres={"passwordSecret": {"name": "mine"}})
    shop.reconcile_project()
    assert shop.result == Result(UNREADY_RESYNC_SECONDS)
    # A Secret that is missing is looked for as often: its creation is no event.
    shop.change_project(postgres={"passwordSecret": {"name": "missing"}})
    shop.reconcile_project()
    assert shop.result == Result(UNREADY_RESYNC_SECONDS)
