"""The running Postgres admits users. Hooks that must run before that have their steps before this one."""

from __future__ import annotations

from dataclasses import replace

from dbranch.agent.branch.actions import Open
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.step import Planned, Step, serves_users, slot_of
from dbranch.api.conditions import Condition


def _done(desired: Desired, facts: BranchFacts) -> bool:
    return facts.marker is not None and facts.marker.opened


def _plan(desired: Desired, facts: BranchFacts) -> Planned:
    then = replace(facts, marker=facts.marker.with_opened() if facts.marker else None)
    return Planned((Open(slot_of(facts)),), then=then)


OPEN = Step("open", Condition.POSTGRES_READY, serves_users, _done, _plan)
