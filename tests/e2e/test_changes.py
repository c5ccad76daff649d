"""Changes of a living project: size, settings, password, and a pool that outlives its project."""

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
    refused = team.kubectl("patch", "dbproject", "shop", "--type=merge", "-p", body, check=False)
    assert refused.code and "cannot become smaller" in refused.err
    assert pods_of(shop) == before


def test_parameters_apply_at_once_or_after_a_restart(shop: Project) -> None:
    team, before = shop.team, pods_of(shop)
    shop.patch(postgres={"parameters": {"work_mem": "7MB", "shared_buffers": "24MB"}})
    waits = team.wait_reason("dbbranch", "shop-main", "PostgresReady", "RestartPending")
    assert waits["status"] == "True" and "shared_buffers" in waits["message"]
    assert shop.sql("show work_mem") == "7MB" and pods_of(shop) == before
    team.dbranch("-p", "shop", "restart", "main")
    assert team.condition("dbbranch", "shop-main", "PostgresReady")["reason"] == "Accepting"
    assert shop.sql("show shared_buffers") == "24MB"
    assert shop.sql("select name from item where id = 1") == "first"


def secret(password: str) -> dict[str, object]:
    data = {"password": base64.b64encode(password.encode()).decode()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "owner"}, "data": data}


def test_a_new_password_of_the_owner_reaches_every_branch(team: Namespace) -> None:
    team.apply(secret("first"))
    project = Project(team, "keyed")
    manifest = project.manifest()
    manifest["spec"]["postgres"]["passwordSecret"] = {"name": "owner"}
    team.apply(manifest)
    team.wait_ready("dbproject", "keyed")
    project.branch("rests")
    assert project.sql("select 1", "rests") == "1"
    team.dbranch("-p", "keyed", "stop", "rests")
    team.apply(secret("second"))
    eventually("the connection string has it", lambda: ":second@" in project.uri())
    eventually(
        "the running branch has it",
        lambda: team.psql(project.uri(), "select 1", check=False).text == "1",
    )
    old = project.uri().replace(":second@", ":first@")
    refused = team.psql(old, "select 1", check=False)
    assert refused.code == 2 and "password authentication failed" in refused.err
    team.dbranch("-p", "keyed", "resume", "rests")
    eventually("its own connection string has it", lambda: ":second@" in project.uri("rests"))
    assert project.sql("select 1", "rests") == "1"


def test_a_retained_pool_comes_back_in_a_new_project(team: Namespace) -> None:
    old = Project(team, "old")
    old.make(deletionPolicy="Retain")
    old.sql("create table item as select generate_series(1, 5000) as id")
    old.branch("kept")
    old.sql("delete from item where id > 10", "kept")
    uid = team.get("dbproject", "old")["metadata"]["uid"]
    said = team.dbranch("-p", "old", "delete-project", "old", "--yes")
    assert f"--adopt {uid}" in said.all
    assert uid in team.cluster.on_node("ls /var/lib/dbranch/pools")
    new = Project(team, "new")
    new.make(storage={"size": "1Gi", "adopt": uid})
    new.branch("kept")
    assert new.sql("select count(*), sum(id) from item") == "5000|12502500"
    assert new.sql("select count(*) from item", "kept") == "10"


def test_agents_that_come_and_go_leave_no_mount_behind(shop: Project, request: pytest.FixtureRequest) -> None:
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
