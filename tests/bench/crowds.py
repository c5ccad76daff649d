"""Many branches at once: a burst of twenty, and a stream as coding agents and CI make it, beside bare pods."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.bench.figures import Result, Row
from tests.bench.leftovers import await_leftovers, leftovers
from tests.bench.meter import Meter, cost_rows
from tests.bench.release import agent_values, has_agent_value
from tests.bench.stage import Client, Stage
from tests.bench.starts import MS, dsn_of, wait_idle

STREAMS = 4
_TWENTY = "agent.warmSlots=20"


def twenty(stage: Stage, quick: bool) -> Result:
    """Measure twenty branches created at once until all are Ready, by the number of warm slots that they find."""
    stage.create_project("crowd")
    rounds = 1 if quick else 3
    with agent_values(warmSlots=1, burstWarmSlots=0):
        one = _time_twenty(stage, 1, rounds)
    with agent_values(warmSlots=20, burstWarmSlots=0):
        warm = _time_twenty(stage, 20, rounds)
    rows = [
        one.row("twenty branches at once → all Ready, one warm slot", 1.2),
        warm.row("the same with twenty warm slots", 0.8, "agent.warmSlots=20"),
    ]
    if has_agent_value("burstWarmSlots"):
        # By the values as they are: the first burst finds one warm slot, those after it what was kept for them.
        first = _time_twenty(stage, 1, 1)
        second = _time_twenty(stage, 10, rounds)
        note = f"the burst before them: {first.ours.seconds[0]:.1f} s"
        rows.append(second.row("the same by the chart's values, after a burst", 0.8, note))
    else:
        stage.say("the measure after a burst is skipped: the chart has no agent.burstWarmSlots")
    return Result(rows + one.cost_rows("one warm slot") + warm.cost_rows("twenty warm slots"))


@dataclass
class _Bursts:
    """The seconds of each burst, and what they cost."""

    seconds: list[float] = field(default_factory=list)
    meter: Meter = field(default_factory=Meter)


@dataclass
class _Rounds:
    """Bursts of twenty branches, and of twenty bare pods, each behind one of those."""

    ours: _Bursts = field(default_factory=_Bursts)
    bare: _Bursts = field(default_factory=_Bursts)

    def row(self, title: str, goal: float, note: str = "") -> Row:
        """Return the row of the seconds until all are Ready."""
        against = "twenty bare pods at once"
        return Row(title, against, self.ours.seconds, self.bare.seconds, "s", goal, note=note)

    def cost_rows(self, slots: str) -> list[Row]:
        """Return the rows of what bursts cost, from the first request until all are Ready."""
        return cost_rows(f"twenty branches, {slots}", "twenty bare pods", self.ours.meter, self.bare.meter)


def _time_twenty(stage: Stage, slots: int, rounds: int) -> _Rounds:
    """Return rounds of twenty branches, which find so many warm slots, and of twenty bare pods."""
    both = _Rounds()
    ours, bare = both.ours, both.bare
    for _ in range(rounds):
        wait_idle(stage, 180, slots)
        names = [stage.unique_name("many") for _ in range(20)]
        with ours.meter.span():
            began = time.monotonic()
            for name in names:
                stage.create_branch("crowd", name)
            ours.seconds.append(max(stage.seconds_to_ready("crowd", name, began) for name in names))
        stage.delete_branches("crowd", *names)
        wait_idle(stage, 180, slots)
        pods = [stage.unique_name("crowd") for _ in range(20)]
        with bare.meter.span():
            began = time.monotonic()
            for index, pod in enumerate(pods):
                stage.create_bare_pod(pod, f"many-{index}")
            bare.seconds.append(max(stage.seconds_to_bare_ready(pod, began) for pod in pods))
        stage.delete_pods(*pods)
        stage.say(
            f"twenty with {slots} warm slots: {ours.seconds[-1]:.1f} s, bare pods {bare.seconds[-1]:.1f} s"
        )
        stage.say(f"processor time: {ours.meter.totals[-1]:.1f} s and {bare.meter.totals[-1]:.1f} s")
    return both


def stream(stage: Stage, quick: bool) -> Result:
    """Measure create, connect, one query, delete, by four clients at a time, in windows of branches and of bare pods.

    Five minutes each (quick: one). What the stream leaves on the node is counted at its end.
    """
    stage.create_project("stream", size="4Gi")
    clients = [stage.start_client() for _ in range(STREAMS)]
    secret = dsn_of(stage, "stream")
    before = leftovers(stage)
    ours, theirs = _Lives(), _Lives()
    for window in range(2 if quick else 10):
        wait_idle(stage, 180)
        _run_window(clients, ours, lambda worker, client: _branch_life(stage, client, secret))
        wait_idle(stage, 180)
        _run_window(clients, theirs, lambda worker, client: _bare_life(stage, client, worker))
        stage.say(
            f"stream, window {window + 1}: {ours.rates[-1]:.0f} branches, {theirs.rates[-1]:.0f} bare pods a minute"
        )
    wait_idle(stage, 180)
    left = await_leftovers(stage, before)
    against = "bare pods"
    note = f"{STREAMS} at a time; a life is create, connect, select 1, delete, gone; {len(ours.first_rows)} lives"
    return Result(
        [
            Row(
                "a stream of branches: lives a minute",
                against,
                ours.rates,
                theirs.rates,
                "a minute",
                note=note,
                at_least=True,
            ),
            Row("create → first row in the stream", against, ours.first_rows, theirs.first_rows),
            Row("the same, p95", against, ours.first_rows, theirs.first_rows, part="p95", their_part="p95"),
            Row("create → gone in the stream", against, ours.lives, theirs.lives),
            Row("left on the node by the stream", "-", [float(left)], unit="objects", goal=0, part="max"),
        ]
    )


WINDOW_SECONDS = 30


@dataclass
class _Lives:
    """Milliseconds from create to the first row, and to gone; lives a minute of each window."""

    first_rows: list[float] = field(default_factory=list)
    lives: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


def _run_window(
    clients: list[Client], results: _Lives, live: Callable[[int, Client], tuple[float, float]]
) -> None:
    """Let each client live one life after another for WINDOW_SECONDS; the last ones end after it."""
    errors: list[Exception] = []
    began = time.monotonic()
    count = len(results.lives)

    def work(worker: int, client: Client) -> None:
        try:
            while time.monotonic() < began + WINDOW_SECONDS:
                first_row, life = live(worker, client)
                results.first_rows.append(first_row * MS)
                results.lives.append(life * MS)
        except Exception as error:  # noqa: BLE001 - raised below, in the measure's thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    results.rates.append((len(results.lives) - count) * 60 / (time.monotonic() - began))


def _branch_life(stage: Stage, client: Client, dsn: str) -> tuple[float, float]:
    """Create a branch, read a row of it, delete it; return the seconds to the row and to its end."""
    name = stage.unique_name("life")
    began = stage.create_branch("stream", name)
    option = f" options='-c dbranch.branch={name}'"
    answer = client.ask("first_row", dsn=dsn + option, query="select 1")
    stage.delete_branches("stream", name)
    return answer["at"] - began, time.monotonic() - began


def _bare_life(stage: Stage, client: Client, worker: int) -> tuple[float, float]:
    """Create a bare pod, read a row of it, delete it; return the seconds to the row and to its end."""
    name = stage.unique_name("life")
    began = stage.create_bare_pod(name, f"many-{worker}")
    stage.seconds_to_bare_ready(name, began)
    dsn = f"host={stage.pod_address(name)} user=postgres dbname=postgres"
    answer = client.ask("first_row", dsn=dsn, query="select 1")
    stage.delete_pods(name)
    return answer["at"] - began, time.monotonic() - began


CROWDS: dict[str, Callable[[Stage, bool], Result]] = {f.__name__: f for f in (twenty, stream)}
