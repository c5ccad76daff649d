"""Two hundred branches of one project: creation and deletion, cost at idle, restart of the controller."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from dbranch.agent.timing import READINESS_PERIOD_SECONDS
from dbranch.api import names
from dbranch.kube.client import path_of
from tests.bench.counts import format_counts, growth
from tests.bench.figures import Result, Row
from tests.bench.meter import Meter, cost_rows, processor_row
from tests.bench.release import ClusterProbe, Memory
from tests.bench.stage import Stage
from tests.bench.starts import MS, wait_idle
from tests.bench.trace import Trace, grown_steps, trace_of

PROJECT = "many"
# Pods that the node must admit besides: replaced warm slots, and those of other users of the cluster.
SPARE_PODS = 10
# Branches that are created at once between the first and the last ones, which are timed one by one.
BATCH = 5
# The agent measures each branch's bytes that often, and writes them to its status if they have changed.
USAGE_INTERVAL_SECONDS = 300
WINDOW_SECONDS = 60
IDLE_SECONDS = 20
# The line that the controller logs once it has reconciled every branch that existed at its start.
INITIAL_SYNC_LOG_TEXT = "branches reconciled"


def hundreds(stage: Stage, quick: bool) -> Result:
    """Measure the creation and the deletion of 200 branches of a project (quick: 40)."""
    count, edge, note = _prepare(stage, quick)
    idle_before = _idle_cost(stage)
    first, last = _create_branches(stage, count, edge)
    idle_after = _idle_cost(stage)
    many, few = f"with {count - edge} to {count} branches in the project", f"with 0 to {edge}"
    steps = f"the agent's steps that have become longer, in ms: {grown_steps(first.traces, last.traces)}"
    note = "; ".join(filter(None, (note, steps)))
    rows = [
        Row(f"apply → Ready {many}", few, last.milliseconds, first.milliseconds, goal=1.2, note=note),
        *cost_rows(f"a create {many}", few, last.meter, first.meter),
        processor_row(
            f"{IDLE_SECONDS} s at rest with {count} branches", "without any", idle_after, idle_before
        ),
    ]
    return Result([*rows, *_deletion(stage, count)])


def idle(stage: Stage, quick: bool) -> Result:
    """Measure a project with 200 branches (quick: 40) at idle, and the controller's restart beside them."""
    probe = ClusterProbe(stage.cluster)
    count, edge, _ = _prepare(stage, quick)
    _create_branches(stage, count, edge)
    rows = _idle(stage, probe, count, quick) + _restarts(stage, probe, count, 2 if quick else 3)
    return Result(rows)


def admitted(stage: Stage, project: str, requested: int) -> int:
    """Return how many of so many branches of the project have a place on its node."""
    node = str(stage.get_branch(project, names.ROOT_BRANCH)["status"]["nodeName"])
    return min(requested, ClusterProbe(stage.cluster).remaining_pod_capacity(node) - SPARE_PODS)


def _prepare(stage: Stage, quick: bool) -> tuple[int, int, str]:
    """Create the project; return the number of branches, how many at either end are timed one by one, and a note."""
    stage.create_project(PROJECT, size="20Gi")
    requested = 40 if quick else 200
    count = admitted(stage, PROJECT, requested)
    edge = 5 if quick else 10
    assert count > 2 * edge, f"the node has room for {count} more pods; see maxPods of its kubelet"
    note = "" if count == requested else f"kubelet admits only {count} pods, {requested} were requested"
    return count, edge, note


def _deletion(stage: Stage, count: int) -> list[Row]:
    """Measure the deletion of all branches but the root at once, beside that of as many bare pods."""
    objects = stage.cluster.find(path_of(names.API_VERSION, names.BRANCHES, stage.namespace))
    prefix = names.branch_object_name(PROJECT, "")
    branches = {body["metadata"]["name"].removeprefix(prefix) for body in objects} - {names.ROOT_BRANCH}
    stage.say(f"deleting {count} branches")
    ours, bare = Meter(), Meter()
    with ours.span():
        seconds = stage.delete_branches(PROJECT, *branches, timeout=900)
    stage.say(f"{seconds:.0f} s")
    wait_idle(stage, 300)
    stage.prepare_bare_directories(count)
    pods = [stage.unique_name("bare") for _ in range(count)]
    began = time.monotonic()
    for index, pod in enumerate(pods):
        # As seldom as branches' pods are probed: a probe a second of each of them takes all processors.
        stage.create_bare_pod(pod, f"many-{index}", READINESS_PERIOD_SECONDS)
    for pod in pods:
        stage.seconds_to_bare_ready(pod, began, 900)
    stage.say(f"{count} bare pods after {time.monotonic() - began:.0f} s")
    time.sleep(IDLE_SECONDS)
    stage.say(f"deleting {count} bare pods")
    with bare.span():
        bare_seconds = stage.delete_pods(*pods, timeout=900)
    against = "as many bare pods"
    title = f"deleting {count} branches at once → all gone"
    note = f"both are probed every {READINESS_PERIOD_SECONDS} s"
    row = Row(title, against, [seconds], [bare_seconds], "s", 2.0, note=note)
    return [row, *cost_rows(f"the deletion of {count} branches", against, ours, bare)]


@dataclass
class _Creates:
    """Creates one after another, each with a warm slot: the milliseconds until Ready, and the cost until then."""

    milliseconds: list[float] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)
    meter: Meter = field(default_factory=Meter)


def _create_branches(stage: Stage, count: int, edge: int) -> tuple[_Creates, _Creates]:
    """Create the branches; return the first and the last `edge` ones."""

    def one_by_one() -> _Creates:
        creates = _Creates()
        for _ in range(edge):
            wait_idle(stage, 300)
            name = stage.unique_name("b")
            with creates.meter.span():
                began = stage.create_branch(PROJECT, name)
                creates.milliseconds.append(stage.seconds_to_ready(PROJECT, name, began) * MS)
            creates.traces.append(trace_of(stage, PROJECT, name, began))
        return creates

    first = one_by_one()
    create_batches(stage, PROJECT, count - 2 * edge)
    last = one_by_one()
    slowest, fastest = max(last.milliseconds), min(last.milliseconds)
    stage.say(f"{count} branches; the last ones took {fastest:.0f} to {slowest:.0f} ms")
    return first, last


def _idle_cost(stage: Stage) -> Meter:
    """Return what the cluster costs while nothing is asked of it."""
    wait_idle(stage, 300)
    time.sleep(IDLE_SECONDS)
    meter = Meter()
    with meter.span():
        time.sleep(IDLE_SECONDS)
    return meter


def create_batches(stage: Stage, project: str, count: int, **spec: Any) -> list[str]:
    """Create so many branches, BATCH at once, and wait until they are Ready; return their names."""
    created: list[str] = []
    while len(created) < count:
        batch = [stage.unique_name("b") for _ in range(min(BATCH, count - len(created)))]
        began = time.monotonic()
        for name in batch:
            stage.create_branch(project, name, **spec)
        slowest = max(stage.seconds_to_ready(project, name, began, 300) for name in batch)
        created += batch
        if len(created) % (8 * BATCH) == 0:
            stage.say(f"{len(created)} of {count} branches; {len(batch)} at once took {slowest:.1f} s")
    return created


def _idle(stage: Stage, probe: ClusterProbe, count: int, quick: bool) -> list[Row]:
    """Measure the API writes and the memory of idle branches in windows of a minute."""
    wait_idle(stage, 300)
    # Afterwards the agent has measured every branch once and written the results.
    rest_seconds = 30 if quick else USAGE_INTERVAL_SECONDS + 30
    stage.say(f"waiting {rest_seconds} s, then windows of {WINDOW_SECONDS} s")
    time.sleep(rest_seconds)
    rates: list[float] = []
    written: dict[str, int] = {}
    memory: dict[str, list[Memory]] = {"controller": [], "agent": []}
    for _ in range(1 if quick else 2):
        began, before = time.monotonic(), probe.write_requests()
        time.sleep(WINDOW_SECONDS)
        in_window = growth(probe.write_requests(), before)
        rates.append(sum(in_window.values()) * 60 / (time.monotonic() - began))
        written = _sum_counts(written, in_window)
        for component, samples in memory.items():
            samples.append(probe.memory(component))
        stage.say(f"an idle minute: {format_counts(in_window)} written")
    title = f"writes to the API server per minute, {count} idle branches"
    note = f"by all clients, without Kubernetes' own leases, nodes and reviews; in this run: {format_counts(written)}"
    rows = [Row(title, "-", rates, unit="per minute", goal=0, part="max", note=note)]
    for component, samples in memory.items():
        title = f"memory of the {component} with {count} branches"
        resident, working = [one.resident for one in samples], [one.working for one in samples]
        rows.append(
            Row(
                title, "-", resident, unit="MB", goal=120, part="max", note="resident memory of its processes"
            )
        )
        note = "kubelet evicts by it; it includes the kernel's caches for the files that the pod has accessed"
        rows.append(Row("the same as working set", "-", working, unit="MB", part="max", note=note))
    return rows


def _sum_counts(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    """Return the sums of two counts, largest first."""
    return growth({key: one.get(key, 0) + other.get(key, 0) for key in {*one, *other}}, {})


def _resource_versions(stage: Stage) -> dict[str, str]:
    """Return the resourceVersion of every project and branch of the namespace."""
    return {
        f"{plural}/{body['metadata']['name']}": body["metadata"]["resourceVersion"]
        for plural in (names.PROJECTS, names.BRANCHES)
        for body in stage.cluster.find(path_of(names.API_VERSION, plural, stage.namespace))
    }


def _restarts(stage: Stage, probe: ClusterProbe, count: int, rounds: int) -> list[Row]:
    """Measure the time from deleting the controller's pod until its replacement has reconciled every branch."""
    took: list[float] = []
    wrote: list[float] = []
    written: dict[str, int] = {}
    changed: set[str] = set()
    logged = ""
    for _ in range(rounds):
        before, versions = probe.write_requests(), _resource_versions(stage)
        seconds, line = probe.restart_controller(INITIAL_SYNC_LOG_TEXT)
        logged = line.partition(" all ")[2]
        assert int(logged.split()[0]) > count, line
        took.append(seconds)
        # Whatever a reconcile triggers is written soon after it.
        time.sleep(10)
        ours = {
            key: n for key, n in growth(probe.write_requests(), before).items() if f".{names.GROUP}" in key
        }
        wrote.append(sum(ours.values()))
        written = _sum_counts(written, ours)
        changed |= {key for key, version in _resource_versions(stage).items() if versions.get(key) != version}
        stage.say(f"controller's restart: {seconds:.1f} s; {format_counts(ours)} written; {logged}")
    return [
        Row(
            f"controller's pod deleted → all {count + 1} branches reconciled by its replacement",
            "-",
            took,
            unit="s",
            goal=10,
            part="max",
            note=f"includes the start of the replacement; the last one logged: {logged}",
        ),
        Row(
            "writes to projects and branches by the restart",
            "-",
            wrote,
            unit="requests",
            goal=0,
            part="max",
            note=f"{rounds} restarts: {format_counts(written)}; {len(changed)} objects changed",
        ),
    ]
