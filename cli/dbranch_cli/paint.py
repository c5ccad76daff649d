"""Tables, ages, sizes and colours: how facts become columns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import IO, Any

import click

from dbranch.api.quantity import format_bytes


def painted(text: str, colour: str, stream: IO[str]) -> str:
    """`text` in a colour, on a terminal that NO_COLOR does not forbid it."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return click.style(text, fg=colour)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns two blanks apart, no blanks at the end of a line.

    >>> print(table(["A", "NAME"], [["", "x"]]))
    A  NAME
       x
    """
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    )


def block(pairs: Sequence[tuple[str, str]]) -> str:
    """Lines `Key   value`, the values below each other."""
    width = max(len(key) for key, _ in pairs)
    return "\n".join(f"{key.ljust(width)}  {value}".rstrip() for key, value in pairs)


def age(since: str | None, now: datetime | None = None) -> str:
    """How long ago an API time was, in its largest unit: 9s, 14m, 3h, 12d, 2y; `-` where it is none."""
    if not since:
        return "-"
    then = datetime.fromisoformat(since.replace("Z", "+00:00"))
    seconds = max(0, int(((now or datetime.now(UTC)) - then).total_seconds()))
    for unit, length in (("y", 365 * 86400), ("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length * (2 if unit == "y" else 1):
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def size(node: Mapping[str, Any], stem: str) -> str:
    """A size of `status.node` for people: `<stem>Size`, else from `<stem>Bytes`, else `-`."""
    if node.get(f"{stem}Size"):
        return str(node[f"{stem}Size"])
    count = node.get(f"{stem}Bytes")
    return "-" if count is None else format_bytes(int(count))
