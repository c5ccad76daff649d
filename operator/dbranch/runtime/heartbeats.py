"""Whether the threads of a process that loop for ever still do, for its liveness probe."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

# A round of a loop ends within the time limits of its requests: a watch after five minutes, though nothing happens.
_STUCK_SECONDS: Final = 600.0


class Heartbeats:
    """When each loop came round last, by its name. Thread-safe. `clock` returns a monotonic time in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._beats: dict[str, float] = {}
        self._finished: set[str] = set()

    def run(self, name: str, loop: Callable[[Callable[[], None]], None]) -> None:
        """Call `loop(beat)`, which must not return and calls `beat` in each round."""

        def beat() -> None:
            with self._lock:
                self._beats[name] = self._clock()

        beat()
        try:
            loop(beat)
        finally:
            with self._lock:
                self._finished.add(name)

    def trouble(self) -> str | None:
        """Return which loop has ended or is stuck; None if none is."""
        with self._lock:
            finished, beats = sorted(self._finished), dict(self._beats)
        if finished:
            return f"the loop of {', '.join(finished)} has ended"
        for name, beat in beats.items():
            silent = self._clock() - beat
            if silent > _STUCK_SECONDS:
                return f"the loop of {name} has not come round for {silent:.0f} s"
        return None
