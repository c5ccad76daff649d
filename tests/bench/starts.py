"""How soon a branch is there, beside a bare Postgres pod of the same image on the same node."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from tests.bench.figures import Result, Row
from tests.bench.follow import is_gone
from tests.bench.release import warm_slots
from tests.bench.stage import CLIENT_CPU, Stage
from tests.bench.trace import Trace, traced

BARE = "bare pod"
MS = 1000


def _bare(stage: Stage) -> tuple[float, float]:
    """A bare pod's start and its end, in seconds."""
    name = stage.fresh("bare")
    began = stage.start_bare(name, "one")
    ready = stage.bare_ready(name, began)
    return ready, stage.drop_pod(name)


def dsn_of(stage: Stage, project: str, branch: str | None = None, option: str | None = None) -> str:
    """A connection string: the project's (with the startup option for one branch), or a branch's own Service."""
    secret = stage.uri(project, branch)
    plain = f"host={secret['host']}.cluster.local. port={secret['port']} user={secret['username']}"
    dsn = f"{plain} password={secret['password']} dbname={secret['database']}"
    return dsn + (f" options='-c dbranch.branch={option}'" if option else "")


def settle(stage: Stage, timeout: float = 60, slots: int = 1) -> None:
    """So many slots wait and nothing else is under way."""
    stage.await_slot(slots, timeout)
    time.sleep(0.5)


def _cold(stage: Stage, index: int) -> dict[str, Any]:
    """A spec of a class of its own, for which no slot waits."""
    return {"postgres": {"resources": {"requests": {"cpu": f"{index + 1}m"}}}}


def create(stage: Stage, quick: bool) -> Result:
    """apply → Ready with and without a waiting slot, and to the first row, each beside a bare pod."""
    stage.project("shop")
    client = stage.client()
    taken: dict[str, list[float]] = {key: [] for key in ("bare", "end", "warm", "cold", "row", "own", "gone")}
    for index in range(4 if quick else 16):
        settle(stage)
        ready, end = _bare(stage)
        taken["bare"].append(ready * MS)
        taken["end"].append(end * MS)
        settle(stage)
        name = stage.fresh("warm")
        taken["warm"].append(stage.ready("shop", name, stage.branch("shop", name)) * MS)
        time.sleep(0.5)
        taken["gone"].append(stage.drop_branch("shop", name) * MS)
        settle(stage)
        name = stage.fresh("cold")
        taken["cold"].append(
            stage.ready("shop", name, stage.branch("shop", name, **_cold(stage, index))) * MS
        )
        stage.drop_branch("shop", name)
        for key in ("row", "own"):
            settle(stage)
            name = stage.fresh(key)
            began = stage.branch("shop", name)
            if key == "row":
                dsn = dsn_of(stage, "shop", option=name)
            else:
                stage.ready("shop", name, began)
                dsn = dsn_of(stage, "shop", name)
            answer = client.ask("first_row", dsn=dsn, query="select 1")
            taken[key].append((answer["at"] - began) * MS)
            stage.drop_branch("shop", name)
        stage.say(
            f"create, round {index + 1}: warm {taken['warm'][-1]:.0f} ms, bare {taken['bare'][-1]:.0f} ms"
        )
    bare = taken["bare"]
    own = "after Ready its Service's address has still to reach kube-proxy and the name the cluster's DNS"
    return Result(
        [
            Row("apply → Ready, warm slot", f"{BARE}, created → Ready", taken["warm"], bare, goal=0.5),
            Row("the same at p95", f"{BARE}, median", taken["warm"], bare, goal=0.8, part="p95"),
            Row("apply → Ready, no warm slot", BARE, taken["cold"], bare, goal=1.2),
            Row("apply → first row, project's endpoint, startup option", BARE, taken["row"], bare, goal=0.6),
            Row("apply → first row, branch's own Service", BARE, taken["own"], bare, note=own),
            Row("delete → gone", "bare pod's deletion", taken["gone"], taken["end"], goal=1.0),
        ],
        {"create": {key: taken[key] for key in ("warm", "cold", "row", "bare")}},
    )


def use(stage: Stage, quick: bool) -> Result:
    """The switch: from the patch of activeBranch to the first new session on the new branch."""
    stage.project("switch", resources={"requests": {"cpu": CLIENT_CPU}})
    client = stage.client()
    for name in ("one", "two"):
        stage.ready("switch", name, stage.branch("switch", name))
        query = [f"create table who as select '{name}'::text as name"]
        client.ask("sql", dsn=dsn_of(stage, "switch", option=name), queries=query)
    gaps: list[float] = []
    dsn = dsn_of(stage, "switch")
    stage.use("switch", "two")
    question = {"dsn": dsn, "query": "select name from who", "pause": 0.005}
    client.ask("until_there", **question, wanted="two")
    for index in range(30 if quick else 100):
        wanted = ("one", "two")[index % 2]
        answer: dict[str, Any] = {}

        def look(wanted: str = wanted, answer: dict[str, Any] = answer) -> None:
            answer |= client.ask("until_there", **question, wanted=wanted)

        looking = threading.Thread(target=look)
        looking.start()
        time.sleep(0.15)
        asked = stage.use("switch", wanted)
        looking.join(60)
        gaps.append((answer["at"] - asked) * MS)
    title = "use → first new session on the new branch, p99"
    note = (
        "one session after another, 5 ms between them; the new session's own login is in the figure; "
        f"client and Postgres request {CLIENT_CPU} of a processor"
    )
    return Result([Row(title, "-", gaps, goal=100, part="p99", note=note)])


def resume(stage: Stage, quick: bool) -> Result:
    """A stopped branch: from its resume to the first row."""
    stage.project("rest")
    client = stage.client()
    stage.ready("rest", "sleeper", stage.branch("rest", "sleeper"))
    dsn = dsn_of(stage, "rest", option="sleeper")
    rows: list[float] = []
    bare: list[float] = []
    for _ in range(3 if quick else 12):
        pod = stage.told("rest", "sleeper")["status"]["node"]["pod"]
        began = stage.set_branch("rest", "sleeper", state="Stopped")
        stage.slots.when(pod, is_gone, began)
        settle(stage)
        began = stage.set_branch("rest", "sleeper", state="Running")
        answer = client.ask("first_row", dsn=dsn, query="select 1")
        rows.append((answer["at"] - began) * MS)
        stage.ready("rest", "sleeper", began)
        settle(stage)
        bare.append(_bare(stage)[0] * MS)
    return Result([Row("stop → resume → first row", BARE, rows, bare, goal=0.6)])


def twenty(stage: Stage, quick: bool) -> Result:
    """Twenty at once, to the last one that is Ready: with the one slot that waits by default, and with twenty."""
    stage.project("crowd")
    bare: list[float] = []
    ours = _crowds(stage, 1, 1 if quick else 3, bare)
    stage.say("agent.warmSlots=20")
    with warm_slots(20):
        warm = _crowds(stage, 20, 1 if quick else 3, bare)
    stage.await_slot()
    against = "twenty bare pods at once"
    return Result(
        [
            Row("twenty branches at once → all Ready", against, ours, bare, "s", 0.6),
            Row("the same with twenty slots waiting", against, warm, bare, "s", note="agent.warmSlots=20"),
        ]
    )


def _crowds(stage: Stage, slots: int, rounds: int, bare: list[float]) -> list[float]:
    """Seconds of each round of twenty branches; those of as many bare pods beside them go into `bare`."""
    ours: list[float] = []
    for _ in range(rounds):
        settle(stage, 180, slots)
        names = [stage.fresh("many") for _ in range(20)]
        began = time.monotonic()
        for name in names:
            stage.branch("crowd", name)
        ours.append(max(stage.ready("crowd", name, began) for name in names))
        stage.drop_branch("crowd", *names)
        settle(stage, 180, slots)
        pods = [stage.fresh("crowd") for _ in range(20)]
        began = time.monotonic()
        for index, pod in enumerate(pods):
            stage.start_bare(pod, f"many-{index}")
        bare.append(max(stage.bare_ready(pod, began) for pod in pods))
        stage.drop_pod(*pods)
        stage.say(f"twenty with {slots} waiting: {ours[-1]:.1f} s, bare pods {bare[-1]:.1f} s")
    return ours


def depth(stage: Stage, quick: bool) -> Result:
    """A branch of a branch of a branch, beside one of the root."""
    stage.project("deep")
    above = "main"
    for name in ("first", "second"):
        stage.ready("deep", name, stage.branch("deep", name, above))
        above = name
    times: dict[str, list[float]] = {"second": [], "main": []}
    for _ in range(4 if quick else 10):
        for source, samples in times.items():
            settle(stage)
            name = stage.fresh("leaf")
            samples.append(stage.ready("deep", name, stage.branch("deep", name, source)) * MS)
            stage.drop_branch("deep", name)
    third = "branch of a branch of a branch → Ready"
    return Result([Row(third, "a branch of the root", times["second"], times["main"], goal=1.1)])


def load(stage: Stage, quick: bool) -> Result:
    """Branches made while eight clients write on the source, and what the writers feel of it."""
    stage.project("busy", size="6Gi")
    client = stage.client()
    dsn = dsn_of(stage, "busy", option="main")
    quiet: list[float] = []
    loaded: list[float] = []
    stalls: list[float] = []
    calm: list[float] = []

    def one(samples: list[float]) -> None:
        settle(stage)
        name = stage.fresh("busy")
        samples.append(stage.ready("busy", name, stage.branch("busy", name)) * MS)
        stage.drop_branch("busy", name)

    for _ in range(4 if quick else 8):
        one(quiet)
        client.ask("load_start", dsn=dsn, writers=8)
        time.sleep(2)
        client.ask("load_peak")
        time.sleep(2)
        calm.append(client.ask("load_peak")["longest"] * MS)
        one(loaded)
        peak = client.ask("load_peak")
        stalls.append(peak["longest"] * MS)
        ended = client.ask("load_stop")
        assert not ended["errors"], ended
    return Result(
        [
            Row("apply → Ready with eight clients writing on the source", "quiet", loaded, quiet, goal=2.0),
            Row(
                "longest statement of the writers while a branch is made; none of their sessions ended",
                "two seconds without a branch",
                stalls,
                calm,
            ),
        ]
    )


def trace(stage: Stage, quick: bool) -> Result:
    """Where each millisecond of a create goes, by the watch of the branch and the agent's own log."""
    stage.project("trace")
    found: list[Trace] = []
    for _ in range(5 if quick else 10):
        settle(stage)
        name = stage.fresh("traced")
        found.append(traced(stage, "trace", name))
        stage.drop_branch("trace", name)
    return Result([], {"trace": [one.as_dict() for one in found]})


STARTS: dict[str, Callable[[Stage, bool], Result]] = {
    f.__name__: f for f in (create, use, resume, twenty, depth, load, trace)
}
