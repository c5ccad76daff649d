"""The pictures, from the raw numbers: SVG files beside the tables."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

OURS, THEIRS = "#2563eb", ("#9ca3af", "#d97706", "#6b7280", "#b91c1c")
# The same file for the same numbers.
plt.rcParams.update({"svg.hashsalt": "dbranch", "svg.fonttype": "none", "font.size": 10})
_NAMES = {
    "warm": "branch, waiting slot",
    "row": "the same, to the first row",
    "cold": "branch, no waiting slot",
    "bare": "bare Postgres pod",
}


def _save(figure: Any, file: Path) -> None:
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def create(series: dict[str, list[float]], file: Path) -> None:
    """Every sample of each kind as a point, the median as a bar."""
    figure, axes = plt.subplots(figsize=(7, 2.6))
    kinds = [kind for kind in _NAMES if kind in series]
    for place, kind in enumerate(reversed(kinds)):
        samples = series[kind]
        colour = THEIRS[0] if kind == "bare" else OURS
        axes.barh(place, statistics.median(samples), color=colour, alpha=0.35 if kind == "bare" else 0.6)
        axes.plot(samples, [place] * len(samples), "|", color="black", alpha=0.5, markersize=9)
    axes.set_yticks(range(len(kinds)), [_NAMES[kind] for kind in reversed(kinds)])
    axes.set_xlabel("ms from apply to Ready, bars at the median")
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, file)


def copies(series: dict[str, list[tuple[float, float]]], file: Path) -> None:
    """Time to a usable copy over the size of the database, both logarithmic."""
    figure, axes = plt.subplots(figsize=(7, 4))
    colours = {"dbranch": OURS, **dict(zip([k for k in series if k != "dbranch"], THEIRS, strict=False))}
    for name, points in series.items():
        at: dict[float, list[float]] = {}
        for held, took in points:
            at.setdefault(round(held), []).append(took / 1000)
        sizes = sorted(at)
        middle = [statistics.median(at[held]) for held in sizes]
        wide = 2.5 if name == "dbranch" else 1.5
        axes.plot(sizes, middle, marker="o", color=colours[name], linewidth=wide, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("size of the database, MB")
    axes.set_ylabel("seconds to a copy that can be used")
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(frameon=False)
    _save(figure, file)


# Who works between two writes that a watch sees.
_BEFORE = (
    ("created", "API server"),
    ("finalizer of the controller", "controller: finalizer"),
    ("bound", "controller: bound, its Service made"),
    ("finalizer of the agent", "agent: finalizer"),
)
_LAPS = {
    "read": "agent: reads branch and project",
    "look": "agent: looks at pool, pods, slots",
    "Claim": "agent: claims a waiting slot",
    "Checkpoint": "source: CHECKPOINT",
    "TakeSnapshot": "btrfs: snapshot, cleaned, on disk",
    "Bind": "agent: bound into the slot",
    "accept": "Postgres: start to accepting",
    "open": "agent: cleaned, opened to users",
    "tell": "agent: tells",
}


def spans(traces: list[dict[str, Any]]) -> list[tuple[str, float]]:
    """Step -> milliseconds at the median, in order; what is left between them is the watch's way."""
    found: list[tuple[str, list[float]]] = [(words, []) for _, words in _BEFORE]
    found += [(words, []) for words in _LAPS.values()]
    way: list[float] = []
    last: list[float] = []
    for trace in traces:
        seen, before = trace["seen"], 0.0
        for place, (step, _) in enumerate(_BEFORE):
            found[place][1].append(max(0.0, seen[step] - before))
            before = max(before, seen[step])
        for place, lap in enumerate(_LAPS):
            found[len(_BEFORE) + place][1].append(trace["agent"].get(lap, 0.0))
        way.append(max(0.0, seen["accepts"] - before - sum(trace["agent"].get(lap, 0.0) for lap in _LAPS)))
        last.append(seen["Ready"] - seen["accepts"])
    found.insert(len(_BEFORE), ("watch: to the agent and back", way))
    found.append(("controller: endpoints, Ready", last))
    return [(words, statistics.median(samples)) for words, samples in found]


def trace(traces: list[dict[str, Any]], file: Path) -> None:
    """A waterfall of one create, each step at its median."""
    steps = spans(traces)
    figure, axes = plt.subplots(figsize=(8, 4.2))
    at = 0.0
    for place, (words, took) in enumerate(steps):
        colour = (
            OURS if words.startswith("agent") else THEIRS[1] if words.startswith("controller") else THEIRS[0]
        )
        axes.barh(-place, took, left=at, color=colour, alpha=0.7)
        axes.text(at + took + 3, -place, f"{took:.0f}", va="center", fontsize=8)
        at += took
    axes.set_yticks([-place for place in range(len(steps))], [words for words, _ in steps])
    axes.set_xlabel(f"ms since the apply; Ready after {at:.0f} ms (sum of medians of {len(traces)} creates)")
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, file)


PLOTS = {"create": create, "copies": copies, "trace": trace}
