"""Projects on several nodes: scheduled and spread; a node cordoned, drained, paused, emptied, removed.

The order matters: the last test removes a node from the cluster.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.cluster import Namespace, Project, eventually


@pytest.fixture(scope="module")
def project_on(team: Namespace, workers: list[str]) -> dict[str, Project]:
    """A project on each worker, by the worker's name; its table `location` holds that name."""
    projects = {}
    for number, node in enumerate(workers):
        project = Project(team, f"on-{number}")
        storage = {"size": "1Gi", "nodeSelector": {"kubernetes.io/hostname": node}}
        project.make(storage=storage, proxy={"replicas": 2})
        project.sql(f"create table location as select '{node}' as node")
        projects[node] = project
    return projects


def node_of(project: Project) -> str:
    """Return the name of the node that the project is bound to."""
    return str(project.team.get("dbproject", project.name)["status"]["nodeName"])


def docker(*args: str) -> str:
    """Run docker; return its standard output."""
    done = subprocess.run(["docker", *args], check=True, capture_output=True, text=True, timeout=180)
    return done.stdout.strip()


def assert_served_from_its_node(project: Project, branch: str = "main") -> None:
    """Query the project through its connection string and the branch's Service; both must return its node's row."""
    project.team.wait_ready("dbproject", project.name, 240)
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
    nowhere.team.kubectl("delete", "dbproject", "nowhere", "--timeout=120s")


def test_projects_are_spread(team: Namespace, workers: list[str]) -> None:
    """Both nodes have the same disk, so the sizes of the projects bound to a node decide."""
    projects = [Project(team, f"spread-{number}") for number in range(4)]
    for project in projects:
        project.make(storage={"size": "8Gi"})
    nodes = [node_of(project) for project in projects]
    assert {nodes.count(node) for node in workers} == {2}, nodes
    for project in projects:
        team.kubectl("delete", "dbproject", project.name, "--timeout=120s")


def test_a_cordoned_node_gets_no_new_project_and_keeps_its_own(
    project_on: dict[str, Project], workers: list[str]
) -> None:
    first, second = workers
    project = project_on[first]
    kubectl = project.team.cluster.kubectl
    kubectl("cordon", first)
    try:
        newcomer = Project(project.team, "newcomer")
        newcomer.make()
        assert node_of(newcomer) == second
        project.branch("cordoned")
        assert_served_from_its_node(project, "cordoned")
        newcomer.team.kubectl("delete", "dbproject", "newcomer", "--timeout=120s")
    finally:
        kubectl("uncordon", first)


def test_a_node_is_drained_restarted_and_uncordoned(
    project_on: dict[str, Project], workers: list[str]
) -> None:
    node = workers[0]
    project, other = project_on[node], project_on[workers[1]]
    cluster = project.team.cluster
    cluster.kubectl(
        *("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=180s")
    )
    docker("restart", node)
    cluster.kubectl("wait", "--for=condition=Ready", f"node/{node}", "--timeout=180s")
    cluster.kubectl("uncordon", node)
    assert_served_from_its_node(other)
    assert_served_from_its_node(project)
    assert_served_from_its_node(project, "cordoned")
    project.branch("after-drain", "cordoned")
    assert_served_from_its_node(project, "after-drain")


@contextmanager
def paused_node(node: str) -> Iterator[None]:
    """Pause the node's container, so that its kubelet stops reporting; unpause it at the end."""
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
        condition = team.wait_reason("dbproject", project.name, "Ready", "NodeNotReady", 180)
        assert condition["status"] == "Unknown" and node in condition["message"]
        condition = team.wait_reason("dbbranch", f"{project.name}-main", "Ready", "NodeNotReady")
        assert condition["status"] == "Unknown"
        assert team.condition("dbproject", project.name, "Stalled") == {}
        assert team.condition("dbproject", project_on[workers[1]].name, "Ready")["status"] == "True"
    team.cluster.kubectl("wait", "--for=condition=Ready", f"node/{node}", "--timeout=180s")
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
    lost = team.wait_reason("dbproject", project.name, "StorageReady", "PoolLost", 240)
    assert team.condition("dbproject", project.name, "Stalled")["status"] == "True"
    assert "nothing is created" in lost["message"]
    assert team.cluster.on_node("ls /var/lib/dbranch/pools/*.img 2>/dev/null || true", node) == ""
    docker("stop", node)
    subprocess.run(["rm", "-r", base], check=True)
    subprocess.run(["mv", f"{base}.aside", base], check=True)
    docker("start", node)
    team.cluster.kubectl("wait", "--for=condition=Ready", f"node/{node}", "--timeout=180s")
    team.wait_reason("dbproject", project.name, "StorageReady", "PoolMounted", 240)
    assert_served_from_its_node(project)
    assert_served_from_its_node(project, "cordoned")


def test_projects_of_a_deleted_node_can_be_deleted_and_its_pools_are_removed_on_return(
    project_on: dict[str, Project], workers: list[str]
) -> None:
    node = workers[0]
    project = project_on[node]
    team, cluster = project.team, project.team.cluster
    uid = team.get("dbproject", project.name)["metadata"]["uid"]
    docker("stop", node)
    cluster.kubectl("delete", "node", node)
    team.wait_reason("dbproject", project.name, "Ready", "NodeGone", 240)
    assert team.condition("dbproject", project.name, "Stalled")["status"] == "True"
    team.kubectl("delete", "dbproject", project.name, "--timeout=120s")
    assert_served_from_its_node(project_on[workers[1]])
    # The node returns: data that no object names is kept for the grace period, then removed.
    docker("start", node)
    cluster.kubectl("wait", "--for=create", f"node/{node}", "--timeout=180s")
    eventually(
        "the deleted project's pool is kept as an orphan",
        lambda: f"{uid}.orphan" in cluster.on_node("ls /var/lib/dbranch/pools", node, check=False),
        180,
    )
    assert f"{uid}.img" in cluster.on_node("ls /var/lib/dbranch/pools", node)
    cluster.install("--set", "agent.orphanGracePeriod=1s")
    eventually(
        "the orphan is removed after the grace period",
        lambda: uid not in cluster.on_node("ls /var/lib/dbranch/pools /var/lib/dbranch/mnt", node),
        240,
    )
    assert f"{uid}.img" not in cluster.on_node("cat /sys/block/loop*/loop/backing_file || true", node)
