"""Carry a plan out, and where a warm slot's Postgres is about to accept, the plan that follows from that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dbranch.agent.branch.effect import BranchEffects, Outcome
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.observe import endpoint_of, observe_started
from dbranch.agent.branch.plan import BranchPlan
from dbranch.agent.layout import Layout
from dbranch.agent.postgres import session
from dbranch.agent.timing import WARM_START_TIMEOUT_SECONDS
from dbranch.api.errors import SlotTaken


@dataclass(frozen=True)
class Applied:
    """The last plan that was carried out, the facts on which it was made, and the exception that ended it, if any."""

    facts: BranchFacts
    plan: BranchPlan
    error: Exception | None


def apply_plan(
    effects: BranchEffects,
    layout: Layout,
    desired: Desired,
    facts: BranchFacts,
    make_plan: Callable[[BranchFacts], BranchPlan],
    plan: BranchPlan,
    outcome: Outcome,
) -> Applied:
    """Apply the actions of `plan`, which `make_plan` made of `facts`. Raises SlotTaken.

    `layout`: where the data is that is meant. `outcome` gets what the actions did.
    """
    error = _apply(effects, desired, plan, outcome)
    if error is None and plan.awaits and outcome.claimed_pod and outcome.marker:
        # In a warm slot Postgres accepts soon: then one write reports everything.
        endpoint = endpoint_of(desired, plan.awaits, outcome.marker)
        version = session.await_accepting(layout, endpoint, WARM_START_TIMEOUT_SECONDS)
        outcome.timer.record("accept")
        if version:
            facts = observe_started(layout, desired, facts, outcome.claimed_pod, version)
            plan = make_plan(facts)
            error = _apply(effects, desired, plan, outcome)
    return Applied(facts, plan, error)


def _apply(effects: BranchEffects, desired: Desired, plan: BranchPlan, outcome: Outcome) -> Exception | None:
    """Apply the actions; return the exception that ended them, if one did. Raises SlotTaken."""
    try:
        for action in plan.actions:
            effects.apply(desired, action, outcome)
    except SlotTaken:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the branch's status says it
        return error
    return None
