"""Changes to a running project: size, parameters, password; and a retained pool that outlives its project."""

from __future__ import annotations

import base64
import json

import pytest

from tests.e2e.cluster import Namespace, Project, eventually
from tests.e2e.conftest import make_item


@pytest.fixture(scope="module")
def changing(team: Namespace) -> Project:
    """A Ready project `changing` whose root branch holds the table `item` with the row (1, 'first')."""
    changing = Project(team, "changing")
    changing.make()
    make_item(changing)
    return changing


def test_the_pool_grows_while_postgres_runs_and_never_shrinks(changing: Project) -> None:
    team, before = changing.team, changing.pod_uids()
    changing.patch(storage={"size": "1536Mi"})
    total = 1536 * 2**20
    eventually(
        "the pool has grown",
        lambda: changing.status()["node"]["totalBytes"] == total,
    )
    body = json.dumps({"spec": {"storage": {"size": "1Gi"}}})
    rejected = team.kubectl("patch", "dbproject", "changing", "--type=merge", "-p", body, check=False)
    assert rejected.code and "cannot become smaller" in rejected.err
    assert changing.pod_uids() == before


def test_parameters_apply_at_once_or_after_a_restart(changing: Project) -> None:
    team, before = changing.team, changing.pod_uids()
    changing.patch(postgres={"parameters": {"work_mem": "7MB", "shared_buffers": "24MB"}})
    pending = team.wait_reason("dbbranch", "changing-main", "PostgresReady", "RestartPending")
    assert pending["status"] == "True" and "shared_buffers" in pending["message"]
    eventually("the new work_mem is in force", lambda: changing.sql("show work_mem") == "7MB")
    assert changing.pod_uids() == before
    team.dbranch("-p", "changing", "restart", "main")
    team.wait_reason("dbbranch", "changing-main", "PostgresReady", "Accepting")
    assert changing.sql("show shared_buffers") == "24MB"
    assert changing.sql("select name from item where id = 1") == "first"


def test_what_postgres_does_not_start_with_is_undone_by_a_restart(changing: Project) -> None:
    team = changing.team
    changing.branch("broken")
    superuser = ("-p", "changing", "psql", "broken", "--superuser", "--", "-XAtqc")
    team.dbranch(*superuser, "copy (select 'no_such_parameter = 1') to program 'cat >postgresql.auto.conf'")
    team.dbranch("-p", "changing", "restart", "broken", "--no-wait", "--force")
    broken = team.wait_reason("dbbranch", "changing-broken", "PostgresReady", "InvalidParameters")
    command = "dbranch restart broken --reset-alter-system"
    assert broken["message"].endswith(f"; run {command}"), broken
    team.wait_stalled("dbbranch", "changing-broken")
    # It waits for its own restart, not for what has stalled the branch before.
    team.dbranch("-p", "changing", *command.split()[1:])
    assert changing.sql("select name from item where id = 1", "broken") == "first"
    kept = team.dbranch(*superuser, "select pg_read_file('postgresql.auto.conf.before-reset')")
    assert "no_such_parameter" in kept.text
    changing.discard("broken")


def owner_secret(password: str) -> dict[str, object]:
    """Return the manifest of a Secret `owner` that holds the password."""
    data = {"password": base64.b64encode(password.encode()).decode()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "owner"}, "data": data}


def test_a_new_password_of_the_owner_reaches_every_branch(team: Namespace) -> None:
    team.apply(owner_secret("first"))
    project = Project(team, "keyed")
    manifest = project.manifest()
    manifest["spec"]["postgres"]["passwordSecret"] = {"name": "owner"}
    team.apply(manifest, project.branch_manifest("stopped"))
    team.wait_ready("dbproject", "keyed")
    project.wait_ready("stopped")
    assert project.sql("select 1", "stopped") == "1"
    team.dbranch("-p", "keyed", "stop", "stopped")
    team.apply(owner_secret("second"))
    eventually("the connection string has the new password", lambda: ":second@" in project.uri())
    eventually(
        "the running branch accepts the new password",
        lambda: team.psql(project.uri(), "select 1", check=False).text == "1",
    )
    old = project.uri().replace(":second@", ":first@")
    eventually(
        "the old password is rejected",
        lambda: (
            (outcome := team.connect(old, "select 1")).code == 2
            and "password authentication failed" in outcome.err
        ),
    )
    team.dbranch("-p", "keyed", "resume", "stopped")
    eventually("the branch's own connection string has it", lambda: ":second@" in project.uri("stopped"))
    eventually(
        "the resumed branch accepts the new password",
        lambda: team.connect(project.uri("stopped"), "select 1").text == "1",
    )
    project.discard()


def test_a_retained_pool_is_adopted_by_a_new_project(team: Namespace) -> None:
    old = Project(team, "old")
    old.make(deletionPolicy="Retain")
    old.sql("create table item as select generate_series(1, 5000) as id")
    old.branch("kept")
    old.sql("delete from item where id > 10", "kept")
    uid = team.get("dbproject", "old")["metadata"]["uid"]
    outcome = team.dbranch("-p", "old", "delete-project", "old", "--yes")
    assert f"--adopt {uid}" in outcome.output
    assert any(uid in name for name in team.cluster.names_in("pools/*"))
    new = Project(team, "new")
    team.apply(new.manifest(storage={"size": "1Gi", "adopt": uid}), new.branch_manifest("kept"))
    team.wait_ready("dbproject", "new")
    new.wait_ready("kept")
    assert new.sql("select count(*), sum(id) from item") == "5000|12502500"
    assert new.sql("select count(*) from item", "kept") == "10"
    new.discard()


def test_a_retained_pool_of_a_project_that_lost_its_finalizers_is_listed_and_deleted_on_request(
    team: Namespace,
) -> None:
    lost = Project(team, "lost")
    lost.make(deletionPolicy="Retain")
    uid = team.get("dbproject", "lost")["metadata"]["uid"]
    for kind, name in (("dbproject", "lost"), ("dbbranch", "lost-main")):
        team.kubectl("delete", kind, name, "--wait=false")
        team.kubectl(
            "patch", kind, name, "--type=merge", "-p", '{"metadata":{"finalizers":null}}', check=False
        )
    eventually("the project is gone", lambda: not team.exists("dbproject", "lost"))
    orphans = ("orphan", "list", "-o", "name")
    eventually("the pool is listed", lambda: uid in team.dbranch(*orphans).text.split(), 150)
    assert any(uid in name for name in team.cluster.names_in("pools/*"))
    refused = team.dbranch("orphan", "delete", uid, check=False)
    assert refused.code == 2 and "all its branches" in refused.err
    team.dbranch("orphan", "delete", uid, "--yes", "--timeout", "3m")
    eventually(
        "nothing of it is left",
        lambda: not any(uid in n for n in team.cluster.names_in("pools/* mnt/*")),
        150,
    )
    assert uid not in team.dbranch(*orphans).text.split()


def test_agents_that_are_deleted_and_recreated_leave_no_mount_behind(
    changing: Project, request: pytest.FixtureRequest
) -> None:
    cluster, before = changing.team.cluster, changing.pod_uids()
    mounts = sorted(cluster.footprint_at_rest()["mounts"])
    for _ in range(20 if request.config.getoption("--soak") else 3):
        cluster.replace_agents("--grace-period=1")
    eventually("the mounts are as before", lambda: sorted(cluster.footprint()["mounts"]) == mounts)
    assert changing.pod_uids() == before
    assert changing.sql("select name from item where id = 1") == "first"
    changing.discard()
