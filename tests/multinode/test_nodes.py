"""Projects on several nodes: bound, spread, cordoned, drained, restarted, silent, emptied, gone.

In this order: the last test takes a node out of the cluster.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.cluster import Namespace, Project, eventually


@pytest.fixture(scope="module")
def pair(team: Namespace, workers: list[str]) -> dict[str, Project]:
    """A project on each worker, by the worker's name, each with a row that tells where it is."""
    found = {}
    for number, node in enumerate(workers):
        project = Project(team, f"on-{number}")
        home = {"size": "1Gi", "nodeSelector": {"kubernetes.io/hostname": node}}
        project.make(storage=home, proxy={"replicas": 2})
        project.sql(f"create table home as select '{node}' as node")
        found[node] = project
    return found


def node_of(project: Project) -> str:
    return str(project.team.get("dbproject", project.name)["status"]["nodeName"])


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], check=True, capture_output=True, text=True, timeout=180)
    return done.stdout.strip()


def is_home(project: Project, branch: str = "main") -> None:
    """The project answers from its own node's data, through its connection string and its branch's Service."""
    project.team.wait_ready("dbproject", project.name, 240)
    node = node_of(project)
    assert project.sql("select node from home") == node
    assert project.sql("select node from home", branch) == node


def test_a_selector_and_the_taints_are_obeyed(pair: dict[str, Project], workers: list[str]) -> None:
    for node, project in pair.items():
        assert node_of(project) == node
        is_home(project)
    nowhere = Project(next(iter(pair.values())).team, "nowhere")
    nowhere.team.apply(nowhere.manifest(storage={"size": "1Gi", "nodeSelector": {"disk": "golden"}}))
    waits = nowhere.team.wait_reason("dbproject", "nowhere", "Scheduled", "NoEligibleNode")
    assert "disk=golden" in waits["message"]
    label = ("label", "node", workers[0])
    nowhere.team.cluster.kubectl(*label, "disk=golden")
    nowhere.team.wait_ready("dbproject", "nowhere")
    assert node_of(nowhere) == workers[0]
    nowhere.team.cluster.kubectl(*label, "disk-")
    nowhere.team.kubectl("delete", "dbproject", "nowhere", "--timeout=120s")


def test_projects_are_spread(team: Namespace, workers: list[str]) -> None:
    """Nodes with the same disk: what is promised to the projects there already counts."""
    made = [Project(team, f"spread-{number}") for number in range(4)]
    for project in made:
        project.make(storage={"size": "8Gi"})
    homes = [node_of(project) for project in made]
    assert {homes.count(node) for node in workers} == {2}, homes
    for project in made:
        team.kubectl("delete", "dbproject", project.name, "--timeout=120s")


def test_a_cordoned_node_gets_no_new_project_and_keeps_its_own(
    pair: dict[str, Project], workers: list[str]
) -> None:
    first, second = workers
    project = pair[first]
    kubectl = project.team.cluster.kubectl
    kubectl("cordon", first)
    try:
        newcomer = Project(project.team, "newcomer")
        newcomer.make()
        assert node_of(newcomer) == second
        project.branch("cordoned")
        is_home(project, "cordoned")
        newcomer.team.kubectl("delete", "dbproject", "newcomer", "--timeout=120s")
    finally:
        kubectl("uncordon", first)


def test_a_node_is_drained_restarted_and_uncordoned(pair: dict[str, Project], workers: list[str]) -> None:
    node = workers[0]
    project, other = pair[node], pair[workers[1]]
    cluster = project.team.cluster
    cluster.kubectl(
        *("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=180s")
    )
    docker("restart", node)
    cluster.kubectl("wait", "--for=condition=Ready", f"node/{node}", "--timeout=180s")
    cluster.kubectl("uncordon", node)
    is_home(other)
    is_home(project)
    is_home(project, "cordoned")
    project.branch("after-drain", "cordoned")
    is_home(project, "after-drain")


@contextmanager
def silent(node: str) -> Iterator[None]:
    docker("pause", node)
    try:
        yield
    finally:
        docker("unpause", node)


def test_a_silent_node_is_unknown_and_comes_back(pair: dict[str, Project], workers: list[str]) -> None:
    node, team = workers[0], pair[workers[0]].team
    project = pair[node]
    with silent(node):
        told = team.wait_reason("dbproject", project.name, "Ready", "NodeNotReady", 180)
        assert told["status"] == "Unknown" and node in told["message"]
        told = team.wait_reason("dbbranch", f"{project.name}-main", "Ready", "NodeNotReady")
        assert told["status"] == "Unknown"
        assert team.condition("dbproject", project.name, "Stalled") == {}
        assert team.condition("dbproject", pair[workers[1]].name, "Ready")["status"] == "True"
    team.cluster.kubectl("wait", "--for=condition=Ready", f"node/{node}", "--timeout=180s")
    is_home(project)


def base_of(node: str) -> str:
    """The node's own /var, seen from outside."""
    mounts = json.loads(docker("inspect", "-f", "{{json .Mounts}}", node))
    return next(m["Source"] for m in mounts if m["Destination"] == "/var") + "/lib/dbranch"


def test_a_node_that_comes_back_empty_makes_nothing_anew(
    pair: dict[str, Project], workers: list[str]
) -> None:
    node = workers[0]
    project, base = pair[node], base_of(node)
    team = project.team
    docker("stop", node)
    subprocess.run(["mv", base, f"{base}.aside"], check=True)
    docker("start", node)
    lost = team.wait_reason("dbproject", project.name, "StorageReady", "PoolLost", 240)
    assert team.condition("dbproject", project.name, "Stalled")["status"] == "True"
    assert "nothing is made" in lost["message"]
    assert team.cluster.on_node("ls /var/lib/dbranch/pools/*.img 2>/dev/null || true", node) == ""
    docker("stop", node)
    subprocess.run(["rm", "-r", base], check=True)
    subprocess.run(["mv", f"{base}.aside", base], check=True)
    docker("start", node)
    team.cluster.kubectl("wait", "--for=condition=Ready", f"node/{node}", "--timeout=180s")
    team.wait_reason("dbproject", project.name, "StorageReady", "PoolMounted", 240)
    is_home(project)
    is_home(project, "cordoned")


def test_a_node_that_is_gone_lets_go_and_is_swept_when_it_returns(
    pair: dict[str, Project], workers: list[str]
) -> None:
    node = workers[0]
    project = pair[node]
    team, cluster = project.team, project.team.cluster
    uid = team.get("dbproject", project.name)["metadata"]["uid"]
    docker("stop", node)
    cluster.kubectl("delete", "node", node)
    team.wait_reason("dbproject", project.name, "Ready", "NodeGone", 240)
    assert team.condition("dbproject", project.name, "Stalled")["status"] == "True"
    team.kubectl("delete", "dbproject", project.name, "--timeout=120s")
    is_home(pair[workers[1]])
    # It returns: what nobody names any more is kept for the grace, and then removed.
    docker("start", node)
    cluster.kubectl("wait", "--for=create", f"node/{node}", "--timeout=180s")
    eventually(
        "the pool of the project that is gone is kept",
        lambda: f"{uid}.unclaimed" in cluster.on_node("ls /var/lib/dbranch/pools", node, check=False),
        180,
    )
    assert f"{uid}.img" in cluster.on_node("ls /var/lib/dbranch/pools", node)
    cluster.install("--set", "agent.orphanGracePeriod=1s")
    eventually(
        "it is removed after the grace",
        lambda: uid not in cluster.on_node("ls /var/lib/dbranch/pools /var/lib/dbranch/mnt", node),
        240,
    )
    assert f"{uid}.img" not in cluster.on_node("cat /sys/block/loop*/loop/backing_file || true", node)
