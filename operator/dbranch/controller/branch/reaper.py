"""The thread that deletes branches whose time has come, as their status says, and looks at the end of protections."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime

from dbranch.api.branch import Branch, parse_branch
from dbranch.api.errors import ApiError
from dbranch.api.project import parse_project
from dbranch.controller import timing
from dbranch.controller.branch.expiry import (
    expiry_state,
    going_now,
    is_expired,
    may_go,
    outdated_leases,
)
from dbranch.controller.event_requests import EventRequests
from dbranch.controller.events import EXPIRED, EmitEvent
from dbranch.controller.keys import key_of
from dbranch.controller.metrics import ControllerMetrics
from dbranch.kube.client import Cluster, branch_path, project_path
from dbranch.runtime.backoff import Backoff
from dbranch.runtime.logs import log_error
from dbranch.runtime.result import Key

logger = logging.getLogger(__name__)


class BranchReaper:
    """Deletes expired branches. `branches`: returns all, from the cache; `add`: requests a branch's reconcile.

    It deletes as anybody does: the deletion policy holds, so that a switch or a protection in the same second wins.
    """

    def __init__(
        self,
        cluster: Cluster,
        branches: Callable[[], list[Branch]],
        add: Callable[[Key], None],
        metrics: ControllerMetrics,
        clock: Callable[[], datetime] | None = None,
        emit_event: EmitEvent | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster, self._branches, self._add, self._metrics = cluster, branches, add, metrics
        self._clock = clock or cluster.server_time
        self._emit_event = emit_event or EventRequests(cluster)
        self._monotonic = monotonic
        self._refusals = Backoff(timing.EXPIRY_REFUSED_LONGEST_SECONDS)

    def run(self, beat: Callable[[], None]) -> None:
        """Look for ever which branches have expired. `beat` is called in each round."""
        while True:
            beat()
            time.sleep(timing.EXPIRY_POLL_SECONDS)
            try:
                self.reap()
            except Exception as error:  # noqa: BLE001
                log_error(logger, error, "expiry of branches")

    def reap(self) -> None:
        """Delete a few of the branches that have expired; reconcile those whose protection has ended by itself."""
        now, branches = self._clock(), self._branches()
        for branch in outdated_leases(branches, now):
            self._add(key_of(branch))
        tried = [branch for branch in branches if not is_expired(branch, now) or self._may_try(branch)]
        for branch in going_now(tried, now):
            self._expire(branch)

    def _may_try(self, branch: Branch) -> bool:
        return self._refusals.remaining(branch.uid, None, self._monotonic()) == 0.0

    def _expire(self, cached: Branch) -> None:
        """Delete a branch as it is read now: whatever is written to it in the same second wins."""
        path = branch_path(cached.namespace, cached.object_name)
        body = self._cluster.get(path)
        branch = parse_branch(body) if body else None
        if branch is None or branch.uid != cached.uid or branch.deleting:
            return
        project_body = self._cluster.get(project_path(branch.namespace, branch.project))
        project = parse_project(project_body) if project_body else None
        if not may_go(branch, project, self._clock()):
            # Its status does not say yet what its spec and its project do.
            self._add(key_of(branch))
            return
        try:
            self._cluster.delete(path, uid=branch.uid, version=branch.resource_version)
        except ApiError as error:
            # A policy knows better, or somebody else's: the branch goes on, and its status is looked at.
            first = timing.EXPIRY_POLL_SECONDS
            self._refusals.fail(branch.uid, first, None, self._monotonic())
            logger.warning("branch %s/%s stays: %s", branch.namespace, branch.object_name, error)
            self._add(key_of(branch))
            return
        self._refusals.succeed(branch.uid)
        body = self._cluster.get(path)
        if body is None or body["metadata"]["uid"] != branch.uid or body["metadata"].get("deletionTimestamp"):
            logger.info("branch %s/%s: its time has come", branch.namespace, branch.object_name)
            self._metrics.expired()
            text = f"branch {branch.name} is deleted: its time has come at {branch.expiration_time}"
            self._emit_event(branch, "Normal", EXPIRED, text)

    def count(self, state: str) -> int:
        """Return the number of branches whose expiry is this one of EXPIRY_STATES, for the metrics."""
        now = self._clock()
        return sum(not b.deleting and expiry_state(b, now) == state for b in self._branches())
