"""Several proxies behind one connection string: Routed is not True while one of them lags behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.e2e.cluster import (
    KUBECTL_TIMEOUT,
    Namespace,
    Project,
    connection_may_be_repeated,
    eventually,
    holds,
)

# Twenty new sessions, one after another, through the Service (kube-proxy picks a replica at random for each).
_BURST = 'for i in $(seq 20); do psql "$1" -XAtqc "select name from whoami" || exit $?; done'


@pytest.fixture(scope="module")
def two_proxies(team: Namespace) -> Project:
    """A project behind two proxies, with a branch `feature-x`; the table `whoami` of a branch holds its name."""
    project = Project(team, "replicated")
    team.apply(project.manifest(proxy={"replicas": 2}), project.branch_manifest("feature-x"))
    team.wait_ready("dbproject", project.name)
    project.wait_ready("feature-x")
    for branch in ("main", "feature-x"):
        project.sql(f"create table whoami as select '{branch}' as name", branch)
    await_rollout(project)
    return project


def await_rollout(project: Project) -> None:
    """Wait until as many proxies are Ready as the project asks for, and no other has a pod."""
    project.team.kubectl("rollout", "status", f"deployment/{project.name}-proxy", KUBECTL_TIMEOUT)


def proxies(project: Project) -> dict[str, dict[str, Any]]:
    """Return the project's proxy pods that are not being deleted, by name."""
    label = f"app.kubernetes.io/component=proxy,dbranch.io/project={project.name}"
    pods = json.loads(project.team.kubectl("get", "pods", "-l", label, "-o", "json").out)["items"]
    return {p["metadata"]["name"]: p for p in pods if "deletionTimestamp" not in p["metadata"]}


def wait_routed(project: Project, branch: str) -> None:
    """Wait until Routed is True for this branch, as `dbranch use` does."""

    def routed() -> bool:
        status = project.status()
        condition = next((c for c in status["conditions"] if c["type"] == "Routed"), {})
        return (
            condition.get("status") == "True"
            and status["route"]["branch"] == branch
            and branch in condition["message"]
        )

    eventually(f"routed to {branch}", routed)


def branches_reached(project: Project) -> set[str]:
    """Open twenty new sessions, one after another; return the names of the branches that they reach.

    kube-proxy may still send a connection to a proxy that has ended: then it is not made, and twenty more follow.
    """
    reached: set[str] = set()
    uri = project.uri()

    def burst() -> bool:
        outcome = project.team.kubectl("exec", "client", "--", "sh", "-c", _BURST, "sh", uri, check=False)
        reached.update(outcome.text.split())
        if connection_may_be_repeated(outcome):
            return False
        assert outcome.code == 0, outcome.output
        return True

    eventually("twenty sessions in a row", burst)
    return reached


@contextmanager
def paused_proxy(project: Project, pod: str) -> Iterator[None]:
    """Send SIGSTOP to the proxy of this pod, SIGCONT at the end, unless its liveness probe has ended it."""
    node = project.team.get("pod", pod)["spec"]["nodeName"]

    def send(signal: str) -> int:
        pids = project.team.cluster.processes_of(f"DBRANCH_POD_NAME={pod}", node)
        for pid in pids:
            project.team.cluster.on_node(f"kill -{signal} {pid} || true", node)
        return len(pids)

    assert send("STOP")
    try:
        yield
    finally:
        send("CONT")


def test_a_paused_proxy_is_named_and_routed_is_not_true(two_proxies: Project) -> None:
    await_rollout(two_proxies)
    laggard = min(proxies(two_proxies))

    def restarts() -> int:
        status = two_proxies.team.get("pod", laggard)["status"]
        return int(status["containerStatuses"][0]["restartCount"])

    before = restarts()
    with paused_proxy(two_proxies, laggard):
        two_proxies.patch(activeBranch="feature-x")
        condition = two_proxies.team.wait_reason("dbproject", two_proxies.name, "Routed", "ProxyNotReady")
        assert condition["status"] == "False" and laggard in condition["message"]
        # A proxy that the liveness probe restarted is not paused any more.
        holds(
            "Routed is not True",
            lambda: (
                two_proxies.team.condition("dbproject", two_proxies.name, "Routed")["status"] != "True"
                or restarts() != before
            ),
        )
    wait_routed(two_proxies, "feature-x")
    assert branches_reached(two_proxies) == {"feature-x"}


@pytest.mark.parametrize("replicas", [1, 2, 3, 2])
def test_scaling_the_proxies_during_a_switch(two_proxies: Project, replicas: int) -> None:
    """A starting proxy reads the route before it serves; a terminating one is waited for until it is gone."""
    branch = "main" if two_proxies.status()["route"]["branch"] == "feature-x" else "feature-x"
    two_proxies.patch(activeBranch=branch, proxy={"replicas": replicas})
    wait_routed(two_proxies, branch)
    assert branches_reached(two_proxies) == {branch}


def test_a_killed_proxy_leaves_the_sessions_of_the_others_alone(two_proxies: Project) -> None:
    team = two_proxies.team
    await_rollout(two_proxies)
    branch = two_proxies.status()["route"]["branch"]
    lost = min(proxies(two_proxies))
    team.kubectl("delete", "pod", lost, "--grace-period=0", "--force")
    eventually("the killed proxy's entry is removed", lambda: lost not in entries(two_proxies))
    await_rollout(two_proxies)
    wait_routed(two_proxies, branch)
    assert branches_reached(two_proxies) == {branch}
    two_proxies.discard()


def entries(project: Project) -> set[str]:
    """Return the names of the pods in `status.proxies`."""
    return {entry["pod"] for entry in project.status()["proxies"]}
