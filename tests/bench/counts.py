"""Parse text output: the API server's metrics, pgbench's report, a line of a log. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from datetime import datetime

_REQUESTS = re.compile(r"^apiserver_request_total\{(.*)\} ([\d.e+]+)$", re.MULTILINE)
_EVENTS = re.compile(r"^apiserver_watch_events_total\{(.*)\} ([\d.e+]+)$", re.MULTILINE)
_DURATIONS = re.compile(r"^apiserver_request_duration_seconds_(sum|count)\{(.*)\} ([\d.e+-]+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_WRITES = frozenset({"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"})
_READS = frozenset({"GET", "LIST"})
# What a branch is made of. Of other resources all kinds of clients read all the time.
_READ_BY_DBRANCH = ("dbprojects.", "dbbranches.", "pods", "secrets", "services", "endpointslices.")
_WATCHED_KINDS = frozenset({"DBProject", "DBBranch", "Pod", "Secret", "Service", "EndpointSlice"})
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
    return Counter(
        {name: n for name, n in _requests(metrics, _WRITES).items() if name not in _WRITTEN_BY_KUBERNETES}
    )


def reads(metrics: str) -> Counter[str]:
    """Count GET and LIST requests of what a branch is made of, by resource; watches are none.

    >>> series = 'apiserver_request_total{code="200",group="dbranch.io",resource="dbbranches"'
    >>> reads(series + ',verb="GET"} 7\\n' + series + ',verb="WATCH"} 9')
    Counter({'dbbranches.dbranch.io': 7})
    """
    counts = _requests(metrics, _READS)
    return Counter({name: n for name, n in counts.items() if name.startswith(_READ_BY_DBRANCH)})


def watch_events(metrics: str) -> Counter[str]:
    """Count the events of what a branch is made of that the API server has sent to those who watch, by resource.

    >>> watch_events('apiserver_watch_events_total{group="dbranch.io",resource="dbbranches",version="v1"} 9')
    Counter({'dbbranches.dbranch.io': 9})
    """
    counts: Counter[str] = Counter()
    for label_text, value in _EVENTS.findall(metrics):
        labels: dict[str, str] = dict(_LABEL.findall(label_text))
        # Before Kubernetes 1.34 by kind: DBBranch, EndpointSlice.
        resource = labels.get("resource") or labels.get("kind", "")
        name = ".".join(filter(None, (resource, labels.get("group"))))
        if name.startswith(_READ_BY_DBRANCH) or resource in _WATCHED_KINDS:
            counts[name] += int(float(value))
    return counts


def durations(metrics: str) -> dict[str, tuple[int, float]]:
    """Return the number of requests and their seconds, by verb and resource (`PATCH pods/status`), without watches.

    What an idle cluster writes by itself is left out.

    >>> labels = '{group="",resource="pods",subresource="status",verb="PATCH"}'
    >>> name = "apiserver_request_duration_seconds"
    >>> durations(f"{name}_sum{labels} 0.5\\n{name}_count{labels} 20")
    {'PATCH pods/status': (20, 0.5)}
    """
    found: dict[str, tuple[int, float]] = {}
    for part, label_text, value in _DURATIONS.findall(metrics):
        labels: dict[str, str] = dict(_LABEL.findall(label_text))
        resource = _resource(labels)
        if labels["verb"] not in _WRITES | _READS or resource in _WRITTEN_BY_KUBERNETES:
            continue
        key = f"{labels['verb']} {resource}".strip()
        count, seconds = found.get(key, (0, 0.0))
        if part == "count":
            found[key] = (count + int(float(value)), seconds)
        else:
            found[key] = (count, seconds + float(value))
    return found


def _resource(labels: Mapping[str, str]) -> str:
    """Return the resource of a metric's labels: `dbbranches.dbranch.io/status`."""
    name = ".".join(filter(None, (labels["resource"], labels.get("group"))))
    return "/".join(filter(None, (name, labels.get("subresource"))))


def _requests(metrics: str, verbs: frozenset[str]) -> Counter[str]:
    """Count requests with one of these verbs by resource."""
    counts: Counter[str] = Counter()
    for label_text, value in _REQUESTS.findall(metrics):
        labels: dict[str, str] = dict(_LABEL.findall(label_text))
        name = _resource(labels)
        if labels["verb"] in verbs:
            counts[name] += int(float(value))
    return counts


def growth(after: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """Return what was added between two counts, largest first.

    >>> growth({"pods": 3, "events": 9, "secrets": 1}, {"pods": 1, "secrets": 1})
    {'events': 9, 'pods': 2}
    """
    grown = {key: count - before.get(key, 0) for key, count in after.items()}
    return {key: grown[key] for key in sorted(grown, key=lambda k: (-grown[k], k)) if grown[key] > 0}


def format_counts(counts: Mapping[str, float]) -> str:
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
