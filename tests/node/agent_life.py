"""An agent's process over a fake API server: it reconciles until nothing more is to do, or until it is killed.

    python -m tests.node.agent_process API-FILE BASE-DIRECTORY KILL-AT [ROUNDS]

An effect is a command or system call that is about to happen (the interpreter's audit hooks and the log of commands
report it), a statement that changes something in a Postgres or makes it reload and is about to be sent, or a write to
the API that has just happened. KILL-AT is one of:

* n: SIGKILL at the n-th effect; 0: never.
* a regular expression: SIGKILL after the first effect that matches, before the next one.
* `~` and a regular expression: SIGSTOP just before the first effect that matches.

ROUNDS: stop after so many rounds, finished or not. Prints the effects, one per line, if the process is not killed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from tests.fakes.api import FakeApi, Json

from dbranch.agent.context import NodeContext
from dbranch.agent.dispatch import Dispatcher
from dbranch.agent.housekeeping.isolation import Isolation
from dbranch.agent.housekeeping.sweep import Sweeper
from dbranch.agent.layout import Layout
from dbranch.agent.linux.privileges import AGENT_CAPABILITIES, drop_capabilities
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.postgres.session import Session
from dbranch.agent.warm.sizing import WarmLimits
from dbranch.api import names
from dbranch.api.errors import Busy, DbranchError
from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.locks import KeyedLocks

NODE = "here"
NAMESPACE = "team"
PODS = path_of("v1", "pods", "dbranch-nodes")
PROJECTS = path_of(names.API_VERSION, names.PROJECTS, NAMESPACE)
BRANCHES = path_of(names.API_VERSION, names.BRANCHES, NAMESPACE)
SNAPSHOTS = path_of(names.API_VERSION, names.SNAPSHOTS, NAMESPACE)
NAMESPACES = path_of("v1", "namespaces")
# Warm slots of each class.
WARM = 1
# Within this an agent that is not killed has to finish.
_LIMIT_SECONDS = 60.0


class EffectCounter(logging.Handler):
    """Counts effects, and kills or stops this process at the one that `kill_at` names."""

    def __init__(self, kill_at: str) -> None:
        super().__init__()
        self._kill_at, self._pattern = (
            (int(kill_at), None) if kill_at.isdigit() else (0, re.compile(kill_at.strip("~")))
        )
        self._only_stop = kill_at.startswith("~")
        self._lock_effects = threading.Lock()
        self.effects: list[str] = []

    def count(self, effect: str) -> None:
        with self._lock_effects:
            self.effects.append(" ".join(effect.split()))
            if len(self.effects) == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if self._pattern and self._pattern.search(self.effects[-1]):
                # The effect is counted before it happens: kill at the next one.
                self._kill_at = 0 if self._only_stop else len(self.effects) + 1
                if self._only_stop:
                    os.kill(os.getpid(), signal.SIGSTOP)
                self._pattern = None

    def emit(self, record: logging.LogRecord) -> None:
        # A command is logged before it happens.
        self.count(record.getMessage())


_CREATING_CALLS = frozenset({"os.mkdir", "os.mknod", "os.link"})
_CHANGING_CALLS = frozenset(
    f"os.{call}" for call in ("rename", "rmdir", "remove", "chmod", "chown", "truncate")
)


def is_effect(event: str, args: tuple[Any, ...], base: str) -> bool:
    """True if an audit event reports that a file on the node is about to change."""
    path = args[0] if args else None
    if event == "open":
        flags = args[2]
        if not isinstance(path, str) or not path.startswith(base) or not flags & (os.O_CREAT | os.O_TRUNC):
            return False
        return bool(flags & os.O_TRUNC) or not os.path.lexists(path)
    if event in _CREATING_CALLS:
        return not os.path.lexists(path)
    return event in _CHANGING_CALLS and not str(path).startswith("/proc/")


_CHANGING_SQL = re.compile(r"pg_reload_conf|^(alter|drop|rollback|checkpoint)\b")


def count_statements(counter: EffectCounter) -> None:
    """Count the statements of this process' sessions that change something as effects."""
    execute = Session.execute

    def counted(session: Session, sql: str, *args: Any, **options: Any) -> Any:
        if _CHANGING_SQL.search(sql):
            counter.count(f"SQL: {sql}")
        return execute(session, sql, *args, **options)

    Session.execute = counted  # type: ignore[method-assign]


class CountingApi(FakeApi):
    """A fake API server whose writes count as effects."""

    def __init__(self, file: Path, counter: EffectCounter) -> None:
        super().__init__(file)
        self._counter = counter

    def on_write(self) -> None:
        self._counter.count("write to the API")


def is_converged(body: Json, project: Json | None, has_pods: bool) -> bool:
    """True if the agent has nothing more to do for this branch."""
    node = (body.get("status") or {}).get("node") or {}
    if (body.get("status") or {}).get("restore") or node.get("restore"):
        # The controller ends it, here `tests.node.restores`.
        return False
    run = body["spec"].get("state", "Running") == "Running"
    if project is None or project["spec"].get("state", "Running") != "Running":
        run = False
    observed = node.get("observedGeneration") == body["metadata"]["generation"]
    reason = (node.get("postgres") or {}).get("reason")
    if run:
        return observed and reason in (
            "Accepting",
            "RestartPending",
            "SettingsRejected",
            "WritesBraked",
            "ImageChanged",
            "ImageIncompatible",
        )
    return observed and reason == "Stopped" and not has_pods


class Agent:
    """The agent without kopf: reconciles every object again and again."""

    def __init__(self, api: FakeApi, base: Path) -> None:
        self._api = api
        context = NodeContext(NODE, "node-uid", "dbranch-nodes", "dbranch")
        cluster, layout = cast(Cluster, api), Layout(base)
        locks, metrics = KeyedLocks(layout.locks), AgentMetrics(WARM)
        sweeper = Sweeper(cluster, layout, context, Isolation())
        self._sweep_slots = partial(sweeper.sweep_slots, minimum_rounds=1)
        # Its work queue is not started: each round reconciles every object.
        dispatcher = Dispatcher(cluster, layout, context, locks, WarmLimits(WARM), metrics)
        self._projects, self._branches, self._warm = dispatcher.projects, dispatcher.branches, dispatcher.warm
        self._snapshots = dispatcher.snapshots

    def run(self, rounds: int | None = None) -> None:
        """Reconcile until nothing more is to do, or for so many rounds."""
        for _ in range(rounds or 0):
            self._round()
            time.sleep(0.02)
        if rounds:
            return
        deadline = time.monotonic() + _LIMIT_SECONDS
        while not self._round():
            assert time.monotonic() < deadline, (
                f"not finished: {self._api.find(PROJECTS)} {self._api.find(BRANCHES)}"
            )
            time.sleep(0.1)
        self._sweep_slots()
        # As the resync does.
        for body in self._api.find(PROJECTS):
            self._projects.collect_usage_and_trash(NAMESPACE, body["metadata"]["name"])

    def _round(self) -> bool:
        finished = True
        kinds = ((PROJECTS, self._projects), (BRANCHES, self._branches), (SNAPSHOTS, self._snapshots))
        for path, reconciler in kinds:
            for body in self._api.find(path):
                if path == PROJECTS and self._waits_for_branches(body):
                    # The controller's finalizer holds a project until its branches and snapshots are gone.
                    finished = False
                    continue
                finished = self._reconcile(path, reconciler, body) and finished
        self._warm.reconcile()
        warm_pods = self._api.find(PODS, f"{names.LABEL_SLOT},!{names.LABEL_BRANCH_UID}")
        all_run = all((pod.get("status") or {}).get("phase") == "Running" for pod in warm_pods)
        # As the pod watch triggers when a warm pod runs.
        return all_run and self._warm.reconcile().requeue_after is None and finished

    def _waits_for_branches(self, project: Json) -> bool:
        name = project["metadata"]["name"]
        existing = (*self._api.find(BRANCHES), *self._api.find(SNAPSHOTS))
        has_branches = any(body["spec"]["project"] == name for body in existing)
        return has_branches and bool(project["metadata"].get("deletionTimestamp"))

    def _reconcile(self, path: str, reconciler: Any, body: Json) -> bool:
        name = body["metadata"]["name"]
        try:
            if body["metadata"].get("deletionTimestamp"):
                reconciler.reconcile(NAMESPACE, name)
                return False
            if path == SNAPSHOTS:
                return bool(reconciler.reconcile(NAMESPACE, name).gone)
            pods = self._api.find(PODS, f"{names.LABEL_BRANCH_UID}={body['metadata']['uid']}")
            requeue_after = reconciler.reconcile(NAMESPACE, name).requeue_after
        except Busy:
            return False
        except (DbranchError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return False
        current = self._api.get(f"{path}/{name}") or body
        if path == PROJECTS:
            return requeue_after is None and bool((current.get("status") or {}).get("node"))
        project = self._api.get(f"{PROJECTS}/{current['spec']['project']}")
        return requeue_after is None and is_converged(current, project, bool(pods))


@contextmanager
def running(dispatcher: Dispatcher) -> Iterator[Dispatcher]:
    """Run the agent's work queue in a thread."""
    started, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        dispatcher.queue.start()
        started.set()
        await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="work queue")
    thread.start()
    try:
        assert started.wait(10)
        yield dispatcher
    finally:
        stop.set()
        thread.join(30)


def main() -> None:
    file, base, kill_at = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else None
    counter = EffectCounter(kill_at)
    api_files = str(file.with_suffix(""))

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if is_effect(event, args, f"{base}/") and not str(args[0]).startswith(api_files):
            counter.count(f"{event} {args[0]!r}")

    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    logging.getLogger("dbranch.command").addHandler(counter)
    # As the agent does: whatever it does in these tests, it does without the others.
    drop_capabilities(AGENT_CAPABILITIES)
    # After the imports: files that they compile and cache are no effects.
    sys.addaudithook(hook)
    count_statements(counter)
    Agent(CountingApi(file, counter), base).run(rounds)
    print("\n".join(counter.effects))
