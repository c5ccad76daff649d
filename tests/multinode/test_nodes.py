"""Projects on several nodes: scheduled and spread; a node cordoned, drained, paused, emptied, removed.

The order matters: the last test removes a node from the cluster.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest

from tests.e2e.cluster import KUBECTL_TIMEOUT, Cluster, Namespace, Project, eventually, run


@pytest.fixture(scope="module")
def project_on(team: Namespace, workers: list[str]) -> dict[str, Project]:
    """A project on each worker, by the worker's name; its table `location` holds that name."""
    projects = {node: Project(team, f"on-{number}") for number, node in enumerate(workers)}
    for node, project in projects.items():
        team.apply(project.manifest(storage=storage_on(node), proxy={"replicas": 2}))
    for node, project in projects.items():
        team.wait_ready("dbproject", project.name)
        project.sql(f"create table location as select '{node}' as node")
    return projects


def storage_on(node: str) -> dict[str, Any]:
    """Return the storage of a project that is bound to this node."""
    return {"size": "1Gi", "nodeSelector": {"kubernetes.io/hostname": node}}


def node_of(project: Project) -> str:
    """Return the name of the node that the project is bound to."""
    return str(project.status()["nodeName"])


def docker(*args: str) -> str:
    """Run docker; return its standard output."""
    return run(["docker", *args]).text


def await_node(cluster: Cluster, node: str) -> None:
    """Wait until the node's kubelet reports, and the node is Ready.

    That it is Ready may be what it last reported before a disturbance: its lease says when it reports again.
    """
    lease = ("get", "lease", node, "-n", "kube-node-lease", "-o", "jsonpath={.spec.renewTime}")
    before = cluster.kubectl(*lease).text
    eventually(f"{node} renews its lease", lambda: cluster.kubectl(*lease).text != before)
    cluster.kubectl("wait", "--for=condition=Ready", f"node/{node}", KUBECTL_TIMEOUT)


def assert_served_from_its_node(project: Project, branch: str = "main") -> None:
    """Query the project through its connection string and the branch's Service; both must return its node's row."""
    project.team.wait_ready("dbproject", project.name)
    node = node_of(project)
    assert project.sql("select node from location") == node
    assert project.sql("select node from location", branch) == node


def test_node_selectors_and_taints_are_respected(project_on: dict[str, Project], workers: list[str]) -> None:
    for node, project in project_on.items():
        assert node_of(project) == node
        assert_served_from_its_node(project)
    nowhere = Project(next(iter(project_on.values())).team, "nowhere")
    nowhere.team.apply(nowhere.manifest(storage={"size": "1Gi", "nodeSelector": {"disk": "golden"}}))
    condition = nowhere.team.wait_reason("dbproject", "nowhere", "Scheduled", "NoEligibleNode")
    assert "disk=golden" in condition["message"]
    label = ("label", "node", workers[0])
    nowhere.team.cluster.kubectl(*label, "disk=golden")
    nowhere.team.wait_ready("dbproject", "nowhere")
    assert node_of(nowhere) == workers[0]
    nowhere.team.cluster.kubectl(*label, "disk-")
    nowhere.delete()


def test_projects_are_spread(team: Namespace, workers: list[str]) -> None:
    """Both nodes have the same disk, so the sizes of the projects bound to a node decide.

    Each agent reports the disk's free bytes at another time, and not for a change of less than 5 %, so the sizes (of
    sparse files) are far above that.
    """
    free = int(team.cluster.on_node("df --output=avail -B1 /var/lib/dbranch | tail -n 1", workers[0]))
    size = f"{max(8, free // 4 // 2**30)}Gi"
    projects = [Project(team, f"spread-{number}") for number in range(4)]
    for project in projects:
        project.make(storage={"size": size})
    nodes = [node_of(project) for project in projects]
    assert {nodes.count(node) for node in workers} == {2}, nodes
    for project in projects:
        project.discard()


def await_controller_sees_cordon(team: Namespace, node: str) -> None:
    """Create projects for a cordoned node until the controller, which has nodes in a cache, schedules one nowhere."""
    numbers = count()

    def not_scheduled() -> bool:
        probe = Project(team, f"probe-{next(numbers)}")
        team.apply(probe.manifest(storage=storage_on(node)))
        scheduled = eventually(
            f"{probe.name} is scheduled or not", lambda: team.condition("dbproject", probe.name, "Scheduled")
        )
        probe.discard()
        return str(scheduled["reason"]) == "NoEligibleNode"

    eventually("the controller sees that the node is cordoned", not_scheduled)


def test_a_cordoned_node_gets_no_new_project_and_keeps_its_own(
    project_on: dict[str, Project], workers: list[str]
) -> None:
    first, second = workers
    project = project_on[first]
    kubectl = project.team.cluster.kubectl
    kubectl("cordon", first)
    try:
        await_controller_sees_cordon(project.team, first)
        newcomer = Project(project.team, "newcomer")
        newcomer.make()
        assert node_of(newcomer) == second
        project.branch("cordoned")
        assert_served_from_its_node(project, "cordoned")
        newcomer.discard()
    finally:
        kubectl("uncordon", first)


def test_a_node_is_drained_restarted_and_uncordoned(
    project_on: dict[str, Project], workers: list[str]
) -> None:
    node = workers[0]
    project, other = project_on[node], project_on[workers[1]]
    cluster = project.team.cluster
    cluster.kubectl(
        *("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", KUBECTL_TIMEOUT)
    )
    docker("restart", node)
    await_node(cluster, node)
    cluster.kubectl("uncordon", node)
    assert_served_from_its_node(other)
    assert_served_from_its_node(project)
    assert_served_from_its_node(project, "cordoned")
    project.branch("after-drain", "cordoned")
    assert_served_from_its_node(project, "after-drain")


@contextmanager
def paused_node(node: str) -> Iterator[None]:
    """Pause the node's container, so that its kubelet stops reporting; unpause it at the end.

    After five minutes its pods would be evicted.
    """
    docker("pause", node)
    try:
        yield
    finally:
        docker("unpause", node)


def test_projects_of_a_paused_node_are_unknown_and_recover(
    project_on: dict[str, Project], workers: list[str]
) -> None:
    node, team = workers[0], project_on[workers[0]].team
    project = project_on[node]
    with paused_node(node):
        condition = team.wait_reason("dbproject", project.name, "Ready", "NodeNotReady")
        assert condition["status"] == "Unknown" and node in condition["message"]
        condition = team.wait_reason("dbbranch", f"{project.name}-main", "Ready", "NodeNotReady")
        assert condition["status"] == "Unknown"
        assert team.condition("dbproject", project.name, "Stalled") == {}
        assert team.condition("dbproject", project_on[workers[1]].name, "Ready")["status"] == "True"
    await_node(team.cluster, node)
    assert_served_from_its_node(project)


def base_directory_of(node: str) -> str:
    """Return dbranch's base directory on the node as a path of this machine: in the volume mounted at /var."""
    mounts = json.loads(docker("inspect", "-f", "{{json .Mounts}}", node))
    return next(m["Source"] for m in mounts if m["Destination"] == "/var") + "/lib/dbranch"


def test_a_node_that_comes_back_empty_creates_no_new_data(
    project_on: dict[str, Project], workers: list[str]
) -> None:
    node = workers[0]
    project, base = project_on[node], base_directory_of(node)
    team = project.team
    docker("stop", node)
    subprocess.run(["mv", base, f"{base}.aside"], check=True)
    docker("start", node)
    lost = team.wait_reason("dbproject", project.name, "StorageReady", "PoolLost")
    team.wait_stalled("dbproject", project.name)
    assert "nothing is created" in lost["message"]
    assert team.cluster.names_in("pools/*.img", node) == []
    docker("stop", node)
    subprocess.run(["rm", "-r", base], check=True)
    subprocess.run(["mv", f"{base}.aside", base], check=True)
    docker("start", node)
    await_node(team.cluster, node)
    team.wait_reason("dbproject", project.name, "StorageReady", "PoolMounted")
    assert_served_from_its_node(project)
    assert_served_from_its_node(project, "cordoned")


def test_projects_of_a_deleted_node_can_be_deleted_and_its_pools_are_kept_on_return(
    project_on: dict[str, Project], workers: list[str]
) -> None:
    node = workers[0]
    project = project_on[node]
    team, cluster = project.team, project.team.cluster
    uid = team.get("dbproject", project.name)["metadata"]["uid"]
    docker("stop", node)
    cluster.kubectl("delete", "node", node)
    team.wait_reason("dbproject", project.name, "Ready", "NodeGone")
    team.wait_stalled("dbproject", project.name)
    project.delete()
    assert_served_from_its_node(project_on[workers[1]])
    # The node returns: data that nobody asked its agent to remove is kept, shown, and removed on request.
    docker("start", node)
    cluster.kubectl("wait", "--for=create", f"node/{node}", KUBECTL_TIMEOUT)

    def pools() -> list[str]:
        return cluster.names_in("pools/*", node)

    cluster.install("--set", "agent.housekeepingInterval=2s")
    listed = ("orphan", "list", "-o", "name")
    eventually(
        "the deleted project's pool is shown as an orphan",
        lambda: uid in team.dbranch(*listed).text.split(),
    )
    assert f"pools/{uid}.img" in pools()
    team.dbranch("orphan", "delete", uid, "--yes")
    assert not any(uid in name for name in cluster.names_in("pools/* mnt/*", node))
    attached = "cat /sys/block/loop*/loop/backing_file 2>/dev/null || true"
    eventually("its loop device is detached", lambda: f"{uid}.img" not in cluster.on_node(attached, node))
