"""Snapshots of a branch: taken once, kept beyond it, sources of branches; their protection, expiry and deletion."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.cluster import KUBECTL_TIMEOUT, Cluster, Namespace, Outcome, Project, eventually
from tests.e2e.conftest import namespace_for_tests


def manifest(name: str, branch: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "dbranch.io/v1alpha1",
        "kind": "DBSnapshot",
        "metadata": {"name": f"shop-{name}"},
        "spec": {"project": "shop", "branch": branch, **spec},
    }


def take(shop: Project, name: str, branch: str, **spec: Any) -> dict[str, Any]:
    """Apply a snapshot and wait until it is Ready; return it."""
    shop.team.apply(manifest(name, branch, **spec))
    shop.team.wait_ready("dbsnapshot", f"shop-{name}")
    return shop.team.get("dbsnapshot", f"shop-{name}")


def patch(shop: Project, name: str, **spec: Any) -> None:
    body = json.dumps({"spec": spec})
    shop.team.kubectl("patch", "dbsnapshot", f"shop-{name}", "--type=merge", "-p", body)


def delete(shop: Project, name: str, check: bool = True) -> Outcome:
    return shop.team.kubectl("delete", "dbsnapshot", f"shop-{name}", KUBECTL_TIMEOUT, check=check)


def of_snapshot(shop: Project, branch: str, snapshot: str) -> dict[str, Any]:
    return shop.branch_manifest(branch, None, sourceSnapshot=f"shop-{snapshot}")


def test_a_ruined_branch_is_made_again_from_its_snapshot(shop: Project) -> None:
    team = shop.team
    shop.branch("ruined")
    shop.sql("insert into item values (7, 'seventh')", "ruined")
    taken = take(shop, "before", "ruined")
    status, labels = taken["status"], taken["metadata"]["labels"]
    branch = team.get("dbbranch", "shop-ruined")["metadata"]
    assert status["branchUID"] == branch["uid"] == labels["dbranch.io/branch-uid"]
    assert labels["dbranch.io/project"] == "shop" and labels["dbranch.io/origin"] == "Requested"
    assert "ownerReferences" not in taken["metadata"] and "expirationTime" not in status
    assert status["node"]["snapshotTime"] and status["node"]["uniqueBytes"] < 0.3 * 2**20
    columns = team.kubectl("get", "dbs", "shop-before").out.split("\n")[0].split()
    expected = ["NAME", "PROJECT", "BRANCH", "READY", "REASON", "ORIGIN", "UNIQUE", "EXPIRES", "AGE"]
    assert columns == expected
    assert "dbsnapshot" not in team.kubectl("get", "dbranch", "-o", "name").out
    # Ruined, deleted, and made again under its name from the snapshot, which outlives it.
    shop.sql("drop table item", "ruined")
    shop.delete("ruined")
    team.apply(of_snapshot(shop, "ruined", "before"))
    shop.wait_ready("ruined")
    assert shop.sql("select name from item where id = 7", "ruined") == "seventh"
    remade = team.get("dbbranch", "shop-ruined")
    assert remade["status"]["source"] == "snapshot/shop-before"
    assert remade["status"]["node"]["snapshotTime"] == status["node"]["snapshotTime"]
    assert "snapshot/shop-before" in team.kubectl("get", "dbbranch", "shop-ruined").out
    # The same manifest, applied once more, touches nothing: it is still the snapshot of the branch that is gone.
    team.apply(manifest("before", "ruined"))
    unchanged = team.get("dbsnapshot", "shop-before")
    assert unchanged["metadata"]["uid"] == taken["metadata"]["uid"]
    assert unchanged["status"] == status
    # And the branch outlives the snapshot.
    delete(shop, "before")
    assert shop.sql("select name from item where id = 7", "ruined") == "seventh"
    shop.discard("ruined")


def test_what_is_applied_in_any_order_becomes_ready(shop: Project) -> None:
    team = shop.team
    team.apply(of_snapshot(shop, "later", "of-early"), manifest("of-early", "early"))
    team.wait_reason("dbbranch", "shop-later", "Scheduled", "SnapshotNotReady")
    team.wait_reason("dbsnapshot", "shop-of-early", "Ready", "BranchNotFound")
    shop.branch("early")
    shop.wait_ready("later")
    assert shop.sql("select name from item where id = 1", "later") == "first"
    shop.discard("later", "early")
    delete(shop, "of-early")


def test_a_branch_that_is_deleted_waits_for_the_snapshot_of_it(shop: Project) -> None:
    shop.branch("leaves")
    shop.team.apply(manifest("of-leaves", "leaves"))
    eventually(
        "the snapshot is bound",
        lambda: "branchUID" in shop.team.get("dbsnapshot", "shop-of-leaves").get("status", {}),
    )
    shop.delete("leaves")
    shop.team.wait_ready("dbsnapshot", "shop-of-leaves")
    delete(shop, "of-leaves")


def test_protection_and_expiry(shop: Project) -> None:
    team = shop.team
    take(shop, "guarded", "main", ttl="1s", protection="Enabled")
    assert "expirationTime" not in team.get("dbsnapshot", "shop-guarded")["status"]
    refused = delete(shop, "guarded", check=False)
    assert refused.code != 0 and "is protected" in refused.err
    # No longer blocked: it is announced, and does not go at once, but after its own ttl, which is shorter than a day.
    patch(shop, "guarded", ttl="1h")
    patch(shop, "guarded", protection="Disabled")
    eventually(
        "it says when it goes", lambda: "expirationTime" in team.get("dbsnapshot", "shop-guarded")["status"]
    )
    events = team.kubectl("get", "events", "-o", "jsonpath={.items[*].reason}").text.split()
    assert "Expiring" in events
    delete(shop, "guarded")
    # A ttl that stood in the manifest counts from the snapshot on.
    team.apply(manifest("short", "main", ttl="2s"))
    team.await_deleted("dbsnapshot", "shop-short")
    events = team.kubectl("get", "events", "-o", "jsonpath={.items[*].reason}").text.split()
    assert "Expired" in events


def test_a_record_is_refused_to_everybody(shop: Project) -> None:
    refused = shop.team.apply(manifest("record", "main", origin={"reason": "Deletion"}), check=False)
    assert refused.code != 0 and "which dbranch alone writes" in refused.err


@pytest.fixture
def short_lived(cluster: Cluster) -> Iterator[Namespace]:
    yield from namespace_for_tests(cluster)


def test_a_project_and_a_namespace_end_with_their_snapshots(short_lived: Namespace) -> None:
    shop = Project(short_lived, "shop")
    shop.make()
    take(shop, "one", "main", protection="Enabled")
    uid = short_lived.get("dbproject", "shop")["metadata"]["uid"]
    shop.delete()
    assert not short_lived.exists("dbsnapshot", "shop-one")
    cluster = short_lived.cluster
    assert not any(uid in name for name in cluster.names_in("pools/* mnt/*"))
    shop.make()
    take(shop, "two", "main", protection="Enabled")
    cluster.kubectl("delete", "namespace", short_lived.name, KUBECTL_TIMEOUT)


def test_snapshots_by_the_command_line(shop: Project) -> None:
    team, name = shop.team, f"cli-{secrets.token_hex(2)}"
    shop.branch("aside-cli")
    shop.sql("insert into item values (8, 'eighth')", "aside-cli")
    made = team.dbranch("-p", "shop", "snapshot", "create", name, "-b", "aside-cli", "--ttl", "7d", "--wait")
    assert name in made.output
    listed = json.loads(team.dbranch("-p", "shop", "snapshot", "list", "-o", "json").out)
    body = next(item for item in listed["items"] if item["metadata"]["name"] == f"shop-{name}")
    assert body["spec"] == {**body["spec"], "branch": "aside-cli", "ttl": "168h"}
    assert name in team.dbranch("-p", "shop", "snapshot", "list").out
    assert "aside-cli" in team.dbranch("-p", "shop", "snapshot", "show", name).out
    team.dbranch("-p", "shop", "create", "of-cli", "--from-snapshot", name)
    assert shop.sql("select name from item where id = 8", "of-cli") == "eighth"
    at = team.dbranch("-p", "shop", "create", "at", "-s", "aside-cli", "--at", "0s ago")
    assert f"snapshot {name}" in at.output
    assert shop.sql("select name from item where id = 8", "at") == "eighth"
    team.dbranch("-p", "shop", "snapshot", "delete", name, "--yes")
    assert not team.exists("dbsnapshot", f"shop-{name}")
    shop.discard("aside-cli", "of-cli", "at")
