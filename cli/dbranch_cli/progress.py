"""The progress of reading a file: a bar with its rate on a terminal, elsewhere a plain line every ten seconds."""

from __future__ import annotations

import sys
import time
from typing import IO, Final

from dbranch.api.quantity import format_bytes

_REDRAW_SECONDS: Final = 0.2
_LINE_SECONDS: Final = 10.0
_CLEAR_LINE: Final = "\r\x1b[K"
_BAR_WIDTH: Final = 20


class Progress:
    """Counts the bytes that are read of a stream, and shows them on standard error.

    `total`: its size in bytes, None if that is not known. `label`: what is done with them, as "loading".
    """

    def __init__(self, label: str, total: int | None, quiet: bool) -> None:
        self._label, self._total, self._quiet = label, total, quiet
        self._live = sys.stderr.isatty()
        self._started = self._shown = time.monotonic()
        self.count, self._drawn = 0, False

    def add(self, count: int) -> None:
        """Count bytes that were read, and show the progress where it is time to."""
        self.count += count
        now = time.monotonic()
        if self._quiet or now - self._shown < (_REDRAW_SECONDS if self._live else _LINE_SECONDS):
            return
        self._shown, self._drawn = now, self._live
        text = progress_text(self._label, self.count, self._total, now - self._started, self._live)
        sys.stderr.write(f"{_CLEAR_LINE}{text}" if self._live else f"{text}\n")
        sys.stderr.flush()

    def clear(self) -> None:
        """Clear the line on a terminal."""
        if self._drawn:
            self._drawn = False
            sys.stderr.write(_CLEAR_LINE)
            sys.stderr.flush()


def progress_text(label: str, count: int, total: int | None, seconds: float, bar: bool = False) -> str:
    """Return the progress as a line of at most 80 columns.

    >>> progress_text("loading", 3 << 20, 4 << 20, 6.0, bar=True)
    '… loading [###############-----]  75 %, 3Mi of 4Mi, 512Ki/s, 2 s left'
    >>> progress_text("loading", 3 << 20, None, 6.0)
    '- loading: 3Mi, 512Ki/s'
    """
    rate = int(count / seconds) if seconds else 0
    speed = f"{format_bytes(rate)}/s"
    sign = f"… {label}" if bar else f"- {label}:"
    if not total:
        return f"{sign} {format_bytes(count)}, {speed}"
    share = min(1.0, count / total)
    filled = int(share * _BAR_WIDTH)
    drawn = f" [{'#' * filled}{'-' * (_BAR_WIDTH - filled)}]" if bar else ""
    left = f", {_duration((total - count) / rate)} left" if rate and count < total else ""
    return (
        f"{sign}{drawn} {share * 100:3.0f} %, {format_bytes(count)} of {format_bytes(total)}, {speed}{left}"
    )


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


class CountedReader:
    """A stream that reports what is read of it to a Progress."""

    def __init__(self, source: IO[bytes], progress: Progress) -> None:
        self._source, self._progress = source, progress

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        self._progress.add(len(data))
        return data
