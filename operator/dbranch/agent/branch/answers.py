"""What this process remembers of the answers of branches' Postgres: a look that failed says nothing of it.

The status says what was true last; this only adds how long nothing was heard since.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.postgres.answer import Answer
from dbranch.agent.timing import UNANSWERED_SECONDS
from dbranch.runtime.limited import LimitedDict

# Branches; of one that is forgotten the status is believed a while longer.
_MAX_REMEMBERED: Final = 1000
# Looks without an answer, at the least, until that is reported.
_UNANSWERED_LOOKS: Final = 3

Container = tuple[str, int]


class AnswerMemory:
    """Remembers, by branch, the container that answered last, and the looks without an answer since. Thread-safe."""

    def __init__(self) -> None:
        self._answered: LimitedDict[str, Container] = LimitedDict(_MAX_REMEMBERED)
        # How many looks, and when the first one was (`time.monotonic()`).
        self._unanswered: LimitedDict[str, tuple[int, float]] = LimitedDict(_MAX_REMEMBERED)

    def judged(self, desired: Desired, facts: BranchFacts) -> BranchFacts:
        """Return the facts with what follows from earlier answers, and remember this one."""
        uid, pod, node = desired.branch.uid, facts.live_pod, desired.branch.node
        if pod is None or facts.answer is Answer.STARTING:
            self.forget(uid)
            return facts
        container = pod.uid, pod.restarts
        if facts.answer is Answer.ACCEPTS:
            self._unanswered.pop(uid, None)
            if self._answered.get(uid) != container:
                self._answered[uid] = container
            return facts
        was_reported = bool(node.address) and node.pod == pod.name
        was_admitting = node.postgres is not None and node.postgres.admits
        was_serving = was_reported and was_admitting and self._answered.get(uid, container) == container
        if facts.answer is Answer.REFUSES:
            self._unanswered.pop(uid, None)
            return replace(facts, was_serving=was_serving)
        now = time.monotonic()
        count, since = self._unanswered.get(uid, (0, now))
        self._unanswered[uid] = count + 1, since
        is_long = count + 1 >= _UNANSWERED_LOOKS and now - since >= UNANSWERED_SECONDS
        return replace(facts, was_serving=was_serving, unanswered_long=is_long)

    def forget(self, branch_uid: str) -> None:
        """Forget a branch that is gone, or whose Postgres is known not to accept."""
        self._answered.pop(branch_uid, None)
        self._unanswered.pop(branch_uid, None)
