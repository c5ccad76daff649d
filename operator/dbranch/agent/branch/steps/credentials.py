"""The passwords in the running Postgres are those of the project's Secrets."""

from __future__ import annotations

from dataclasses import replace

from dbranch.agent.branch.actions import SetPasswords
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.step import Planned, Step, slot_of
from dbranch.api.conditions import Condition


def _needed(desired: Desired) -> bool:
    return desired.runs and desired.project.password_version is not None


def _done(desired: Desired, facts: BranchFacts) -> bool:
    recorded = facts.marker is not None and facts.marker.password == desired.project.password_version
    return recorded and not facts.passwords_differ


def _plan(desired: Desired, facts: BranchFacts) -> Planned:
    version = desired.project.password_version or ""
    marker = facts.marker.with_password_version(version) if facts.marker else None
    then = replace(facts, marker=marker, passwords_differ=False)
    return Planned((SetPasswords(slot_of(facts)),), then=then)


CREDENTIALS = Step("credentials", Condition.POSTGRES_READY, _needed, _done, _plan)
