"""Names that are used again: by an object of ours that is made anew, or by two objects that need the same one."""

from __future__ import annotations

import base64

import pytest
from tests.factories import branch, project
from tests.unit.controller.rig import BRANCHES, SECRETS, Rig, conditions_of, message_of

from dbranch.api import names
from dbranch.api.branch import parse_branch
from dbranch.api.errors import ApiError
from dbranch.kube.client import path_of

SERVICES = path_of("v1", "services", "team")
SLICES = path_of("discovery.k8s.io/v1", "endpointslices", "team")
X = f"{BRANCHES}/shop-x"


@pytest.fixture
def shop() -> Rig:
    """A rig whose project `shop` is Ready."""
    return Rig().ready()


def test_what_the_controller_made_for_a_branch_goes_before_it_is_released(shop: Rig) -> None:
    shop.branch_up("x")
    shop.api.delete(X)
    shop.run()
    shop.proxies_obey()
    shop.run()
    assert parse_branch(shop.branch("x")).is_released
    for path in (f"{SERVICES}/shop-x", f"{SLICES}/shop-x", f"{SECRETS}/shop-x-conn"):
        assert not shop.exists(path), path


def test_what_the_controller_made_for_a_project_goes_before_its_finalizer(shop: Rig) -> None:
    shop.api.delete(path_of(names.API_VERSION, names.PROJECTS, "team", "shop"))
    shop.remove_project()
    shop.api.remove_pod(f"{BRANCHES}/shop-main")
    assert shop.remove_project()
    rbac = "rbac.authorization.k8s.io/v1"
    for path in (
        f"{SERVICES}/shop",
        path_of("apps/v1", "deployments", "team", "shop-proxy"),
        path_of("v1", "serviceaccounts", "team", "shop-proxy"),
        path_of(rbac, "roles", "team", "shop-proxy"),
        path_of(rbac, "rolebindings", "team", "shop-proxy"),
        f"{SECRETS}/shop-conn",
    ):
        assert not shop.exists(path), path


def test_a_foreign_object_stays_when_a_branch_of_its_name_goes(shop: Rig) -> None:
    theirs = {"metadata": {"name": "shop-x", "ownerReferences": [{"uid": "theirs"}]}}
    shop.api.put(SERVICES, theirs)
    shop.put(branch("x"))
    shop.reconcile_branch("x")
    shop.api.delete(X)
    assert shop.remove_branch("x") and shop.exists(f"{SERVICES}/shop-x")


def test_a_deletion_that_is_refused_holds_up_nothing(shop: Rig) -> None:
    shop.branch_up("x")
    shop.api.refuse("delete", "/services/", ApiError(403, "Forbidden", "a webhook denied it"))
    shop.api.delete(X)
    shop.run()
    shop.proxies_obey()
    shop.run()
    assert parse_branch(shop.branch("x")).is_released


@pytest.mark.parametrize("is_known", [True, False])
def test_an_object_of_the_branch_before_that_still_ends_is_waited_for(shop: Rig, is_known: bool) -> None:
    shop.branch_up("x")
    held = {"metadata": {"finalizers": ["example.com/load-balancer"]}}
    shop.api.merge(f"{SERVICES}/shop-x", held)
    shop.api.remove_pod(X)
    if not is_known:
        shop.start()
    shop.put(branch("x").changed(metadata={"uid": "another"}))
    body = shop.reconcile_branch("x")
    assert conditions_of(body)["Scheduled"] == "WaitingForDeletion" and "nodeName" not in body["status"]
    assert "Stalled" not in conditions_of(body) and "Reconciling" in conditions_of(body)
    assert "Service shop-x" in message_of(body, "Scheduled")
    shop.api.merge(f"{SERVICES}/shop-x", {"metadata": {"finalizers": []}})
    assert conditions_of(shop.reconcile_branch("x"))["Scheduled"] == "Bound"


def test_an_object_of_ours_that_somebody_deletes_is_made_again_when_it_is_gone(shop: Rig) -> None:
    path = f"{SERVICES}/shop"
    shop.api.merge(path, {"metadata": {"finalizers": ["example.com/load-balancer"]}})
    shop.api.delete(path)
    body = shop.reconcile_project(bypass_cache=True)
    assert conditions_of(body)["Ready"] == "WaitingForDeletion"
    shop.api.merge(path, {"metadata": {"finalizers": []}})
    assert conditions_of(shop.reconcile_project(bypass_cache=True))["Ready"] == "Available"
    assert shop.exists(path)


def test_a_foreign_object_that_comes_in_between_is_left_alone() -> None:
    rig = Rig()
    rig.put(project())
    theirs = {"metadata": {"name": "shop", "labels": {"mine": "1"}}, "spec": {"mine": 1}}
    for verb in ("create", "apply"):
        rig.api.before(
            verb,
            "/services/shop$",
            lambda: rig.api.put(SERVICES, theirs) if not rig.exists(f"{SERVICES}/shop") else None,
        )
    body = rig.reconcile_project()
    assert conditions_of(body)["Routed"] == "NameTaken"
    assert rig.existing(f"{SERVICES}/shop")["spec"]["mine"] == 1
    assert "ownerReferences" not in rig.existing(f"{SERVICES}/shop")["metadata"]


def test_a_remembered_object_that_was_replaced_by_anothers_is_left_alone(shop: Rig) -> None:
    shop.api.delete(f"{SERVICES}/shop")
    shop.api.put(SERVICES, {"metadata": {"name": "shop"}, "spec": {"mine": 1}})
    shop.change_project(proxy={"port": 6432})
    assert conditions_of(shop.reconcile_project())["Routed"] == "NameTaken"
    assert shop.existing(f"{SERVICES}/shop")["spec"]["mine"] == 1


def test_a_root_branch_with_the_name_of_another_projects_branch_is_reported(shop: Rig) -> None:
    shop.put(branch("eu-main"))
    shop.put(project("shop-eu"))
    body = shop.reconcile_project("shop-eu")
    assert conditions_of(body)["Routed"] == "NameTaken" and conditions_of(body)["Stalled"] == "NameTaken"
    message = message_of(body, "Routed")
    assert "DBBranch shop-eu-main" in message and "project shop;" in message
    assert shop.branch("eu-main")["spec"]["project"] == "shop"
    shop.api.remove_pod(f"{BRANCHES}/shop-eu-main")
    shop.reconcile_project("shop-eu")
    assert conditions_of(shop.reconcile_project("shop-eu"))["Routed"] == "BranchNotReady"


def test_who_has_a_name_is_reported(shop: Rig) -> None:
    shop.put(branch("eu"))
    shop.run()
    shop.put(project("shop-eu").changed(metadata={"uid": "another"}))
    message = message_of(shop.reconcile_project("shop-eu"), "Routed")
    assert message.startswith("Service shop-eu in namespace team belongs to DBBranch shop-eu;")


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (f"{SERVICES}/shop", {"spec": {"selector": {"also": "this"}}}),
        (f"{SERVICES}/shop", {"spec": {"selector": None}}),
        (path_of("apps/v1", "deployments", "team", "shop-proxy"), {"spec": {"replicas": 0}}),
        (
            path_of("networking.k8s.io/v1", "networkpolicies", "dbranch-nodes", "allow-team"),
            {"spec": {"podSelector": {"matchLabels": {"also": "this"}}}},
        ),
        (f"{SECRETS}/shop-conn", {"data": {"host": base64.b64encode(b"elsewhere").decode()}}),
    ],
)
def test_what_others_changed_is_put_right_at_a_resync(
    shop: Rig, path: str, change: dict[str, object]
) -> None:
    before = {key: value for key, value in shop.existing(path).items() if key in ("spec", "data")}
    shop.api.merge(path, change)
    assert {k: v for k, v in shop.existing(path).items() if k in before} != before
    shop.reconcile_project(bypass_cache=True)
    assert {k: v for k, v in shop.existing(path).items() if k in before} == before


# Credentials.


def password_of(rig: Rig, name: str) -> str:
    return base64.b64decode(rig.existing(f"{SECRETS}/{name}-conn")["data"]["password"]).decode()


def test_a_deleted_connection_secret_is_written_back(shop: Rig) -> None:
    before, version = password_of(shop, "shop"), shop.project()["status"]["passwordVersion"]
    shop.api.delete(f"{SECRETS}/shop-conn")
    body = shop.reconcile_project(bypass_cache=True)
    assert password_of(shop, "shop") == before and body["status"]["passwordVersion"] == version


def test_a_password_that_nobody_knows_any_more_is_drawn_anew_with_an_event(shop: Rig) -> None:
    version = shop.project()["status"]["passwordVersion"]
    shop.api.delete(f"{SECRETS}/shop-conn")
    shop.start()
    body = shop.reconcile_project()
    assert body["status"]["passwordVersion"] != version
    assert ("Warning", "PasswordGenerated") in shop.events
    shop.reconcile_branch()
    assert password_of(shop, "shop") == password_of(shop, "shop-main")


def test_the_first_password_is_no_event() -> None:
    rig = Rig()
    rig.put(project())
    rig.run()
    assert ("Warning", "PasswordGenerated") not in rig.events


# Labels.


def test_nothing_that_is_made_carries_the_label_by_which_argo_cd_prunes(shop: Rig) -> None:
    shop.branch_up("x")
    made = [
        body
        for body in shop.api._memory.objects.values()
        if (body["metadata"].get("labels") or {}).get("app.kubernetes.io/managed-by") == "dbranch"
        and body["metadata"]["name"] not in ("agent-n1", "p1")
    ]
    assert len(made) >= 12
    for body in made:
        assert "app.kubernetes.io/instance" not in body["metadata"]["labels"], body["metadata"]["name"]
        template = (body.get("spec") or {}).get("template", {"metadata": {"labels": {}}})
        assert "app.kubernetes.io/instance" not in template["metadata"]["labels"]


def test_the_label_of_an_earlier_release_is_taken_off(shop: Rig) -> None:
    verifier = path_of("v1", "secrets", "dbranch-nodes", "verifier-shop-uid")
    body = shop.existing(verifier)
    earlier = {key: body[key] for key in ("apiVersion", "kind", "data")}
    labels = {**body["metadata"]["labels"], "app.kubernetes.io/instance": "dbranch"}
    labels.pop("dbranch.io/release", None)
    annotations = {**body["metadata"]["annotations"], "dbranch.io/applied": "earlier"}
    meta = {
        "name": body["metadata"]["name"],
        "namespace": "dbranch-nodes",
        "labels": labels,
        "annotations": annotations,
    }
    shop.api.apply(verifier, {**earlier, "metadata": meta})
    shop.start()
    shop.reconcile_project()
    assert "app.kubernetes.io/instance" not in shop.existing(verifier)["metadata"]["labels"]
