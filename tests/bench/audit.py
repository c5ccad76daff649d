"""The requests of an operation, from the API server's audit log: who, what, when and how long."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

_CLUSTER = Path(__file__).parents[2] / "hack" / "cluster"
_SERVICE_ACCOUNT = "system:serviceaccount:"
_CONTROL_PLANE = {
    "system:kube-scheduler": "scheduler",
    "system:kube-controller-manager": "controller manager",
    "system:apiserver": "API server",
    "kubernetes-admin": "client",
}
_ROLES = ("controller", "agent", "proxy")
# What an idle cluster asks by itself.
_IDLE = frozenset({"nodes", "nodes/status", "serviceaccounts/token"})


@dataclass(frozen=True)
class Request:
    """A request: `at` in seconds since the epoch when it was received, `ms` until it was answered."""

    at: float
    ms: float
    who: str
    verb: str
    what: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Return what is the same in each run of an operation."""
        return (self.who, self.verb, self.what)


@contextmanager
def audited() -> Iterator[bool]:
    """Turn the audit log on, and off at the end unless it was on before; yield whether it is on.

    That of an existing cluster is not touched.
    """
    before = subprocess.run(
        [_CLUSTER, "audit", "status"], timeout=60, check=False, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    if before == "off":
        subprocess.run([_CLUSTER, "audit", "on"], timeout=300, check=True)
    try:
        yield before in ("on", "off")
    finally:
        if before == "off":
            subprocess.run([_CLUSTER, "audit", "off"], timeout=300, check=True)


def read_log(since: float) -> list[Request]:
    """Return the requests in the API server's log since a time, seconds since the epoch, by the time they came."""
    moment = datetime.fromtimestamp(int(since)).astimezone().isoformat()
    argv = [
        "kubectl",
        "-n",
        "kube-system",
        "logs",
        "-l",
        "component=kube-apiserver",
        f"--since-time={moment}",
    ]
    log = subprocess.run([*argv, "--tail=-1"], capture_output=True, text=True, timeout=60, check=True).stdout
    return sorted(parse(log.splitlines()), key=lambda request: request.at)


def parse(lines: Iterable[str]) -> Iterator[Request]:
    """Return the requests of the lines of an audit log; other lines of the API server's log are left out."""
    for line in lines:
        if not line.startswith('{"kind":"Event"'):
            continue
        event = json.loads(line)
        what = event.get("objectRef") or {}
        name = ".".join(filter(None, (what.get("resource", ""), what.get("apiGroup"))))
        name = "/".join(filter(None, (name, what.get("subresource"))))
        if event["stage"] != "ResponseComplete" or name in _IDLE:
            continue
        came = datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp()
        answered = datetime.fromisoformat(event["stageTimestamp"]).timestamp()
        yield Request(came, (answered - came) * 1000, who(event["user"]["username"]), event["verb"], name)


def who(user: str) -> str:
    """Return who a user of the API server is.

    >>> who("system:node:n1"), who("system:serviceaccount:dbranch-nodes:dbranch-agent"), who("kubernetes-admin")
    ('kubelet', 'agent', 'client')
    >>> who("system:serviceaccount:kube-system:endpointslice-controller"), who("system:kube-scheduler")
    ('controller manager', 'scheduler')
    """
    if user.startswith("system:node:"):
        return "kubelet"
    if user.startswith(_SERVICE_ACCOUNT):
        namespace, account = user.removeprefix(_SERVICE_ACCOUNT).split(":")
        role = next((role for role in _ROLES if role in account.split("-")), "proxy")
        return "controller manager" if namespace == "kube-system" else role
    return _CONTROL_PLANE.get(user, user)


def typical(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the requests that most runs of an operation have, each at its medians, by the time they come.

    A request is a dict of at (ms since the begin), ms, who, verb, what. The n-th one of a kind in one run is taken
    for the n-th one in the others.

    >>> one = {"at": 5.0, "ms": 3.0, "who": "agent", "verb": "patch", "what": "pods"}
    >>> typical([[one, {**one, "at": 9.0}], [{**one, "at": 7.0, "ms": 5.0}], [one]])
    [{'at': 5.0, 'ms': 3.0, 'who': 'agent', 'verb': 'patch', 'what': 'pods', 'runs': 3}]
    """
    found: dict[tuple[str, str, str, int], list[dict[str, Any]]] = {}
    for run in runs:
        seen: dict[tuple[str, str, str], int] = {}
        for request in sorted(run, key=lambda request: request["at"]):
            key = (request["who"], request["verb"], request["what"])
            seen[key] = seen.get(key, 0) + 1
            found.setdefault((*key, seen[key]), []).append(request)
    requests = [
        {
            "at": statistics.median(one["at"] for one in same),
            "ms": statistics.median(one["ms"] for one in same),
            "who": who,
            "verb": verb,
            "what": what,
            "runs": len(same),
        }
        for (who, verb, what, _), same in found.items()
        if len(same) * 2 > len(runs)
    ]
    return sorted(requests, key=lambda request: float(request["at"]))
