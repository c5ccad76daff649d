"""The release of an earlier commit, measured by this tree's programs: what it can do, where its results are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# The CRD, by its file, that a release must have for a measure, and a field in it.
NEEDS = {
    "snapshots": ("dbsnapshots.yaml", ""),
    "restore": ("dbrestores.yaml", ""),
    "expiry": ("dbbranches.yaml", "expirationTime"),
}
# Of this tree's controller, whatever is installed.
OF_THIS_TREE = frozenset({"room"})


def missing_for(name: str, chart: Path) -> str:
    """Return why the release of a chart other than this tree's cannot do a measure; empty if it can."""
    if name in OF_THIS_TREE:
        return "it measures this tree's controller"
    if name not in NEEDS:
        return ""
    crd, field = NEEDS[name]
    files = list(chart.rglob(crd))
    if not files:
        return f"its chart has no {crd}"
    return "" if any(field in file.read_text() for file in files) else f"its {crd} has no {field}"


def runs_before(raw: dict[str, Any], commit: str) -> dict[str, Any]:
    """Return the part of the raw numbers for the release of a commit; begin it anew if it is of another commit."""
    if raw.get("before", {}).get("commit") != commit:
        raw["before"] = {"commit": commit, "measures": {}, "runs": {}}
    part: dict[str, Any] = raw["before"]
    return part
