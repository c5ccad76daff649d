"""The steps of one create: the states that a watch of the branch shows, the timings in the agent's log, and the
requests in the API server's audit log."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from dbranch.api import names
from tests.bench.audit import Request
from tests.bench.follow import Json, Seen
from tests.bench.stage import Stage

# A timing in the agent's log line `branch … accepts`: step=milliseconds.
_TIMING = re.compile(r'(\w+)="?([\d.]+)')


@dataclass(frozen=True)
class Trace:
    """Milliseconds by step. `seen`: from the apply to the write's arrival in a watch; `agent`: the agent's own.

    `began` is the time of the apply, in seconds since the epoch; `requests` are those from then until Ready, each
    with the milliseconds from the apply to its arrival (`at`) and to its answer (`ms`).
    """

    seen: dict[str, float]
    agent: dict[str, float]
    began: float
    requests: tuple[dict[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the trace as JSON."""
        return asdict(self)

    def with_requests(self, log: list[Request]) -> Trace:
        """Return the trace with the requests of the log that were received between the apply and Ready."""
        until = self.began + self.seen["Ready"] / 1000
        requests = tuple(
            asdict(request) | {"at": (request.at - self.began) * 1000}
            for request in log
            if self.began <= request.at <= until
        )
        return replace(self, requests=requests)


def create_traced(stage: Stage, project: str, name: str) -> Trace:
    """Create a branch, wait until it is Ready, and return the trace of its steps."""
    began = stage.create_branch(project, name)
    stage.seconds_to_ready(project, name, began)
    return trace_of(stage, project, name, began)


def trace_of(stage: Stage, project: str, name: str, began: float) -> Trace:
    """Return the trace of the steps of a branch that was created at `began` and is Ready."""
    object_name = names.branch_object_name(project, name)
    seen = {
        step: (at - began) * 1000 for step, at in steps(stage.branches.history(object_name, began)).items()
    }
    text = f"{stage.namespace}/{object_name} accepts"
    line = max((line for line in stage.agent_log().splitlines() if text in line), default="")
    timings = {step: float(value) for step, value in _TIMING.findall(line.partition("accepts")[2])}
    # The nodes of the cluster share this machine's clock.
    return Trace(seen, timings, began + time.time() - time.monotonic())


def grown_steps(first: Sequence[Trace], last: Sequence[Trace]) -> str:
    """Return the median milliseconds of the agent's steps in the first creates and in the last ones, as text.

    Of those that have become longer, most first; less than a tenth of the most is left out.

    >>> first = Trace({}, {"observe": 20.0, "total": 40.0}, 0.0)
    >>> grown_steps([first], [Trace({}, {"observe": 90.0, "total": 110.0}, 0.0)])
    'observe 20 to 90, total 40 to 110'
    """
    before, after = _medians(first), _medians(last)
    growth = {step: after[step] - before[step] for step in after if step in before}
    least = max(growth.values(), default=0.0) / 10
    grown = sorted(
        (step for step, by in growth.items() if by > 0 and by >= least), key=lambda step: -growth[step]
    )
    return ", ".join(f"{step} {before[step]:.0f} to {after[step]:.0f}" for step in grown)


def _medians(traces: Sequence[Trace]) -> dict[str, float]:
    steps = {step for trace in traces for step in trace.agent}
    return {
        step: median(trace.agent[step] for trace in traces if step in trace.agent) for step in sorted(steps)
    }


def steps(history: list[Seen]) -> dict[str, float]:
    """Return the time at which each step was first seen."""
    first: dict[str, float] = {}
    for seen in history:
        for step in steps_of(seen.body or {}):
            first.setdefault(step, seen.at)
    return first


def steps_of(body: Json) -> list[str]:
    """Return the steps that a branch object has completed."""
    meta, status = body.get("metadata") or {}, body.get("status") or {}
    node = status.get("node") or {}
    done = {
        "created": bool(meta),
        "finalizer of the controller": names.CONTROLLER_FINALIZER in (meta.get("finalizers") or ()),
        "finalizer of the agent": names.AGENT_FINALIZER in (meta.get("finalizers") or ()),
        "bound": bool(status.get("nodeName")),
        "accepts": (node.get("postgres") or {}).get("reason") == "Accepting",
        "Ready": any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ()),
    }
    return [step for step, holds in done.items() if holds]
