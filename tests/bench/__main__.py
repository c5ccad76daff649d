"""python -m tests.bench [before COMMIT] [quick] [NAME…]: run measures in the cluster of KUBECONFIG and write
docs/benchmarks.md.

Called by hack/bench, which creates the cluster and installs the release to measure: that of this tree, or that of
COMMIT, whose results are kept apart and shown beside the others. Without names all measures run; `page` alone only
writes the page and its plots again from the raw numbers.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from dbranch.api.errors import DbranchError
from dbranch.kube.client import Cluster
from tests.bench import plots
from tests.bench.before import missing_for, runs_before
from tests.bench.costs import costs
from tests.bench.crowds import CROWDS
from tests.bench.expiry import expiry
from tests.bench.figures import Result, as_json, from_json
from tests.bench.hundreds import hundreds, idle
from tests.bench.page import PLOTTED_BEFORE, page, summary
from tests.bench.release import CHART
from tests.bench.restores import restore
from tests.bench.room import room
from tests.bench.sizes import SIZES
from tests.bench.snapshots import snapshots
from tests.bench.stage import Stage
from tests.bench.starts import STARTS
from tests.bench.tpcb import pgbench

DOCS = Path(__file__).parents[2] / "docs"
RAW = DOCS / "benchmarks" / "benchmarks.json"
MEASURES = {
    **STARTS,
    **CROWDS,
    **SIZES,
    "snapshots": snapshots,
    "restore": restore,
    "costs": costs,
    "pgbench": pgbench,
    "hundreds": hundreds,
    "idle": idle,
    "expiry": expiry,
    "room": room,
}
# Too long for the quick mode, unless they are named.
SLOW = frozenset({"load", "stream", "size", "hundreds", "idle", "expiry", "pgbench", "room"})


def machine() -> dict[str, str]:
    """Return a description of the machine and the versions, by title."""
    cpu = _value("/proc/cpuinfo", "model name")
    memory = int(_value("/proc/meminfo", "MemTotal").split()[0]) / 2**20
    disk = subprocess.run(
        ["findmnt", "-no", "FSTYPE", "-T", "/var/lib"], capture_output=True, text=True, check=False
    ).stdout.strip()
    version = Cluster("dbranch-bench").get("/version") or {}
    return {
        "processor": f"{os.cpu_count()} of {cpu}",
        "memory": f"{memory:.0f} GiB",
        "disk": f"{disk or '-'} under the node's directories",
        "kernel": platform.release(),
        "Kubernetes": str(version.get("gitVersion", "-")),
        "Postgres": os.environ.get("DBRANCH_POSTGRES_IMAGE", "-"),
    }


def _value(file: str, key: str) -> str:
    """Return the value of the first line `key : value` of a file, or "-"."""
    lines = (line.partition(":") for line in Path(file).read_text().splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), "-")


def measure(name: str, quick: bool) -> Result:
    """Run one measure in a namespace of its own, which is deleted even if the measure fails.

    What fails in the deletion is only printed: it takes neither the result nor the cause of a failure.
    """
    stage = Stage(Cluster("dbranch-bench")).make()
    try:
        return MEASURES[name](stage, quick)
    finally:
        try:
            stage.clear()
        except (AssertionError, DbranchError) as error:
            print(f"namespace {stage.namespace} remains: {error}", file=sys.stderr)


def save(raw: dict[str, Any]) -> None:
    """Write the raw numbers, the plots and the page."""
    RAW.parent.mkdir(parents=True, exist_ok=True)
    RAW.write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n")
    results = _results(raw)
    before = _results(raw["before"]) if "before" in raw else {}
    _plot(results, plots.PLOTS.keys(), "")
    _plot(before, PLOTTED_BEFORE, "-before")
    raw["runs"] = {name: raw["runs"][name] for name in results}
    # Comments on the figures, written by hand after a run.
    notes = RAW.with_name("notes.md")
    (DOCS / "benchmarks.md").write_text(
        page(raw, results, before, notes.read_text() if notes.exists() else "")
    )


def _plot(results: dict[str, Result], names: Collection[str], suffix: str) -> None:
    """Draw the named series of results; the name of a file is that of its series with the suffix."""
    for result in results.values():
        for series, points in result.series.items():
            if points and series in names:
                plots.PLOTS[series](points, RAW.parent / f"{series}{suffix}.svg")


def _results(run: dict[str, Any]) -> dict[str, Result]:
    """Return the results of the measures in raw numbers, in the order of MEASURES."""
    return {name: from_json(run["measures"][name]) for name in MEASURES if name in run["measures"]}


def main(words: list[str]) -> int:
    commit = ""
    if words[:1] == ["before"]:
        commit, words = words[1], words[2:]
    quick = "quick" in words
    named = [word for word in words if word not in ("quick", "all")]
    unknown = [name for name in named if name not in MEASURES and words != ["page"]]
    if unknown:
        print(f"no measure is called {', '.join(unknown)}; measures: {', '.join(MEASURES)}", file=sys.stderr)
        return 2
    names = named or [name for name in MEASURES if not (quick and name in SLOW)]
    raw = json.loads(RAW.read_text()) if RAW.exists() else {"measures": {}, "runs": {}}
    if words == ["page"]:
        save(raw)
        return 0
    raw["machine"] = machine()
    part = runs_before(raw, commit) if commit else raw
    if commit:
        for name in names:
            if why := missing_for(name, Path(CHART)):
                print(f"{name} is skipped: {why}", file=sys.stderr)
        names = [name for name in names if not missing_for(name, Path(CHART))]
    failed = []
    for number, name in enumerate(names, 1):
        began, load = time.monotonic(), f"{os.getloadavg()[0]:.1f}"
        print(
            f"[{time.strftime('%H:%M:%S')}] {number} of {len(names)}: {name} …", file=sys.stderr, flush=True
        )
        try:
            result = measure(name, quick)
        except (AssertionError, DbranchError, OSError, subprocess.SubprocessError) as error:
            print(f"{name} failed: {error}", file=sys.stderr)
            failed.append(name)
            continue
        for line in summary(result):
            print(line, flush=True)
        part["measures"][name] = as_json(result)
        mode = "quick" if quick else "full"
        part["runs"][name] = {
            "mode": mode,
            "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "load": load,
        }
        save(raw)
        print(
            f"[{time.strftime('%H:%M:%S')}] done: {name} ({time.monotonic() - began:.0f} s)", file=sys.stderr
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
