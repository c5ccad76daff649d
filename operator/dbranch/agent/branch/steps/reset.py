"""What ALTER SYSTEM has set is undone, once for each request. No slot has the branch bound then."""

from __future__ import annotations

from dataclasses import replace

from dbranch.agent.branch.actions import ResetAlterSystem
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.pods import reset_is_due
from dbranch.agent.branch.step import Planned, Step, runs
from dbranch.api.conditions import Condition


def _done(desired: Desired, facts: BranchFacts) -> bool:
    return not reset_is_due(desired, facts)


def _plan(desired: Desired, facts: BranchFacts) -> Planned:
    requested_at = desired.alter_system_reset_at
    marker = facts.marker.with_alter_system_reset(requested_at) if facts.marker else None
    return Planned((ResetAlterSystem(requested_at),), then=replace(facts, marker=marker))


RESET = Step("reset", Condition.POSTGRES_READY, runs, _done, _plan)
