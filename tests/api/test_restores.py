"""The CRD's rules on restores, the verb `restore`, and what dbranch's own accounts may write of them."""

from __future__ import annotations

from typing import Any

import pytest
from tests.api.test_access import RBAC, bind
from tests.api.test_policies import AGENT, NODE, Api, Shop, admin, shop, team
from tests.api.test_snapshots import CONTROLLER, snapshot, snapshots

from dbranch.api import names
from dbranch.kube.client import branch_path, path_of, restore_path

__all__ = ["admin", "shop", "team"]

Json = dict[str, Any]


def restore(name: str = "again", branch: str = "feature-x", **spec: Any) -> Json:
    kind = {"apiVersion": names.API_VERSION, "kind": names.RESTORE_KIND}
    return {**kind, "metadata": {"name": name}, "spec": {"project": "shop", "branch": branch, **spec}}


def restores(team: str) -> str:
    return path_of(names.API_VERSION, names.RESTORES, team)


def test_the_defaults_and_what_cannot_be_changed(admin: Api, team: str) -> None:
    made = admin.allowed("POST", restores(team), restore())
    assert made["spec"] == {"project": "shop", "branch": "feature-x", "startingDeadline": "10m"}
    path = restore_path(team, "again")
    changes = {
        "branch": "other",
        "source": "main",
        "undo": "Discard",
        "startingDeadline": "1h",
        "ttlAfterFinished": "24h",
    }
    for field, value in changes.items():
        assert "immutable" in admin.rejected("PATCH", path, {"spec": {field: value}}), field
    admin.allowed("PATCH", path, {"metadata": {"labels": {"a": "b"}}}, dry=True)


def test_what_makes_no_sense_is_refused(admin: Api, team: str) -> None:
    both = restore(source="main", sourceSnapshot="shop-before")
    assert "exclude each other" in admin.rejected("POST", restores(team), both)
    own = restore(source="feature-x")
    assert "cannot be restored from itself" in admin.rejected("POST", restores(team), own)
    for fields in ({"undo": "Maybe"}, {"startingDeadline": "0s"}, {"ttlAfterFinished": "Never"}):
        admin.rejected("POST", restores(team), restore(**fields))
    generated = restore()
    generated["metadata"] = {"generateName": "shop-feature-x-"}
    admin.allowed("POST", restores(team), generated, dry=True)


@pytest.mark.parametrize("keep", ["0s", "24h", "90m", "1h30m"])
def test_how_long_a_project_keeps_what_a_branch_lost(admin: Api, team: str, keep: str) -> None:
    path = path_of(names.API_VERSION, names.PROJECTS, team)
    kind = {"apiVersion": names.API_VERSION, "kind": names.PROJECT_KIND}
    made = admin.allowed(
        "POST", path, {**kind, "metadata": {"name": "kept"}, "spec": {"undo": {"keep": keep}}}, True
    )
    assert made["spec"]["undo"] == {"keep": keep, "copies": 3}
    for undo in ({"keep": "a day"}, {"keep": "-1h"}, {"copies": 0}):
        admin.rejected("POST", path, {**kind, "metadata": {"name": "kept"}, "spec": {"undo": undo}})


def test_who_makes_a_restore_needs_the_verb_on_that_very_branch(admin: Api, team: str, shop: Shop) -> None:
    user = f"{team}-ann"
    role = {
        "apiVersion": RBAC,
        "kind": "Role",
        "metadata": {"name": "restores"},
        "rules": [
            {"apiGroups": [names.GROUP], "resources": [names.RESTORES], "verbs": ["create"]},
            {
                "apiGroups": [names.GROUP],
                "resources": [names.BRANCHES],
                "resourceNames": ["shop-feature-x"],
                "verbs": ["restore"],
            },
        ],
    }
    binding = {
        "apiVersion": RBAC,
        "kind": "RoleBinding",
        "metadata": {"name": "restores"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "restores"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }
    admin.allowed("POST", path_of(RBAC, "roles", team), role)
    admin.allowed("POST", path_of(RBAC, "rolebindings", team), binding)
    ann = Api(user)
    ann.eventually_allowed("POST", restores(team), restore(), dry=True)
    refused = ann.rejected("POST", restores(team), restore(branch="main", source="feature-x"))
    assert "you may not restore branch main of project shop" in refused and "dbbranches/shop-main" in refused
    developer = Api(bind(admin, team, "dbranch-developer"))
    developer.eventually_allowed("POST", restores(team), restore(branch="main", source="kept"), dry=True)
    viewer = Api(bind(admin, team, "dbranch-view"))
    assert "is forbidden" in viewer.rejected("POST", restores(team), restore())


def test_the_controller_writes_status_labels_and_its_finalizer(admin: Api, team: str, shop: Shop) -> None:
    admin.allowed("POST", restores(team), restore())
    path, controller = restore_path(team, "again"), Api(CONTROLLER)
    controller.eventually_allowed("PATCH", f"{path}/status", {"status": {"phase": "Running"}}, dry=True)
    labels = {names.LABEL_BRANCH: "feature-x", names.LABEL_MANAGED_BY: "dbranch"}
    controller.allowed("PATCH", path, {"metadata": {"labels": labels}}, dry=True)
    held: Json = {"metadata": {"finalizers": [names.CONTROLLER_FINALIZER]}}
    controller.allowed("PATCH", path, held, dry=True)
    for fields in ({"labels": {"a": "b"}}, {"finalizers": ["example.com/other"]}):
        assert "dbranch's controller changes" in controller.rejected("PATCH", path, {"metadata": fields})
    assert "of a branch's own schedule" in controller.rejected("POST", restores(team), restore("other"))
    uid = admin.allowed("GET", branch_path(team, "shop-feature-x"))["metadata"]["uid"]
    scheduled = restore("other")
    scheduled["metadata"]["ownerReferences"] = [
        {
            "apiVersion": names.API_VERSION,
            "kind": names.BRANCH_KIND,
            "name": "shop-feature-x",
            "uid": uid,
            "controller": True,
            "blockOwnerDeletion": False,
        }
    ]
    controller.allowed("POST", restores(team), scheduled, dry=True)
    foreign = {**scheduled, "spec": {**scheduled["spec"], "branch": "main", "source": "feature-x"}}
    assert "of a branch's own schedule" in controller.rejected("POST", restores(team), foreign)


def test_nobody_else_writes_what_became_of_a_restore(admin: Api, team: str, shop: Shop) -> None:
    admin.allowed("POST", restores(team), restore())
    status: Json = {"status": {"phase": "Complete"}}
    path = f"{restore_path(team, 'again')}/status"
    assert "is forbidden" in Api(AGENT, node_name=NODE).rejected("PATCH", path, status)
    assert "is forbidden" in Api(bind(admin, team, "dbranch-admin")).rejected("PATCH", path, status)


def test_the_record_of_a_restore_is_the_controllers_alone(admin: Api, team: str) -> None:
    origin = {"reason": "Restore", "restoreUID": "r", "branchUID": "b"}
    admin.eventually_rejected("dbranch alone writes", "POST", snapshots(team), snapshot(origin=origin))
    Api(CONTROLLER).eventually_allowed("POST", snapshots(team), snapshot(origin=origin), dry=True)
