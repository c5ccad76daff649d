"""Several proxies behind one connection string: Routed is not True while one of them lags behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.cluster import Namespace, Project, eventually

PROXIES = "app.kubernetes.io/component=proxy,dbranch.io/project=shop"
# Twenty new sessions, one after another, through the Service (kube-proxy picks a replica at random for each).
_BURST = 'for i in $(seq 20); do psql "$1" -XAtqc "select name from whoami" || exit 1; done'


@pytest.fixture(scope="module")
def two_proxies(team: Namespace) -> Project:
    """`shop` behind two proxies, with a branch `feature-x`; the table `whoami` of a branch holds its name."""
    shop = Project(team, "shop")
    shop.make(proxy={"replicas": 2})
    shop.branch("feature-x")
    for branch in ("main", "feature-x"):
        shop.sql(f"create table whoami as select '{branch}' as name", branch)
    team.kubectl("rollout", "status", "deployment/shop-proxy", "--timeout=120s")
    return shop


def proxies(project: Project) -> list[str]:
    """Return the names of the project's proxy pods, sorted."""
    listed = project.team.kubectl("get", "pods", "-l", PROXIES, "-o", "jsonpath={.items[*].metadata.name}")
    return sorted(listed.text.split())


def wait_routed(project: Project, branch: str) -> None:
    """Wait until Routed is True for this branch, as `dbranch use` does."""

    def routed() -> bool:
        status = project.team.get("dbproject", "shop")["status"]
        condition = next((c for c in status["conditions"] if c["type"] == "Routed"), {})
        return (
            condition.get("status") == "True"
            and status["route"]["branch"] == branch
            and branch in condition["message"]
        )

    eventually(f"routed to {branch}", routed, 120)


def branches_reached(project: Project) -> set[str]:
    """Open twenty new sessions, one after another; return the names of the branches that they reach."""
    outcome = project.team.kubectl("exec", "client", "--", "sh", "-c", _BURST, "sh", project.uri())
    return set(outcome.text.split())


@contextmanager
def paused_proxy(project: Project, pod: str) -> Iterator[None]:
    """Send SIGSTOP to the proxy of this pod, SIGCONT at the end. Its environment identifies its process."""
    node = project.team.get("pod", pod)["spec"]["nodeName"]

    def send(signal: str) -> None:
        find = f"grep -lzx 'DBRANCH_POD_NAME={pod}' /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3"
        project.team.cluster.on_node(f"kill -{signal} $({find})", node)

    send("STOP")
    try:
        yield
    finally:
        send("CONT")


def test_a_paused_proxy_is_named_and_routed_is_not_true(two_proxies: Project) -> None:
    team, laggard = two_proxies.team, proxies(two_proxies)[0]
    with paused_proxy(two_proxies, laggard):
        two_proxies.patch(activeBranch="feature-x")
        condition = team.wait_reason("dbproject", "shop", "Routed", "ProxyNotReady")
        assert condition["status"] == "False" and laggard in condition["message"]
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            assert team.condition("dbproject", "shop", "Routed")["status"] != "True"
    wait_routed(two_proxies, "feature-x")
    assert branches_reached(two_proxies) == {"feature-x"}


@pytest.mark.parametrize("replicas", [1, 2, 3, 2])
def test_scaling_the_proxies_during_a_switch(two_proxies: Project, replicas: int) -> None:
    """A starting proxy reads the route before it serves; a terminating one is waited for until it is gone."""
    current = two_proxies.team.get("dbproject", "shop")["status"]["route"]["branch"]
    branch = "main" if current == "feature-x" else "feature-x"
    two_proxies.patch(activeBranch=branch, proxy={"replicas": replicas})
    wait_routed(two_proxies, branch)
    assert branches_reached(two_proxies) == {branch}


def test_a_killed_proxy_leaves_the_sessions_of_the_others_alone(two_proxies: Project) -> None:
    team = two_proxies.team
    team.kubectl("rollout", "status", "deployment/shop-proxy", "--timeout=120s")
    branch = team.get("dbproject", "shop")["status"]["route"]["branch"]
    lost = proxies(two_proxies)[0]
    team.kubectl("delete", "pod", lost, "--grace-period=0", "--force")
    eventually("the killed proxy's entry is removed", lambda: lost not in entries(two_proxies))
    team.kubectl("rollout", "status", "deployment/shop-proxy", "--timeout=120s")
    wait_routed(two_proxies, branch)
    assert branches_reached(two_proxies) == {branch}


def entries(project: Project) -> set[str]:
    """Return the names of the pods in `status.proxies`."""
    return {entry["pod"] for entry in project.team.get("dbproject", "shop")["status"]["proxies"]}
