"""Threads that wait for a Postgres to accept, clean its copy, and tell: no probe's period in the way."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg

from dbranch.agent.branch.plan import is_final
from dbranch.agent.branch.usage import patch_sizes
from dbranch.agent.layout import Layout
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.postgres import session
from dbranch.agent.postgres.cleaning import ensure_cleaned
from dbranch.agent.postgres.password import ensure_password
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.slot.observe import observe_slot
from dbranch.agent.slot.pod_status import PodFacts, pod_facts
from dbranch.agent.volume.effect import read_marker
from dbranch.agent.volume.marker import Marker
from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.conditions import Finding, Reason
from dbranch.api.errors import ApiError, DbranchError
from dbranch.api.project import Project
from dbranch.api.secrets import secret_text
from dbranch.kube.client import Cluster, path_of
from dbranch.kube.requeue import request_reconcile
from dbranch.kube.status import patch_status
from dbranch.runtime.locks import KeyedLocks
from dbranch.runtime.timings import StepTimer

logger = logging.getLogger(__name__)

# Seconds of one wait for the socket, and between two tries after an error.
_WAIT = 5.0
_PAUSE = 0.5


@dataclass(frozen=True)
class Watched:
    """A branch that is starting in a slot; `pod` is its pod, where that is known already; `laps` so far."""

    project: Project
    branch: Branch
    slot: str
    marker: Marker
    pod: PodFacts | None = None
    laps: StepTimer = field(default_factory=StepTimer)

    @property
    def endpoint(self) -> Endpoint:
        port = names.branch_port(self.branch.uid)
        return Endpoint(self.slot, port, self.project.postgres.user, self.marker.major)


class Watchers:
    """At most one thread a branch; it ends when it has told, or when its slot is no longer the branch's."""

    def __init__(
        self, cluster: Cluster, layout: Layout, context: str, locks: KeyedLocks, metrics: AgentMetrics
    ) -> None:
        self._cluster, self._layout, self._context, self._locks = cluster, layout, context, locks
        self._metrics = metrics
        self._guard = threading.Condition()
        self._running: dict[tuple[str, str], tuple[str, threading.Event]] = {}
        self._visits = 0

    def start(self, watched: Watched) -> None:
        """Watches this slot for the branch, and no other any more."""
        key = watched.branch.namespace, watched.branch.object_name
        stop = threading.Event()
        with self._guard:
            there = self._running.get(key)
            if there and there[0] == watched.slot:
                return
            if there:
                there[1].set()
            self._running[key] = watched.slot, stop
        threading.Thread(target=self._run, args=(watched, stop), daemon=True, name=watched.slot).start()

    def stop(self, namespace: str, name: str) -> None:
        """No thread of this branch tells anything from now on (its lock is the caller's)."""
        with self._guard:
            there = self._running.pop((namespace, name), None)
            self._guard.notify_all()
        if there:
            there[1].set()

    @contextmanager
    def visiting(self) -> Iterator[None]:
        """A visit of a branch, which may start one itself."""
        with self._guard:
            self._visits += 1
        try:
            yield
        finally:
            with self._guard:
                self._visits -= 1
                self._guard.notify_all()

    def quiet(self, seconds: float) -> None:
        """Waits until no branch is visited and none watched, so many seconds at most."""
        with self._guard:
            self._guard.wait_for(lambda: not self._running and not self._visits, seconds)

    def _run(self, watched: Watched, stop: threading.Event) -> None:
        key = watched.branch.namespace, watched.branch.object_name
        try:
            while not stop.is_set():
                try:
                    if self._look(watched, stop):
                        return
                except (DbranchError, OSError, psycopg.Error) as error:
                    logger.warning("slot %s: %s", watched.slot, error)
                    if isinstance(error, ApiError) and error.status in (404, 409):
                        return
                    time.sleep(_PAUSE)
        finally:
            with self._guard:
                if self._running.get(key, ("", None))[1] is stop:
                    del self._running[key]
                    self._guard.notify_all()

    def _look(self, watched: Watched, stop: threading.Event) -> bool:
        """Waits once; True when there is nothing more to wait for."""
        branch = watched.branch
        version = session.await_accepting(self._layout, watched.endpoint, _WAIT)
        with self._locks.held(branch.namespace, branch.object_name):
            if stop.is_set() or observe_slot(self._layout, watched.slot).branch_uid != branch.uid:
                return True
            if version is None:
                slot = observe_slot(self._layout, watched.slot)
                if is_final(slot.refused) or slot.unseen:
                    request_reconcile(
                        self._cluster, names.AGENT_REQUESTED_AT, branch.namespace, branch.object_name
                    )
                    return True
                return False
            told = self._open(watched, version, {})
        if told:
            patch_sizes(self._cluster, self._layout, watched.project, branch)
        else:
            time.sleep(_PAUSE / 10)
        return told

    def at_once(self, watched: Watched, seconds: float, more: dict[str, Any]) -> bool:
        """Waits so long in the visit itself, whose lock is held: True where all is told, `more` with it."""
        version = session.await_accepting(self._layout, watched.endpoint, seconds)
        try:
            return version is not None and self._open(watched, version, more)
        except psycopg.Error as error:
            logger.warning("slot %s: %s", watched.slot, error)
            return False

    def _open(self, watched: Watched, version: str, more: dict[str, Any]) -> bool:
        """Cleaned, given the owner's password, and told with `more`; False where its pod has no address yet."""
        project, branch, endpoint = watched.project, watched.branch, watched.endpoint
        watched.laps.record("accept")
        cleaned = ensure_cleaned(self._layout, project.uid, branch.uid, endpoint)
        if cleaned.subscriptions or cleaned.prepared_transactions:
            logger.info("branch %s/%s: cleaned of %s", branch.namespace, branch.object_name, cleaned)
        marker = read_marker(self._layout.branch(project.uid, branch.uid))
        if marker and project.password_version not in (None, marker.password):
            self.take_password(project, branch, endpoint)
        pod = watched.pod
        if pod is None or not pod.address:
            body = self._cluster.get(path_of("v1", "pods", self._context, watched.slot))
            pod = pod_facts(body) if body else None
        watched.laps.record("open")
        if pod is None or not pod.address:
            return False
        self._tell(watched, pod, version, more)
        return True

    def take_password(self, project: Project, branch: Branch, endpoint: Endpoint) -> None:
        """The owner's password as the controller has it now, in this Postgres."""
        path = path_of("v1", "secrets", self._context, names.verifier_secret_name(project.uid))
        body = self._cluster.get(path)
        verifier = secret_text(body, "verifier")
        if verifier:
            ensure_password(self._layout, project.uid, branch.uid, endpoint, verifier)

    def _tell(self, watched: Watched, pod: PodFacts, version: str, more: dict[str, Any]) -> None:
        project, branch = watched.project, watched.branch
        text = f"Postgres {version} of branch {branch.name} accepts connections"
        node: dict[str, Any] = {
            **more,
            "postgres": Finding(Reason.ACCEPTING, text).as_dict(),
            "slot": watched.slot,
            "pod": watched.slot,
            "address": pod.address,
            "port": watched.endpoint.port,
            "postgresVersion": version,
            "imageID": pod.image_id,
            "restartedAt": pod.restarted_at,
        }
        patch_status(self._cluster, branch, {"node": node})
        watched.laps.record("tell")
        self._metrics.started("waiting" if watched.pod else "new", watched.laps.seconds())
        logger.info(
            "branch %s/%s accepts",
            branch.namespace,
            branch.object_name,
            extra={"fields": watched.laps.milliseconds()},
        )
        if project.node.postgres_version != version:
            digest = (pod.image_id or "").partition("@")[2] or None
            patch_status(
                self._cluster, project, {"node": {"postgresVersion": version, "imageDigest": digest}}
            )
