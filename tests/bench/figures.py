"""Samples, their medians and ratios, and the rows of the table. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the table. `ours` and `theirs` are samples in `unit`, taken alternately in one run.

    `part` is the part of `ours` ("median", "max", "p95" or "p99") that is compared with `their_part` of `theirs`.
    Without `theirs`, that part itself is the figure. `goal` is the highest allowed figure (with `at_least` the
    lowest), None if the row is informational.
    """

    measure: str
    against: str
    ours: Sequence[float]
    theirs: Sequence[float] = ()
    unit: str = "ms"
    goal: float | None = None
    part: str = "median"
    note: str = ""
    at_least: bool = False
    their_part: str = "median"

    @property
    def figure(self) -> float:
        """Return the ratio, or without `theirs` the part of `ours`, that is compared with the goal."""
        mine = quantile(self.ours, self.part)
        return mine / quantile(self.theirs, self.their_part) if self.theirs else mine

    @property
    def met(self) -> bool | None:
        """True if the figure meets the goal; None without a goal."""
        if self.goal is None:
            return None
        return self.figure >= self.goal if self.at_least else self.figure <= self.goal

    @property
    def goal_text(self) -> str:
        """Return the goal as text, e.g. `≤ 0.5`."""
        return "informational" if self.goal is None else f"{'≥' if self.at_least else '≤'} {self.goal:g}"


@dataclass(frozen=True)
class Result:
    """The result of a measure: rows of the table, and series for the plots (name -> points)."""

    rows: list[Row]
    series: dict[str, Any] = field(default_factory=dict)


def quantile(samples: Sequence[float], part: str) -> float:
    """Return the median, the maximum ("max"), or a percentile ("p95", "p99"; nearest rank).

    >>> quantile([3, 1, 2], "median"), quantile(range(1, 101), "p95")
    (2, 95)
    """
    ordered = sorted(samples)
    if part == "median":
        return statistics.median(ordered)
    if part == "max":
        return ordered[-1]
    rank = -(-len(ordered) * int(part.removeprefix("p")) // 100)
    return ordered[max(0, rank - 1)]


def shown(samples: Sequence[float], unit: str) -> str:
    """Return the median with minimum and maximum as text.

    >>> shown([1, 2, 10], "ms")
    '2 ms (1 to 10)'
    """
    if not samples:
        return "-"
    middle, least, most = (number(f(samples)) for f in (statistics.median, min, max))
    return f"{middle} {unit}" + (f" ({least} to {most})" if len(samples) > 1 else "")


def number(value: float) -> str:
    """Return a number as text with three significant digits.

    >>> number(0.12345), number(1234.5), number(0)
    ('0.123', '1234', '0')
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def as_json(result: Result) -> dict[str, Any]:
    """Return a result as the JSON object that benchmarks.json keeps."""
    return {"rows": [asdict(row) for row in result.rows], "series": result.series}


def from_json(raw: dict[str, Any]) -> Result:
    """Return the result that `as_json` returned as JSON."""
    return Result([Row(**row) for row in raw["rows"]], raw["series"])
