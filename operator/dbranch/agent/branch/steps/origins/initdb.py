"""initdb, for the root branch: once, in an empty area, in a pod of its own; a retry waits until that pod is gone."""

from __future__ import annotations

import re
from typing import Final

from dbranch.agent.branch.actions import (
    Action,
    CreateInitdbArea,
    CreateInitdbPod,
    DeletePod,
    PromoteInitdb,
    RemoveSlot,
)
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.pods import waits_for_old_image
from dbranch.agent.branch.step import Planned
from dbranch.agent.branch.steps.origins.origin import DataOrigin
from dbranch.agent.slot.pod_status import pod_finding
from dbranch.agent.timing import (
    INITDB_DONE_POLL_SECONDS,
    INITDB_PROMOTED_RETRY_SECONDS,
    INITDB_RETRY_SECONDS,
    POD_DELETION_POLL_SECONDS,
)
from dbranch.api import names
from dbranch.api.conditions import Finding, Reason
from dbranch.api.parameters import NEWEST_MAJOR, OLDEST_MAJOR

# The step that this origin is a part of.
_STEP: Final = "volume"
# What initdb.sh says before it creates anything.
_UNSUPPORTED: Final = re.compile(r"PostgreSQL (\d+) is not supported")
_FAILURES: Final = (Reason.INITDB_FAILED, Reason.IMAGE_INCOMPATIBLE)


def _applies(desired: Desired, facts: BranchFacts) -> bool:
    return desired.branch.is_root


def _plan(desired: Desired, facts: BranchFacts) -> Planned:
    project, subject, pod = desired.project, desired.subject, facts.initdb_pod
    slot = names.initdb_pod_name(project.uid)
    initializing = Finding(Reason.INITIALIZING, f"initdb runs for project {project.name} in pod {slot}")
    if pod is None:
        return _plan_without_pod(desired, facts, slot, initializing)
    if pod.terminating:
        return Planned(finding=initializing, requeue_after=POD_DELETION_POLL_SECONDS)
    if waits_for_old_image(pod, project):
        return Planned((DeletePod(pod),), finding=initializing, requeue_after=POD_DELETION_POLL_SECONDS)
    if not pod.terminated:
        return Planned(finding=initializing, postgres=pod_finding(pod, subject))
    if facts.initdb_done:
        return Planned((DeletePod(pod),), finding=initializing, requeue_after=INITDB_DONE_POLL_SECONDS)
    cause = pod.message or pod.reason or "no message"
    unsupported = _UNSUPPORTED.search(cause)
    if unsupported:
        text = (
            f"image {project.postgres.image} is PostgreSQL {unsupported[1]}, which is not supported; no database is "
            f"made; set spec.postgres.image to one of {OLDEST_MAJOR} to {NEWEST_MAJOR}"
        )
        failed = Finding(Reason.IMAGE_INCOMPATIBLE, text)
    else:
        text = f"initdb of project {project.name} failed: {cause}; it is tried again"
        failed = Finding(Reason.INITDB_FAILED, text)
    return Planned((DeletePod(pod),), finding=failed, retry_after=INITDB_RETRY_SECONDS)


def _plan_without_pod(desired: Desired, facts: BranchFacts, slot: str, initializing: Finding) -> Planned:
    project, reported = desired.project, desired.branch.node.storage
    remove_slot: tuple[Action, ...] = (RemoveSlot(slot),) if slot in facts.bound_slots else ()
    if facts.initdb_done:
        # The next reconcile finds the branch stored and starts it.
        actions = (*remove_slot, PromoteInitdb())
        return Planned(actions, finding=initializing, requeue_after=INITDB_PROMOTED_RETRY_SECONDS)
    if project.node.initialized:
        lost = (
            f"{desired.subject}: project {project.name} was initialized and its data is gone; "
            "initdb is not run again; check the node's disk"
        )
        return Planned(finding=Finding(Reason.DATA_LOST, lost))
    delay = facts.backoff_seconds.get(_STEP)
    if delay:
        failed = reported if reported and reported.reason in _FAILURES else initializing
        return Planned(finding=failed, requeue_after=delay)
    actions = (*remove_slot, CreateInitdbArea(slot), CreateInitdbPod(slot))
    return Planned(actions, finding=initializing)


INITDB = DataOrigin("initdb", _applies, _plan, runs_pod=True)
