"""One create, step by step: what a watch of the branch shows, and what the agent's log says of its own part."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from dbranch.api import names
from tests.bench.follow import Json, Seen
from tests.bench.stage import Stage

# What the agent's line `branch … accepts` holds, in order.
_LAP = re.compile(r'(\w+)="?([\d.]+)')


@dataclass(frozen=True)
class Trace:
    """Milliseconds. `seen`: since the apply, when each write came to a watch; `agent`: its laps."""

    seen: dict[str, float]
    agent: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def traced(stage: Stage, project: str, name: str) -> Trace:
    """Makes a branch and tells its steps."""
    began = stage.branch(project, name)
    stage.ready(project, name, began)
    of = names.branch_object_name(project, name)
    seen = {step: (at - began) * 1000 for step, at in steps(stage.branches.history(of, began)).items()}
    mine = (line for line in stage.agent_log().splitlines() if f"{stage.namespace}/{of} accepts" in line)
    line = max(mine, default="")
    return Trace(seen, {step: float(text) for step, text in _LAP.findall(line.partition("accepts")[2])})


def steps(history: list[Seen]) -> dict[str, float]:
    """Step -> when it was first seen."""
    first: dict[str, float] = {}
    for seen in history:
        for step in steps_of(seen.body or {}):
            first.setdefault(step, seen.at)
    return first


def steps_of(body: Json) -> list[str]:
    """What a state of a branch has behind it."""
    meta, status = body.get("metadata") or {}, body.get("status") or {}
    node = status.get("node") or {}
    done = {
        "created": bool(meta),
        "finalizer of the controller": names.CONTROLLER_FINALIZER in (meta.get("finalizers") or ()),
        "bound": bool(status.get("nodeName")),
        "finalizer of the agent": names.AGENT_FINALIZER in (meta.get("finalizers") or ()),
        "accepts": (node.get("postgres") or {}).get("reason") == "Accepting",
        "Ready": any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or ()),
    }
    return [step for step, holds in done.items() if holds]
