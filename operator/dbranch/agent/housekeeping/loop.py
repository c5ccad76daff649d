"""The loop of housekeeping: rounds at a slow pace, and in between what somebody waits for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from dbranch.agent.context import NodeContext
from dbranch.agent.housekeeping.isolation import Isolation
from dbranch.agent.housekeeping.orphans import is_adoptable
from dbranch.agent.housekeeping.requests import Obedience, refusal, requests_of
from dbranch.agent.housekeeping.sweep import Sweeper
from dbranch.agent.layout import Layout
from dbranch.agent.machine import observe_machine
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.status import free_bytes_differ
from dbranch.agent.timing import HOUSEKEEPING_INTERVAL_SECONDS, LONGEST_HOUSEKEEPING_INTERVAL_SECONDS
from dbranch.api import names
from dbranch.api.errors import Busy
from dbranch.api.orphans import Orphan, OrphanKind, parse_published, render_published
from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.events import create_event

logger = logging.getLogger(__name__)

# Refused requests are published until so many others were refused.
_MAX_REFUSED: Final = 20
_FEATURES: Final = ",".join(names.FEATURES)
# The reason of an Event: a deleted project is not kept for as long as it was to be.
UNDO_REMOVED: Final = "UndoRemoved"
# UIDs in one annotation: a tenth of what all annotations of an object may hold.
_MAX_ADOPTABLE: Final = 700


class Housekeeping:
    """Publishes and sweeps. `pod`: the name of the agent's own; `interval`: seconds between two rounds."""

    def __init__(
        self,
        cluster: Cluster,
        layout: Layout,
        context: NodeContext,
        pod: str,
        metrics: AgentMetrics,
        interval: float = HOUSEKEEPING_INTERVAL_SECONDS,
    ) -> None:
        self._interval = min(interval, LONGEST_HOUSEKEEPING_INTERVAL_SECONDS)
        self._cluster, self._layout, self._context, self._metrics = cluster, layout, context, metrics
        self._pod = pod
        self._pod_path = path_of("v1", "pods", context.namespace, pod)
        self._isolation = Isolation(metrics.count_housekeeping_error)
        self.sweeper = Sweeper(cluster, layout, context, self._isolation)
        self.sweeper.on_undo_removed = self._emit_undo_removed
        self._obedience = Obedience(cluster, layout, context)
        self._triggered = threading.Event()
        self._refused: dict[str, str] = {}
        self._has_read_published = False

    def publish_features(self) -> None:
        """Write what this agent can, before its pod is Ready: an agent that is Ready and says nothing is older."""
        with self._isolation.item("features of the agent"):
            annotations = {names.AGENT_FEATURES: _FEATURES}
            self._cluster.merge(self._pod_path, {"metadata": {"annotations": annotations}})

    def trigger(self) -> None:
        """Publish, and obey requests, at once. Any thread may call it."""
        self._triggered.set()

    def run(self, beat: Callable[[], None]) -> None:
        """Run for ever. `beat` is called in each round."""
        while True:
            beat()
            self.round()
            deadline = time.monotonic() + self._interval
            while (left := deadline - time.monotonic()) > 0 and self._triggered.wait(left):
                beat()
                self._triggered.clear()
                self.serve()

    def round(self) -> None:
        """Sweep, obey, publish."""
        if not self._has_read_published:
            with self._isolation.item("annotations of the agent's pod"):
                self._read_published()
        self.sweeper.sweep()
        self._obey_and_publish()
        self._isolation.end_round()

    def _read_published(self) -> None:
        """Take what an earlier process of this pod published as shown: it is not announced again."""
        body = self._cluster.get(self._pod_path)
        text = ((body or {}).get("metadata", {}).get("annotations") or {}).get(names.AGENT_ORPHANS)
        self.sweeper.shown = frozenset(orphan.uid for orphan in parse_published(text).orphans)
        self._has_read_published = True

    def serve(self) -> None:
        """Obey and publish between two rounds: nothing is counted, and nothing removed but on request."""
        with self._isolation.item("orphans"):
            self.sweeper.observe()
        self._obey_and_publish()

    def _obey_and_publish(self) -> None:
        with self._isolation.item("annotations of the agent's pod"):
            body = self._cluster.get(self._pod_path)
            if body is None:
                return
            annotations = body["metadata"].get("annotations") or {}
            obeyed = self._obey(annotations)
            if obeyed:
                self.sweeper.observe()
            self._publish(body, annotations, obeyed)

    def _obey(self, annotations: Mapping[str, str]) -> list[str]:
        """Obey the requests; return the keys of those that are done or refused."""
        done: list[str] = []
        orphans = {orphan.uid: orphan for orphan in self.sweeper.orphans}
        for request in requests_of(annotations):
            try:
                self._refused.pop(request.uid, None)
                self._obedience.obey(request, orphans)
                done.append(request.key)
            except Busy as error:
                logger.info("request about orphan %s: %s", request.uid, error)
            except Exception as error:  # noqa: BLE001 - whatever it is, the administrator reads it
                logger.warning("request about orphan %s is refused: %s", request.uid, error)
                self._refused[request.uid] = refusal(error)
                done.append(request.key)
        for uid in list(self._refused)[:-_MAX_REFUSED]:
            del self._refused[uid]
        return done

    def _publish(self, body: Mapping[str, Any], current: Mapping[str, str], obeyed: Iterable[str]) -> None:
        """Write the annotations that differ, set the metrics, and emit an Event for each new orphan."""
        orphans = self.sweeper.orphans
        self._metrics.set_orphans(
            {
                kind.value: [size for orphan, size in orphans.items() if orphan.kind is kind]
                for kind in OrphanKind
            }
        )
        existing = self.sweeper.existing
        desired: dict[str, str | None] = dict.fromkeys(obeyed)
        if existing is not None:
            adoptable = [pool.uid for pool in self.sweeper.stored if is_adoptable(pool, existing)]
            desired[names.AGENT_RETAINED] = ",".join(adoptable[:_MAX_ADOPTABLE])
            desired[names.AGENT_ORPHANS] = render_published(tuple(orphans), self._refused) or None
        desired[names.AGENT_FEATURES] = _FEATURES
        free, published_free = (
            observe_machine(self._layout).host_free_bytes,
            current.get(names.AGENT_HOST_FREE),
        )
        if not (published_free or "").isdecimal() or free_bytes_differ(int(published_free or 0), free):
            desired[names.AGENT_HOST_FREE] = str(free)
        changed = {key: value for key, value in desired.items() if current.get(key) != value}
        published = {orphan.uid for orphan in parse_published(current.get(names.AGENT_ORPHANS)).orphans}
        for orphan in orphans:
            if orphan.kind is OrphanKind.PROJECT:
                # Nobody is to be alarmed by what was asked for.
                continue
            if orphan.uid not in published and names.AGENT_ORPHANS in changed:
                with self._isolation.item(f"event of orphan {orphan.uid}"):
                    self._emit_event(body, orphan)
        if changed:
            self._cluster.merge(self._pod_path, {"metadata": {"annotations": changed}})

    def _emit_undo_removed(self, text: str) -> None:
        body = self._cluster.get(self._pod_path)
        if body is not None:
            self._create_event(body, UNDO_REMOVED, text)

    def _emit_event(self, pod: Mapping[str, Any], orphan: Orphan) -> None:
        name = " ".join(filter(None, (orphan.namespace, orphan.project, orphan.branch)))
        text = (
            f"{orphan.kind} {orphan.uid}{f' ({name})' if name else ''} of {orphan.size} is named by no object: "
            f"{orphan.why}; it is kept; see dbranch orphan list"
        )
        self._create_event(pod, "Orphan", text)

    def _create_event(self, pod: Mapping[str, Any], reason: str, text: str) -> None:
        """Create an Event about the agent's own pod: what it is of has no object any more."""
        about = {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": self._pod,
            "namespace": self._context.namespace,
            "uid": pod["metadata"].get("uid", ""),
        }
        source = {"component": names.AGENT_MANAGER, "host": self._context.node}
        create_event(self._cluster, about, "Warning", reason, text, source)
