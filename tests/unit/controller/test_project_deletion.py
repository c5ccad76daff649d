"""A project that is deleted leaves a record of which it can be made again, while its pool is kept on its node."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.factories import NAMESPACE, Json, branch, node, project, snapshot
from tests.unit.controller.rig import (
    AGENTS,
    BRANCHES,
    NODES,
    PROJECTS,
    SNAPSHOTS,
    Rig,
    conditions_of,
    message_of,
)
from tests.unit.controller.test_release import cut_at

from dbranch.api import names
from dbranch.api.errors import ApiError, ClusterUnreachable
from dbranch.api.expiry import parse_time
from dbranch.controller.snapshot.watch import concerned_by
from dbranch.controller.snapshot_records import SnapshotRecord, record_of
from dbranch.kube.client import path_of

SHOP = f"{PROJECTS}/shop"
RECORD = names.derived_name("shop", "deleted", "shop-uid")
PATH = f"{SNAPSHOTS}/{RECORD}"


def shop_with_branches() -> Rig:
    """Return a project with the branches main and x, and y of x, and a snapshot of a branch that is gone."""
    rig = Rig().ready()
    rig.api.put(path_of("v1", "namespaces"), {"metadata": {"name": NAMESPACE}})
    rig.change_project(storage={"size": "20Gi"}, postgres={"image": "postgres:16"})
    rig.branch_up("x")
    rig.branch_up("y", "10.0.0.10", "x")
    rig.put(snapshot("before", "gone", ttl="168h").taken_of("gone-uid"))
    rig.run()
    rig.api.take_requests()
    return rig


@pytest.fixture
def shop() -> Rig:
    return shop_with_branches()


def records(rig: Rig) -> list[SnapshotRecord]:
    return [record_of(body) for body in rig.api.find(SNAPSHOTS)]


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
    assert writes[:3] == [
        f"create dbsnapshots/{RECORD}",
        f"merge dbsnapshots/{RECORD}/status",
        "merge dbprojects/shop/status",
    ]
    assert "delete dbbranches/shop-x" in writes
    assert shop.writes_of(shop.remove_project) == []
    shop.start()
    # Also after somebody has deleted it.
    shop.api.remove_pod(PATH)
    assert shop.writes_of(shop.remove_project) == []


def test_a_deletion_that_is_cut_off_at_any_write_makes_one_whole_record(shop: Rig) -> None:
    shop.api.delete(SHOP)
    count = len(shop.writes_of(shop.remove_project))
    assert count == 6
    for number in range(1, count + 1):
        for is_done in (False, True):
            rig = shop_with_branches()
            rig.api.delete(SHOP)
            cut_at(rig.api, number, is_done)
            with pytest.raises(ClusterUnreachable):
                rig.remove_project()
            first = rig.api.get(PATH)
            rig.start()
            rig.remove_project()
            record, made = rig.existing(PATH), objects(rig)
            assert {"DBProject/shop", "DBBranch/shop-main", "DBBranch/shop-x", "DBBranch/shop-y"} <= set(made)
            assert first is None or first["metadata"]["uid"] == record["metadata"]["uid"], number
            kept_until = rig.project()["status"]["keptUntil"]
            assert record["status"] == {"nodeName": "n1", "expirationTime": kept_until}
            assert rig.branch("x")["metadata"]["deletionTimestamp"]


def end(rig: Rig) -> None:
    """Delete the project, and let its agent do the rest."""
    rig.api.delete(SHOP)
    rig.remove_project()
    for name in ("main", "x", "y"):
        rig.api.remove_pod(f"{BRANCHES}/shop-{name}")
    rig.remove_project()
    rig.api.remove_pod(f"{SNAPSHOTS}/shop-before")
    assert rig.remove_project()
    rig.api.remove_pod(SHOP)


def reconciled(rig: Rig, path: str = PATH) -> Json:
    return rig.reconcile_snapshot(path.removeprefix(f"{SNAPSHOTS}/shop-")) or {}


def test_it_says_what_its_agent_says_of_the_pool_and_until_when(shop: Rig) -> None:
    end(shop)
    body = reconciled(shop)
    created, expires = (
        parse_time(text) for text in (body["metadata"]["creationTimestamp"], body["status"]["expirationTime"])
    )
    assert created and expires and (expires - created).total_seconds() == 24 * 3600
    # The agent has not published yet that the pool can be adopted.
    assert conditions_of(body)["Ready"] == "Pending"
    shop.agent_of(retained="shop-uid")
    assert list(concerned_by("n1", records(shop), shop.cache()))
    body = reconciled(shop)
    assert conditions_of(body)["Ready"] == "Available"
    assert "dbranch undelete-project shop" in message_of(body, "Ready")
    assert shop.writes_of(lambda: reconciled(shop)) == []
    assert list(concerned_by("n1", records(shop), shop.cache())) == []
    # An agent that has just started has published nothing yet: that is no loss.
    shop.api.merge(f"{AGENTS}/agent-n1", {"metadata": {"annotations": {names.AGENT_RETAINED: None}}})
    assert list(concerned_by("n1", records(shop), shop.cache())) == []
    assert conditions_of(reconciled(shop))["Ready"] == "Available"
    shop.agent_of(retained="")
    assert list(concerned_by("n1", records(shop), shop.cache()))
    assert conditions_of(reconciled(shop))["Ready"] == "SnapshotLost"
    assert list(concerned_by("n1", records(shop), shop.cache())) == []
    shop.agent_of(retained="shop-uid")
    assert list(concerned_by("n1", records(shop), shop.cache()))
    assert conditions_of(reconciled(shop))["Ready"] == "Available"


def test_it_goes_at_its_time_whatever_somebody_writes_into_it(shop: Rig) -> None:
    end(shop)
    reconciled(shop)
    shop.api.merge(PATH, {"spec": {"ttl": "1s"}})
    expires = reconciled(shop)["status"]["expirationTime"]
    assert expires == reconciled(shop)["status"]["expirationTime"]
    shop.api.clock = lambda: datetime.now(UTC) + timedelta(hours=23)
    assert reconciled(shop)
    shop.api.clock = lambda: datetime.now(UTC) + timedelta(hours=25)
    assert not reconciled(shop)


@pytest.mark.parametrize("exists", [False, True])
def test_a_copy_of_it_is_no_order(shop: Rig, exists: bool) -> None:
    """Git or a backup applies it again: without its status, while a project of the name exists or not."""
    end(shop)
    body = reconciled(shop)
    if exists:
        shop.put(project())
    meta = {"name": RECORD, "namespace": NAMESPACE, "labels": body["metadata"]["labels"]}
    shop.api.remove_pod(PATH)
    shop.agent_of(retained="shop-uid")
    shop.api.put(SNAPSHOTS, {"metadata": meta, "spec": body["spec"], "kind": "DBSnapshot"})
    writes = shop.writes_of(lambda: reconciled(shop))
    assert writes == [f"merge dbsnapshots/{RECORD}/status"]
    assert conditions_of(reconciled(shop))["Ready"] == "SnapshotLost"
    assert shop.writes_of(lambda: reconciled(shop)) == []


def test_a_copy_with_its_status_goes_at_its_first_time(shop: Rig) -> None:
    end(shop)
    body = reconciled(shop)
    shop.api.remove_pod(PATH)
    shop.api.clock = lambda: datetime.now(UTC) + timedelta(hours=25)
    meta = {"name": RECORD, "namespace": NAMESPACE}
    shop.api.put(
        SNAPSHOTS, {"metadata": meta, "spec": body["spec"], "status": body["status"], "kind": "DBSnapshot"}
    )
    assert not reconciled(shop)


def test_a_project_made_again_under_the_name_leaves_the_record_alone(shop: Rig) -> None:
    """By Git, say: its own deletion makes another record, and takes the snapshots of this one alone."""
    end(shop)
    ready = Rig().ready().project()
    shop.api.put(PROJECTS, {**ready, "metadata": {**ready["metadata"], "uid": "again-uid"}})
    shop.api.merge(f"{SHOP}/status", {"status": {"node": {"initialized": True}}})
    shop.api.delete(SHOP)
    shop.remove_project()
    shop.remove_project()
    assert sorted(body["metadata"]["name"] for body in shop.api.find(SNAPSHOTS)) == sorted(
        [RECORD, names.deletion_copy_name("shop", "again-uid")]
    )
    assert all("deletionTimestamp" not in body["metadata"] for body in shop.api.find(SNAPSHOTS))


def test_in_a_namespace_that_ends_there_is_no_record_and_nothing_waits(shop: Rig) -> None:
    shop.api.merge(f"{path_of('v1', 'namespaces')}/{NAMESPACE}", {"metadata": {"finalizers": ["kubernetes"]}})
    shop.api.delete(f"{path_of('v1', 'namespaces')}/{NAMESPACE}")
    shop.api.refuse("create", "/dbsnapshots/", ApiError(403, "Forbidden", "it is being terminated"))
    shop.api.delete(SHOP)
    shop.remove_project()
    assert shop.branch("x")["metadata"]["deletionTimestamp"] and not shop.exists(PATH)
    assert "keptUntil" not in shop.project()["status"]
    assert "DeletionBlocked" not in conditions_of(shop.project())


def test_a_keep_that_becomes_shorter_behind_the_deletion_changes_nothing(shop: Rig) -> None:
    shop.api.delete(SHOP)
    shop.remove_project()
    kept_until = shop.project()["status"]["keptUntil"]
    shop.change_project(undo={"keep": "0s"})
    shop.remove_project()
    assert shop.project()["status"]["keptUntil"] == kept_until and shop.exists(PATH)


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
    assert "DeletionBlocked" not in conditions_of(shop.project())


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
