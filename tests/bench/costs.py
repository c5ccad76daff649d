"""What a create, a switch and a deletion cost the API server: writes, reads, and events to all who watch."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from tests.bench.counts import format_counts
from tests.bench.figures import Result, Row
from tests.bench.release import ClusterProbe
from tests.bench.stage import Stage
from tests.bench.starts import wait_idle

PROJECT = "costs"
# What follows an operation a moment later: the number of branches, the sizes, the next warm slot.
REST_SECONDS = 6
# The most writes each, by all clients: kubelet's (seven of a create, for the next warm slot's pod, too) and Events
# (eight) among them. Measured: 31, 9 and 17.
GOALS = {"create": 34, "switch": 12, "delete": 20}


def costs(stage: Stage, quick: bool) -> Result:
    """Count the requests and watch events of each operation, in a project with a few branches."""
    probe, rounds = ClusterProbe(stage.cluster), 3 if quick else 10
    stage.create_project(PROJECT)
    names = [stage.unique_name("cost") for _ in range(2)]
    for name in names:
        stage.create_until_ready(PROJECT, name)
    made: list[str] = []

    def create() -> None:
        made.append(stage.unique_name("cost"))
        stage.create_until_ready(PROJECT, made[-1])

    def switch() -> None:
        names.reverse()
        stage.switch(PROJECT, names[0])

    operations: dict[str, Callable[[], object]] = {
        "create": create,
        "switch": switch,
        "delete": lambda: stage.delete_branches(PROJECT, made.pop()),
    }
    rows: list[Row] = []
    for operation, run in operations.items():
        samples: dict[str, list[float]] = {}
        totals: dict[str, Counter[str]] = {}
        for _ in range(rounds):
            wait_idle(stage)
            time.sleep(REST_SECONDS)
            before = probe.counts()
            run()
            wait_idle(stage)
            time.sleep(REST_SECONDS)
            for quantity, after in probe.counts().items():
                grown = after - before[quantity]
                samples.setdefault(quantity, []).append(grown.total())
                totals.setdefault(quantity, Counter()).update(grown)
        for quantity, counted in samples.items():
            each = {name: round(count / rounds, 1) for name, count in totals[quantity].most_common()}
            stage.say(f"{quantity} of a {operation}: {format_counts(each)}")
            goal = GOALS[operation] if quantity == "writes" else None
            note = f"by all clients; each: {format_counts(each)}"
            rows.append(
                Row(f"{quantity} of a {operation}", "-", counted, unit=quantity, goal=goal, note=note)
            )
    return Result(rows)
