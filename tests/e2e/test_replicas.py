"""Several proxies behind one connection string: the switch is not said to be over while one of them lags."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.cluster import Namespace, Project, eventually

PROXIES = "app.kubernetes.io/component=proxy,dbranch.io/project=shop"
# What a burst of new sessions asks, one after the other, through the Service (kube-proxy draws a replica for each).
_BURST = 'for i in $(seq 20); do psql "$1" -XAtqc "select name from whoami" || exit 1; done'


@pytest.fixture(scope="module")
def two(team: Namespace) -> Project:
    """`shop` behind two proxies, with a branch `feature-x`, each branch telling its name."""
    shop = Project(team, "shop")
    shop.make(proxy={"replicas": 2})
    shop.branch("feature-x")
    for branch in ("main", "feature-x"):
        shop.sql(f"create table whoami as select '{branch}' as name", branch)
    team.kubectl("rollout", "status", "deployment/shop-proxy", "--timeout=120s")
    return shop


def proxies(project: Project) -> list[str]:
    listed = project.team.kubectl("get", "pods", "-l", PROXIES, "-o", "jsonpath={.items[*].metadata.name}")
    return sorted(listed.text.split())


def wait_routed(project: Project, branch: str) -> None:
    """Until Routed is True of this branch, as `dbranch use` waits."""

    def routed() -> bool:
        status = project.team.get("dbproject", "shop")["status"]
        told = next((c for c in status["conditions"] if c["type"] == "Routed"), {})
        return (
            told.get("status") == "True" and status["route"]["branch"] == branch and branch in told["message"]
        )

    eventually(f"routed to {branch}", routed, 120)


def burst(project: Project) -> set[str]:
    """The branches that twenty new sessions, one after the other, reach."""
    said = project.team.kubectl("exec", "client", "--", "sh", "-c", _BURST, "sh", project.uri())
    return set(said.text.split())


@contextmanager
def standing_still(project: Project, pod: str) -> Iterator[None]:
    """The proxy of this pod gets SIGSTOP, and SIGCONT behind it; its process is known by its environment."""
    node = project.team.get("pod", pod)["spec"]["nodeName"]

    def send(signal: str) -> None:
        find = f"grep -lzx 'DBRANCH_POD_NAME={pod}' /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3"
        project.team.cluster.on_node(f"kill -{signal} $({find})", node)

    send("STOP")
    try:
        yield
    finally:
        send("CONT")


def test_a_proxy_that_stands_still_is_named_and_nothing_is_claimed(two: Project) -> None:
    team, laggard = two.team, proxies(two)[0]
    with standing_still(two, laggard):
        two.patch(activeBranch="feature-x")
        told = team.wait_reason("dbproject", "shop", "Routed", "ProxyNotReady")
        assert told["status"] == "False" and laggard in told["message"]
        until = time.monotonic() + 5
        while time.monotonic() < until:
            assert team.condition("dbproject", "shop", "Routed")["status"] != "True"
    wait_routed(two, "feature-x")
    assert burst(two) == {"feature-x"}


@pytest.mark.parametrize("replicas", [1, 2, 3, 2])
def test_proxies_come_and_go_at_the_switch(two: Project, replicas: int) -> None:
    """One that starts reads before it serves; one that ends is waited for as long as it is there."""
    now = two.team.get("dbproject", "shop")["status"]["route"]["branch"]
    branch = "main" if now == "feature-x" else "feature-x"
    two.patch(activeBranch=branch, proxy={"replicas": replicas})
    wait_routed(two, branch)
    assert burst(two) == {branch}


def test_a_proxy_that_is_killed_takes_no_other_session_along(two: Project) -> None:
    team = two.team
    team.kubectl("rollout", "status", "deployment/shop-proxy", "--timeout=120s")
    branch = team.get("dbproject", "shop")["status"]["route"]["branch"]
    lost = proxies(two)[0]
    team.kubectl("delete", "pod", lost, "--grace-period=0", "--force")
    eventually("its entry is gone", lambda: lost not in entries(two))
    team.kubectl("rollout", "status", "deployment/shop-proxy", "--timeout=120s")
    wait_routed(two, branch)
    assert burst(two) == {branch}


def entries(project: Project) -> set[str]:
    return {entry["pod"] for entry in project.team.get("dbproject", "shop")["status"]["proxies"]}
