"""A logging handler that never waits for whoever reads the log: a bounded queue, written by a thread."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Final, TextIO

MAX_QUEUED_LINES: Final = 10_000
# The longest line; a client chooses some of its fields.
MAX_LINE_CHARACTERS: Final = 16_384
# For lines to be written together, and for the last ones at the end of the process.
_GATHER_SECONDS: Final = 0.05
_CLOSE_SECONDS: Final = 1.0


class QueuedLines(logging.Handler):
    """Writes records as lines to `stream`; while that is not read, and MAX_QUEUED_LINES wait, drops them.

    `dropped` counts what was dropped since the start; a line says so once lines are written again.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.dropped = 0
        self._stream = stream
        self._lines: deque[str] = deque()
        self._ready, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - a record that cannot be formatted must not end its caller
            self.handleError(record)
            return
        if len(self._lines) >= MAX_QUEUED_LINES:
            self.dropped += 1
            return
        self._lines.append(line if len(line) <= MAX_LINE_CHARACTERS else line[:MAX_LINE_CHARACTERS] + "…")
        if not self._ready.is_set():
            self._ready.set()

    def _write_all(self) -> None:
        reported = 0
        while True:
            self._ready.wait()
            self._closing.wait(_GATHER_SECONDS)
            self._ready.clear()
            dropped = self.dropped
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            if dropped > reported:
                record = logging.LogRecord(
                    __name__, logging.WARNING, "", 0, "%d log lines were dropped", (dropped - reported,), None
                )
                lines.append(self.format(record))
                reported = dropped
            if lines:
                try:
                    self._stream.write("\n".join(lines) + "\n")
                    self._stream.flush()
                except (OSError, ValueError):
                    # Nobody can be informed; the lines are lost.
                    self.dropped += len(lines)
            if self._closing.is_set() and not self._lines:
                return

    def close(self) -> None:
        """Write what is queued, for at most _CLOSE_SECONDS: the stream may not be read."""
        self._closing.set()
        self._ready.set()
        self._thread.join(_CLOSE_SECONDS)
        super().close()
