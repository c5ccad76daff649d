"""Restores in place: with kubectl alone, undone, once a name, of the root, of a stopped branch, under load."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest

from tests.e2e.cluster import KUBECTL_TIMEOUT, Namespace, Project, eventually
from tests.e2e.conftest import make_item

_UNDER_LOAD = 20
_CLIENTS = 4
# One transfer: nobody may ever see half of it.
_TRANSFER = (
    "begin; update account set v = v - 1 where id = 1; update account set v = v + 1 where id = 2; commit;"
)
# psql says its SQLSTATE of every error, since VERBOSITY is verbose; a session that was ended is followed by another.
_LOAD = f"""
rm -f /tmp/stop
for client in $(seq {_CLIENTS}); do
  (while [ ! -e /tmp/stop ]; do
     {{ echo '\\set VERBOSITY verbose'; yes '{_TRANSFER}' | head -n 5000; }} | timeout 60 psql "$1" -XAtq 2>&1
   done) &
done
wait
"""


def manifest(name: str, branch: str, project: str = "lab", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "dbranch.io/v1alpha1",
        "kind": "DBRestore",
        "metadata": {"name": name},
        "spec": {"project": project, "branch": branch, **spec},
    }


def done(team: Namespace, name: str, condition: str = "Complete") -> dict[str, Any]:
    """Wait until the restore has the condition; return its status."""
    outcome = team.kubectl(
        "wait", f"--for=condition={condition}", f"dbrestore/{name}", KUBECTL_TIMEOUT, check=False
    )
    assert outcome.code == 0, team.kubectl("describe", f"dbrestore/{name}", check=False).output
    status: dict[str, Any] = team.get("dbrestore", name)["status"]
    return status


def restored(team: Namespace, name: str, branch: str, **spec: Any) -> dict[str, Any]:
    """Restore a branch; return the restore's status."""
    team.apply(manifest(name, branch, **spec))
    return done(team, name)


@pytest.fixture(scope="module")
def lab(team: Namespace) -> Project:
    """A Ready project `lab`, as `shop` is, whose branches these tests restore."""
    lab = Project(team, "lab")
    lab.make()
    make_item(lab)
    return lab


def test_a_ruined_branch_is_restored_with_kubectl_alone_and_the_restore_undone(lab: Project) -> None:
    team = lab.team
    lab.branch("ruined")
    lab.sql("drop table item; create table mine as select 7 as id", "ruined")
    before, uri = team.get("dbbranch", "lab-ruined"), lab.uri("ruined")
    port = team.get("endpointslice", "lab-ruined")["ports"][0]["port"]
    status = restored(team, "first", "ruined")
    # The same address, password and object; the data of main as of now.
    assert lab.uri("ruined") == uri
    assert team.get("endpointslice", "lab-ruined")["ports"][0]["port"] == port
    assert lab.sql("select name from item where id = 1", "ruined") == "first"
    after = team.get("dbbranch", "lab-ruined")
    assert after["metadata"]["uid"] == before["metadata"]["uid"] == status["branchUID"]
    assert after["status"]["node"]["generation"] == 2
    assert after["status"]["data"]["source"] == status["source"] == "main"
    assert after["status"]["data"]["time"] == after["status"]["node"]["snapshotTime"] == status["dataTime"]
    assert [record["name"] for record in after["status"]["restores"]] == ["first"]
    assert status["phase"] == "Complete" and status["heldSeconds"] < 10
    columns = team.kubectl("get", "dbr", "first").out.split("\n")[0].split()
    assert columns == ["NAME", "PROJECT", "BRANCH", "SOURCE", "PHASE", "REASON", "UNDO", "AGE"]
    assert "dbrestore" not in team.kubectl("get", "dbranch", "-o", "name").out
    # What it had is a snapshot for a day, and goes back as it was.
    kept = status["undoSnapshot"]
    team.wait_ready("dbsnapshot", kept)
    snapshot = team.get("dbsnapshot", kept)
    assert snapshot["spec"]["origin"]["reason"] == "Restore" and snapshot["spec"]["ttl"] == "24h"
    assert snapshot["status"]["node"]["generation"] == 1 and snapshot["status"]["expirationTime"]
    owners = [owner["kind"] for owner in snapshot["metadata"]["ownerReferences"]]
    assert owners == ["DBProject"]
    undone = restored(team, "undo", "ruined", sourceSnapshot=kept)
    assert lab.sql("select id, to_regclass('item') from mine", "ruined") == "7|"
    assert team.get("dbbranch", "lab-ruined")["status"]["node"]["generation"] == 3
    events = team.kubectl("get", "events", "-o", "jsonpath={.items[*].reason}").text.split()
    assert "Restored" in events
    # And that can be taken back, too.
    team.wait_ready("dbsnapshot", undone["undoSnapshot"])
    restored(team, "redo", "ruined", sourceSnapshot=undone["undoSnapshot"])
    assert lab.sql("select name from item where id = 1", "ruined") == "first"


def test_a_name_is_done_once(lab: Project) -> None:
    """As Argo CD, a backup and a saved file make it again."""
    team = lab.team
    lab.branch("once")
    restored(team, "once", "once")
    lab.sql("create table later as select 1 as id", "once")
    team.kubectl("delete", "dbrestore", "once", KUBECTL_TIMEOUT)
    status = restored(team, "once", "once")
    assert team.condition("dbrestore", "once", "Complete")["reason"] == "AlreadyApplied"
    assert status["phase"] == "Complete" and lab.sql("select id from later", "once") == "1"
    assert team.get("dbbranch", "lab-once")["status"]["node"]["generation"] == 2
    lab.discard("once")


def test_what_cannot_begin_touches_nothing(lab: Project) -> None:
    team = lab.team
    lab.branch("guarded", protection="Enabled")
    team.apply(
        manifest("protected", "guarded"),
        manifest("rootless", "main"),
        manifest("nowhere", "guarded-not", startingDeadline="2s"),
        manifest("sourceless", "ruined", source="gone", startingDeadline="2s"),
    )
    for name, reason in (
        ("protected", "Protected"),
        ("rootless", "NoSource"),
        ("nowhere", "StartingDeadlineExceeded"),
        ("sourceless", "StartingDeadlineExceeded"),
    ):
        status = done(team, name, "Failed")
        assert status["phase"] == "Rejected"
        assert team.condition("dbrestore", name, "Failed")["reason"] == reason
    assert team.get("dbbranch", "lab-guarded")["status"]["node"]["generation"] == 1
    team.kubectl(
        "patch", "dbbranch", "lab-guarded", "--type=merge", "-p", '{"spec":{"protection":"Disabled"}}'
    )
    lab.discard("guarded")


def test_a_stopped_branch_is_restored_and_stays_stopped(lab: Project) -> None:
    team = lab.team
    lab.branch("resting", state="Running")
    lab.sql("drop table item", "resting")
    team.kubectl("patch", "dbbranch", "lab-resting", "--type=merge", "-p", '{"spec":{"state":"Stopped"}}')
    team.wait_reason("dbbranch", "lab-resting", "PostgresReady", "Stopped")
    restored(team, "at-rest", "resting", undo="Discard")
    assert team.condition("dbbranch", "lab-resting", "Ready")["reason"] == "Stopped"
    team.kubectl("patch", "dbbranch", "lab-resting", "--type=merge", "-p", '{"spec":{"state":"Running"}}')
    lab.wait_ready("resting")
    assert lab.sql("select name from item where id = 1", "resting") == "first"
    lab.discard("resting")


def test_the_root_is_restored_and_its_children_live_on(lab: Project) -> None:
    """`promote feature-x`: everybody gets its data under the project's connection string."""
    team = lab.team
    lab.branch("feature")
    lab.branch("child")
    lab.sql("insert into item values (2, 'of feature')", "feature")
    lab.sql("insert into item values (3, 'of child')", "child")
    restored(team, "promote", "main", source="feature")
    assert lab.sql("select name from item where id = 2") == "of feature"
    lab.wait_ready("main", "feature", "child")
    assert lab.sql("select string_agg(name, ',' order by id) from item", "child") == "first,of child"
    assert "source" not in team.get("dbbranch", "lab-main")["spec"]
    # The source goes, and its data stays where it went to.
    lab.delete("feature")
    assert lab.sql("select name from item where id = 2") == "of feature"
    lab.branch("grandchild", "main")
    assert lab.sql("select count(*) from item", "grandchild") == "2"
    lab.discard("child", "grandchild")


def test_restores_in_a_row_under_load_show_no_half_of_a_transaction(lab: Project) -> None:
    team = lab.team
    lab.sql("create table account (id int primary key, v int); insert into account values (1, 0), (2, 0)")
    lab.branch("seed")
    load = subprocess.Popen(
        ["kubectl", "-n", team.name, "exec", "client", "--", "bash", "-c", _LOAD, "load", lab.uri()],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        eventually("the load runs", lambda: lab.sql("select v from account where id = 2") != "0")
        held = []
        for number in range(_UNDER_LOAD):
            status = restored(team, f"load-{number}", "main", source="seed", startingDeadline="3m")
            held.append(status["heldSeconds"])
            assert lab.sql("select sum(v) from account") == "0"
    finally:
        team.kubectl("exec", "client", "--", "touch", "/tmp/stop")
    output, _ = load.communicate(timeout=120)
    codes = set(re.findall(r"(?:ERROR|FATAL|PANIC):  ([0-9A-Z]{5}):", output))
    assert codes <= {"57P01", "57P03"}, output[-3000:]
    assert "57P01" in codes, "no session was ended, so none was there"
    kept = team.get("dbbranch", "lab-main")["status"]["restores"][-1]["undoSnapshot"]
    team.wait_ready("dbsnapshot", kept)
    # What was committed until the last moment is in the undo copy, whole.
    team.apply(lab.branch_manifest("looked-at", None, sourceSnapshot=kept))
    lab.wait_ready("looked-at")
    assert lab.sql("select sum(v) from account", "looked-at") == "0"
    assert lab.sql("select v from account where id = 2", "looked-at") != "0"
    print(f"new sessions held: median {sorted(held)[len(held) // 2]:.3f} s, at most {max(held):.3f} s")
    # Of restores a branch keeps three copies.
    eventually("older copies are gone", lambda: len(copies_of(team, "main")) <= 3)


def copies_of(team: Namespace, branch: str) -> list[str]:
    labels = f"dbranch.io/project=lab,dbranch.io/branch={branch},dbranch.io/origin=Restore"
    return team.kubectl("get", "dbsnapshots", "-l", labels, "-o", "name").out.split()
