"""Tables, fields, ages and sizes as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from dbranch.api.quantity import format_bytes


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned columns two spaces apart, without trailing spaces; control characters are escaped.

    >>> print(format_table(["A", "NAME"], [["", "x"]]))
    A  NAME
       x
    """
    table = [[escape_controls(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )


def format_fields(pairs: Sequence[tuple[str, str]]) -> str:
    """Return lines `Key   value` with aligned values; control characters are escaped."""
    width = max(len(key) for key, _ in pairs)
    return "\n".join(f"{key.ljust(width)}  {escape_controls(value)}".rstrip() for key, value in pairs)


def format_count(count: int, noun: str) -> str:
    """Return a count with its noun in singular or plural.

    >>> format_count(1, "session"), format_count(3, "branch")
    ('1 session', '3 branches')
    """
    plural = f"{noun}es" if noun.endswith("ch") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"


def format_age(since: str | None, now: datetime | None = None) -> str:
    """Return the time since `since` (RFC 3339) in its largest unit: 9s, 14m, 3h, 12d, 2y; `-` for None."""
    if not since:
        return "-"
    start = datetime.fromisoformat(since.replace("Z", "+00:00"))
    seconds = max(0, int(((now or datetime.now(UTC)) - start).total_seconds()))
    for unit, length in (("y", 365 * 86400), ("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length * (2 if unit == "y" else 1):
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def format_size(node_status: Mapping[str, Any], prefix: str) -> str:
    """Return a size from `status.node`: `<prefix>Size`, else `<prefix>Bytes` as a quantity, else `-`."""
    if node_status.get(f"{prefix}Size"):
        return str(node_status[f"{prefix}Size"])
    count = node_status.get(f"{prefix}Bytes")
    return "-" if count is None else format_bytes(int(count))


def escape_controls(text: str) -> str:
    """Return a text whose control characters, but for tabs, do nothing on a terminal.

    >>> print(escape_controls("a\x1b[2Jb\tc"))
    a\\x1b[2Jb	c
    """
    return "".join(c if c == "\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)
