"""Deletion of a branch, a project, a namespace; afterwards the node holds what it held before the project."""

from __future__ import annotations

import json
from collections import Counter

from dbranch.api import names
from tests.e2e.cluster import KUBECTL_TIMEOUT, NODES, POSTGRES_IMAGE, Cluster, Namespace, Project, eventually


def await_node_as_before(cluster: Cluster, before: dict[str, list[str]], uid: str) -> None:
    """Wait until dbranch holds what it held before the project `uid` (see `Cluster.footprint`).

    Loop devices belong to the machine, not to the node, so only those of the project count. Leftovers of killed
    agents that were there before may have been removed since: markers of orphans, and slot directories without a
    pod (a branch's slot has its mount and its pod, too). What an agent that was killed halfway leaves behind is
    removed by housekeeping a minute later. The controller's sweep deletes the verifiers, and the access to them, of
    projects that had lost their finalizers. Warm slots go when fewer branches are created.
    """
    added: dict[str, list[str]] = {}
    removed: dict[str, list[str]] = {}

    def is_as_before() -> bool:
        now = cluster.footprint()
        for category, held in before.items():
            # Counted, not as a set: one mount over another has the same path.
            added[category] = [*(Counter(now[category]) - Counter(held)).elements()]
            removed[category] = [*(Counter(held) - Counter(now[category])).elements()]
        added["loops"], removed["loops"] = [path for path in now["loops"] if uid in path], []
        projects = cluster.project_uids()
        of_projects = {names.node_access_name(project) for project in projects}
        removed["access"] = [name for name in removed["access"] if name.partition("/")[2] in of_projects]
        existing = {f"secret/{names.verifier_secret_name(project)}" for project in projects}
        removed["secrets"] = [
            name
            for name in removed["secrets"]
            if name in existing or not name.startswith(f"secret/{names.verifier_secret_name('')}")
        ]
        removed["files"] = [
            path
            for path in removed["files"]
            if not path.startswith("slots/") and not path.endswith(".orphan")
        ]
        used = cluster.branch_slots()
        for category in ("pods", "mounts"):
            removed[category] = [
                path
                for path in removed[category]
                if "slot-" not in path or any(slot in path for slot in used)
            ]
        return not any(added.values()) and not any(removed.values())

    try:
        # Housekeeping counts its rounds in one process.
        with cluster.undisturbed():
            eventually("the node is as before", is_as_before)
    except AssertionError as error:
        raise AssertionError(f"{error}; added: {added}; removed: {removed}") from None


def test_delete_of_a_branch(shop: Project) -> None:
    team, cluster = shop.team, shop.team.cluster
    shop.branch("gone")
    shop.branch("child", "gone")
    status = team.get("dbbranch", "shop-gone")
    assert status["metadata"]["finalizers"] == [names.AGENT_FINALIZER]
    pod, uid = status["status"]["node"]["pod"], status["metadata"]["uid"]
    assert any(uid in name for name in cluster.names_in("mnt/*/*"))
    outcome = team.dbranch("-p", "shop", "delete", "gone", "--yes")
    assert "gone" in outcome.output
    assert not team.exists("dbbranch", "shop-gone")
    for kind, name in (("service", "shop-gone"), ("secret", "shop-gone-conn")):
        team.await_deleted(kind, name)
    slices = ("get", "endpointslices", "-l", "kubernetes.io/service-name=shop-gone", "-o", "name")
    eventually("its endpoints are gone", lambda: team.kubectl(*slices).text == "")
    assert f"pod/{pod}" not in cluster.footprint()["pods"]
    assert not any(uid in name for name in cluster.names_in("mnt/*/*"))
    assert f"slots/{pod}" not in cluster.names_in("slots/*")
    assert shop.sql("select name from item where id = 1", "child") == "first"
    shop.discard("child")


def test_a_branch_that_was_deleted_by_mistake_comes_back(shop: Project) -> None:
    team = shop.team
    shop.branch("slip", postgres={"parameters": {"work_mem": "8MB"}})
    shop.branch("slip-child", "slip")
    shop.sql("update item set name = 'only here' where id = 1", "slip")
    uri = team.secret("shop-slip-conn")
    said = team.dbranch("-p", "shop", "delete", "slip", "--yes").output
    assert "its data is kept for 24h: dbranch undelete slip" in said
    assert not team.exists("dbbranch", "shop-slip")
    assert "slip" in team.dbranch("-p", "shop", "list", "--deleted").output
    assert "slip" in team.dbranch("-p", "shop", "undelete", "slip").output
    assert shop.sql("select name from item where id = 1", "slip") == "only here"
    assert shop.sql("show work_mem", "slip") == "8MB"
    assert team.secret("shop-slip-conn") == uri
    events = team.kubectl(
        "get", "events", "--field-selector", "involvedObject.name=shop-slip", "-o", "json"
    ).out
    assert "Undeleted" in {event["reason"] for event in json.loads(events)["items"]}
    # It exists: another slip is undone by a reset of it, and what nobody wants is not kept.
    shop.sql("update item set name = 'newer' where id = 1", "slip")
    team.dbranch("-p", "shop", "undelete", "slip", "--yes")
    assert shop.sql("select name from item where id = 1", "slip") == "only here"
    team.dbranch("-p", "shop", "delete", "slip", "slip-child", "--yes", "--purge")
    kept = json.loads(team.dbranch("-p", "shop", "list", "--deleted", "-o", "json").out)["items"]
    assert "slip-child" not in {body["spec"]["branch"] for body in kept}
    assert len([body for body in kept if body["spec"]["branch"] == "slip"]) == 1


def test_a_deletion_that_cannot_keep_the_data_waits_with_the_servers_sentence(shop: Project) -> None:
    team = shop.team
    shop.branch("kept")
    quota = {"kind": "ResourceQuota", "apiVersion": "v1", "metadata": {"name": "no-snapshots"}}
    team.apply({**quota, "spec": {"hard": {"count/dbsnapshots.dbranch.io": "0"}}})
    eventually(
        "the quota counts",
        lambda: "used" in (team.get("resourcequota", "no-snapshots").get("status") or {}),
    )
    shop.discard("kept")
    team.wait_reason("dbbranch", "shop-kept", "DeletionBlocked", "UndoRefused")
    team.kubectl("patch", "dbbranch", "shop-kept", "--type=merge", "-p", '{"spec": {"undo": "Discard"}}')
    team.await_deleted("dbbranch", "shop-kept")
    team.kubectl("delete", "resourcequota", "no-snapshots")


def test_a_branch_created_again_under_the_same_name_has_no_old_data(shop: Project) -> None:
    for round_ in range(3):
        shop.branch("again")
        assert shop.sql("select to_regclass('old_data') is null", "again") == "t", round_
        shop.sql("create table old_data (n int)", "again")
        shop.delete("again")


def test_delete_of_a_project_leaves_the_node_as_it_was(team: Namespace) -> None:
    cluster = team.cluster
    before = cluster.footprint_at_rest()
    brief = Project(team, "brief")
    team.apply(brief.manifest(), brief.branch_manifest("one"), brief.branch_manifest("two", "one"))
    team.wait_ready("dbproject", "brief")
    brief.wait_ready("one", "two")
    during = cluster.footprint()
    uid = team.get("dbproject", "brief")["metadata"]["uid"]
    assert len([path for path in during["loops"] if uid in path]) == 1
    assert len(during["pods"]) >= len(before["pods"]) + 3
    brief.delete()
    await_node_as_before(cluster, before, uid)
    for kind in ("dbbranch", "service", "deployment", "secret", "serviceaccount", "role", "rolebinding"):
        eventually(
            f"no {kind} of the project",
            lambda k=kind: (
                not [
                    line
                    for line in team.kubectl("get", k, "-o", "name").text.splitlines()
                    if "/brief" in line
                ]
            ),
        )


def test_a_project_with_branches_is_deleted_by_mistake_and_comes_back_whole(team: Namespace) -> None:
    slip = Project(team, "slip")
    slip.make()
    slip.sql("create table item as select 1 as id, 'first' as name")
    slip.branch("one", postgres={"parameters": {"work_mem": "8MB"}})
    slip.sql("update item set name = 'only here'", "one")
    slip.branch("two", "one")
    team.dbranch("-p", "slip", "snapshot", "create", "before", "-b", "one")
    slip.sql("drop table item", "one")
    slip.use("two")
    said = team.dbranch("delete-project", "slip", "--yes").output
    assert "it is kept for 24h: dbranch undelete-project slip" in said
    assert not team.exists("dbproject", "slip") and not team.exists("dbbranch", "slip-one")
    assert "slip" in team.dbranch("project", "list", "--deleted").output
    team.dbranch("undelete-project", "slip", "--timeout", "5m")
    assert "slip" not in team.dbranch("project", "list", "--deleted").out
    assert slip.sql("select name from item", "main") == "first"
    assert slip.sql("select name from item", "two") == "only here"
    assert (
        slip.sql("select to_regclass('item') is null", "one") == "t"
        and slip.sql("show work_mem", "one") == "8MB"
    )
    # The connection string leads where it led.
    eventually("the route is as it was", lambda: slip.status()["route"]["branch"] == "two")
    team.dbranch("-p", "slip", "create", "three", "--from-snapshot", "before")
    assert slip.sql("select name from item", "three") == "only here"
    uid = team.get("dbproject", "slip")["metadata"]["uid"]
    slip.delete()
    eventually("its pool is gone", lambda: not any(uid in name for name in team.cluster.names_in("pools/*")))


def test_delete_of_a_namespace(other_team: Namespace) -> None:
    cluster = other_team.cluster
    before = cluster.footprint_at_rest()
    # Two projects, so that both are deleted at the same time.
    whole, brief = Project(other_team, "whole"), Project(other_team, "brief")
    other_team.apply(whole.manifest(), brief.manifest(), whole.branch_manifest("leaf"))
    other_team.wait_ready("dbproject", "whole", "brief")
    whole.wait_ready("leaf")
    uid = other_team.get("dbproject", "whole")["metadata"]["uid"]
    policy = ("get", "networkpolicy", "-n", NODES, f"allow-{other_team.name}")
    eventually("the namespace has its policy", lambda: cluster.kubectl(*policy, check=False).code == 0)
    cluster.kubectl("delete", "namespace", other_team.name, KUBECTL_TIMEOUT)
    await_node_as_before(cluster, before, uid)
    eventually("the policy is gone", lambda: cluster.kubectl(*policy, check=False).code != 0)


def test_delete_project_by_the_cli(team: Namespace) -> None:
    team.dbranch("init", "clishop", "--image", POSTGRES_IMAGE, "--size", "1Gi")
    assert team.exists("dbbranch", "clishop-main")
    unconfirmed = team.dbranch("delete-project", "clishop", check=False)
    assert unconfirmed.code == 2 and "--yes" in unconfirmed.output
    assert team.exists("dbproject", "clishop")
    team.keep_nothing("clishop")
    said = team.dbranch("delete-project", "clishop", "--yes").output
    assert "project clishop deleted, with all data" in said
    assert not team.exists("dbproject", "clishop")


def test_a_project_bound_to_a_deleted_node_can_be_deleted(team: Namespace) -> None:
    ghost = Project(team, "ghost")
    # Bound by hand to a node that does not exist: no agent will ever remove its finalizer.
    nowhere = {"size": "1Gi", "nodeSelector": {"dbranch.io/none": "here"}}
    # The branch first: the controller creates a root branch itself as soon as the project exists.
    team.apply(ghost.branch_manifest("main", None), ghost.manifest(storage=nowhere))
    for kind, name in (("dbproject", "ghost"), ("dbbranch", "ghost-main")):
        if kind == "dbproject":
            eventually(
                "the project has the controller's finalizer",
                lambda k=kind, n=name: team.get(k, n)["metadata"].get("finalizers"),
            )
        finalizers = [*(team.get(kind, name)["metadata"].get("finalizers") or ()), names.AGENT_FINALIZER]
        finalized = json.dumps({"metadata": {"finalizers": finalizers}})
        team.kubectl("patch", kind, name, "--type=merge", "-p", finalized)
        bind = ("--type=merge", "--subresource=status", "-p", '{"status": {"nodeName": "ghost-1"}}')
        team.kubectl("patch", kind, name, *bind)
    team.wait_reason("dbproject", "ghost", "Ready", "NodeGone")
    team.wait_stalled("dbproject", "ghost")
    ghost.delete()
    assert not team.exists("dbbranch", "ghost-main")
