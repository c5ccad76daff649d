"""Changes to a running project: size, parameters, password; and a retained pool that outlives its project."""

from __future__ import annotations

import base64
import json

import pytest

from tests.e2e.cluster import NODES, Namespace, Project, eventually
from tests.e2e.test_survival import pods_of


def test_the_pool_grows_while_postgres_runs_and_never_shrinks(shop: Project) -> None:
    team, before = shop.team, pods_of(shop)
    shop.patch(storage={"size": "1536Mi"})
    total = 1536 * 2**20
    eventually(
        "the pool has grown",
        lambda: team.get("dbproject", "shop")["status"]["node"]["totalBytes"] == total,
    )
    body = json.dumps({"spec": {"storage": {"size": "1Gi"}}})
    rejected = team.kubectl("patch", "dbproject", "shop", "--type=merge", "-p", body, check=False)
    assert rejected.code and "cannot become smaller" in rejected.err
    assert pods_of(shop) == before


def test_parameters_apply_at_once_or_after_a_restart(shop: Project) -> None:
    team, before = shop.team, pods_of(shop)
    shop.patch(postgres={"parameters": {"work_mem": "7MB", "shared_buffers": "24MB"}})
    pending = team.wait_reason("dbbranch", "shop-main", "PostgresReady", "RestartPending")
    assert pending["status"] == "True" and "shared_buffers" in pending["message"]
    assert shop.sql("show work_mem") == "7MB" and pods_of(shop) == before
    team.dbranch("-p", "shop", "restart", "main")
    assert team.condition("dbbranch", "shop-main", "PostgresReady")["reason"] == "Accepting"
    assert shop.sql("show shared_buffers") == "24MB"
    assert shop.sql("select name from item where id = 1") == "first"


def owner_secret(password: str) -> dict[str, object]:
    """Return the manifest of a Secret `owner` that holds the password."""
    data = {"password": base64.b64encode(password.encode()).decode()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "owner"}, "data": data}


def test_a_new_password_of_the_owner_reaches_every_branch(team: Namespace) -> None:
    team.apply(owner_secret("first"))
    project = Project(team, "keyed")
    manifest = project.manifest()
    manifest["spec"]["postgres"]["passwordSecret"] = {"name": "owner"}
    team.apply(manifest)
    team.wait_ready("dbproject", "keyed")
    project.branch("stopped")
    assert project.sql("select 1", "stopped") == "1"
    team.dbranch("-p", "keyed", "stop", "stopped")
    team.apply(owner_secret("second"))
    eventually("the connection string has the new password", lambda: ":second@" in project.uri())
    eventually(
        "the running branch accepts the new password",
        lambda: team.psql(project.uri(), "select 1", check=False).text == "1",
    )
    old = project.uri().replace(":second@", ":first@")
    rejected = team.psql(old, "select 1", check=False)
    assert rejected.code == 2 and "password authentication failed" in rejected.err
    team.dbranch("-p", "keyed", "resume", "stopped")
    eventually("the branch's own connection string has it", lambda: ":second@" in project.uri("stopped"))
    assert project.sql("select 1", "stopped") == "1"


def test_a_retained_pool_is_adopted_by_a_new_project(team: Namespace) -> None:
    old = Project(team, "old")
    old.make(deletionPolicy="Retain")
    old.sql("create table item as select generate_series(1, 5000) as id")
    old.branch("kept")
    old.sql("delete from item where id > 10", "kept")
    uid = team.get("dbproject", "old")["metadata"]["uid"]
    outcome = team.dbranch("-p", "old", "delete-project", "old", "--yes")
    assert f"--adopt {uid}" in outcome.output
    assert uid in team.cluster.on_node("ls /var/lib/dbranch/pools")
    new = Project(team, "new")
    new.make(storage={"size": "1Gi", "adopt": uid})
    new.branch("kept")
    assert new.sql("select count(*), sum(id) from item") == "5000|12502500"
    assert new.sql("select count(*) from item", "kept") == "10"


def test_agents_that_are_deleted_and_recreated_leave_no_mount_behind(
    shop: Project, request: pytest.FixtureRequest
) -> None:
    cluster, before = shop.team.cluster, pods_of(shop)
    mounts = cluster.footprint()["mounts"]
    for _ in range(20 if request.config.getoption("--soak") else 3):
        cluster.kubectl(
            "delete", "pod", "-n", NODES, "-l", "app.kubernetes.io/component=agent", "--grace-period=1"
        )
        cluster.kubectl("rollout", "status", "-n", NODES, "daemonset/dbranch-agent", "--timeout=120s")
    assert sorted(cluster.footprint()["mounts"]) == sorted(mounts)
    assert pods_of(shop) == before
    assert shop.sql("select name from item where id = 1") == "first"
