"""The owner's password in the running Postgres is the project's."""

from __future__ import annotations

from dataclasses import replace

from dbranch.agent.branch.actions import SetPassword
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.step import Planned, Step, slot_of
from dbranch.api.conditions import Condition


def _needed(desired: Desired) -> bool:
    return desired.runs and desired.project.password_version is not None


def _done(desired: Desired, facts: BranchFacts) -> bool:
    return facts.marker is not None and facts.marker.password == desired.project.password_version


def _plan(desired: Desired, facts: BranchFacts) -> Planned:
    version = desired.project.password_version or ""
    then = replace(facts, marker=facts.marker.with_password_version(version) if facts.marker else None)
    return Planned((SetPassword(slot_of(facts)),), then=then)


CREDENTIALS = Step("credentials", Condition.POSTGRES_READY, _needed, _done, _plan)
