"""Samples and what they come to: medians, ratios, rows. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the table. `ours` and `theirs` are samples in `unit`, taken in turn in one run.

    `ratio_of` says which part is compared: "median" or "p95"; without `theirs` the goal is for `ours` itself.
    `goal` is the most that the ratio (or the figure) may be (`at_least`: the least), None where it is only told.
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

    @property
    def figure(self) -> float:
        """What is held against the goal."""
        mine = quantile(self.ours, self.part)
        return mine / quantile(self.theirs, "median") if self.theirs else mine

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.figure >= self.goal if self.at_least else self.figure <= self.goal

    @property
    def wanted(self) -> str:
        """The goal in a word."""
        return "told" if self.goal is None else f"{'≥' if self.at_least else '≤'} {self.goal:g}"


@dataclass(frozen=True)
class Result:
    """What a measure found: rows, and series for the plots (name -> points)."""

    rows: list[Row]
    series: dict[str, Any] = field(default_factory=dict)


def quantile(samples: Sequence[float], part: str) -> float:
    """The median, or p95, p99 (by the nearest rank above).

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
    """Median with minimum and maximum.

    >>> shown([1, 2, 10], "ms")
    '2 ms (1 to 10)'
    """
    if not samples:
        return "-"
    middle, least, most = (number(f(samples)) for f in (statistics.median, min, max))
    return f"{middle} {unit}" + (f" ({least} to {most})" if len(samples) > 1 else "")


def number(value: float) -> str:
    """Three digits that matter.

    >>> number(0.12345), number(1234.5), number(0)
    ('0.123', '1234', '0')
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def as_json(result: Result) -> dict[str, Any]:
    return {"rows": [asdict(row) for row in result.rows], "series": result.series}


def from_json(raw: dict[str, Any]) -> Result:
    return Result([Row(**row) for row in raw["rows"]], raw["series"])
