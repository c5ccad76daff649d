"""A proxy in a namespace with a quota, reachable from outside of the cluster, and safe from a drain of its nodes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.cluster import KUBECTL_TIMEOUT, Namespace, Project, eventually

NODE_PORT = 31543
QUOTA: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "limited"},
    "spec": {"hard": {"limits.cpu": "4", "limits.memory": "2Gi"}},
}


def node_address(team: Namespace) -> str:
    node = json.loads(team.cluster.kubectl("get", "nodes", "-o", "json").out)["items"][0]
    return next(str(a["address"]) for a in node["status"]["addresses"] if a["type"] == "InternalIP")


def proxy_pods(project: Project) -> list[dict[str, Any]]:
    label = f"app.kubernetes.io/component=proxy,dbranch.io/project={project.name}"
    items: list[dict[str, Any]] = json.loads(
        project.team.kubectl("get", "pods", "-l", label, "-o", "json").out
    )["items"]
    return [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]


def evict(team: Namespace, pod: str) -> str:
    """Ask for the eviction of a pod, as `kubectl drain` does; return the API server's refusal, or nothing."""
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": team.name}}
    path = f"/api/v1/namespaces/{team.name}/pods/{pod}/eviction"
    outcome = team.cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body), check=False)
    return "" if outcome.code == 0 else outcome.output


@pytest.fixture(scope="module")
def fitted(other_team: Namespace) -> Project:
    """A project whose namespace asks for limits, with two proxies and a branch `x`, reachable at a node's port."""
    team, project = other_team, Project(other_team, "fitted")
    team.apply(QUOTA)
    eventually("the quota counts", lambda: team.get("resourcequota", "limited").get("status", {}).get("hard"))
    team.apply(project.manifest(proxy={"replicas": 2}))
    team.wait_reason("dbproject", project.name, "Routed", "ProxyNotReady")
    eventually(
        "the quota's sentence",
        lambda: "must specify limits.cpu" in team.condition("dbproject", project.name, "Routed")["message"],
    )
    project.patch(
        proxy={
            "resources": {
                # Without requests they would be the limits, for which a small node has no room.
                "requests": {"cpu": "10m", "memory": "32Mi"},
                "limits": {"cpu": "500m", "memory": "128Mi"},
            },
            "podLabels": {"team": "fitted"},
            "tolerations": [{"key": "dedicated", "operator": "Exists"}],
            "serviceType": "NodePort",
            "service": {"nodePort": NODE_PORT, "annotations": {"example.com/pool": "one"}},
            "externalHost": node_address(team),
            "externalPort": NODE_PORT,
        }
    )
    team.wait_ready("dbproject", project.name)
    project.branches("x")
    team.kubectl("rollout", "status", "deployment/fitted-proxy", KUBECTL_TIMEOUT)
    return project


def test_the_pods_have_what_the_project_asks_for(fitted: Project) -> None:
    for pod in proxy_pods(fitted):
        assert pod["metadata"]["labels"]["team"] == "fitted"
        limits = pod["spec"]["containers"][0]["resources"]["limits"]
        assert limits == {"cpu": "500m", "memory": "128Mi"}


def test_a_branch_is_reached_from_outside_and_the_log_says_by_whom(fitted: Project) -> None:
    fitted.sql("create table whoami as select 'x' as name", "x")
    uri = fitted.team.secret("fitted-x-conn")["external-uri"]
    assert f":{NODE_PORT}/" in uri
    assert fitted.team.sql(f"{uri}&application_name=e2e-outside", "select name from whoami") == "x"
    generation = fitted.status()["route"]["generation"]

    def logged() -> bool:
        label = "app.kubernetes.io/component=proxy,dbranch.io/project=fitted"
        log = fitted.team.kubectl("logs", "-l", label, "--tail=-1").out
        lines = [line for line in log.splitlines() if "e2e-outside" in line]
        return any('"x"' in line and str(generation) in line and "generation" in line for line in lines)

    eventually("the session's line", logged)


def test_a_drain_leaves_a_proxy_and_the_budget_goes_with_the_second_one(fitted: Project) -> None:
    team = fitted.team
    pods = sorted(pod["metadata"]["name"] for pod in proxy_pods(fitted))
    assert len(pods) == 2
    eventually(
        "the budget has counted the pods",
        lambda: team.get("pdb", "fitted-proxy").get("status", {}).get("currentHealthy") == 2,
    )
    node = team.get("pod", pods[0])["spec"]["nodeName"]
    # No node for the successor of the first one.
    team.cluster.kubectl("cordon", node)
    try:
        assert evict(team, pods[0]) == ""
        assert "disruption budget" in evict(team, pods[1])
    finally:
        team.cluster.kubectl("uncordon", node)
    team.kubectl("rollout", "status", "deployment/fitted-proxy", KUBECTL_TIMEOUT)
    fitted.patch(proxy={"replicas": 1})
    eventually("no budget", lambda: not team.exists("pdb", "fitted-proxy"))
    team.wait_ready("dbproject", fitted.name)
