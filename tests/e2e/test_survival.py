"""Data survives the deletion of Postgres', the agent's and the controller's pod, and a restart of the node."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.e2e.cluster import NODES, SYSTEM, Project, eventually


@pytest.fixture(scope="module")
def kept(shop: Project) -> Project:
    """`shop` with branches `kept` and `kept-2`; the table `proof` of a branch holds its name."""
    for branch in ("kept", "kept-2"):
        shop.branch(branch)
        shop.sql(f"create table proof as select '{branch}' as name", branch)
    shop.sql("create table proof as select 'main' as name", "main")
    return shop


def assert_all_data_present(project: Project) -> None:
    """Wait until all branches are Ready; each must still hold its row."""
    for branch in ("main", "kept", "kept-2"):
        project.team.wait_ready("dbbranch", f"shop-{branch}", 180)
        assert project.sql("select name from proof", branch) == branch
    project.team.wait_ready("dbproject", "shop")


def pods_of(project: Project) -> dict[str, str]:
    """Return the UID of the Postgres pod of each branch, by branch name."""
    listed = project.team.cluster.kubectl(
        *("get", "pods", "-n", NODES, "-l", f"dbranch.io/namespace={project.team.name},dbranch.io/branch"),
        *("-o", "json"),
    )
    items = json.loads(listed.out)["items"]
    return {i["metadata"]["labels"]["dbranch.io/branch"]: i["metadata"]["uid"] for i in items}


def test_postgres_pod_deleted(kept: Project) -> None:
    before = pods_of(kept)
    pod = kept.team.get("dbbranch", "shop-kept")["status"]["node"]["pod"]
    kept.team.cluster.kubectl("delete", "pod", "-n", NODES, pod)
    eventually("Postgres runs in a new pod", lambda: pods_of(kept).get("kept") not in (None, before["kept"]))
    assert_all_data_present(kept)


def test_postgres_pod_deleted_by_force(kept: Project) -> None:
    before = pods_of(kept)
    pod = kept.team.get("dbbranch", "shop-kept")["status"]["node"]["pod"]
    kept.team.cluster.kubectl("delete", "pod", "-n", NODES, pod, "--grace-period=0", "--force")
    eventually("Postgres runs in a new pod", lambda: pods_of(kept).get("kept") not in (None, before["kept"]))
    assert_all_data_present(kept)


def test_agent_pod_deleted_restarts_no_postgres(kept: Project) -> None:
    before, kubectl = pods_of(kept), kept.team.cluster.kubectl
    kubectl("delete", "pod", "-n", NODES, "-l", "app.kubernetes.io/component=agent")
    kubectl("rollout", "status", "-n", NODES, "daemonset/dbranch-agent", "--timeout=120s")
    assert_all_data_present(kept)
    kept.branch("after-agent")
    assert kept.sql("select name from proof", "after-agent") == "main"
    after = pods_of(kept)
    assert {b: after[b] for b in before} == before


def test_controller_deleted(kept: Project) -> None:
    kubectl = kept.team.cluster.kubectl
    kubectl("delete", "pod", "-n", SYSTEM, "-l", "app.kubernetes.io/component=controller")
    assert kept.sql("select name from proof", "kept") == "kept"
    kubectl("rollout", "status", "-n", SYSTEM, "deployment/dbranch-controller", "--timeout=120s")
    kept.branch("after-controller")
    assert_all_data_present(kept)


def test_stop_and_resume_of_a_branch(kept: Project) -> None:
    team = kept.team
    team.dbranch("-p", "shop", "stop", "kept")
    team.wait_reason("dbbranch", "shop-kept", "Ready", "Stopped")
    eventually("the branch's pod is gone", lambda: "kept" not in pods_of(kept))
    assert kept.sql("select name from proof", "kept-2") == "kept-2"
    team.dbranch("-p", "shop", "resume", "kept")
    assert_all_data_present(kept)


def test_stop_and_resume_of_everything(kept: Project) -> None:
    team = kept.team
    team.dbranch("-p", "shop", "stop", "--all", "--yes")
    team.wait_reason("dbproject", "shop", "Ready", "Stopped", 120)
    eventually("no pod is left", lambda: pods_of(kept) == {}, 120)
    uid = team.get("dbproject", "shop")["metadata"]["uid"]
    eventually("unmounted and detached", lambda: uid not in json.dumps(mounted(kept)))
    team.dbranch("-p", "shop", "resume", "--all")
    assert_all_data_present(kept)


def mounted(project: Project) -> list[str]:
    """Return the mounts and the backing files of the loop devices that dbranch holds on the node."""
    footprint = project.team.cluster.footprint()
    return footprint["mounts"] + footprint["loops"]


def test_node_restarted(kept: Project) -> None:
    cluster = kept.team.cluster
    node = kept.team.get("dbproject", "shop")["status"]["nodeName"]
    subprocess.run(["docker", "restart", node], check=True, capture_output=True, timeout=120)
    eventually(
        "the API server answers", lambda: cluster.kubectl("get", "--raw=/readyz", check=False).code == 0, 180
    )
    eventually("the node is Ready again", lambda: node_ready(kept, node), 180)
    cluster.kubectl("rollout", "status", "-n", NODES, "daemonset/dbranch-agent", "--timeout=180s")
    cluster.kubectl("rollout", "status", "-n", SYSTEM, "deployment/dbranch-controller", "--timeout=180s")
    kept.team.kubectl("wait", "--for=condition=Ready", "pod/client", "--timeout=120s")
    eventually("the data can be read", lambda: readable(kept), 180)
    assert_all_data_present(kept)
    kept.branch("after-restart")
    assert kept.sql("select name from proof", "after-restart") == "main"
    uid = kept.team.get("dbproject", "shop")["metadata"]["uid"]
    pools = [m for m in cluster.footprint()["mounts"] if m.endswith(f"mnt/{uid}")]
    assert len(pools) == 1, pools


def node_ready(project: Project, node: str) -> bool:
    """True if the node is Ready within a second."""
    return (
        project.team.cluster.kubectl(
            *("wait", "--for=condition=Ready", f"node/{node}", "--timeout=1s"), check=False
        ).code
        == 0
    )


def readable(project: Project) -> bool:
    """True if a query through the project's connection string returns the root branch's row."""
    return project.team.psql(project.uri(), "select name from proof", check=False).text == "main"
