"""Warm slots: a branch claims a slot whose pod already runs, and the agent starts a replacement."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.cluster import NODES, Namespace, Project, eventually
from tests.e2e.conftest import make_item

# This CPU request sets the project's slots apart from those of the other projects in the cluster.
CPU = "7m"


@pytest.fixture(scope="module")
def warmed(team: Namespace) -> Iterator[Project]:
    """A Ready project with a slot class of its own; its root branch holds the row (1, 'first')."""
    project = Project(team, "warmed")
    manifest = project.manifest()
    manifest["spec"]["postgres"]["resources"] = {"requests": {"cpu": CPU}}
    team.apply(manifest)
    team.wait_ready("dbproject", project.name)
    make_item(project)
    yield project
    project.discard()


def await_warm_slots(project: Project, *others: str, cpu: str = CPU, count: int = 1) -> set[str]:
    """Wait until at least `count` warm slots of this class can be claimed, and all of them, none of `others`.

    Return their names once they have stayed the same for two seconds: their number follows what was asked for lately,
    and a few are started at a time.
    """
    last: set[str] = set()
    since = 0.0

    def claimable() -> set[str]:
        nonlocal last, since
        pods = project.team.cluster.warm_slots()
        of_class = {name: pod for name, pod in pods.items() if cpu_request(pod) == cpu}
        free = {name for name, pod in of_class.items() if name not in others and can_be_claimed(pod)}
        if free != last or not len(of_class) == len(free) >= count:
            last, since = free, time.monotonic()
        return free if time.monotonic() - since >= 2 else set()

    return set(eventually(f"{count} slots are warm", claimable))


def can_be_claimed(pod: dict[str, Any]) -> bool:
    """True if the pod's container runs, by which the agent goes, and the pod is not being deleted."""
    containers = pod["status"].get("containerStatuses", [])
    return "deletionTimestamp" not in pod["metadata"] and any("running" in c["state"] for c in containers)


def cpu_request(pod: dict[str, Any]) -> str | None:
    """Return the CPU request of the pod's first container."""
    requests: dict[str, str] = pod["spec"]["containers"][0]["resources"].get("requests", {})
    return requests.get("cpu")


def slot_of(project: Project, branch: str) -> str:
    """Return the name of the slot that the branch runs in."""
    return str(project.team.get("dbbranch", f"{project.name}-{branch}")["status"]["node"]["slot"])


def test_a_branch_claims_the_warm_slot_and_is_reached_through_it(warmed: Project) -> None:
    warm = await_warm_slots(warmed)
    warmed.branch("taker")
    slot = slot_of(warmed, "taker")
    assert slot in warm
    assert warmed.sql("select name from item where id = 1", "taker") == "first"
    pod = json.loads(warmed.team.cluster.kubectl("get", "pod", "-n", NODES, slot, "-o", "json").out)
    labels = pod["metadata"]["labels"]
    assert labels["dbranch.io/namespace"] == warmed.team.name and labels["dbranch.io/branch"] == "taker"
    await_warm_slots(warmed, slot)


@pytest.mark.calm
def test_the_agents_metrics_count_warm_slots(warmed: Project) -> None:
    await_warm_slots(warmed)
    warmed.branch("counted")
    cluster = warmed.team.cluster
    path = f"/api/v1/namespaces/{NODES}/pods/{{}}:8081/proxy/metrics"

    def metrics() -> list[str]:
        texts = [cluster.kubectl("get", "--raw", path.format(agent)).out for agent in cluster.agent_pods()]
        return "".join(texts).splitlines()

    def warm_starts() -> float:
        starts = [line for line in metrics() if "start_seconds_count" in line and '"warm"' in line]
        return sum(float(line.split()[-1]) for line in starts)

    eventually(
        "the warm slots are counted",
        lambda: any(line.startswith("dbranch_agent_warm_slots{class=") for line in metrics()),
    )
    eventually("a start in a warm slot is counted", lambda: warm_starts() >= 1)
    warmed.discard("counted")


def test_resume_and_restart_claim_a_warm_slot(warmed: Project) -> None:
    warmed.branch("stopped")
    warm = await_warm_slots(warmed, slot_of(warmed, "stopped"))
    warmed.team.dbranch("-p", warmed.name, "stop", "stopped")
    warmed.team.dbranch("-p", warmed.name, "resume", "stopped")
    assert slot_of(warmed, "stopped") in warm
    warm = await_warm_slots(warmed, slot_of(warmed, "stopped"))
    warmed.team.dbranch("-p", warmed.name, "restart", "stopped")
    assert slot_of(warmed, "stopped") in warm
    assert warmed.sql("select name from item where id = 1", "stopped") == "first"


def test_a_restarted_agent_keeps_the_warm_slot(warmed: Project) -> None:
    warm = await_warm_slots(warmed)
    warmed.team.cluster.replace_agents()
    warmed.branch("after")
    assert slot_of(warmed, "after") in warm


def test_a_burst_of_more_branches_than_warm_slots_becomes_ready_and_the_next_is_warm(warmed: Project) -> None:
    warm, names = await_warm_slots(warmed), [f"burst-{n}" for n in range(4)]
    warmed.branches(*names)
    slots = [slot_of(warmed, name) for name in names]
    assert len(set(slots)) == 4 and warm & set(slots)
    for name in names:
        assert warmed.sql("select name from item where id = 1", name) == "first"
    # The next burst finds as many.
    warm = await_warm_slots(warmed, *slots, count=4)
    warmed.branches(*(f"next-{n}" for n in range(4)))
    assert {slot_of(warmed, f"next-{n}") for n in range(4)} <= warm


def test_the_warm_slot_is_shown_and_replaced_when_the_resources_change(warmed: Project) -> None:
    def is_shown() -> bool:
        shown = f"Slots     {len(await_warm_slots(warmed))} warm"
        return shown in warmed.team.dbranch("-p", warmed.name, "status", "-o", "wide").out

    eventually("the CLI shows the warm slots", is_shown)
    slots = await_warm_slots(warmed)
    warmed.patch(postgres={"resources": {"requests": {"cpu": "11m"}}})
    replacements = await_warm_slots(warmed, *slots, cpu="11m")
    eventually(
        "the slots of the old class are gone", lambda: not slots & warmed.team.cluster.warm_slots().keys()
    )
    warmed.branch("newer")
    assert slot_of(warmed, "newer") in replacements
    assert warmed.sql("select name from item where id = 1", "newer") == "first"
