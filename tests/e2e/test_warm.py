"""Slots that wait: a branch takes one that runs already, another is made behind it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.cluster import NODES, Namespace, Project, eventually

# By what its Postgres asks for, the project's slots are told from those of other projects of the cluster.
CPU = "7m"


@pytest.fixture(scope="module")
def shop(team: Namespace) -> Project:
    shop = Project(team, "shop")
    manifest = shop.manifest()
    manifest["spec"]["postgres"]["resources"] = {"requests": {"cpu": CPU}}
    team.apply(manifest)
    team.wait_ready("dbproject", "shop")
    shop.sql("create table item (id int primary key, name text); insert into item values (1, 'first')")
    return shop


def one_waits(project: Project, *others: str, cpu: str = CPU) -> str:
    """The name of the only slot of this class that waits, once it runs and is none of `others`."""

    def found() -> str:
        pods = project.team.cluster.waiting()
        waiting = {name: pod for name, pod in pods.items() if asked_cpu(pod) == cpu}
        phases = {name: pod["status"].get("phase") for name, pod in waiting.items() if name not in others}
        return next(iter(phases)) if len(waiting) == 1 and list(phases.values()) == ["Running"] else ""

    return str(eventually("one slot waits", found))


def asked_cpu(pod: dict[str, Any]) -> str | None:
    requests: dict[str, str] = pod["spec"]["containers"][0]["resources"].get("requests", {})
    return requests.get("cpu")


def slot_of(project: Project, branch: str) -> str:
    return str(project.team.get("dbbranch", f"{project.name}-{branch}")["status"]["node"]["slot"])


def test_a_branch_takes_the_waiting_slot_and_is_reached_through_it(shop: Project) -> None:
    slot = one_waits(shop)
    shop.branch("taker")
    assert slot_of(shop, "taker") == slot
    assert shop.sql("select name from item where id = 1", "taker") == "first"
    pod = json.loads(shop.team.cluster.kubectl("get", "pod", "-n", NODES, slot, "-o", "json").out)
    labels = pod["metadata"]["labels"]
    assert labels["dbranch.io/namespace"] == shop.team.name and labels["dbranch.io/branch"] == "taker"
    one_waits(shop, slot)


def test_the_agents_metrics_tell_of_them(shop: Project) -> None:
    one_waits(shop)
    agents = shop.team.cluster.kubectl(
        *("get", "pods", "-n", NODES, "-l", "app.kubernetes.io/component=agent", "-o", "name")
    ).text.split()
    path = f"/api/v1/namespaces/{NODES}/pods/{{}}:8081/proxy/metrics"
    told = "".join(
        shop.team.cluster.kubectl("get", "--raw", path.format(agent.removeprefix("pod/"))).out
        for agent in agents
    )
    assert "dbranch_agent_warm_slots{class=" in told
    starts = [line for line in told.splitlines() if "start_seconds_count" in line and '"warm"' in line]
    assert sum(float(line.split()[-1]) for line in starts) >= 1


def test_resume_and_restart_take_one(shop: Project) -> None:
    shop.branch("again")
    waiting = one_waits(shop, slot_of(shop, "again"))
    shop.team.dbranch("-p", "shop", "stop", "again")
    shop.team.dbranch("-p", "shop", "resume", "again")
    assert slot_of(shop, "again") == waiting
    waiting = one_waits(shop, waiting)
    shop.team.dbranch("-p", "shop", "restart", "again")
    assert slot_of(shop, "again") == waiting
    assert shop.sql("select name from item where id = 1", "again") == "first"


def test_an_agent_that_comes_back_keeps_it(shop: Project) -> None:
    waiting, cluster = one_waits(shop), shop.team.cluster
    cluster.kubectl("delete", "pod", "-n", NODES, "-l", "app.kubernetes.io/component=agent")
    cluster.kubectl("rollout", "status", "-n", NODES, "daemonset/dbranch-agent", "--timeout=120s")
    shop.branch("after")
    assert slot_of(shop, "after") == waiting


def test_a_burst_beyond_what_waits_is_made_all_the_same(shop: Project) -> None:
    slot, names = one_waits(shop), [f"burst-{n}" for n in range(4)]
    shop.team.apply(*(shop.branch_manifest(name) for name in names))
    for name in names:
        shop.team.wait_ready("dbbranch", f"shop-{name}")
    slots = [slot_of(shop, name) for name in names]
    assert len(set(slots)) == 4 and slot in slots
    for name in names:
        assert shop.sql("select name from item where id = 1", name) == "first"
    one_waits(shop, *slots)


def test_it_is_shown_and_made_anew_for_other_resources(shop: Project) -> None:
    slot = one_waits(shop)
    shown = "1 waiting for the next branch"
    eventually("it is told", lambda: shown in shop.team.dbranch("-p", "shop", "status", "-o", "wide").out)
    shop.patch(postgres={"resources": {"requests": {"cpu": "11m"}}})
    anew = one_waits(shop, slot, cpu="11m")
    eventually("the one of the old class is gone", lambda: slot not in shop.team.cluster.waiting())
    shop.branch("newer")
    assert slot_of(shop, "newer") == anew
    assert shop.sql("select name from item where id = 1", "newer") == "first"
