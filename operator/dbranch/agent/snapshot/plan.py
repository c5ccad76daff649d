"""Plan what a snapshot needs on its node: it is taken once, or adopted, or its data comes, or never. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from dbranch.agent.pool.space import Space, check_space
from dbranch.agent.timing import (
    NO_SPACE_RETRY_SECONDS,
    SCHEDULED_SNAPSHOT_SECONDS,
    SNAPSHOT_AWAITED_POLL_SECONDS,
    SNAPSHOT_FAILED_RETRY_SECONDS,
    STORAGE_UNCLEAR_RETRY_SECONDS,
)
from dbranch.agent.volume.marker import NewerMarker, SnapshotMarker
from dbranch.api.conditions import Finding, Reason
from dbranch.api.enums import SnapshotReason
from dbranch.api.project import Project
from dbranch.api.snapshot import Snapshot


@dataclass(frozen=True)
class TakeSnapshot:
    """Take the snapshot of the branch, after a CHECKPOINT if `checkpoint`."""

    branch_uid: str
    checkpoint: bool = True


@dataclass(frozen=True)
class AdoptSnapshot:
    """Make the data that the pool holds under another UID this snapshot's."""

    uid: str


@dataclass(frozen=True)
class SnapshotFacts:
    """What is true of a snapshot on its node.

    `marker`: of its subvolume, None before it is taken. `retained_uid`: the UID under which an adopted pool holds its
    data. `source_problem`: why its branch cannot be copied; it and `retained_uid` are looked up only before it is
    taken. `awaited`: something is still to leave its data, for one that is never taken. `seconds_late`: since the
    time for which it was scheduled; None: it was not.
    """

    pool_mounted: bool
    space: Space
    marker: SnapshotMarker | NewerMarker | None = None
    retained_uid: str | None = None
    source_problem: Finding | None = None
    awaited: bool = False
    seconds_late: float | None = None


@dataclass(frozen=True)
class SnapshotPlan:
    """One action or none, and what is said of the storage once it is done; None: what was said stays.

    `retry_after`: seconds after which to try again, since no event will come; they grow. None: never.
    """

    storage: Finding | None
    action: TakeSnapshot | AdoptSnapshot | None = None
    retry_after: float | None = None


def plan_snapshot(project: Project, snapshot: Snapshot, facts: SnapshotFacts) -> SnapshotPlan:
    """Plan towards a snapshot that is stored."""
    subject = subject_of(snapshot)
    if isinstance(facts.marker, NewerMarker):
        text = f"{subject} was written by a newer release of dbranch ({facts.marker}); nothing is touched"
        finding = Finding(Reason.STORAGE_UNCLEAR, f"{text}; upgrade the agent of node {snapshot.node_name}")
        return SnapshotPlan(finding, retry_after=STORAGE_UNCLEAR_RETRY_SECONDS)
    if facts.marker:
        return SnapshotPlan(stored_finding(project, snapshot))
    if not facts.pool_mounted:
        if snapshot.node.snapshot_time:
            return SnapshotPlan(None)
        # The project's reconcile requests this one's when the pool is up.
        text = f"pool of project {project.name} is not mounted; {subject} is taken when it is"
        return SnapshotPlan(Finding(Reason.BRANCH_NOT_READY, text), retry_after=NO_SPACE_RETRY_SECONDS)
    if snapshot.node.snapshot_time:
        text = f"{subject} was taken and its subvolume is gone; it is not taken again; check the node's disk"
        return SnapshotPlan(Finding(Reason.SNAPSHOT_LOST, text))
    if facts.retained_uid:
        return SnapshotPlan(stored_finding(project, snapshot), AdoptSnapshot(facts.retained_uid))
    if snapshot.is_record:
        if facts.awaited:
            # What leaves its data requests its reconcile; what is said until then is the controller's.
            return SnapshotPlan(None, retry_after=SNAPSHOT_AWAITED_POLL_SECONDS)
        text = f"{subject} is the record of a {snapshot.reason}, and its data is missing; nothing is taken; delete it"
        return SnapshotPlan(Finding(Reason.SNAPSHOT_LOST, text))
    if snapshot.reason == SnapshotReason.SCHEDULE and not _is_in_time(facts):
        text = f"{subject} is of a scheduled time that has passed; nothing is taken in its place; delete it"
        return SnapshotPlan(Finding(Reason.SNAPSHOT_MISSED, text))
    no_space = check_space(facts.space, subject)
    if no_space:
        # Space comes back without an event, by and by, when others are deleted.
        return SnapshotPlan(no_space, retry_after=NO_SPACE_RETRY_SECONDS)
    if snapshot.branch_uid is None:
        text = f"the pool that project {project.name} adopted holds no {subject}, and there is no branch"
        return SnapshotPlan(Finding(Reason.BRANCH_NOT_FOUND, f"{text} {snapshot.branch}; nothing is taken"))
    if facts.source_problem:
        return SnapshotPlan(facts.source_problem, retry_after=SNAPSHOT_FAILED_RETRY_SECONDS)
    # A schedule's run makes no peak of writes on the branch.
    checkpoint = snapshot.reason != SnapshotReason.SCHEDULE
    return SnapshotPlan(stored_finding(project, snapshot), TakeSnapshot(snapshot.branch_uid, checkpoint))


def _is_in_time(facts: SnapshotFacts) -> bool:
    # One that does not say for when it was could be of any time.
    return facts.seconds_late is not None and facts.seconds_late <= SCHEDULED_SNAPSHOT_SECONDS


def subject_of(snapshot: Snapshot) -> str:
    """Return the snapshot in messages."""
    return f"snapshot {snapshot.name}"


def stored_finding(project: Project, snapshot: Snapshot) -> Finding:
    """Return the finding of a snapshot whose data is on the disk."""
    text = (
        f"{subject_of(snapshot)} of branch {snapshot.branch} is stored in the pool of project {project.name}"
    )
    return Finding(Reason.STORED, text)
