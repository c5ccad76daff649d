"""Data that a retained pool holds under the UID of the branch that it once belonged to."""

from __future__ import annotations

from dbranch.agent.branch.actions import Adopt
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.step import Planned
from dbranch.agent.branch.steps.origins.origin import DataOrigin, with_marker


def _applies(desired: Desired, facts: BranchFacts) -> bool:
    return facts.retained_uid is not None


def _plan(desired: Desired, facts: BranchFacts) -> Planned:
    assert facts.retained_uid is not None
    return Planned((Adopt(facts.retained_uid),), then=with_marker(desired, facts, cleaned=True))


ADOPT = DataOrigin("adopt", _applies, _plan)
