"""Measures of the time until a branch can be used, beside a bare Postgres pod of the same image on the same node."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from tests.bench.audit import audited, read_log
from tests.bench.figures import Result, Row
from tests.bench.follow import is_gone
from tests.bench.stage import CLIENT_CPU, Stage
from tests.bench.trace import Trace, create_traced

BARE_POD = "bare pod"
MS = 1000


def time_bare_pod(stage: Stage) -> tuple[float, float]:
    """Create and delete a bare pod; return the seconds to Ready and those of the deletion."""
    name = stage.unique_name("bare")
    began = stage.create_bare_pod(name, "one")
    ready = stage.seconds_to_bare_ready(name, began)
    return ready, stage.delete_pods(name)


def dsn_of(stage: Stage, project: str, branch: str | None = None, option: str | None = None) -> str:
    """Return a DSN of the project (with the startup option for branch `option`), or of a branch's own Service."""
    secret = stage.connection_secret(project, branch)
    plain = f"host={secret['host']}.cluster.local. port={secret['port']} user={secret['username']}"
    dsn = f"{plain} password={secret['password']} dbname={secret['database']}"
    return dsn + (f" options='-c dbranch.branch={option}'" if option else "")


def wait_idle(stage: Stage, timeout: float = 60, slots: int = 1) -> None:
    """Wait until at least `slots` warm slots exist and all are Running, so that nothing else is in progress."""
    stage.await_warm_slots(slots, timeout)
    time.sleep(0.5)


def _unique_slot_class(index: int) -> dict[str, Any]:
    """Return a spec with a slot class of its own, for which there is no warm slot."""
    return {"postgres": {"resources": {"requests": {"cpu": f"{index + 1}m"}}}}


def create(stage: Stage, quick: bool) -> Result:
    """Measure apply → Ready with and without a warm slot, apply → first row, and deletion, beside a bare pod."""
    stage.create_project("shop")
    client = stage.start_client()
    samples: dict[str, list[float]] = {
        key: [] for key in ("bare", "end", "warm", "cold", "row", "own", "gone")
    }
    for index in range(4 if quick else 16):
        wait_idle(stage)
        ready, deletion = time_bare_pod(stage)
        samples["bare"].append(ready * MS)
        samples["end"].append(deletion * MS)
        wait_idle(stage)
        name = stage.unique_name("warm")
        samples["warm"].append(stage.create_until_ready("shop", name) * MS)
        time.sleep(0.5)
        samples["gone"].append(stage.delete_branches("shop", name) * MS)
        wait_idle(stage)
        name = stage.unique_name("cold")
        samples["cold"].append(stage.create_until_ready("shop", name, **_unique_slot_class(index)) * MS)
        stage.delete_branches("shop", name)
        for key in ("row", "own"):
            wait_idle(stage)
            name = stage.unique_name(key)
            began = stage.create_branch("shop", name)
            if key == "row":
                dsn = dsn_of(stage, "shop", option=name)
            else:
                stage.seconds_to_ready("shop", name, began)
                dsn = dsn_of(stage, "shop", name)
            answer = client.ask("first_row", dsn=dsn, query="select 1")
            samples[key].append((answer["at"] - began) * MS)
            stage.delete_branches("shop", name)
        stage.say(
            f"create, round {index + 1}: warm {samples['warm'][-1]:.0f} ms, bare {samples['bare'][-1]:.0f} ms"
        )
    bare = samples["bare"]
    own = (
        "after Ready, kube-proxy has yet to program the Service's address, and cluster DNS to learn its name"
    )
    return Result(
        [
            Row("apply → Ready, warm slot", f"{BARE_POD}, created → Ready", samples["warm"], bare, goal=0.5),
            Row(
                "apply → Ready, warm slot, p95",
                f"{BARE_POD}, median",
                samples["warm"],
                bare,
                goal=0.8,
                part="p95",
            ),
            Row("apply → Ready, no warm slot", BARE_POD, samples["cold"], bare, goal=1.2),
            Row(
                "apply → first row, project's endpoint, startup option",
                BARE_POD,
                samples["row"],
                bare,
                goal=0.6,
            ),
            Row("apply → first row, branch's own Service", BARE_POD, samples["own"], bare, note=own),
            Row("delete → gone", "bare pod's deletion", samples["gone"], samples["end"], goal=1.0),
        ],
        {"create": {key: samples[key] for key in ("warm", "cold", "row", "bare")}},
    )


def use(stage: Stage, quick: bool) -> Result:
    """Measure the switch: from the patch of activeBranch to the first new session on the new branch."""
    stage.create_project("switch", resources={"requests": {"cpu": CLIENT_CPU}})
    client = stage.start_client()
    for name in ("one", "two"):
        stage.create_until_ready("switch", name)
        query = [f"create table whoami as select '{name}'::text as name"]
        client.ask("sql", dsn=dsn_of(stage, "switch", option=name), queries=query)
    gaps: list[float] = []
    first_sessions: list[float] = []
    later_sessions: list[float] = []
    dsn = dsn_of(stage, "switch")
    stage.switch("switch", "two")
    request = {"dsn": dsn, "query": "select name from whoami", "pause": 0.005}
    client.ask("until_value", **request, expected="two")
    for index in range(30 if quick else 100):
        branch = ("one", "two")[index % 2]
        answer: dict[str, Any] = {}

        def poll(branch: str = branch, answer: dict[str, Any] = answer) -> None:
            answer |= client.ask("until_value", **request, expected=branch)

        polling = threading.Thread(target=poll)
        polling.start()
        time.sleep(0.15)
        began = stage.switch("switch", branch)
        polling.join(60)
        gaps.append((answer["at"] - began) * MS)
        first_sessions.append((answer["at"] - answer["began"]) * MS)
        # The proxies have acknowledged, the agent is at rest: a login of the same client to the same branch.
        time.sleep(0.3)
        plain = client.ask("until_value", **request, expected=branch)
        later_sessions.append((plain["at"] - plain["began"]) * MS)
    title = "switch → first new session on the new branch, p99"
    note = (
        "sessions are opened one after another, 5 ms apart; the time includes the new session's login; "
        f"client and Postgres request {CLIENT_CPU} of CPU"
    )
    return Result(
        [
            Row(title, "-", gaps, goal=100, part="p99", note=note),
            Row(
                "the first new session by itself, from its begin to its first row, p99",
                "a login 0.3 s later, p99",
                first_sessions,
                later_sessions,
                goal=2.0,
                part="p99",
                their_part="p99",
            ),
        ]
    )


def resume(stage: Stage, quick: bool) -> Result:
    """Measure a stopped branch: from its resume to the first row."""
    stage.create_project("resume")
    client = stage.start_client()
    stage.create_until_ready("resume", "sleeper")
    dsn = dsn_of(stage, "resume", option="sleeper")
    rows: list[float] = []
    bare: list[float] = []
    for _ in range(3 if quick else 12):
        pod = stage.get_branch("resume", "sleeper")["status"]["node"]["pod"]
        began = stage.patch_branch("resume", "sleeper", state="Stopped")
        stage.slots.wait_for(pod, is_gone, began)
        wait_idle(stage)
        began = stage.patch_branch("resume", "sleeper", state="Running")
        answer = client.ask("first_row", dsn=dsn, query="select 1")
        rows.append((answer["at"] - began) * MS)
        stage.seconds_to_ready("resume", "sleeper", began)
        wait_idle(stage)
        bare.append(time_bare_pod(stage)[0] * MS)
    return Result([Row("stopped branch: resume → first row", BARE_POD, rows, bare, goal=0.6)])


def depth(stage: Stage, quick: bool) -> Result:
    """Measure the creation of a branch of a branch of a branch, beside a branch of the root."""
    stage.create_project("deep")
    source = "main"
    for name in ("first", "second"):
        stage.create_until_ready("deep", name, source)
        source = name
    times: dict[str, list[float]] = {"second": [], "main": []}
    for _ in range(4 if quick else 10):
        for source, samples in times.items():
            wait_idle(stage)
            name = stage.unique_name("leaf")
            samples.append(stage.create_until_ready("deep", name, source) * MS)
            stage.delete_branches("deep", name)
    third = "branch of a branch of a branch → Ready"
    return Result([Row(third, "a branch of the root", times["second"], times["main"], goal=1.1)])


def load(stage: Stage, quick: bool) -> Result:
    """Measure creates while eight clients write to the source, and the longest statements of these clients."""
    stage.create_project("busy", size="6Gi")
    client = stage.start_client()
    dsn = dsn_of(stage, "busy", option="main")
    unloaded: list[float] = []
    loaded: list[float] = []
    stalls: list[float] = []
    undisturbed: list[float] = []

    def one(samples: list[float]) -> None:
        wait_idle(stage)
        name = stage.unique_name("busy")
        samples.append(stage.create_until_ready("busy", name) * MS)
        stage.delete_branches("busy", name)

    for _ in range(4 if quick else 8):
        one(unloaded)
        client.ask("load_start", dsn=dsn, writers=8)
        time.sleep(2)
        client.ask("load_peak")
        time.sleep(2)
        undisturbed.append(client.ask("load_peak")["longest"] * MS)
        one(loaded)
        peak = client.ask("load_peak")
        stalls.append(peak["longest"] * MS)
        result = client.ask("load_stop")
        assert not result["errors"], result
    return Result(
        [
            Row(
                "apply → Ready with eight clients writing to the source",
                "without load",
                loaded,
                unloaded,
                goal=2.0,
            ),
            Row(
                "longest statement of the writers while a branch is created; all their sessions survive",
                "two seconds without a create",
                stalls,
                undisturbed,
            ),
        ]
    )


def trace(stage: Stage, quick: bool) -> Result:
    """Measure the steps of a create: by a watch of the branch, the agent's log, and the audit log if there is one."""
    stage.create_project("trace")
    rounds = 5 if quick else 10
    traces = [_trace_one(stage) for _ in range(rounds)]
    # Of creates of their own: writing the log takes time, too.
    with audited() as on:
        logged = [_trace_one(stage) for _ in range(rounds + 1)] if on else []
        log = read_log(logged[0].began) if logged else []
    # The first one finds connections and caches as the API server's start has left them.
    requests = [trace.with_requests(log).as_dict() for trace in logged[1:]]
    return Result([], {"trace": [one.as_dict() for one in traces], "requests": requests})


def _trace_one(stage: Stage) -> Trace:
    wait_idle(stage, 180)
    name = stage.unique_name("traced")
    trace = create_traced(stage, "trace", name)
    stage.delete_branches("trace", name)
    return trace


STARTS: dict[str, Callable[[Stage, bool], Result]] = {
    f.__name__: f for f in (create, use, resume, depth, load, trace)
}
