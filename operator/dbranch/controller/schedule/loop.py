"""A thread that looks every few seconds which branches' schedules are due: makes snapshots, deletes those too many.

What it decides from is in the cache and the records of snapshots, so that a look costs no request. It alone writes
`status.snapshots` of branches. An idle system is not written to, nor read.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Final

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.conditions import NO_PROGRESS_REASONS, Condition, Finding
from dbranch.api.enums import SnapshotReason
from dbranch.api.errors import ApiError, ObjectRefused
from dbranch.api.expiry import format_time
from dbranch.api.project import Project
from dbranch.api.restore import parse_restore
from dbranch.api.snapshot import Snapshot
from dbranch.api.versions import is_newer
from dbranch.controller import timing
from dbranch.controller.branch.refreshed import last_finished, refreshed_of, refreshes_of
from dbranch.controller.branch.snapshotted import is_of_schedule, is_reported, snapshotted_of
from dbranch.controller.cache import Cache
from dbranch.controller.event_requests import EventRequests
from dbranch.controller.events import EXPIRING, REFRESH_FAILED
from dbranch.controller.failure import is_refusal, refusal_finding
from dbranch.controller.keys import key_of
from dbranch.controller.limits import Limits, reached_snapshot_limit
from dbranch.controller.manifests import refresh_restore, scheduled_snapshot
from dbranch.controller.metrics import ControllerMetrics
from dbranch.controller.schedule.plan import Run, ScheduleFacts, SchedulePlan, plan_schedules
from dbranch.controller.schedule.refresh import RefreshFacts, is_in_use, plan_refresh
from dbranch.controller.scheduling import agent_too_old_finding, not_reporting_finding
from dbranch.controller.snapshot_records import SnapshotRecord, record_of
from dbranch.kube.client import Cluster, object_path, path_of
from dbranch.kube.status import patch_status
from dbranch.runtime.clock import seconds_since
from dbranch.runtime.limited import LimitedDict
from dbranch.runtime.logs import log_error
from dbranch.runtime.result import Key

logger = logging.getLogger(__name__)

_MAX_REMEMBERED: Final = 10_000


class ScheduleLoop:
    """Carries out the branches' schedules. `add`: puts a key into the work queue, from any thread.

    `cache`: returns the cache, None before the first event.
    """

    def __init__(
        self,
        cluster: Cluster,
        limits: Limits,
        metrics: ControllerMetrics,
        add: Callable[[Key], None],
        cache: Callable[[], Cache | None],
        clock: Callable[[], datetime],
    ) -> None:
        """`clock`: that of the API server, as far as it is believed."""
        self._clock, self._emit_event = clock, EventRequests(cluster)
        self._cluster, self._limits, self._add, self._cache = cluster, limits, add, cache
        # By branch UID: up to where it was found that there is nothing to take.
        self._considered: LimitedDict[str, datetime] = LimitedDict(_MAX_REMEMBERED)
        # UIDs of DBRestores of which an Event says that they failed.
        self._failures: LimitedDict[str, bool] = LimitedDict(_MAX_REMEMBERED)
        # By branch UID: until when what the API server has refused is not tried again, as `time.monotonic()` counts.
        self._refused: LimitedDict[str, float] = LimitedDict(_MAX_REMEMBERED)
        # By branch UID: the resourceVersion as of which the status was written last, and when that was.
        self._written: LimitedDict[str, tuple[str, float]] = LimitedDict(_MAX_REMEMBERED)
        self._late = 0
        metrics.watch_schedules(lambda: self._late)

    def run(self, beat: Callable[[], None]) -> None:
        """Look for ever. `beat` is called in each round."""
        while True:
            beat()
            waits = False
            try:
                waits = self.run_due()
            except Exception as error:  # noqa: BLE001
                log_error(logger, error, "schedules")
            time.sleep(timing.SCHEDULE_WAITING_POLL_SECONDS if waits else timing.SCHEDULE_POLL_SECONDS)

    def run_due(self) -> bool:
        """Do what is due now; return True if a run waits for others on its node."""
        cache = self._cache()
        # Before all snapshots are listed nothing is known of what was ordered.
        if cache is None or not cache.snapshots.complete:
            return False
        branches = [branch for branch in cache.all_branches() if _has_schedules(branch)]
        if not branches:
            self._late = 0
            return False
        now, records = self._clock(), _by_project(cache.snapshots.all())
        loads = _NodeLoads(cache)
        waits, late = False, 0
        for branch in branches:
            project = cache.project(branch.namespace, branch.project)
            if branch.deleting or project is None or project.deleting or self._is_outdated(branch):
                continue
            if self._refused.get(branch.uid, 0.0) > time.monotonic():
                late += 1
                continue
            of_project = records.get((branch.namespace, branch.project), [])
            plan = plan_schedules(self._facts(branch, project, of_project, cache, loads), now)
            waits |= plan.waits
            late += plan.late is not None and (now - plan.late).total_seconds() > timing.SCHEDULE_LATE_SECONDS
            try:
                self._carry_out(branch, project, plan, cache)
                self._refresh(branch, project, cache, now)
                self._request_report(branch, cache)
            except Exception as error:  # noqa: BLE001 - the schedules of others go on
                if isinstance(error, ApiError) and is_refusal(error):
                    # Quota, webhook: nothing says when that is over.
                    self._refused[branch.uid] = time.monotonic() + timing.REFUSED_LONGEST_RETRY_SECONDS
                    self._request_report(branch, cache)
                log_error(logger, error, f"schedules of branch {branch.namespace}/{branch.object_name}")
            if plan.run:
                loads.add(branch.node_name or "")
        self._late = late
        return waits

    def _is_outdated(self, branch: Branch) -> bool:
        """Return True if the cache has the branch as it was before its status was written, a moment ago."""
        written, at = self._written.get(branch.uid, ("", 0.0))
        # Not for ever: an etcd that is restored from a backup has lower versions.
        is_recent = time.monotonic() < at + timing.CACHE_BEHIND_SECONDS
        return is_recent and is_newer(written, branch.resource_version)

    def _facts(
        self,
        branch: Branch,
        project: Project,
        of_project: list[SnapshotRecord],
        cache: Cache,
        loads: _NodeLoads,
    ) -> ScheduleFacts:
        node = cache.node(branch.node_name) if branch.node_name else None
        is_up = node is not None and not (
            not_reporting_finding(node) or agent_too_old_finding(node, f"branch {branch.name}")
        )
        others = [record.snapshot for record in of_project]
        reached = reached_snapshot_limit(branch.uid, others, self._limits.of(branch.namespace))
        return ScheduleFacts(
            branch,
            [record for record in of_project if is_of_schedule(branch, record)],
            is_stopped=not project.running,
            can_take=is_up and branch.node.snapshot_time is not None,
            has_room=reached is None,
            node_free=loads.is_free(branch.node_name or ""),
            considered=self._considered.get(branch.uid),
        )

    def _carry_out(self, branch: Branch, project: Project, plan: SchedulePlan, cache: Cache) -> None:
        """Make the snapshot first, then write the status: by its name one that was cut off between is known again."""
        if plan.considered:
            self._considered[branch.uid] = plan.considered
        if plan.run:
            self._take(branch, project, plan.run, cache)
        self._write(branch, "snapshots", plan.status.as_dict())
        for kept in plan.shrinking:
            text = (
                f"of schedule {kept.name} of branch {branch.name} {kept.next_count} snapshots are kept from "
                f"{format_time(kept.next_time) if kept.next_time else 'now'} on, no longer {kept.count}; the oldest "
                "are deleted then; raise keep, or protect them, to have them longer"
            )
            self._emit_event(branch, "Normal", EXPIRING, text)
        for snapshot in plan.surplus[: timing.MAX_EXPIRIES_AT_ONCE]:
            self._delete(snapshot)

    def _take(self, branch: Branch, project: Project, run: Run, cache: Cache) -> None:
        # What the agent goes by, also where that time is not believed here yet.
        due = self._cluster.server_time()
        body = scheduled_snapshot(project, branch, run.name, run.schedules, format_time(due))
        path = path_of(names.API_VERSION, names.SNAPSHOTS, branch.namespace)
        try:
            created = self._cluster.create(path, body)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                if is_refusal(error):
                    subject = f"snapshot {run.name} of branch {branch.name} cannot be taken"
                    cache.snapshots.refused[branch.uid] = _finding_of(subject, error, "this run has none")
                raise
            # It was made, and the answer lost; or the name is another's: this run has none, then.
            logger.info("branch %s/%s: %s exists", branch.namespace, branch.object_name, run.name)
            self._considered[branch.uid] = run.time
            return
        cache.snapshots.refused.pop(branch.uid, None)
        # The watch brings it, too; the next look must not come before.
        record = record_of(created)
        cache.snapshots.put(record)
        self._add(key_of(record.snapshot))

    def _delete(self, snapshot: Snapshot) -> None:
        """Delete the snapshot as it was read: a write in the same second wins."""
        logger.info("snapshot %s/%s: newer ones are kept", snapshot.namespace, snapshot.object_name)
        try:
            self._cluster.delete(object_path(snapshot), uid=snapshot.uid, version=snapshot.resource_version)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    def _request_report(self, branch: Branch, cache: Cache) -> None:
        """Request the branch's reconcile if its condition Snapshotted would say something else now."""
        if not branch.status.get("conditions"):
            return
        snapshotted = snapshotted_of(branch, cache.snapshots, self._limits.of(branch.namespace))
        refreshed = refreshed_of(branch, cache.restores)
        is_said = is_reported(branch, Condition.REFRESHED, refreshed)
        if not is_said and refreshed and not refreshed.done:
            self._emit_failure(branch, refreshed, cache)
        if not is_said or not is_reported(branch, Condition.SNAPSHOTTED, snapshotted):
            self._add(key_of(branch))

    def _refresh(self, branch: Branch, project: Project, cache: Cache, now: datetime) -> None:
        """Make the DBRestore of the run that is due, then write the status, as with snapshots."""
        if branch.refresh is None and not branch.status.get("refresh"):
            return
        node = cache.node(branch.node_name) if branch.node_name else None
        can_run = project.running and node is not None and not_reporting_finding(node) is None
        restores = refreshes_of(branch, cache.restores)
        plan = plan_refresh(RefreshFacts(branch, restores, can_run, is_in_use(project, branch)), now)
        if plan.name:
            path = path_of(names.API_VERSION, names.RESTORES, branch.namespace)
            try:
                created = parse_restore(self._cluster.create(path, refresh_restore(branch, plan.name)))
                cache.restores.refused.pop(branch.uid, None)
                self._add(key_of(created))
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    if is_refusal(error):
                        subject = f"the refresh of branch {branch.name} cannot begin"
                        cache.restores.refused[branch.uid] = _finding_of(
                            subject, error, "it has its old data"
                        )
                    raise
        self._write(branch, "refresh", plan.status.as_dict())

    def _emit_failure(self, branch: Branch, finding: Finding, cache: Cache) -> None:
        """Emit the Event RefreshFailed once for each refresh that failed."""
        last = last_finished(refreshes_of(branch, cache.restores))
        if last and last.failure == finding and last.uid not in self._failures:
            self._failures[last.uid] = True
            text = f"the refresh of branch {branch.name} failed; it has its old data: {finding.message}"
            self._emit_event(branch, "Warning", REFRESH_FAILED, text)

    def _write(self, branch: Branch, field: str, status: Mapping[str, object]) -> None:
        """Write a field of the branch's status if it differs."""
        reported = branch.status.get(field) or {}
        if status != reported:
            changes = {**dict.fromkeys(reported), **status} if status else None
            written = patch_status(self._cluster, branch, {field: changes})
            self._written[branch.uid] = written["metadata"]["resourceVersion"], time.monotonic()


def _finding_of(subject: str, error: ApiError, effect: str) -> Finding:
    return refusal_finding(ObjectRefused(subject, error), effect)


def _has_schedules(branch: Branch) -> bool:
    """Return True if something is to be done for the branch, or was."""
    fields = ("snapshots", "refresh")
    return bool(branch.snapshots or branch.refresh or any(branch.status.get(field) for field in fields))


def _by_project(records: Iterable[SnapshotRecord]) -> Mapping[tuple[str, str], list[SnapshotRecord]]:
    """Return the records by namespace and project."""
    groups: dict[tuple[str, str], list[SnapshotRecord]] = defaultdict(list)
    for record in records:
        groups[record.snapshot.namespace, record.snapshot.project].append(record)
    return groups


class _NodeLoads:
    """How many scheduled snapshots are being taken on each node, and where something goes before them."""

    def __init__(self, cache: Cache) -> None:
        self._counts: Counter[str] = Counter()
        for record in cache.snapshots.all():
            snapshot = record.snapshot
            if snapshot.reason == SnapshotReason.SCHEDULE and snapshot.awaits_data and not record.at_rest:
                project = cache.project(snapshot.namespace, snapshot.project)
                self.add(snapshot.node_name or (project and project.node_name) or "")
        self._creating = {branch.node_name for branch in cache.all_branches() if _is_busy(branch)}

    def add(self, node: str) -> None:
        """Count one more that is taken on the node."""
        self._counts[node] += 1

    def is_free(self, node: str) -> bool:
        """Return True if a scheduled snapshot may be taken on the node."""
        return node not in self._creating and self._counts[node] < timing.MAX_SCHEDULED_SNAPSHOTS


def _is_busy(branch: Branch) -> bool:
    """Return True while the branch is being created on its node, and that can go on; or while it is restored."""
    storage = branch.node.storage
    return branch.restore is not None or (
        branch.node_name is not None
        and branch.node.snapshot_time is None
        and not branch.deleting
        and not (storage and storage.reason in NO_PROGRESS_REASONS)
        and seconds_since(branch.created) < timing.CREATION_SECONDS
    )
