"""A project that is deleted leaves a record of which it can be made again, while its pool is kept on its node."""

from __future__ import annotations

from typing import Any

import pytest
from tests.factories import NAMESPACE, branch, node, project, snapshot
from tests.unit.controller.rig import BRANCHES, NODES, PROJECTS, SNAPSHOTS, Rig, conditions_of, message_of

from dbranch.api import names
from dbranch.api.errors import ApiError
from dbranch.api.expiry import parse_time
from dbranch.kube.client import path_of

SHOP = f"{PROJECTS}/shop"
RECORD = names.derived_name("shop", "deleted", "shop-uid")
PATH = f"{SNAPSHOTS}/{RECORD}"


@pytest.fixture
def shop() -> Rig:
    """A project with the branches main and x, and y of x, and a snapshot of a branch that is gone."""
    rig = Rig().ready()
    rig.api.put(path_of("v1", "namespaces"), {"metadata": {"name": NAMESPACE}})
    rig.change_project(storage={"size": "20Gi"}, postgres={"image": "postgres:16"})
    rig.branch_up("x")
    rig.branch_up("y", "10.0.0.10", "x")
    rig.put(snapshot("before", "gone", ttl="168h").taken_of("gone-uid"))
    rig.run()
    rig.api.take_requests()
    return rig


def objects(rig: Rig) -> dict[str, Any]:
    """Return the manifests in the record by kind and name: their specs."""
    listed = rig.existing(PATH)["spec"]["origin"]["objects"]
    return {f"{body['kind']}/{body['metadata']['name']}": body["spec"] for body in listed}


def test_the_record_has_all_of_which_the_project_is_made_again(shop: Rig) -> None:
    shop.api.delete(SHOP)
    shop.remove_project()
    assert objects(shop) == {
        "DBProject/shop": {
            "storage": {"size": "20Gi", "adopt": "shop-uid"},
            "postgres": {"image": "postgres:16"},
        },
        "DBBranch/shop-main": {"project": "shop"},
        "DBBranch/shop-x": {"project": "shop", "source": "main"},
        "DBBranch/shop-y": {"project": "shop", "source": "x"},
        "DBSnapshot/shop-before": {"project": "shop", "branch": "gone", "ttl": "168h"},
    }
    meta, spec = shop.existing(PATH)["metadata"], shop.existing(PATH)["spec"]
    # Nothing but its time takes it along.
    assert "ownerReferences" not in meta and "finalizers" not in meta
    assert spec["ttl"] == "24h" and spec["origin"]["projectUID"] == "shop-uid"


def test_it_is_made_before_the_first_branch_goes_and_once(shop: Rig) -> None:
    shop.api.delete(SHOP)
    writes = shop.writes_of(shop.remove_project)
    assert writes[0] == f"create dbsnapshots/{RECORD}" and "delete dbbranches/shop-x" in writes
    assert shop.writes_of(shop.remove_project) == []
    shop.start()
    # A new process tries once.
    assert shop.writes_of(shop.remove_project) == [f"create dbsnapshots/{RECORD}"]


def test_it_stays_when_the_project_and_its_snapshots_are_gone_and_says_until_when(shop: Rig) -> None:
    shop.api.delete(SHOP)
    shop.remove_project()
    for name in ("main", "x", "y"):
        shop.api.remove_pod(f"{BRANCHES}/shop-{name}")
    shop.remove_project()
    shop.api.remove_pod(f"{SNAPSHOTS}/shop-before")
    assert shop.remove_project()
    shop.api.remove_pod(SHOP)
    body = shop.reconcile_snapshot(RECORD.removeprefix("shop-")) or {}
    created, expires = (
        parse_time(text) for text in (body["metadata"]["creationTimestamp"], body["status"]["expirationTime"])
    )
    assert created and expires and (expires - created).total_seconds() == 24 * 3600
    assert conditions_of(body)["Ready"] == "Available"
    assert "dbranch undelete-project shop" in message_of(body, "Ready")
    assert shop.writes_of(lambda: shop.reconcile_snapshot(RECORD.removeprefix("shop-"))) == []


def test_a_branch_that_was_made_of_a_snapshot_of_its_own_name_does_not_wait_for_that(shop: Rig) -> None:
    """The snapshot would wait for the branch."""
    shop.put(snapshot("x-deleted", "x").taken_of("x-before-uid"))
    for name, source in (("x", "shop-x-deleted"), ("y", "shop-x-deleted")):
        body = shop.branch(name)
        body["spec"] = {"project": "shop", "sourceSnapshot": source}
        shop.api.remove_pod(f"{BRANCHES}/shop-{name}")
        shop.api.put(BRANCHES, body)
    shop.api.delete(SHOP)
    shop.remove_project()
    made = objects(shop)
    assert made["DBBranch/shop-x"] == {"project": "shop", "source": "main"}
    assert made["DBBranch/shop-y"] == {"project": "shop", "sourceSnapshot": "shop-x-deleted"}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda rig: rig.change_project(undo={"keep": "0s"}), id="nothing is kept"),
        pytest.param(lambda rig: rig.change_project(deletionPolicy="Retain"), id="it is retained"),
        pytest.param(lambda rig: rig.agent_of(features="release"), id="an agent of a release without"),
        pytest.param(
            lambda rig: rig.api.merge(f"{SHOP}/status", {"status": {"node": {"initialized": None}}}),
            id="it never had a database",
        ),
    ],
)
def test_no_record_is_made_of_what_cannot_be_had_back(shop: Rig, change: Any) -> None:
    change(shop)
    shop.api.delete(SHOP)
    shop.remove_project()
    assert not shop.exists(PATH) and shop.branch("x")["metadata"]["deletionTimestamp"]


def test_what_is_on_a_node_that_was_given_up_leaves_no_record(shop: Rig) -> None:
    shop.api.put(NODES, node(ready=False))
    shop.api.merge(SHOP, {"metadata": {"annotations": {names.ABANDON_NODE: "n1"}}})
    shop.api.delete(SHOP)
    shop.remove_project()
    assert not shop.exists(PATH)


def test_a_record_that_is_refused_keeps_the_project_until_nobody_wants_it(shop: Rig) -> None:
    shop.api.refuse("create", "/dbsnapshots/", ApiError(403, "Forbidden", "exceeded quota: few"))
    shop.api.delete(SHOP)
    assert not shop.remove_project()
    assert conditions_of(shop.project())["DeletionBlocked"] == "UndoRefused"
    assert "exceeded quota: few" in message_of(shop.project(), "DeletionBlocked")
    assert "deletionTimestamp" not in shop.branch("x")["metadata"]
    shop.change_project(undo={"keep": "0s"})
    shop.remove_project()
    assert shop.branch("x")["metadata"]["deletionTimestamp"]


def test_branches_that_went_before_their_project_are_not_made_again(shop: Rig) -> None:
    shop.change_branch("y", undo="Discard")
    shop.api.delete(f"{BRANCHES}/shop-y")
    shop.put(branch("never", "nowhere"), project("other"))
    shop.api.delete(SHOP)
    shop.remove_project()
    assert {name for name in objects(shop) if name.startswith("DBBranch/")} == {
        "DBBranch/shop-main",
        "DBBranch/shop-x",
    }
