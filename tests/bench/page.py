"""Build docs/benchmarks.md from the raw numbers. Pure."""

from __future__ import annotations

from typing import Any

from tests.bench.figures import Result, Row, number, quantile, shown

_INTRODUCTION = """# Benchmarks

Written by `hack/bench` from [benchmarks.json](benchmarks/benchmarks.json), which keeps every sample. `hack/bench`
takes some 80 minutes, `hack/bench quick` under ten minutes; `hack/bench NAME…` runs the named measures and keeps the
results of the others.

Everything runs in one kind cluster on one machine, and what is compared is measured alternately within one run. So
read the ratios rather than the milliseconds, and note the load average in the last table, which includes everything
that runs on the machine. A *bare pod* is a pod of the same Postgres image on the same node. Its PGDATA was created
beforehand and shut down cleanly; it becomes Ready through a readiness probe with a period of one second, the shortest
possible. Times are taken from one watch of the API server: from before the request to the arrival of the state.
"""
_TITLES = {
    "create": "A branch beside a bare pod",
    "copies": "A branch beside a copy",
    "trace": "Where the time of a create goes",
}


def _table_line(row: Row) -> str:
    figure = number(row.figure)
    if row.part != "median":
        figure = f"{figure} ({row.part})"
    met = {None: "", True: "met", False: "**missed**"}[row.met]
    theirs = shown(row.theirs, row.unit) if row.theirs else "-"
    ratio = figure if row.theirs else f"{figure} {row.unit}"
    cells = [row.measure, shown(row.ours, row.unit), row.against, theirs, ratio, row.goal_text, met]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def page(raw: dict[str, Any], results: dict[str, Result], notes_by_hand: str = "") -> str:
    """Return the whole page; `notes_by_hand` follow the plots."""
    lines = [_INTRODUCTION, "## Results", ""]
    lines += [
        "| measure | median (min to max) | compared with | its median (min to max) | ratio | goal | result |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    lines += [_table_line(row) for result in results.values() for row in result.rows]
    notes = [
        f"* {row.measure}: {row.note}." for result in results.values() for row in result.rows if row.note
    ]
    lines += ["", *notes, ""]
    for name, result in results.items():
        if result.series:
            lines += [f"## {_TITLES[name]}", "", f"![{_TITLES[name]}](benchmarks/{name}.svg)", ""]
    if notes_by_hand:
        lines += [notes_by_hand.rstrip(), ""]
    lines += ["## The machine", ""]
    lines += [f"* {key}: {value}" for key, value in raw["machine"].items()]
    lines += [
        "",
        "| run | mode | at | load average before the run | samples in its first row |",
        "|---|---|---|---|---|",
    ]
    for name, run in raw["runs"].items():
        rows = results[name].rows
        count = len(rows[0].ours) if rows else len(next(iter(results[name].series.values())))
        lines.append(f"| {name} | {run['mode']} | {run['at']} | {run['load']} | {count} |")
    return "\n".join(lines) + "\n"


def summary(result: Result) -> list[str]:
    """Return a line for each row, for the terminal."""
    lines = []
    for row in result.rows:
        against = (
            f" | {row.against}: {shown(row.theirs, row.unit)} | ratio {number(row.figure)}"
            if row.theirs
            else ""
        )
        if not row.theirs and row.part != "median":
            against = f" | {row.part}: {number(quantile(row.ours, row.part))} {row.unit}"
        goal = "" if row.goal is None else f" | goal {row.goal_text}: {'met' if row.met else 'MISSED'}"
        lines.append(f"{row.measure}: {shown(row.ours, row.unit)}{against}{goal}")
    return lines
