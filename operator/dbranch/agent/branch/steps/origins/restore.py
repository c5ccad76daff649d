"""A snapshot of a restore's source, a branch or a snapshot, beside the branch's own data."""

from __future__ import annotations

from dbranch.agent.branch.actions import TakeRestore
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.step import Planned
from dbranch.agent.branch.steps.origins.origin import DataOrigin, with_marker
from dbranch.agent.pool.space import check_space


def _applies(desired: Desired, facts: BranchFacts) -> bool:
    return desired.restore is not None


def _plan(desired: Desired, facts: BranchFacts) -> Planned:
    assert desired.restore is not None
    # Either ends the restore: somebody waits for it, and the branch's data goes on serving.
    problem = check_space(facts.space, desired.subject) or facts.source_problem
    if problem:
        return Planned(finding=problem)
    then = with_marker(desired, facts, cleaned=False)
    return Planned((TakeRestore(desired.restore.source.uid),), then=then)


RESTORE = DataOrigin("restore", _applies, _plan)
