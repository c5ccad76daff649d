"""One life of an agent's process over a paper API: visits until there is no more to do, or until its kill.

    python -m tests.node.agent_process API-FILE BASE-DIRECTORY KILL-AT [ROUNDS]

KILL-AT n: SIGKILL at the n-th effect: a command or system call that is about to be made (the interpreter's
audit hooks and the log of commands tell), or a write to the API that was just made; 0: never; a pattern: when
the first effect that it finds is done, before the next; `~` and a pattern: it stands still (SIGSTOP) just before
the first effect that it finds. Prints the effects of a life that ended by itself, a
line each. ROUNDS: it ends after so many, done or not.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

from tests.node.fake_api import FakeApi, Json

from dbranch.agent.branch.reconciler import BranchReconciler
from dbranch.agent.context import NodeContext
from dbranch.agent.housekeeping import sweep_slots
from dbranch.agent.layout import Layout
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.project.reconciler import ProjectReconciler
from dbranch.agent.warm.reconciler import WarmReconciler
from dbranch.api import names
from dbranch.api.errors import Busy, DbranchError
from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.locks import KeyedLocks

NODE = "here"
NAMESPACE = "team"
PODS = path_of("v1", "pods", "dbranch-nodes")
PROJECTS = path_of(names.API_VERSION, names.PROJECTS, NAMESPACE)
BRANCHES = path_of(names.API_VERSION, names.BRANCHES, NAMESPACE)
# How many slots of each class wait.
WARM = 1
# Seconds in which a life without a kill has to come to its end.
_LIMIT = 60.0


class Clock(logging.Handler):
    """Counts effects; at the one that was asked for this process is no more."""

    def __init__(self, kill_at: str) -> None:
        super().__init__()
        self._kill_at, self._last = (
            (int(kill_at), None) if kill_at.isdigit() else (0, re.compile(kill_at.strip("~")))
        )
        self._halts = kill_at.startswith("~")
        self._guard = threading.Lock()
        self.effects: list[str] = []

    def tick(self, effect: str) -> None:
        with self._guard:
            self.effects.append(" ".join(effect.split()))
            if len(self.effects) == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if self._last and self._last.search(self.effects[-1]):
                # It was told before it is done: the next one is one too many.
                self._kill_at = 0 if self._halts else len(self.effects) + 1
                if self._halts:
                    os.kill(os.getpid(), signal.SIGSTOP)
                self._last = None

    def emit(self, record: logging.LogRecord) -> None:
        # Logged before it is done: what was done is the one before.
        self.tick(record.getMessage())


_MAKES = frozenset({"os.mkdir", "os.mknod", "os.link"})
_CHANGES = frozenset(f"os.{call}" for call in ("rename", "rmdir", "remove", "chmod", "chown", "truncate"))


def is_effect(event: str, args: tuple[Any, ...], base: str) -> bool:
    """Whether an audit event says that something on the node is about to change."""
    path = args[0] if args else None
    if event == "open":
        flags = args[2]
        if not isinstance(path, str) or not path.startswith(base) or not flags & (os.O_CREAT | os.O_TRUNC):
            return False
        return bool(flags & os.O_TRUNC) or not os.path.lexists(path)
    if event in _MAKES:
        return not os.path.lexists(path)
    return event in _CHANGES and not str(path).startswith("/proc/")


class TimedApi(FakeApi):
    """A paper API whose writes count as effects."""

    def __init__(self, file: Path, clock: Clock) -> None:
        super().__init__(file)
        self._clock = clock

    def written(self) -> None:
        self._clock.tick("write to the API")


def settled(body: Json, project: Json | None, has_pods: bool) -> bool:
    """Whether the agent has nothing more to do for this branch."""
    node = (body.get("status") or {}).get("node") or {}
    wanted = body["spec"].get("state", "Running") == "Running"
    if project is None or project["spec"].get("state", "Running") != "Running":
        wanted = False
    asked = node.get("observedGeneration") == body["metadata"]["generation"]
    reason = (node.get("postgres") or {}).get("reason")
    if wanted:
        return asked and reason in ("Accepting", "RestartPending", "ImageIncompatible")
    return asked and reason == "Stopped" and not has_pods


class Life:
    """The agent without kopf: every object visited again and again, finalizers dropped as kopf does."""

    def __init__(self, api: FakeApi, base: Path) -> None:
        self._api = api
        context = NodeContext(NODE, "node-uid", "dbranch-nodes", "dbranch")
        cluster, layout = cast(Cluster, api), Layout(base)
        locks, metrics = KeyedLocks(layout.locks), AgentMetrics(WARM)
        self._sweep = partial(sweep_slots, cluster, layout, context, minimum_age=0.0)
        self._warm = WarmReconciler(cluster, layout, context, WARM, metrics)
        self._projects = ProjectReconciler(cluster, layout, context, locks, self._warm.trigger)
        self._branches = BranchReconciler(cluster, layout, context, locks, self._warm, metrics)

    def live(self, rounds: int | None = None) -> None:
        """Until there is no more to do, or for so many rounds."""
        for _ in range(rounds or 0):
            self._round()
        if rounds:
            return
        until = time.monotonic() + _LIMIT
        while not self._round():
            assert time.monotonic() < until, (
                f"never done: {self._api.find(PROJECTS)} {self._api.find(BRANCHES)}"
            )
            time.sleep(0.1)
        self._sweep()
        # The slow timer's visit.
        for body in self._api.find(PROJECTS):
            self._projects.collect_usage_and_trash(NAMESPACE, body["metadata"]["name"])

    def _round(self) -> bool:
        done = True
        for path, work in ((PROJECTS, self._projects), (BRANCHES, self._branches)):
            for body in self._api.find(path):
                if path == PROJECTS and self._waits_for_branches(body):
                    # The controller's finalizer holds a project until its branches are gone.
                    done = False
                    continue
                done = self._visit(path, work, body) and done
        self._warm.reconcile()
        waiting = self._api.find(PODS, f"{names.LABEL_SLOT},!{names.LABEL_BRANCH_UID}")
        run = all((pod.get("status") or {}).get("phase") == "Running" for pod in waiting)
        # That a waiting pod runs now is an event, too.
        return run and self._warm.reconcile() is None and done

    def _waits_for_branches(self, project: Json) -> bool:
        name = project["metadata"]["name"]
        left = any(branch["spec"]["project"] == name for branch in self._api.find(BRANCHES))
        return left and bool(project["metadata"].get("deletionTimestamp"))

    def _visit(self, path: str, work: Any, body: Json) -> bool:
        name = body["metadata"]["name"]
        try:
            if body["metadata"].get("deletionTimestamp"):
                if work.remove(body) is None:
                    self._api.merge(f"{path}/{name}", {"metadata": {"finalizers": []}})
                return False
            ending = self._api.find(PODS, f"{names.LABEL_BRANCH_UID}={body['metadata']['uid']}")
            later = work.reconcile(NAMESPACE, name)
        except Busy:
            return False
        except (DbranchError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return False
        now = self._api.get(f"{path}/{name}") or body
        if path == PROJECTS:
            return later is None and bool((now.get("status") or {}).get("node"))
        project = self._api.get(f"{PROJECTS}/{now['spec']['project']}")
        return later is None and settled(now, project, bool(ending))


def main() -> None:
    file, base, kill_at = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else None
    clock = Clock(kill_at)
    papers = str(file.with_suffix(""))

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if is_effect(event, args, f"{base}/") and not str(args[0]).startswith(papers):
            clock.tick(f"{event} {args[0]!r}")

    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    logging.getLogger("dbranch.command").addHandler(clock)
    # Past the imports: what they compile and cache is no effect.
    sys.addaudithook(hook)
    Life(TimedApi(file, clock), base).live(rounds)
    print("\n".join(clock.effects))
