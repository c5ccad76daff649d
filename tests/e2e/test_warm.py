"""Warm slots: a branch claims a slot whose pod already runs, and the agent starts a replacement."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.cluster import NODES, Namespace, Project, eventually

# This CPU request sets the project's slots apart from those of the other projects in the cluster.
CPU = "7m"


@pytest.fixture(scope="module")
def shop(team: Namespace) -> Project:
    """A Ready project `shop` with a slot class of its own; its root branch holds the row (1, 'first')."""
    shop = Project(team, "shop")
    manifest = shop.manifest()
    manifest["spec"]["postgres"]["resources"] = {"requests": {"cpu": CPU}}
    team.apply(manifest)
    team.wait_ready("dbproject", "shop")
    shop.sql("create table item (id int primary key, name text); insert into item values (1, 'first')")
    return shop


def the_only_warm_slot(project: Project, *others: str, cpu: str = CPU) -> str:
    """Wait until exactly one warm slot of this class exists, is Running and is none of `others`; return its name."""

    def only_one() -> str:
        pods = project.team.cluster.warm_slots()
        of_class = {name: pod for name, pod in pods.items() if cpu_request(pod) == cpu}
        phases = {name: pod["status"].get("phase") for name, pod in of_class.items() if name not in others}
        return next(iter(phases)) if len(of_class) == 1 and list(phases.values()) == ["Running"] else ""

    return str(eventually("there is one warm slot, Running", only_one))


def cpu_request(pod: dict[str, Any]) -> str | None:
    """Return the CPU request of the pod's first container."""
    requests: dict[str, str] = pod["spec"]["containers"][0]["resources"].get("requests", {})
    return requests.get("cpu")


def slot_of(project: Project, branch: str) -> str:
    """Return the name of the slot that the branch runs in."""
    return str(project.team.get("dbbranch", f"{project.name}-{branch}")["status"]["node"]["slot"])


def test_a_branch_claims_the_warm_slot_and_is_reached_through_it(shop: Project) -> None:
    slot = the_only_warm_slot(shop)
    shop.branch("taker")
    assert slot_of(shop, "taker") == slot
    assert shop.sql("select name from item where id = 1", "taker") == "first"
    pod = json.loads(shop.team.cluster.kubectl("get", "pod", "-n", NODES, slot, "-o", "json").out)
    labels = pod["metadata"]["labels"]
    assert labels["dbranch.io/namespace"] == shop.team.name and labels["dbranch.io/branch"] == "taker"
    the_only_warm_slot(shop, slot)


def test_the_agents_metrics_count_warm_slots(shop: Project) -> None:
    the_only_warm_slot(shop)
    agents = shop.team.cluster.kubectl(
        *("get", "pods", "-n", NODES, "-l", "app.kubernetes.io/component=agent", "-o", "name")
    ).text.split()
    path = f"/api/v1/namespaces/{NODES}/pods/{{}}:8081/proxy/metrics"
    metrics = "".join(
        shop.team.cluster.kubectl("get", "--raw", path.format(agent.removeprefix("pod/"))).out
        for agent in agents
    )
    assert "dbranch_agent_warm_slots{class=" in metrics
    starts = [line for line in metrics.splitlines() if "start_seconds_count" in line and '"warm"' in line]
    assert sum(float(line.split()[-1]) for line in starts) >= 1


def test_resume_and_restart_claim_a_warm_slot(shop: Project) -> None:
    shop.branch("stopped")
    warm = the_only_warm_slot(shop, slot_of(shop, "stopped"))
    shop.team.dbranch("-p", "shop", "stop", "stopped")
    shop.team.dbranch("-p", "shop", "resume", "stopped")
    assert slot_of(shop, "stopped") == warm
    warm = the_only_warm_slot(shop, warm)
    shop.team.dbranch("-p", "shop", "restart", "stopped")
    assert slot_of(shop, "stopped") == warm
    assert shop.sql("select name from item where id = 1", "stopped") == "first"


def test_a_restarted_agent_keeps_the_warm_slot(shop: Project) -> None:
    warm, cluster = the_only_warm_slot(shop), shop.team.cluster
    cluster.kubectl("delete", "pod", "-n", NODES, "-l", "app.kubernetes.io/component=agent")
    cluster.kubectl("rollout", "status", "-n", NODES, "daemonset/dbranch-agent", "--timeout=120s")
    shop.branch("after")
    assert slot_of(shop, "after") == warm


def test_a_burst_of_more_branches_than_warm_slots_becomes_ready(shop: Project) -> None:
    slot, names = the_only_warm_slot(shop), [f"burst-{n}" for n in range(4)]
    shop.team.apply(*(shop.branch_manifest(name) for name in names))
    for name in names:
        shop.team.wait_ready("dbbranch", f"shop-{name}")
    slots = [slot_of(shop, name) for name in names]
    assert len(set(slots)) == 4 and slot in slots
    for name in names:
        assert shop.sql("select name from item where id = 1", name) == "first"
    the_only_warm_slot(shop, *slots)


def test_the_warm_slot_is_shown_and_replaced_when_the_resources_change(shop: Project) -> None:
    slot = the_only_warm_slot(shop)
    shown = "Slots     1 warm"
    eventually(
        "the CLI shows the warm slot",
        lambda: shown in shop.team.dbranch("-p", "shop", "status", "-o", "wide").out,
    )
    shop.patch(postgres={"resources": {"requests": {"cpu": "11m"}}})
    replacement = the_only_warm_slot(shop, slot, cpu="11m")
    eventually("the slot of the old class is gone", lambda: slot not in shop.team.cluster.warm_slots())
    shop.branch("newer")
    assert slot_of(shop, "newer") == replacement
    assert shop.sql("select name from item where id = 1", "newer") == "first"
