"""What a reconcile returns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """The end of a reconcile. `requeue_after`: seconds after which to reconcile again; None: at the next event."""

    requeue_after: float | None = None
