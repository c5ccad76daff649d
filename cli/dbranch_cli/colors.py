"""Terminal colors."""

from __future__ import annotations

import os
from typing import IO

import click


def colorize(text: str, color: str, stream: IO[str]) -> str:
    """Return `text` with escapes for a color if `stream` is a terminal that shows colors (see NO_COLOR)."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return click.style(text, fg=color)
