"""How long the steps of one reconcile take."""

from __future__ import annotations

import time


class StepTimer:
    """A timer that is read after each step."""

    def __init__(self) -> None:
        self._last_reading = time.monotonic()
        self._milliseconds: dict[str, float] = {}

    def record(self, step: str) -> None:
        """Add the time since the last reading (or the timer's creation) to `step`."""
        now = time.monotonic()
        self._milliseconds[step] = self._milliseconds.get(step, 0.0) + (now - self._last_reading) * 1000
        self._last_reading = now

    def total_seconds(self) -> float:
        """Return the sum of all steps, in seconds."""
        return sum(self._milliseconds.values()) / 1000

    def milliseconds(self) -> dict[str, float]:
        """Return `{step: milliseconds}`, in the order in which the steps were first recorded."""
        return {step: round(passed, 1) for step, passed in self._milliseconds.items()}
