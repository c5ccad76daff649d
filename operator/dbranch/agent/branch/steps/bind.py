"""The branch's subvolume is bound into its slot."""

from __future__ import annotations

from dataclasses import replace

from dbranch.agent.branch.actions import Bind
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.step import Planned, Step, runs, slot_of
from dbranch.api.conditions import Condition


def _done(desired: Desired, facts: BranchFacts) -> bool:
    return facts.live_pod is not None and facts.live_pod.name in facts.bound_slots


def _plan(desired: Desired, facts: BranchFacts) -> Planned:
    slot = slot_of(facts)
    # What the script of another slot said is of no interest here.
    then = replace(
        facts,
        bound_slots=(*facts.bound_slots, slot),
        start_blocked_by=None,
        bind_not_propagated=False,
        settings_outdated=False,
    )
    return Planned((Bind(slot),), then=then)


BIND = Step("bind", Condition.POSTGRES_READY, runs, _done, _plan)
