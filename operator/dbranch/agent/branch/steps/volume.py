"""The branch's data is a subvolume of the pool, with a marker. Where it comes from is its origin's file."""

from __future__ import annotations

from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.step import Planned, Step, always
from dbranch.agent.branch.steps.origins import origin_of
from dbranch.api.conditions import Condition


def _done(desired: Desired, facts: BranchFacts) -> bool:
    return facts.marker is not None


def _plan(desired: Desired, facts: BranchFacts) -> Planned:
    return origin_of(desired, facts).plan(desired, facts)


VOLUME = Step("volume", Condition.STORAGE_READY, always, _done, _plan)
