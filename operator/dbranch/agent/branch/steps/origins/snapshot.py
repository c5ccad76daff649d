"""A snapshot of the source's subvolume. A source that cannot be copied is left alone: no CHECKPOINT, no snapshot."""

from __future__ import annotations

from dbranch.agent.branch.actions import TakeSnapshot
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.step import Planned
from dbranch.agent.branch.steps.origins.origin import DataOrigin, with_marker
from dbranch.agent.pool.space import check_space
from dbranch.agent.timing import BRANCH_FAILED_RETRY_SECONDS, NO_SPACE_RETRY_SECONDS
from dbranch.api.conditions import Finding, Reason


def _applies(desired: Desired, facts: BranchFacts) -> bool:
    return True


def _plan(desired: Desired, facts: BranchFacts) -> Planned:
    no_space = check_space(facts.space, desired.subject)
    if no_space:
        # Space comes back without an event, by and by, when others are deleted.
        return Planned(finding=no_space, requeue_after=NO_SPACE_RETRY_SECONDS)
    if facts.source_problem:
        return Planned(finding=facts.source_problem, retry_after=BRANCH_FAILED_RETRY_SECONDS)
    source_uid = desired.branch.source_uid
    if source_uid is None:
        # The controller binds no copy without one.
        text = f"{desired.subject} waits for its source to be chosen"
        return Planned(finding=Finding(Reason.PENDING, text))
    action = TakeSnapshot(source_uid, desired.branch.undeletes)
    return Planned((action,), then=with_marker(desired, facts, cleaned=False))


SNAPSHOT = DataOrigin("snapshot", _applies, _plan)
