"""Draw the plots from the raw numbers, as SVG files."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib

from tests.bench.audit import typical

matplotlib.use("svg")
import matplotlib.pyplot as plt

OURS, THEIRS = "#2563eb", ("#9ca3af", "#d97706", "#6b7280", "#b91c1c")
# Reproducible: the same numbers give the same file.
plt.rcParams.update({"svg.hashsalt": "dbranch", "svg.fonttype": "none", "font.size": 10})
_NAMES = {
    "warm": "branch, warm slot",
    "row": "the same, to the first row",
    "cold": "branch, no warm slot",
    "bare": "bare Postgres pod",
}


def _save(figure: Any, file: Path) -> None:
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def create(series: dict[str, list[float]], file: Path) -> None:
    """Draw every sample as a tick and the medians as bars."""
    figure, axes = plt.subplots(figsize=(7, 2.6))
    keys = [key for key in _NAMES if key in series]
    for position, key in enumerate(reversed(keys)):
        samples = series[key]
        colour = THEIRS[0] if key == "bare" else OURS
        axes.barh(position, statistics.median(samples), color=colour, alpha=0.35 if key == "bare" else 0.6)
        axes.plot(samples, [position] * len(samples), "|", color="black", alpha=0.5, markersize=9)
    axes.set_yticks(range(len(keys)), [_NAMES[key] for key in reversed(keys)])
    axes.set_xlabel("ms from apply to Ready, bars at the median")
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, file)


def copies(series: dict[str, list[tuple[float, float]]], file: Path) -> None:
    """Draw the time to a usable copy over the size of the database, both logarithmic."""
    figure, axes = plt.subplots(figsize=(7, 4))
    colours = {"dbranch": OURS, **dict(zip([k for k in series if k != "dbranch"], THEIRS, strict=False))}
    for name, points in series.items():
        by_size: dict[float, list[float]] = {}
        for size, milliseconds in points:
            by_size.setdefault(round(size), []).append(milliseconds / 1000)
        sizes = sorted(by_size)
        medians = [statistics.median(by_size[size]) for size in sizes]
        width = 2.5 if name == "dbranch" else 1.5
        axes.plot(sizes, medians, marker="o", color=colours[name], linewidth=width, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("size of the database, MB")
    axes.set_ylabel("seconds to a usable copy")
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(frameon=False)
    _save(figure, file)


# Writes that a watch sees before the agent's steps -> what was done since the write before. Their order and number
# depend on the release.
_WRITES = {
    "created": "API server",
    "finalizer of the controller": "controller: its finalizer",
    "finalizer of the agent": "finalizer of the agent",
    "bound": "controller: node bound, Service created",
}
# The agent's timings (see `StepTimer`) -> label.
_AGENT_STEPS = {
    "read": "agent: reads branch and project",
    "observe": "agent: observes pool, pods, slots",
    "Claim": "agent: claims a warm slot",
    "Checkpoint": "source: CHECKPOINT",
    "TakeSnapshot": "btrfs: snapshot, cleaning, sync",
    "Bind": "agent: binds the branch into the slot",
    "accept": "Postgres: start until it accepts",
    "Clean": "agent: SQL cleaning",
    "SetPasswords": "agent: sets the owner's password",
    "Open": "agent: opens to users",
    "report": "agent: writes the status",
}


def spans(traces: list[dict[str, Any]]) -> list[tuple[str, float]]:
    """Return (label, median milliseconds) of each step in order; what no step accounts for is the watch's delay."""
    writes = _writes_seen(traces)
    steps: list[tuple[str, list[float]]] = [(_WRITES[write], []) for write in writes]
    steps += [(label, []) for label in _AGENT_STEPS.values()]
    watch_delays: list[float] = []
    final: list[float] = []
    for trace in traces:
        seen, before = trace["seen"], 0.0
        for index, write in enumerate(writes):
            steps[index][1].append(max(0.0, seen.get(write, 0.0) - before))
            before = max(before, seen.get(write, 0.0))
        agent = [trace["agent"].get(step, 0.0) for step in _AGENT_STEPS]
        for index, milliseconds in enumerate(agent):
            steps[len(writes) + index][1].append(milliseconds)
        watch_delays.append(max(0.0, seen["accepts"] - before - sum(agent)))
        final.append(seen["Ready"] - seen["accepts"])
    steps.insert(len(writes), ("watch: to the agent and back", watch_delays))
    steps.append(("controller: endpoints, Ready", final))
    return [(label, statistics.median(samples)) for label, samples in steps]


def _writes_seen(traces: list[dict[str, Any]]) -> list[str]:
    """Return the writes that most traces have, in the order in which they come."""
    times = {write: [trace["seen"][write] for trace in traces if write in trace["seen"]] for write in _WRITES}
    seen = [write for write, at in times.items() if len(at) * 2 > len(traces)]
    return sorted(seen, key=lambda write: statistics.median(times[write]))


def trace(traces: list[dict[str, Any]], file: Path) -> None:
    """Draw a waterfall of one create, each step at its median."""
    steps = spans(traces)
    figure, axes = plt.subplots(figsize=(8, 4.2))
    start = 0.0
    for index, (label, milliseconds) in enumerate(steps):
        colour = (
            OURS if label.startswith("agent") else THEIRS[1] if label.startswith("controller") else THEIRS[0]
        )
        axes.barh(-index, milliseconds, left=start, color=colour, alpha=0.7)
        axes.text(start + milliseconds + 3, -index, f"{milliseconds:.0f}", va="center", fontsize=8)
        start += milliseconds
    axes.set_yticks([-index for index in range(len(steps))], [label for label, _ in steps])
    axes.set_xlabel(
        f"ms since the apply; Ready after {start:.0f} ms (sum of medians of {len(traces)} creates)"
    )
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, file)


_COLOURS = {"controller": THEIRS[1], "agent": OURS, "client": "black"}


def requests(traces: list[dict[str, Any]], file: Path) -> None:
    """Draw the requests of one create as bars from their arrival to their answer, each at its medians."""
    bars = typical([trace["requests"] for trace in traces])
    ready = statistics.median(trace["seen"]["Ready"] for trace in traces)
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.17 * len(bars)))
    for index, bar in enumerate(bars):
        axes.barh(-index, bar["ms"], left=bar["at"], color=_COLOURS.get(bar["who"], THEIRS[0]), alpha=0.7)
        axes.text(bar["at"] + bar["ms"] + 3, -index, f"{bar['ms']:.0f}", va="center", fontsize=7)
    labels = [f"{bar['who']}: {bar['verb']} {bar['what']}" for bar in bars]
    axes.set_yticks([-index for index in range(len(bars))], labels, fontsize=7)
    axes.axvline(ready, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlabel(f"ms since the apply; Ready after {ready:.0f} ms (medians of {len(traces)} creates)")
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, file)


PLOTS = {"create": create, "copies": copies, "trace": trace, "requests": requests}
