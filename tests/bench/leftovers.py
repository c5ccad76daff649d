"""What branches leave behind on the node and in the cluster."""

from __future__ import annotations

import time

from dbranch.api import names
from tests.bench.stage import NODES, Stage


def leftovers(stage: Stage) -> set[str]:
    """Return what branches have on the node and in the cluster: subvolumes, mounts, pods of bound slots, Secrets."""
    script = "cd /var/lib/dbranch; ls -d mnt/*/* mnt/*/.[!.]* slots/* 2>/dev/null || true"
    agent = stage.agent_exec("sh", "-c", script).split()
    free = {pod["metadata"]["name"] for pod in stage.warm_slots()}
    present = {path for path in agent if path.removeprefix("slots/") not in free}
    for plural in ("secrets", "services", "configmaps"):
        present |= {
            f"{plural}/{body['metadata']['name']}" for body in stage.list_core(plural, stage.namespace)
        }
    present |= {f"secrets/{body['metadata']['name']}" for body in stage.list_core("secrets", NODES)}
    bound = f"{names.LABEL_SLOT},{names.LABEL_BRANCH_UID}"
    return present | {f"pods/{body['metadata']['name']}" for body in stage.list_core("pods", NODES, bound)}


def await_leftovers(stage: Stage, before: set[str]) -> int:
    """Return how many things are there that were not `before`, once none is left, or after two minutes."""
    deadline = time.monotonic() + 120
    while True:
        left = leftovers(stage) - before
        if not left or time.monotonic() > deadline:
            if left:
                stage.say(f"left: {' '.join(sorted(left))}")
            return len(left)
        time.sleep(1)
