"""The project's pool is mounted. The project's reconciler mounts it, and requests a reconcile of its branches."""

from __future__ import annotations

from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.step import Planned, Step, always
from dbranch.api.conditions import Condition, Finding, Reason


def _done(desired: Desired, facts: BranchFacts) -> bool:
    return facts.pool_mounted


def _plan(desired: Desired, facts: BranchFacts) -> Planned:
    text = f"pool of project {desired.project.name} is not mounted yet"
    return Planned(finding=Finding(Reason.CREATING_POOL, text))


POOL = Step("pool", Condition.STORAGE_READY, always, _done, _plan)
