"""How long the steps of a branch that failed wait for their next try."""

from __future__ import annotations

import time
from typing import Final

from dbranch.agent.branch.facts import Desired
from dbranch.agent.branch.steps import STEPS
from dbranch.agent.timing import BRANCH_FAILED_RETRY_SECONDS, LONGEST_RETRY_SECONDS
from dbranch.api.branch import Branch
from dbranch.runtime.backoff import Backoff

# The key of exceptions, whatever the action.
_ANY_ACTION: Final = "action"


class BranchBackoffs:
    """The delays of branches that fail, by step; they begin anew when somebody asks for something else."""

    def __init__(self) -> None:
        self._backoff = Backoff(LONGEST_RETRY_SECONDS)

    def fail(
        self, desired: Desired, step: str = _ANY_ACTION, first: float = BRANCH_FAILED_RETRY_SECONDS
    ) -> float:
        """Record that a step failed; return the seconds after which to try again."""
        key = desired.branch.uid, step
        return self._backoff.fail(key, first, desired.version, time.monotonic())

    def remaining(self, desired: Desired) -> dict[str, float]:
        """Return the steps that are not to be tried yet, with the seconds for which they are not."""
        now, uid = time.monotonic(), desired.branch.uid
        delays = {
            step.name: self._backoff.remaining((uid, step.name), desired.version, now) for step in STEPS
        }
        return {name: delay for name, delay in delays.items() if delay}

    def succeed(self, branch: Branch) -> None:
        """Forget the failures of a branch."""
        for name in (_ANY_ACTION, *(step.name for step in STEPS)):
            self._backoff.succeed((branch.uid, name))
