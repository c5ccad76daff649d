"""Build docs/benchmarks.md from the raw numbers. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tests.bench.audit import typical
from tests.bench.figures import Result, Row, number, quantile, shown

_INTRODUCTION = """# Benchmarks

Written by `hack/bench` from [benchmarks.json](benchmarks/benchmarks.json), which keeps every sample. `hack/bench`
takes some 100 minutes, `hack/bench quick` under ten minutes; `hack/bench NAME…` runs the named measures and keeps the
results of the others.

Everything runs in one kind cluster on one machine, and what is compared is measured alternately within one run. So
read the ratios rather than the milliseconds, and note the load average in the last table, which includes everything
that runs on the machine. A *bare pod* is a pod of the same Postgres image on the same node. Its PGDATA was created
beforehand and shut down cleanly; it becomes Ready through a readiness probe with a period of one second, the shortest
possible. Times are taken from one watch of the API server: from before the request to the arrival of the state.
"""
_BEFORE = """The columns *before* are of the release of commit `{commit}`, measured by the same programs
(`hack/bench before COMMIT NAME…`). The last table says when."""
_TITLES = {
    "create": "A branch beside a bare pod",
    "copies": "A branch beside a copy",
    "trace": "Where the time of a create goes",
    "requests": "The requests of a create",
}
_REQUESTS = """From the API server's audit log: the requests that most of {count} creates have between apply and
Ready, each at its medians, with the milliseconds from its arrival to its answer. They overlap, and not all are waited
for."""


# Series of an earlier release that are drawn beside the present ones.
PLOTTED_BEFORE = ("trace", "requests")
_COLUMNS = [
    "measure",
    "median (min to max)",
    "compared with",
    "its median (min to max)",
    "ratio",
    "goal",
    "result",
]


def _figure(row: Row) -> str:
    figure = number(row.figure)
    if row.part != "median":
        figure = f"{figure} ({row.part})"
    return figure if row.theirs else f"{figure} {row.unit}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _table_line(row: Row, earlier: Row | None = None, wide: bool = False) -> str:
    met = {None: "", True: "met", False: "**missed**"}[row.met]
    theirs = shown(row.theirs, row.unit) if row.theirs else "-"
    cells = [row.measure, shown(row.ours, row.unit), row.against, theirs, _figure(row), row.goal_text, met]
    if wide:
        cells += [shown(earlier.ours, earlier.unit), _figure(earlier)] if earlier else ["-", "-"]
    return _line(cells)


def page(
    raw: dict[str, Any],
    results: dict[str, Result],
    before: Mapping[str, Result] | None = None,
    notes_by_hand: str = "",
) -> str:
    """Return the whole page; `before` are the results of an earlier release, `notes_by_hand` follow the plots."""
    before = before or {}
    shown_before = [name for result in before.values() for name, points in result.series.items() if points]
    lines = [_INTRODUCTION, "## Results", ""]
    earlier = {(row.measure, row.against): row for result in before.values() for row in result.rows}
    columns = _COLUMNS + (["before: median (min to max)", "before: ratio"] if before else [])
    if before:
        lines += [_BEFORE.format(commit=raw["before"]["commit"][:12]), ""]
    lines += [_line(columns), "|" + "---|" * len(columns)]
    lines += [
        _table_line(row, earlier.get((row.measure, row.against)), bool(before))
        for result in results.values()
        for row in result.rows
    ]
    notes = [
        f"* {row.measure}: {row.note}." for result in results.values() for row in result.rows if row.note
    ]
    lines += ["", *notes, ""]
    for result in results.values():
        for name, points in result.series.items():
            if points:
                lines += [f"## {_TITLES[name]}", "", f"![{_TITLES[name]}](benchmarks/{name}.svg)", ""]
                lines += [*_request_lines(points), ""] if name == "requests" else []
    for name in PLOTTED_BEFORE:
        if name in shown_before:
            lines += [f"## {_TITLES[name]}, before", "", f"![before](benchmarks/{name}-before.svg)", ""]
    if notes_by_hand:
        lines += [notes_by_hand.rstrip(), ""]
    lines += ["## The machine", ""]
    lines += [f"* {key}: {value}" for key, value in raw["machine"].items()]
    lines += [
        "",
        "| run | mode | at | load average before the run | samples in its first row |",
        "|---|---|---|---|---|",
    ]
    lines += [_run_line(name, run, results[name]) for name, run in raw["runs"].items()]
    for name, result in before.items():
        lines.append(_run_line(f"{name}, before", raw["before"]["runs"][name], result))
    return "\n".join(lines) + "\n"


def _request_lines(traces: list[dict[str, Any]]) -> list[str]:
    """Return the table of the requests of a create, with a sum by who asks."""
    requests = typical([trace["requests"] for trace in traces])
    totals: dict[str, list[float]] = {}
    for request in requests:
        totals.setdefault(request["client"], []).append(request["ms"])
    lines = [
        _REQUESTS.format(count=len(traces)),
        "",
        _line(["client", "requests", "ms together"]),
        "|---|---|---|",
    ]
    lines += [_line([client, str(len(ms)), f"{sum(ms):.0f}"]) for client, ms in totals.items()]
    lines += ["", _line(["after ms", "client", "verb", "resource", "ms"]), "|---|---|---|---|---|"]
    for request in requests:
        at, ms = f"{request['at']:.0f}", f"{request['ms']:.1f}"
        lines.append(_line([at, request["client"], request["verb"], request["resource"], ms]))
    return lines


def _run_line(title: str, run: Mapping[str, str], result: Result) -> str:
    """Return the line of a measure's run: when, how, with how many samples."""
    count = len(result.rows[0].ours) if result.rows else len(next(iter(result.series.values())))
    return _line([title, run["mode"], run["at"], run["load"], str(count)])


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
