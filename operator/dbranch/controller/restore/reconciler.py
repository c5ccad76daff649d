"""The controller's reconciles of a restore: observe, plan, take the step, until there is none; then report."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from typing import Final

from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.conditions import Condition, Finding, Reason, find_condition
from dbranch.api.enums import RestorePhase, RestoreState
from dbranch.api.errors import ApiError, ObjectRefused
from dbranch.api.restore import FINISHED_PHASES, Restore, parse_restore
from dbranch.api.snapshot import Snapshot, parse_snapshot
from dbranch.controller import manifests, timing
from dbranch.controller.branch.sources import Sources
from dbranch.controller.cache import Cache
from dbranch.controller.event_requests import EventRequests
from dbranch.controller.events import RESTORE_FAILED, RESTORED, UNDO_REMOVED
from dbranch.controller.failure import failure_finding, refusal_finding
from dbranch.controller.keys import key_of
from dbranch.controller.metrics import ControllerMetrics
from dbranch.controller.restore.facts import RestoreFacts
from dbranch.controller.restore.observe import RestoreObserver
from dbranch.controller.restore.plan import plan_restore
from dbranch.controller.restore.steps import RestorePlan, Step, failure_status, labels_of
from dbranch.controller.restore_records import RestoreRecords
from dbranch.controller.undo_records import ensure_record
from dbranch.kube.client import (
    Cluster,
    Json,
    object_path,
    restore_path,
    snapshot_path,
)
from dbranch.kube.status import patch_status
from dbranch.runtime.finalizers import remove_finalizer
from dbranch.runtime.locks import KeyedLocks
from dbranch.runtime.result import AT_REST, GONE, Key, Result

logger = logging.getLogger(__name__)

_LOCK_PREFIX: Final = "restore/"
# The lock under which the restores of a project are admitted.
_ADMISSION_PREFIX: Final = "restores-of/"
# A restore is ordered, or ended, in fewer; more means that two steps undo each other's work.
_MAX_STEPS: Final = 16
# Called with the object, and the Event's type (Normal or Warning), reason and message.
EmitRestoreEvent = Callable[[Branch | Restore | Snapshot, str, str, str], None]


class RestoreReconciler:
    """Reconciles restores. `sources`: who has been let go of, as the branches' reconciler says."""

    def __init__(
        self,
        cluster: Cluster,
        locks: KeyedLocks,
        metrics: ControllerMetrics,
        sources: Sources,
        records: RestoreRecords,
        emit_event: EmitRestoreEvent | None = None,
        clock: Callable[[], datetime] | None = None,
        request: Callable[[Key], None] = lambda key: None,
    ) -> None:
        """`clock`: the API server's time of day. `request`: has an object reconciled, from any thread."""
        self._clock, self._request = clock or cluster.server_time, request
        self._cluster, self._locks, self._metrics = cluster, locks, metrics
        self._sources, self._records = sources, records
        self._emit_event = emit_event or EventRequests(cluster)
        self._observer = RestoreObserver(cluster, records, self._clock)

    def reconcile(self, namespace: str, name: str, cache: Cache) -> Result:
        """Reconcile a restore, and take back what one of this name has left behind that does not exist any more."""
        with self._locks.held(namespace, _LOCK_PREFIX + name), self._metrics.reconcile(names.RESTORE_KIND):
            body = self._cluster.get(restore_path(namespace, name))
            restore = parse_restore(body) if body else None
            left = [
                self._reconcile(gone, cache, True) for gone in _left_behind(namespace, name, restore, cache)
            ]
            result = self._reconcile(restore, cache, False) if restore else GONE
            return next((other for other in left if other != AT_REST), result)

    def _reconcile(self, restore: Restore, cache: Cache, is_gone: bool) -> Result:
        begins = _seems_to_begin(restore, cache)
        while True:
            name = _ADMISSION_PREFIX + restore.project
            with self._locks.held(restore.namespace, name) if begins else nullcontext():
                facts = self._observer.observe(restore, cache, is_gone, begins)
                if begins or restore.finished or facts.order is not None:
                    return self._take_steps(facts, cache)
            # The cache had an order that has ended.
            begins = True

    def _take_steps(self, facts: RestoreFacts, cache: Cache) -> Result:
        for _ in range(_MAX_STEPS):
            plan = plan_restore(facts, self._clock())
            changes = plan.changes(facts.restore.status)
            if plan.step is None and not changes:
                return AT_REST if plan.requeue_after is None else Result(plan.requeue_after)
            try:
                after = self._take(facts, plan) if plan.step else self._report(facts, changes)
            except ApiError as error:
                if error.status not in (404, 409):
                    raise
                # Written or deleted meanwhile by others: it is looked at again.
                after = self._observer.observe(self._read_again(facts), cache, facts.is_gone)
            if after is None:
                return Result(timing.SOURCE_GONE_RETRY_SECONDS)
            facts = after
        return Result(timing.RESTORE_RUNNING_SECONDS, unfinished=True)

    def _read_again(self, facts: RestoreFacts) -> Restore:
        restore = facts.restore
        body = None if facts.is_gone else self._cluster.get(object_path(restore))
        return parse_restore(body) if body and body["metadata"]["uid"] == restore.uid else restore

    def report_failure(self, namespace: str, name: str, error: Exception) -> None:
        """Report a reconcile that failed in the condition Reconciling, if the restore is to blame for it."""
        finding = failure_finding(f"restore {name}", error)
        body = self._cluster.get(restore_path(namespace, name)) if finding else None
        if finding is None or body is None or body["metadata"].get("deletionTimestamp"):
            return
        with self._locks.held(namespace, _LOCK_PREFIX + name):
            restore = parse_restore(body)
            if not restore.finished:
                patch_status(self._cluster, restore, failure_status(restore, finding, self._clock()))

    # Steps.

    def _take(self, facts: RestoreFacts, plan: RestorePlan) -> RestoreFacts | None:
        """Take the step; return the facts behind it, None if it cannot be taken now."""
        restore, branch, project = facts.restore, facts.branch, facts.project
        logger.info("restore %s/%s: %s", restore.namespace, restore.object_name, plan.step)
        match plan.step:
            case Step.READ_UNDO:
                body = self._cluster.get(snapshot_path(restore.namespace, _undo_name(restore)))
                return replace(facts, undo=parse_snapshot(body) if body else None, is_undo_read=True)
            case Step.MAKE_UNDO:
                return self._make_undo(facts)
            case Step.BIND_UNDO:
                assert facts.undo is not None and branch is not None
                fields = {"nodeName": branch.node_name, "branchUID": branch.uid}
                return replace(facts, undo=parse_snapshot(patch_status(self._cluster, facts.undo, fields)))
            case Step.ORDER:
                assert branch is not None and plan.order is not None
                with self._sources.held(plan.order.source.uid) as may_be_used:
                    if not may_be_used:
                        # The cache still has it.
                        return None
                    facts = self._write_branch(facts, restore=plan.order.as_dict())
                self._observer.note_ordered(branch)
                return facts
            case Step.SWITCH:
                assert branch is not None
                facts = self._write_branch(facts, restore={"state": RestoreState.SWITCHING.value})
                # Its Service leads to the proxies, which hold who comes.
                self._request(key_of(branch))
                return facts
            case Step.CANCEL:
                return self._write_branch(facts, restore={"state": RestoreState.CANCELING.value})
            case Step.END_ORDER:
                return self._write_branch(facts, restore=None)
            case Step.LABEL:
                assert branch is not None
                return self._write_metadata(facts, labels=labels_of(restore, branch))
            case Step.HOLD:
                finalizers = list(dict.fromkeys((*restore.finalizers, names.CONTROLLER_FINALIZER)))
                return self._write_metadata(
                    facts, resourceVersion=restore.resource_version, finalizers=finalizers
                )
            case Step.DELETE_UNDO:
                assert facts.undo is not None
                self._cluster.delete(object_path(facts.undo), uid=facts.undo.uid)
                return replace(facts, undo=None)
            case Step.DELETE_COPIES:
                assert project is not None
                for copy in plan.surplus:
                    kept = f"spec.undo.copies of project {project.name} is {project.undo.copies}"
                    text = f"snapshot {copy.name} of branch {copy.branch} is deleted: {kept}"
                    self._emit_event(copy, "Normal", UNDO_REMOVED, text)
                    self._cluster.delete(object_path(copy), uid=copy.uid)
                return replace(facts, copies=())
            case Step.LET_GO:
                if restore.finished:
                    self._announce(facts)
                if not restore.deleting:
                    return self._write_metadata(
                        facts,
                        resourceVersion=restore.resource_version,
                        finalizers=[f for f in restore.finalizers if f != names.CONTROLLER_FINALIZER],
                    )
                remove_finalizer(self._cluster, object_path(restore), restore.uid, names.CONTROLLER_FINALIZER)
                return replace(facts, restore=replace(restore, finalizers=()))
            case _:
                version = restore.resource_version
                self._cluster.delete(object_path(restore), uid=restore.uid, version=version)
                return replace(facts, restore=replace(restore, deleted=restore.completion_time))

    def _make_undo(self, facts: RestoreFacts) -> RestoreFacts:
        """Create the snapshot that takes the old data, or find the one that was created."""
        restore, branch, project = facts.restore, facts.branch, facts.project
        assert branch is not None and project is not None
        manifest = manifests.undo_snapshot(project, branch, restore)
        try:
            # Whether it is this restore's is the plan's to say.
            body = ensure_record(self._cluster, manifest, lambda body: True)
        except ObjectRefused as error:
            self._metrics.refused(names.SNAPSHOT_KIND)
            return replace(facts, refused=refusal_finding(error, "the restore waits"))
        return replace(facts, undo=parse_snapshot(body), is_undo_read=True)

    def _write_branch(self, facts: RestoreFacts, restore: Json | None) -> RestoreFacts:
        """Write `status.restore` of the branch as it was read. Raises ApiError (409) if it was written since."""
        assert facts.branch is not None
        version = facts.branch.resource_version
        body = patch_status(self._cluster, facts.branch, {"restore": restore}, version)
        return replace(facts, branch=parse_branch(body))

    def _write_metadata(self, facts: RestoreFacts, **fields: object) -> RestoreFacts:
        meta = {"uid": facts.restore.uid, **fields}
        written = parse_restore(self._cluster.merge(object_path(facts.restore), {"metadata": meta}))
        # The event of this needs no reconcile.
        self._records.put(written)
        return replace(facts, restore=written)

    # The report.

    def _report(self, facts: RestoreFacts, changes: Json) -> RestoreFacts:
        """Write the fields of the status that differ.

        An Event about the end comes before that, or where the finalizer keeps the object until then, behind it.
        """
        restore = facts.restore
        phase = RestorePhase(changes.get("phase") or restore.phase or RestorePhase.PENDING)
        if facts.is_gone:
            # Nobody reads it; what is left is cleaned up next.
            return replace(facts, restore=replace(restore, phase=phase, status={**restore.status, **changes}))
        if phase in FINISHED_PHASES and not restore.finished:
            finished = replace(
                facts, restore=replace(restore, phase=phase, status={**restore.status, **changes})
            )
            self._count(finished)
            if names.CONTROLLER_FINALIZER not in restore.finalizers:
                self._announce(finished)
        body = patch_status(self._cluster, restore, changes)
        written = parse_restore(body)
        # Who is counted next counts this one.
        self._records.put(written)
        facts = replace(facts, restore=written)
        return replace(facts, undo=None) if written.finished else facts

    def _count(self, facts: RestoreFacts) -> None:
        """Count the end of a restore that was done, or taken back, or rejected; forget its times."""
        restore = facts.restore
        if _end_of(restore) is None:
            return
        assert restore.phase is not None
        self._metrics.restored(restore.phase, restore.status.get("heldSeconds"))
        self._observer.forget(facts)

    def _announce(self, facts: RestoreFacts) -> None:
        """Emit an Event about the end of a restore; twice, where the process ends behind it."""
        restore, finding = facts.restore, _end_of(facts.restore)
        if finding is None:
            return
        is_complete = restore.phase == RestorePhase.COMPLETE
        text = f"restore {restore.object_name}: {finding.message}"
        if is_complete:
            text += "; what follows its WAL (standbys, WAL receivers, incremental backups) has to begin anew"
        about: Branch | Restore = facts.branch or restore
        event_type = "Normal" if is_complete else "Warning"
        self._emit_event(about, event_type, RESTORED if is_complete else RESTORE_FAILED, text)


def _end_of(restore: Restore) -> Finding | None:
    """Return the finding of a restore's end; None if it has done nothing that was not done before."""
    condition = Condition.COMPLETE if restore.phase == RestorePhase.COMPLETE else Condition.FAILED
    finding = Finding.from_dict(find_condition(restore.status, condition))
    return None if finding is None or finding.reason == Reason.ALREADY_APPLIED else finding


def _seems_to_begin(restore: Restore, cache: Cache) -> bool:
    """Return True if a restore is not finished, and its branch not known to be ordered it."""
    branches = cache.branches_of(restore.namespace, restore.project)
    orders = (branch.restore for branch in branches if branch.name == restore.branch)
    return not restore.finished and not any(order and order.uid == restore.uid for order in orders)


def _undo_name(restore: Restore) -> str:
    object_name = names.branch_object_name(restore.project, restore.branch)
    return names.undo_snapshot_name(object_name, restore.uid)


def _left_behind(namespace: str, name: str, restore: Restore | None, cache: Cache) -> list[Restore]:
    """Return what is known of restores of this name that are going on though their DBRestores do not exist."""
    return [
        Restore(
            namespace,
            name,
            branch.restore.uid,
            branch.project,
            branch.name,
            deleted=branch.created,
            phase=RestorePhase.RUNNING,
            branch_uid=branch.uid,
            start_time=branch.created,
        )
        for branch in cache.branches_in(namespace)
        if branch.restore is not None
        and branch.restore.name == name
        and (restore is None or branch.restore.uid != restore.uid)
    ]
