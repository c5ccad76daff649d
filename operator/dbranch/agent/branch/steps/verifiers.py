"""The verifiers in the running Postgres are those of no other branch: each has a salt of its own.

Whoever has the server of a branch, and sees a login to it, would else log in to all of them. The passwords are the
same, so nobody waits for it: it comes once the status says that the branch accepts connections.
"""

from __future__ import annotations

from dataclasses import replace

from dbranch.agent.branch.actions import SetOwnVerifiers
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.step import Planned, Step, serves_users, slot_of
from dbranch.agent.timing import OWN_VERIFIERS_DELAY_SECONDS
from dbranch.api.conditions import Condition


def _needed(desired: Desired) -> bool:
    return serves_users(desired) and desired.project.password_version is not None


def _done(desired: Desired, facts: BranchFacts) -> bool:
    return facts.marker is not None and facts.marker.has_own_verifiers


def _plan(desired: Desired, facts: BranchFacts) -> Planned:
    reported = desired.branch.node.postgres
    marker = facts.marker.with_own_verifiers("planned") if facts.marker else None
    then = replace(facts, marker=marker)
    if reported is None or not reported.admits:
        return Planned(then=then, requeue_after=OWN_VERIFIERS_DELAY_SECONDS)
    return Planned((SetOwnVerifiers(slot_of(facts)),), then=then)


VERIFIERS = Step("verifiers", Condition.POSTGRES_READY, _needed, _done, _plan)
