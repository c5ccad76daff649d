"""What a reconcile returns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """When an object is to be reconciled again if no event comes before.

    `requeue_after`: seconds; None: at the next resync. `unfinished`: something is missing that no event announces, so
    it is tried again with growing delays.
    """

    requeue_after: float | None = None
    unfinished: bool = False


DONE = Result()
