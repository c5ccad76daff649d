"""Parse text output: the API server's metrics, pgbench's report, a line of a log. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime

_REQUESTS = re.compile(r"^apiserver_request_total\{(.*)\} ([\d.e+]+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_WRITES = frozenset({"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"})
# What an idle cluster writes by itself: leases, node status, tokens and reviews of tokens and access.
_WRITTEN_BY_KUBERNETES = frozenset(
    {
        "leases.coordination.k8s.io",
        "nodes",
        "nodes/status",
        "serviceaccounts/token",
        "tokenreviews.authentication.k8s.io",
        "subjectaccessreviews.authorization.k8s.io",
    }
)


def writes(metrics: str) -> Counter[str]:
    """Count write requests in the API server's metrics by resource (`dbbranches.dbranch.io/status`, `pods`).

    What an idle cluster writes by itself is left out. The rest may come from any client, so the counts are an
    upper bound for dbranch.

    >>> series = 'apiserver_request_total{code="200",group="dbranch.io",resource="dbbranches",subresource="status"'
    >>> writes(series + ',verb="PATCH"} 7\\n' + series + ',verb="GET"} 9')
    Counter({'dbbranches.dbranch.io/status': 7})
    """
    counts: Counter[str] = Counter()
    for label_text, value in _REQUESTS.findall(metrics):
        labels: dict[str, str] = dict(_LABEL.findall(label_text))
        name = ".".join(filter(None, (labels["resource"], labels.get("group"))))
        name = "/".join(filter(None, (name, labels.get("subresource"))))
        if labels["verb"] in _WRITES and name not in _WRITTEN_BY_KUBERNETES:
            counts[name] += int(float(value))
    return counts


def growth(after: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """Return what was added between two counts, largest first.

    >>> growth({"pods": 3, "events": 9, "secrets": 1}, {"pods": 1, "secrets": 1})
    {'events': 9, 'pods': 2}
    """
    grown = {key: count - before.get(key, 0) for key, count in after.items()}
    return {key: grown[key] for key in sorted(grown, key=lambda k: (-grown[k], k)) if grown[key] > 0}


def format_counts(counts: Mapping[str, int]) -> str:
    """Return counts as text.

    >>> format_counts({"events": 9, "pods": 2}), format_counts({})
    ('9 events, 2 pods', 'none')
    """
    return ", ".join(f"{count} {key}" for key, count in counts.items()) or "none"


def tps(report: str) -> float:
    """Return the transactions per second of a pgbench report; raise AssertionError with it if there were none.

    >>> tps("latency average = 3 ms\\ntps = 512.5 (without initial connection time)")
    512.5
    """
    rate = re.search(r"^tps = ([\d.]+)", report, re.MULTILINE)
    assert rate and float(rate[1]) > 0, f"pgbench did not finish its first transaction: {report}"
    return float(rate[1])


def line_time(log: str, text: str) -> tuple[float, str] | None:
    """Return (seconds since the epoch, line) of the first line of a log that contains `text`; None without one.

    >>> line_time("2026-01-01T00:00:01.500Z INFO a all 3 branches reconciled 0.2 s after the start", "reconciled")
    (1767225601.5, '2026-01-01T00:00:01.500Z INFO a all 3 branches reconciled 0.2 s after the start')
    """
    for line in log.splitlines():
        if text in line:
            return datetime.fromisoformat(line.split()[0].replace("Z", "+00:00")).timestamp(), line
    return None
