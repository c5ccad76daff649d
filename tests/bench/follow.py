"""Objects followed by a watch; each of their states with the moment it was seen, on the clock of this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dbranch.api.errors import ClusterUnreachable
from dbranch.kube.client import Cluster

Json = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """A state of an object (None: it is gone) and when it came, by time.monotonic()."""

    at: float
    body: Json | None


def is_true(body: Json | None, condition: str = "Ready") -> bool:
    """Whether an object has the condition, True."""
    conditions = ((body or {}).get("status") or {}).get("conditions") or ()
    return any(c["type"] == condition and c["status"] == "True" for c in conditions)


def is_ready(body: Json | None) -> bool:
    return is_true(body, "Ready")


def is_gone(body: Json | None) -> bool:
    return body is None


@dataclass
class Follower:
    """A thread that watches one collection. All times are of the watch's arrival here."""

    cluster: Cluster
    path: str
    labels: str = ""
    _seen: dict[str, list[Seen]] = field(default_factory=dict)
    _news: threading.Condition = field(default_factory=threading.Condition)

    def start(self) -> Follower:
        threading.Thread(target=self._run, daemon=True, name=self.path).start()
        return self

    def _run(self) -> None:
        while True:
            try:
                for event in self.cluster.watch(self.path, self.labels):
                    if event["type"] != "SYNCED":
                        self._note(event)
            except ClusterUnreachable:
                time.sleep(0.5)

    def _note(self, event: Json) -> None:
        body, now = event["object"], time.monotonic()
        with self._news:
            there = self._seen.setdefault(body["metadata"]["name"], [])
            there.append(Seen(now, None if event["type"] == "DELETED" else body))
            self._news.notify_all()

    def history(self, name: str, since: float = 0.0) -> list[Seen]:
        """The states of an object that came after `since`."""
        with self._news:
            return [seen for seen in self._seen.get(name, ()) if seen.at >= since]

    def when(
        self, name: str, holds: Callable[[Json | None], bool], since: float, timeout: float = 120
    ) -> Seen:
        """The first state after `since` for which `holds`; AssertionError with the last one after `timeout`."""

        def first() -> Seen | None:
            states = (seen for seen in self._seen.get(name, ()) if seen.at >= since)
            return next((seen for seen in states if holds(seen.body)), None)

        with self._news:
            found = self._news.wait_for(first, timeout)
            last = self._seen.get(name, [Seen(0.0, {})])[-1].body
        assert found, f"{name}: not within {timeout:g} s; it is {(last or {}).get('status')}"
        return found
