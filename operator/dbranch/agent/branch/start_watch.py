"""Threads that wait for a branch's Postgres, clean it and report it, without the delay of a readiness probe."""

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
from dbranch.agent.timing import POD_ADDRESS_POLL_SECONDS, START_FAILED_RETRY_SECONDS, START_WAIT_SECONDS
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


@dataclass(frozen=True)
class StartingBranch:
    """A branch whose Postgres is starting in a slot.

    `claimed_pod`: the warm pod that it got, None if its pod is new. `timer`: the steps of its reconcile so far.
    """

    project: Project
    branch: Branch
    slot: str
    marker: Marker
    claimed_pod: PodFacts | None = None
    timer: StepTimer = field(default_factory=StepTimer)

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name of the DBBranch."""
        return self.branch.namespace, self.branch.object_name

    @property
    def endpoint(self) -> Endpoint:
        """Where its Postgres will accept the agent's sessions."""
        port = names.branch_port(self.branch.uid)
        return Endpoint(self.slot, port, self.project.postgres.user, self.marker.major)


class StartWatcher:
    """Waits for starting branches, in at most one thread per branch.

    A thread ends when it has reported the branch, or when the branch is no longer bound in its slot.
    """

    def __init__(
        self, cluster: Cluster, layout: Layout, namespace: str, locks: KeyedLocks, metrics: AgentMetrics
    ) -> None:
        """`namespace`: the nodes' namespace, which holds the pods and the verifiers' Secrets."""
        self._cluster, self._layout, self._namespace, self._locks = cluster, layout, namespace, locks
        self._metrics = metrics
        self._changed = threading.Condition()
        # By namespace and name of the DBBranch: the slot, and the event that stops its thread.
        self._threads: dict[tuple[str, str], tuple[str, threading.Event]] = {}
        self._reconciles = 0

    def start(self, starting: StartingBranch) -> None:
        """Start a thread for the branch's slot, unless there is one; stop its thread for another slot."""
        stop = threading.Event()
        with self._changed:
            existing = self._threads.get(starting.key)
            if existing and existing[0] == starting.slot:
                return
            if existing:
                existing[1].set()
            self._threads[starting.key] = starting.slot, stop
        threading.Thread(target=self._run, args=(starting, stop), daemon=True, name=starting.slot).start()

    def stop(self, namespace: str, name: str) -> None:
        """Stop the branch's thread. The caller holds the branch's lock, so the thread reports nothing from now on."""
        with self._changed:
            existing = self._threads.pop((namespace, name), None)
            self._changed.notify_all()
        if existing:
            existing[1].set()

    @contextmanager
    def reconciling(self) -> Iterator[None]:
        """Count the reconcile of a branch as activity for `wait_idle`."""
        with self._changed:
            self._reconciles += 1
        try:
            yield
        finally:
            with self._changed:
                self._reconciles -= 1
                self._changed.notify_all()

    def wait_idle(self, timeout: float) -> None:
        """Block until no branch is reconciled or starting, `timeout` seconds at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._threads and not self._reconciles, timeout)

    def _run(self, starting: StartingBranch, stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                try:
                    if self._wait_once(starting, stop):
                        return
                except (DbranchError, OSError, psycopg.Error) as error:
                    logger.warning("slot %s: %s", starting.slot, error)
                    if isinstance(error, ApiError) and error.status in (404, 409):
                        return
                    time.sleep(START_FAILED_RETRY_SECONDS)
        finally:
            with self._changed:
                if self._threads.get(starting.key, ("", None))[1] is stop:
                    del self._threads[starting.key]
                    self._changed.notify_all()

    def _wait_once(self, starting: StartingBranch, stop: threading.Event) -> bool:
        """Wait for the socket once; return True if there is nothing more to wait for."""
        branch = starting.branch
        version = session.await_accepting(self._layout, starting.endpoint, START_WAIT_SECONDS)
        with self._locks.held(branch.namespace, branch.object_name):
            slot = observe_slot(self._layout, starting.slot)
            if stop.is_set() or slot.branch_uid != branch.uid:
                return True
            if version is None:
                if is_final(slot.start_blocked_by) or slot.bind_not_propagated:
                    request_reconcile(
                        self._cluster, names.AGENT_REQUESTED_AT, branch.namespace, branch.object_name
                    )
                    return True
                return False
            opened = self._open(starting, version, {})
        if opened:
            patch_sizes(self._cluster, self._layout, starting.project, branch)
        else:
            time.sleep(POD_ADDRESS_POLL_SECONDS)
        return opened

    def try_open(self, starting: StartingBranch, timeout: float, node: dict[str, Any]) -> bool:
        """Wait `timeout` seconds in the caller's thread, which holds the branch's lock, and open the branch.

        Return True if it is open and reported, together with `node` for status.node.
        """
        version = session.await_accepting(self._layout, starting.endpoint, timeout)
        try:
            return version is not None and self._open(starting, version, node)
        except psycopg.Error as error:
            logger.warning("slot %s: %s", starting.slot, error)
            return False

    def _open(self, starting: StartingBranch, version: str, node: dict[str, Any]) -> bool:
        """Clean the branch, set its password and report it with `node`; return False while its pod has no address."""
        project, branch, endpoint = starting.project, starting.branch, starting.endpoint
        starting.timer.record("accept")
        cleaned = ensure_cleaned(self._layout, project.uid, branch.uid, endpoint)
        if cleaned.subscriptions or cleaned.prepared_transactions:
            logger.info("branch %s/%s: cleaned: %s", branch.namespace, branch.object_name, cleaned)
        marker = read_marker(self._layout.branch(project.uid, branch.uid))
        if marker and project.password_version not in (None, marker.password):
            self.set_password(project, branch, endpoint)
        pod = starting.claimed_pod
        if pod is None or not pod.address:
            body = self._cluster.get(path_of("v1", "pods", self._namespace, starting.slot))
            pod = pod_facts(body) if body else None
        starting.timer.record("open")
        if pod is None or not pod.address:
            return False
        self._report(starting, pod, version, node)
        return True

    def set_password(self, project: Project, branch: Branch, endpoint: Endpoint) -> None:
        """Set the owner's password in this Postgres to the verifier in the project's Secret."""
        path = path_of("v1", "secrets", self._namespace, names.verifier_secret_name(project.uid))
        verifier = secret_text(self._cluster.get(path), "verifier")
        if verifier:
            ensure_password(self._layout, project.uid, branch.uid, endpoint, verifier)

    def _report(self, starting: StartingBranch, pod: PodFacts, version: str, node: dict[str, Any]) -> None:
        """Write that Postgres accepts connections, with `node`, and the project's Postgres version if it is new."""
        project, branch = starting.project, starting.branch
        text = f"Postgres {version} of branch {branch.name} accepts connections"
        fields: dict[str, Any] = {
            **node,
            "postgres": Finding(Reason.ACCEPTING, text).as_dict(),
            "slot": starting.slot,
            "pod": starting.slot,
            "address": pod.address,
            "port": starting.endpoint.port,
            "postgresVersion": version,
            "imageID": pod.image_id,
            "restartedAt": pod.restarted_at,
        }
        patch_status(self._cluster, branch, {"node": fields})
        starting.timer.record("report")
        self._metrics.observe_start("warm" if starting.claimed_pod else "new", starting.timer.total_seconds())
        logger.info(
            "branch %s/%s accepts",
            branch.namespace,
            branch.object_name,
            extra={"fields": starting.timer.milliseconds()},
        )
        if project.node.postgres_version != version:
            digest = (pod.image_id or "").partition("@")[2] or None
            patch_status(
                self._cluster, project, {"node": {"postgresVersion": version, "imageDigest": digest}}
            )
