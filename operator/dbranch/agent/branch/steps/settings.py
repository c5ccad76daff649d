"""The settings files are as the spec asks, and the running Postgres has loaded them."""

from __future__ import annotations

from dataclasses import replace

from dbranch.agent.branch.actions import WriteSettings
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.step import Planned, Step, runs, slot_of
from dbranch.api.conditions import Condition


def _done(desired: Desired, facts: BranchFacts) -> bool:
    if not facts.settings_outdated:
        return True
    # The data that a restore is about to put in place gets them; what protects the node and its users does not wait.
    waits = desired.awaits_restore and desired.restore is None
    return waits and not facts.hba_closed and facts.brake is None


def _plan(desired: Desired, facts: BranchFacts) -> Planned:
    return Planned((WriteSettings(slot_of(facts)),), then=replace(facts, settings_outdated=False))


SETTINGS = Step("settings", Condition.POSTGRES_READY, runs, _done, _plan)
