"""Where the time of one visit goes: milliseconds by step, for one line in the log."""

from __future__ import annotations

import time


class StepTimer:
    """A clock that is read after each step."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._laps: dict[str, float] = {}

    def record(self, step: str) -> None:
        """What passed since the last reading belongs to `step`."""
        now = time.monotonic()
        self._laps[step] = self._laps.get(step, 0.0) + (now - self._last) * 1000
        self._last = now

    def seconds(self) -> float:
        """All of it so far."""
        return sum(self._laps.values()) / 1000

    def milliseconds(self) -> dict[str, float]:
        """Step -> milliseconds, in the order of the first readings."""
        return {step: round(passed, 1) for step, passed in self._laps.items()}
