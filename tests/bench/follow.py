"""Record the states of objects from a watch, each with the time of its arrival on this machine's clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dbranch.api.errors import ApiError, ClusterUnreachable
from dbranch.kube.client import Cluster

Json = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """A state of an object (None: deleted) and the time of its arrival by time.monotonic()."""

    at: float
    body: Json | None


def is_true(body: Json | None, condition: str = "Ready") -> bool:
    """True if the object has the condition with status True."""
    conditions = ((body or {}).get("status") or {}).get("conditions") or ()
    return any(c["type"] == condition and c["status"] == "True" for c in conditions)


def is_ready(body: Json | None) -> bool:
    """True if the object's condition Ready is True."""
    return is_true(body, "Ready")


def is_gone(body: Json | None) -> bool:
    """True if the object is deleted."""
    return body is None


@dataclass
class Follower:
    """A thread that watches one collection and records every state of its objects."""

    cluster: Cluster
    path: str
    labels: str = ""
    _seen: dict[str, list[Seen]] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def start(self) -> Follower:
        """Start the watch; return self."""
        threading.Thread(target=self._run, daemon=True, name=self.path).start()
        return self

    def _run(self) -> None:
        while True:
            try:
                for event in self.cluster.watch(self.path, self.labels):
                    if event["type"] != "SYNCED":
                        self._record(event)
            except (ApiError, ClusterUnreachable):
                # An API server that has just started also refuses what it does not know yet.
                time.sleep(0.5)

    def _record(self, event: Json) -> None:
        body, now = event["object"], time.monotonic()
        with self._changed:
            states = self._seen.setdefault(body["metadata"]["name"], [])
            states.append(Seen(now, None if event["type"] == "DELETED" else body))
            self._changed.notify_all()

    def history(self, name: str, since: float = 0.0) -> list[Seen]:
        """Return the states of an object that arrived at or after `since`."""
        with self._changed:
            return [seen for seen in self._seen.get(name, ()) if seen.at >= since]

    def wait_for(
        self, name: str, holds: Callable[[Json | None], bool], since: float, timeout: float = 120
    ) -> Seen:
        """Wait for a state since `since` for which `holds`; return it, or raise AssertionError with the last one."""

        def first() -> Seen | None:
            states = (seen for seen in self._seen.get(name, ()) if seen.at >= since)
            return next((seen for seen in states if holds(seen.body)), None)

        with self._changed:
            state = self._changed.wait_for(first, timeout)
            last = self._seen.get(name, [Seen(0.0, {})])[-1].body
        assert state, f"{name}: not within {timeout:g} s; its status is {(last or {}).get('status')}"
        return state
