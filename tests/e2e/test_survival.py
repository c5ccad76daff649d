"""Data survives the deletion of Postgres', the agent's and the controller's pod, and a restart of the node."""

from __future__ import annotations

import json

import pytest

from tests.e2e.cluster import KUBECTL_TIMEOUT, NODES, SYSTEM, Project, eventually, run

# The branches of the project `kept`.
BRANCHES = ("main", "one", "two")


def assert_all_data_present(project: Project) -> None:
    """Wait until all branches are Ready; each must still hold its row."""
    project.wait_ready(*BRANCHES)
    for branch in BRANCHES:
        assert project.sql("select name from proof", branch) == branch
    project.team.wait_ready("dbproject", project.name)


@pytest.mark.parametrize("by_force", [False, True], ids=["gracefully", "by_force"])
def test_postgres_pod_deleted(kept: Project, by_force: bool) -> None:
    pod, uid = kept.pod_of("one"), kept.pod_uids()["one"]
    options = ("--grace-period=0", "--force") if by_force else ()
    kept.team.cluster.kubectl("delete", "pod", "-n", NODES, pod, *options)
    kept.await_new_pod("one", uid)
    assert_all_data_present(kept)


def test_agent_pod_deleted_restarts_no_postgres(kept: Project) -> None:
    before = kept.pod_uids()
    kept.team.cluster.replace_agents()
    assert_all_data_present(kept)
    kept.branch("after-agent")
    assert kept.sql("select name from proof", "after-agent") == "main"
    after = kept.pod_uids()
    assert {branch: after[branch] for branch in BRANCHES} == {branch: before[branch] for branch in BRANCHES}
    kept.discard("after-agent")


def test_controller_deleted(kept: Project) -> None:
    kubectl = kept.team.cluster.kubectl
    kubectl("delete", "pod", "-n", SYSTEM, "-l", "app.kubernetes.io/component=controller")
    assert kept.sql("select name from proof", "one") == "one"
    kubectl("rollout", "status", "-n", SYSTEM, "deployment/dbranch-controller", KUBECTL_TIMEOUT)
    kept.branch("after-controller")
    assert_all_data_present(kept)
    kept.discard("after-controller")


def test_stop_and_resume_of_a_branch(kept: Project) -> None:
    team = kept.team
    team.dbranch("-p", kept.name, "stop", "one")
    team.wait_reason("dbbranch", f"{kept.name}-one", "Ready", "Stopped")
    eventually("the branch's pod is gone", lambda: "one" not in kept.pod_uids())
    assert kept.sql("select name from proof", "two") == "two"
    team.dbranch("-p", kept.name, "resume", "one")
    assert_all_data_present(kept)


def test_stop_and_resume_of_everything(kept: Project) -> None:
    team = kept.team
    team.dbranch("-p", kept.name, "stop", "--all", "--yes")
    team.wait_reason("dbproject", kept.name, "Ready", "Stopped")
    eventually("no pod is left", lambda: kept.pod_uids() == {})
    uid = team.get("dbproject", kept.name)["metadata"]["uid"]
    eventually("unmounted and detached", lambda: uid not in json.dumps(mounted(kept)))
    team.dbranch("-p", kept.name, "resume", "--all")
    assert_all_data_present(kept)


def mounted(project: Project) -> list[str]:
    """Return the mounts and the backing files of the loop devices that dbranch holds on the node."""
    footprint = project.team.cluster.footprint()
    return footprint["mounts"] + footprint["loops"]


def test_node_restarted(kept: Project) -> None:
    cluster = kept.team.cluster
    node = kept.status()["nodeName"]
    client = kept.team.client_started_at()
    run(["docker", "restart", node])
    eventually(
        "the API server answers", lambda: cluster.kubectl("get", "--raw=/readyz", check=False).code == 0
    )
    # Ready, and the conditions of pods, may be what they were before: the client's new container is what is not.
    eventually("the client runs again", lambda: kept.team.client_started_at() > client)
    kept.team.kubectl("wait", "--for=condition=Ready", "pod/client", KUBECTL_TIMEOUT)
    cluster.kubectl("wait", "--for=condition=Ready", f"node/{node}", KUBECTL_TIMEOUT)
    cluster.kubectl("rollout", "status", "-n", NODES, "daemonset/dbranch-agent", KUBECTL_TIMEOUT)
    cluster.kubectl("rollout", "status", "-n", SYSTEM, "deployment/dbranch-controller", KUBECTL_TIMEOUT)
    eventually("the data can be read", lambda: readable(kept))
    assert_all_data_present(kept)
    kept.branch("after-restart")
    assert kept.sql("select name from proof", "after-restart") == "main"
    uid = kept.team.get("dbproject", kept.name)["metadata"]["uid"]
    pools = [m for m in cluster.footprint()["mounts"] if m.endswith(f"mnt/{uid}")]
    assert len(pools) == 1, pools
    kept.discard("after-restart")


def readable(project: Project) -> bool:
    """True if a query through the project's connection string returns the root branch's row."""
    return project.team.psql(project.uri(), "select name from proof", check=False).text == "main"
