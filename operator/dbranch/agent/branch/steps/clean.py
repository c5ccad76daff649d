"""The running copy has nothing left of its source's that it must not keep. Until then it admits no user."""

from __future__ import annotations

from dataclasses import replace

from dbranch.agent.branch.actions import Clean
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.step import Planned, Step, runs, slot_of
from dbranch.api.conditions import Condition


def _done(desired: Desired, facts: BranchFacts) -> bool:
    return facts.marker is not None and facts.marker.cleaned


def _plan(desired: Desired, facts: BranchFacts) -> Planned:
    then = replace(facts, marker=facts.marker.with_cleaned() if facts.marker else None)
    return Planned((Clean(slot_of(facts)),), then=then)


CLEAN = Step("clean", Condition.POSTGRES_READY, runs, _done, _plan)
