"""A branch that is deleted becomes a DBSnapshot before its agent may touch it; `undelete` makes it again."""

from __future__ import annotations

from typing import Any

import pytest
from tests.factories import NAMESPACE, NODE, Json, branch, node, snapshot
from tests.unit.controller.rig import BRANCHES, NODES, PROJECTS, SNAPSHOTS, Rig, conditions_of, message_of

from dbranch.api import names
from dbranch.api.branch import parse_branch
from dbranch.api.conditions import Finding, Reason
from dbranch.api.errors import ApiError, ClusterUnreachable
from dbranch.kube.client import path_of

X = f"{BRANCHES}/shop-x"
COPY = names.derived_name("shop-x", "deleted", "shop-x-uid")
PATH = f"{SNAPSHOTS}/{COPY}"
NAMESPACES = path_of("v1", "namespaces")
UP = branch("x").accepting("10.0.0.9").node(opened=True)


@pytest.fixture
def shop() -> Rig:
    """A rig whose project `shop` is Ready, with a branch `x` that was open to users."""
    rig = Rig().ready()
    rig.api.put(NAMESPACES, {"metadata": {"name": NAMESPACE}})
    rig.branch_up("x")
    rig.agent_reports(UP)
    rig.run()
    rig.api.take_requests()
    return rig


def delete(rig: Rig) -> bool:
    """Delete branch x, let the proxies go, and go on with it; return whether it is released."""
    rig.api.delete(X)
    rig.withdraw("x")
    return rig.remove_branch("x")


def copies(rig: Rig) -> list[str]:
    return [body["metadata"]["name"] for body in rig.api.find(SNAPSHOTS)]


def test_the_data_of_a_deleted_branch_goes_to_a_snapshot_that_outlives_it(shop: Rig) -> None:
    shop.change_branch("x", postgres={"parameters": {"work_mem": "8MB"}})
    assert delete(shop)
    body, kept = shop.branch("x"), shop.existing(PATH)
    assert body["status"]["copy"] == {"name": COPY, "uid": kept["metadata"]["uid"]}
    meta = kept["metadata"]
    assert meta["finalizers"] == [names.AGENT_FINALIZER]
    assert [(owner["kind"], owner["name"]) for owner in meta["ownerReferences"]] == [("DBProject", "shop")]
    assert meta["labels"] == {
        names.LABEL_PROJECT: "shop",
        names.LABEL_BRANCH: "x",
        names.LABEL_BRANCH_UID: "shop-x-uid",
        names.LABEL_ORIGIN: "Deletion",
        names.LABEL_MANAGED_BY: "dbranch",
    }
    assert kept["spec"] == {
        "project": "shop",
        "branch": "x",
        "ttl": "24h",
        "origin": {
            "reason": "Deletion",
            "branchUID": "shop-x-uid",
            "source": "main",
            "branchSpec": {
                "project": "shop",
                "source": "main",
                "postgres": {"parameters": {"work_mem": "8MB"}},
            },
        },
    }
    assert kept["status"] == {"nodeName": NODE, "branchUID": "shop-x-uid"}


def test_a_deletion_with_a_copy_costs_two_writes_more(shop: Rig) -> None:
    shop.api.delete(X)
    shop.withdraw("x")
    assert shop.writes_of(lambda: shop.remove_branch("x")) == [
        f"create dbsnapshots/{COPY}",
        f"merge dbsnapshots/{COPY}/status",
        "delete endpointslices/shop-x",
        "delete services/shop-x",
        "delete secrets/shop-x-conn",
        "merge dbbranches/shop-x/status",
    ]


@pytest.mark.parametrize(
    ("project_spec", "branch_spec", "ttl"),
    [
        ({"undo": {"keep": "0s"}}, {}, None),
        ({"undo": {"keep": "0s"}}, {"undo": "Keep"}, "24h"),
        ({"undo": {"keep": "90m"}}, {}, "90m"),
        ({}, {"undo": "Discard"}, None),
        ({"undo": {"keep": "a form of a newer release"}}, {}, "a form of a newer release"),
    ],
)
def test_what_is_kept_and_how_long_is_the_projects_and_the_branchs_to_say(
    shop: Rig, project_spec: Json, branch_spec: Json, ttl: str | None
) -> None:
    shop.change_project(**project_spec)
    shop.change_branch("x", **branch_spec)
    assert delete(shop)
    assert [body["spec"]["ttl"] for body in shop.api.find(SNAPSHOTS)] == ([ttl] if ttl else [])
    assert ("copy" in shop.branch("x")["status"]) == bool(ttl)


LOST = Finding(Reason.DATA_LOST, "its subvolume is gone").as_dict()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda rig: rig.agent_reports(UP.node(opened=None)), id="nobody could connect to it"),
        pytest.param(lambda rig: rig.agent_reports(UP.node(storage=LOST)), id="its data is gone"),
        pytest.param(
            lambda rig: rig.agent_of(features="release,snapshots"), id="an agent of a release without"
        ),
        pytest.param(lambda rig: rig.api.delete(f"{PROJECTS}/shop"), id="its project is being deleted"),
    ],
)
def test_what_cannot_be_had_back_makes_no_snapshot(shop: Rig, change: Any) -> None:
    change(shop)
    assert delete(shop)
    assert copies(shop) == []


def test_what_is_on_a_node_that_was_given_up_makes_no_snapshot(shop: Rig) -> None:
    shop.api.remove_pod(f"{NODES}/{NODE}")
    shop.agent_of(ready=False)
    shop.api.put(NODES, node(ready=False))
    shop.api.merge(X, {"metadata": {"annotations": {names.ABANDON_NODE: NODE}}})
    assert delete(shop)
    assert copies(shop) == [] and not shop.exists(X)


def test_an_agent_that_is_away_for_a_moment_is_taken_for_one_that_can(shop: Rig) -> None:
    shop.agent_of(ready=False, features="")
    assert delete(shop)
    assert copies(shop) == [COPY]


def test_a_snapshot_that_is_refused_keeps_the_branch_until_it_is_not_or_nobody_wants_it(shop: Rig) -> None:
    quota = ApiError(403, "Forbidden", f'dbsnapshots.dbranch.io "{COPY}" is forbidden: exceeded quota: few')
    shop.api.refuse("create", "/dbsnapshots/", quota)
    assert not delete(shop)
    assert conditions_of(shop.branch("x"))["DeletionBlocked"] == "UndoRefused"
    assert message_of(shop.branch("x"), "DeletionBlocked") == (
        f"DBSnapshot {COPY} cannot be made: exceeded quota: few; branch x and its data stay; "
        "it is tried again; spec.undo: Discard lets it go"
    )
    assert shop.result.unfinished and shop.result.requeue_after
    # Nothing else has gone, and it is said once.
    assert shop.exists(path_of("v1", "services", NAMESPACE, "shop-x"))
    shop.remove_branch("x")
    assert shop.writes_of(lambda: shop.remove_branch("x")) == [f"create dbsnapshots/{COPY}"]
    shop.change_branch("x", undo="Discard")
    assert shop.remove_branch("x") and copies(shop) == []
    assert "DeletionBlocked" not in conditions_of(shop.branch("x"))


def test_a_snapshot_that_is_refused_no_more_is_made(shop: Rig) -> None:
    shop.api.refuse("create", "/dbsnapshots/", ApiError(403, "Forbidden", "no"), times=1)
    assert not delete(shop)
    assert shop.remove_branch("x") and copies(shop) == [COPY]
    assert "DeletionBlocked" not in conditions_of(shop.branch("x"))


def test_in_a_namespace_that_ends_nothing_is_made_and_nothing_waits(shop: Rig) -> None:
    path = f"{NAMESPACES}/{NAMESPACE}"
    shop.api.merge(path, {"metadata": {"finalizers": ["kubernetes"]}})
    shop.api.delete(path)
    terminated = ApiError(403, "Forbidden", f"namespace {NAMESPACE} is being terminated")
    shop.api.refuse("create", "/dbsnapshots/", terminated)
    assert delete(shop) and copies(shop) == []


def test_another_snapshot_of_that_name_is_left_alone_and_said(shop: Rig) -> None:
    theirs = {"kind": "DBSnapshot", "metadata": {"name": COPY}, "spec": {"project": "shop", "branch": "main"}}
    shop.api.put(SNAPSHOTS, theirs)
    assert not delete(shop)
    assert conditions_of(shop.branch("x"))["DeletionBlocked"] == "UndoRefused"
    assert "another snapshot has its name" in message_of(shop.branch("x"), "DeletionBlocked")


def test_a_snapshot_that_somebody_deletes_at_once_is_not_insisted_on(shop: Rig) -> None:
    shop.api.before("merge", "dbbranches/shop-x/status", lambda: None)
    shop.api.delete(X)
    shop.withdraw("x")
    shop.api.lose_answer("merge", f"{COPY}/status")
    with pytest.raises(ClusterUnreachable):
        shop.remove_branch("x")
    shop.api.delete(PATH)
    assert shop.remove_branch("x")
    assert "copy" not in shop.branch("x")["status"]


def test_a_record_of_the_deletion_is_bound_by_its_own_reconcile_too(shop: Rig) -> None:
    shop.api.delete(X)
    shop.withdraw("x")
    shop.api.refuse("merge", f"{COPY}/status", times=1)
    with pytest.raises(ClusterUnreachable):
        shop.remove_branch("x")
    # A new process does not remember that nothing is bound to the branch any more.
    shop.start()
    short = COPY.removeprefix("shop-")
    status = (shop.reconcile_snapshot(short) or {})["status"]
    assert (status["nodeName"], status["branchUID"]) == (NODE, "shop-x-uid")
    assert conditions_of(shop.existing(PATH))["Ready"] == "Pending"
    assert shop.remove_branch("x") and copies(shop) == [COPY]


def test_a_branch_that_is_made_again_gets_its_own_data_and_an_event(shop: Rig) -> None:
    assert delete(shop)
    shop.api.merge(X, {"metadata": {"finalizers": []}})
    stored = {"snapshotTime": "2026-01-01T00:00:00Z", "storage": Finding(Reason.STORED, "stored").as_dict()}
    shop.api.merge(f"{PATH}/status", {"status": {"node": stored}})
    remade = branch("x").changed(metadata={"uid": "again"}).body()
    remade["spec"] = {"project": "shop", "sourceSnapshot": COPY}
    shop.api.put(BRANCHES, remade)
    status = shop.reconcile_branch("x")["status"]
    assert (
        status["undeletes"] == "shop-x-uid" and status["sourceUID"] == shop.existing(PATH)["metadata"]["uid"]
    )
    assert ("Normal", "Undeleted") in shop.events
    # Another branch that is made from it is a copy like any other.
    other = branch("y").body()
    other["spec"] = {"project": "shop", "sourceSnapshot": COPY}
    shop.api.put(BRANCHES, other)
    assert "undeletes" not in shop.reconcile_branch("y")["status"]
    assert shop.events.count(("Normal", "Undeleted")) == 1


def test_the_word_and_the_copy_come_in_one_write(shop: Rig) -> None:
    """An agent that reads the one must read the other."""
    shop.api.delete(X)
    shop.withdraw("x")
    shop.api.take_requests()
    shop.remove_branch("x")
    written = [
        r.body["status"] for r in shop.api.take_requests() if str(r) == "merge dbbranches/shop-x/status"
    ]
    assert [set(status) >= {"release", "copy"} for status in written] == [True]
    assert parse_branch(shop.branch("x")).is_released


def test_the_copies_of_deleted_branches_take_no_place_among_the_snapshots_that_somebody_asks_for() -> None:
    rig = Rig(snapshotsPerProject="1").ready()
    for name in ("a", "b"):
        taken = snapshot(f"{name}-deleted", name, origin={"reason": "Deletion"}).taken_of(f"{name}-uid")
        rig.put(taken)
    rig.put(snapshot("wanted"))
    assert conditions_of(rig.reconcile_snapshot("wanted") or {})["Ready"] == "Snapshotting"
