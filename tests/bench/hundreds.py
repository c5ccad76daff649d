"""Two hundred branches of one project: the last beside the first, their cost at rest, the controller's restart."""

from __future__ import annotations

import time

from dbranch.api import names
from dbranch.kube.client import path_of
from tests.bench.counts import more, told
from tests.bench.figures import Result, Row
from tests.bench.release import House, Memory
from tests.bench.stage import Stage
from tests.bench.starts import MS, settle

PROJECT = "many"
# Pods that the node must have room for besides: slots made anew, the client of somebody else.
SPARE = 10
# Made at once where nobody looks at how long one takes.
BATCH = 5
# Seconds: the agent looks at each branch so often, and tells its bytes then if they have changed.
USAGE = 300
WINDOW = 60


def hundreds(stage: Stage, quick: bool) -> Result:
    house = House(stage.cluster)
    stage.project(PROJECT, size="20Gi")
    node = str(stage.told(PROJECT, names.ROOT_BRANCH)["status"]["nodeName"])
    asked = 40 if quick else 200
    count = min(asked, house.room(node) - SPARE)
    edge = 5 if quick else 10
    assert count > 2 * edge, f"node {node} has room for {count} more pods; see maxPods of its kubelet"
    first, last = _make(stage, count, edge)
    ours = f"create with {count - edge} to {count} branches there"
    note = "" if count == asked else f"kubelet admits no more pods than these {count}, {asked} were asked for"
    rows = [Row(ours, f"with 0 to {edge}", last, first, goal=1.2, note=note)]
    rows += _idle(stage, house, count, quick)
    rows += _restarts(stage, house, count, 2 if quick else 3)
    return Result(rows)


def _make(stage: Stage, count: int, edge: int) -> tuple[list[float], list[float]]:
    """Milliseconds of the first and of the last `edge` creates, each of which finds a slot."""

    def one() -> float:
        settle(stage, 300)
        name = stage.fresh("b")
        return stage.ready(PROJECT, name, stage.branch(PROJECT, name)) * MS

    first = [one() for _ in range(edge)]
    left = count - 2 * edge
    while left:
        fresh = [stage.fresh("b") for _ in range(min(BATCH, left))]
        began = time.monotonic()
        for name in fresh:
            stage.branch(PROJECT, name)
        slowest = max(stage.ready(PROJECT, name, began, 300) for name in fresh)
        left -= len(fresh)
        if left % (8 * BATCH) == 0:
            stage.say(f"{count - edge - left} of {count} branches; {len(fresh)} at once took {slowest:.1f} s")
    last = [one() for _ in range(edge)]
    stage.say(f"{count} branches; the last ones took {min(last):.0f} to {max(last):.0f} ms")
    return first, last


def _idle(stage: Stage, house: House, count: int, quick: bool) -> list[Row]:
    """Windows of a minute in which nobody asks for anything."""
    settle(stage, 300)
    # Every branch has been looked at once, and what its start had to say is said.
    quiet = 30 if quick else USAGE + 30
    stage.say(f"{quiet} s of rest, then windows of {WINDOW} s")
    time.sleep(quiet)
    rates: list[float] = []
    found: dict[str, int] = {}
    memory: dict[str, list[Memory]] = {"controller": [], "agent": []}
    for _ in range(1 if quick else 2):
        began, before = time.monotonic(), house.writes()
        time.sleep(WINDOW)
        now = more(house.writes(), before)
        rates.append(sum(now.values()) * 60 / (time.monotonic() - began))
        found = more({key: found.get(key, 0) + now.get(key, 0) for key in {*found, *now}}, {})
        for component, samples in memory.items():
            samples.append(house.memory(component))
        stage.say(f"a minute at rest: {told(now)} written")
    title = f"writes to the API server a minute, {count} branches at rest"
    note = f"of everybody but Kubernetes' own leases, nodes and reviews; these were: {told(found)}"
    rows = [Row(title, "-", rates, unit="a minute", goal=0, part="max", note=note)]
    for component, samples in memory.items():
        title = f"memory of the {component} with {count} branches"
        resident, working = [one.resident for one in samples], [one.working for one in samples]
        rows.append(Row(title, "-", resident, unit="MB", goal=120, part="max", note="of its processes alone"))
        note = "what kubelet evicts by: with the kernel's own for the files that it has looked at"
        rows.append(Row("the same as working set", "-", working, unit="MB", part="max", note=note))
    return rows


def _versions(stage: Stage) -> dict[str, str]:
    """Object -> the version that its last write gave it."""
    return {
        f"{plural}/{body['metadata']['name']}": body["metadata"]["resourceVersion"]
        for plural in (names.PROJECTS, names.BRANCHES)
        for body in stage.cluster.find(path_of(names.API_VERSION, plural, stage.namespace))
    }


def _restarts(stage: Stage, house: House, count: int, rounds: int) -> list[Row]:
    """The controller's pod deleted, to the moment when the next one has visited every branch."""
    took: list[float] = []
    wrote: list[float] = []
    found: dict[str, int] = {}
    changed: set[str] = set()
    said = ""
    for _ in range(rounds):
        before, versions = house.writes(), _versions(stage)
        seconds, line = house.restart_controller("branches visited")
        said = line.partition(" all ")[2]
        assert int(said.split()[0]) > count, line
        took.append(seconds)
        # What a visit has set off is written soon after it.
        time.sleep(10)
        ours = {key: n for key, n in more(house.writes(), before).items() if f".{names.GROUP}" in key}
        wrote.append(sum(ours.values()))
        found = more({key: found.get(key, 0) + ours.get(key, 0) for key in {*found, *ours}}, {})
        changed |= {key for key, version in _versions(stage).items() if versions.get(key) != version}
        stage.say(f"controller's restart: {seconds:.1f} s; {told(ours)} written; {said}")
    return [
        Row(
            f"controller's pod deleted → all {count + 1} branches visited by the next one",
            "-",
            took,
            unit="s",
            goal=10,
            part="max",
            note=f"with the next pod's own start; the last one says: {said}",
        ),
        Row(
            "writes to projects and branches by that",
            "-",
            wrote,
            unit="requests",
            goal=0,
            part="max",
            note=f"requests of {rounds} restarts: {told(found)}; {len(changed)} objects changed by them",
        ),
    ]
