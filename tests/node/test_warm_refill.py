"""The refill of warm slots: behind a burst, few at a time, and never held up for ever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from tests.fakes.api import FakeApi
from tests.node.agent_life import PODS
from tests.node.machine import Node
from tests.node.test_warm_classes import CONTEXT, Clock, put_project, run_pods

from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.slot.pod_spec import SlotClass, slot_class_of
from dbranch.agent.timing import (
    WARM_DEMAND_HALF_LIFE_SECONDS,
    WARM_DEMAND_HOLD_SECONDS,
    WARM_QUIET_SECONDS,
    WARM_REFILL_DELAY_SECONDS,
    WARM_RESYNC_SECONDS,
)
from dbranch.agent.warm import observe, reconciler
from dbranch.agent.warm.plan import STARTING_WARM_PODS
from dbranch.agent.warm.reconciler import WarmReconciler
from dbranch.agent.warm.sizing import WarmLimits
from dbranch.api.project import parse_project
from dbranch.kube.client import project_path


class SleepingClock(Clock):
    """A clock that moves by what is slept."""

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Stopped(BaseException):
    """Ends the loop, which has no end."""


@dataclass
class Rig:
    """The loop of a node with one class. `busy`: branches are starting. `pods_run`: kubelet starts pods."""

    api: FakeApi
    warm: WarmReconciler
    clock: SleepingClock
    metrics: AgentMetrics
    busy: bool = False
    pods_run: bool = True
    # Per round: the time since the start, and the number of warm pods.
    rounds: list[tuple[float, int]] = field(default_factory=list)

    @property
    def slot_class(self) -> SlotClass:
        body = self.api.get(project_path("team-a", "shop"))
        assert body
        return slot_class_of(parse_project(body))

    def count(self) -> int:
        return len(self.api.find(PODS))

    def wait_idle(self, timeout: float) -> bool:
        if self.busy:
            self.clock.now += timeout
        return not self.busy

    def run(self, rounds: int, each: Callable[[], None] = lambda: None) -> None:
        """Run the loop for `rounds`; between two of them kubelet starts the pods, and `each` is called."""
        began, left = self.clock.now, iter(range(rounds))

        def beat() -> None:
            self.rounds.append((self.clock.now - began, self.count()))
            if next(left, None) is None:
                raise Stopped
            if self.pods_run:
                run_pods(self.api)
            each()
            self.warm.trigger()

        with pytest.raises(Stopped):
            self.warm.run(self.wait_idle, beat)

    def use(self, count: int) -> None:
        for _ in range(count):
            self.warm.record_use(self.slot_class, "new")


@pytest.fixture
def rig(node: Node, monkeypatch: pytest.MonkeyPatch) -> Rig:
    clock, api, metrics = SleepingClock(), FakeApi(), AgentMetrics()
    api.clock = clock.wall_time
    monkeypatch.setattr(reconciler, "time", clock)
    monkeypatch.setattr(observe, "seconds_since", clock.seconds_since)
    put_project(api, "team-a", image="postgres:a")
    limits = WarmLimits(minimum=1, burst=8, maximum=10)
    return Rig(api, WarmReconciler(api, node.layout, CONTEXT, limits, metrics), clock, metrics)  # type: ignore[arg-type]


def test_the_number_follows_a_burst_and_comes_back(rig: Rig) -> None:
    rig.run(2)
    assert rig.count() == 1
    rig.use(6)
    rig.run(4)
    assert rig.count() == 6
    text = rig.metrics.response().body.decode()
    assert 'dbranch_agent_claims_total{slot="new"} 6.0' in text
    target = next(line for line in text.splitlines() if line.startswith("dbranch_agent_warm_slots_target{"))
    assert 'image="postgres:a"' in target and target.endswith(" 6.0")
    rig.clock.now += WARM_DEMAND_HOLD_SECONDS + WARM_DEMAND_HALF_LIFE_SECONDS - 1
    rig.run(4)
    assert rig.count() == 3
    rig.clock.now += 10 * WARM_DEMAND_HALF_LIFE_SECONDS
    rig.run(4)
    assert rig.count() == 1


def test_a_refill_begins_when_no_branch_is_starting_and_none_follows(rig: Rig) -> None:
    rig.run(2)
    rig.use(8)
    busy = iter([True] * 5)

    def wait_idle(timeout: float) -> bool:
        # Of a burst whose branches come one after the other.
        if next(busy, False):
            rig.clock.now += 0.1
            rig.use(1)
            assert rig.count() == 1
        return True

    rig.wait_idle = wait_idle  # type: ignore[method-assign]
    began = rig.clock.now
    rig.run(1)
    assert rig.clock.now - began >= 0.5 + WARM_QUIET_SECONDS and rig.count() == 1 + STARTING_WARM_PODS


def test_few_pods_start_at_a_time(rig: Rig) -> None:
    rig.run(2)
    rig.use(8)
    rig.rounds.clear()
    rig.run(6)
    assert [count for _, count in rig.rounds] == [1, 3, 5, 7, 8, 8, 8]


def test_a_stream_of_branches_does_not_hold_the_refill_up_for_ever(rig: Rig) -> None:
    rig.run(2)
    rig.busy = True
    rig.use(8)
    rig.rounds.clear()
    rig.run(6, each=lambda: rig.use(1))
    # One wait for the whole refill, not one for each of its steps; then the next refill waits again.
    assert [count for _, count in rig.rounds] == [1, 3, 5, 7, 8, 8, 8]
    times = [seconds for seconds, _ in rig.rounds]
    assert times[:5] == pytest.approx([0.0, *[WARM_REFILL_DELAY_SECONDS] * 4])
    assert times[5] >= 2 * WARM_REFILL_DELAY_SECONDS


def test_on_a_full_node_nothing_is_waited_for(rig: Rig) -> None:
    rig.run(2)
    rig.busy = True
    rig.warm.yield_slots()
    began = rig.clock.now
    rig.run(2)
    assert rig.count() == 0 and rig.clock.now == began


def test_pods_that_do_not_start_are_not_joined_by_more_and_hold_up_no_other_class(rig: Rig) -> None:
    rig.use(8)
    rig.warm.reconcile()
    assert rig.count() == STARTING_WARM_PODS
    put_project(rig.api, "team-b", image="postgres:b")
    # Their image cannot be pulled.
    for _ in range(3):
        rig.clock.now += WARM_RESYNC_SECONDS
        rig.warm.reconcile()
    images = [pod["spec"]["containers"][0]["image"] for pod in rig.api.find(PODS)]
    assert sorted(images) == ["postgres:a"] * STARTING_WARM_PODS + ["postgres:b"]
    # Nor is a refill that cannot go on taken for one that has waited for long.
    rig.busy, rig.pods_run = True, False
    began = rig.clock.now
    rig.run(2)
    assert rig.clock.now - began >= 2 * WARM_REFILL_DELAY_SECONDS - 1
