"""What programs say of themselves in text: the API server's counters, pgbench's report, a log's line. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime

_REQUESTS = re.compile(r"^apiserver_request_total\{(.*)\} ([\d.e+]+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_WRITES = frozenset({"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"})
# What the cluster writes by itself while nothing happens: leases, a node's report, answers about tokens and rights.
_CLUSTERS_OWN = frozenset(
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
    """Writing requests by resource (`dbbranches.dbranch.io/status`, `pods`), of the API server's metrics.

    Left out is what Kubernetes writes by itself; what is left may be of anybody else, so it is never too little.

    >>> head = 'apiserver_request_total{code="200",group="dbranch.io",resource="dbbranches",subresource="status"'
    >>> writes(head + ',verb="PATCH"} 7\\n' + head + ',verb="GET"} 9')
    Counter({'dbbranches.dbranch.io/status': 7})
    """
    found: Counter[str] = Counter()
    for words, value in _REQUESTS.findall(metrics):
        labels: dict[str, str] = dict(_LABEL.findall(words))
        name = ".".join(filter(None, (labels["resource"], labels.get("group"))))
        name = "/".join(filter(None, (name, labels.get("subresource"))))
        if labels["verb"] in _WRITES and name not in _CLUSTERS_OWN:
            found[name] += int(float(value))
    return found


def more(after: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """What came between two counts, the most first.

    >>> more({"pods": 3, "events": 9, "secrets": 1}, {"pods": 1, "secrets": 1})
    {'events': 9, 'pods': 2}
    """
    grown = {key: count - before.get(key, 0) for key, count in after.items()}
    return {key: grown[key] for key in sorted(grown, key=lambda k: (-grown[k], k)) if grown[key] > 0}


def told(counts: Mapping[str, int]) -> str:
    """Counts in words.

    >>> told({"events": 9, "pods": 2}), told({})
    ('9 events, 2 pods', 'none')
    """
    return ", ".join(f"{count} {key}" for key, count in counts.items()) or "none"


def tps(report: str) -> float:
    """Transactions a second of a pgbench run; AssertionError with its report where it came to none.

    >>> tps("latency average = 3 ms\\ntps = 512.5 (without initial connection time)")
    512.5
    """
    rate = re.search(r"^tps = ([\d.]+)", report, re.MULTILINE)
    assert rate and float(rate[1]) > 0, f"pgbench did not come to its first transaction: {report}"
    return float(rate[1])


def line_time(log: str, holds: str) -> tuple[float, str] | None:
    """The first line of a role's log that holds these words: seconds of the epoch, and the line.

    >>> line_time("2026-01-01T00:00:01.500Z INFO a all 3 branches visited 0.2 s after the start", "visited")
    (1767225601.5, '2026-01-01T00:00:01.500Z INFO a all 3 branches visited 0.2 s after the start')
    """
    for line in log.splitlines():
        if holds in line:
            return datetime.fromisoformat(line.split()[0].replace("Z", "+00:00")).timestamp(), line
    return None
