"""A list and watch of all objects of a kind that kopf does not watch, in a thread of its own."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from dbranch.api import names
from dbranch.controller import timing
from dbranch.kube.client import Cluster, Json, path_of
from dbranch.runtime.logs import log_error

logger = logging.getLogger(__name__)


class ObjectWatch(ABC):
    """Follows all objects of the resource `plural`; a subclass says what becomes of their events."""

    plural: ClassVar[str]

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    @abstractmethod
    def changed(self, body: Json) -> None:
        """Take note of an object that is new, or was changed, or was listed."""

    @abstractmethod
    def removed(self, body: Json) -> None:
        """Take note of an object that is gone."""

    @abstractmethod
    def listed(self, keys: set[tuple[str, str]]) -> None:
        """Take note of which objects exist, by namespace and name, after each list."""

    def run(self, beat: Callable[[], None]) -> None:
        """Watch for ever. `beat` is called in each round and at each event."""
        while True:
            beat()
            try:
                self.follow(beat)
            except Exception as error:  # noqa: BLE001
                log_error(logger, error, f"watch of {self.plural}")
                time.sleep(timing.OBJECT_WATCH_RETRY_SECONDS)

    def follow(self, beat: Callable[[], None] = lambda: None) -> None:
        """List all objects and follow them until the server ends the watch."""
        keys: set[tuple[str, str]] = set()
        for event in self._cluster.watch(path_of(names.API_VERSION, self.plural)):
            beat()
            if event["type"] == "SYNCED":
                self.listed(keys)
                continue
            body = event["object"]
            keys.add((body["metadata"]["namespace"], body["metadata"]["name"]))
            if event["type"] == "DELETED":
                self.removed(body)
            else:
                self.changed(body)
