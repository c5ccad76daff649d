"""The thread that makes room in pools that are low: copies of undone data go, and nothing else."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime

from dbranch.api import names
from dbranch.api.project import Project, parse_project
from dbranch.api.restore import parse_restore
from dbranch.api.snapshot import Snapshot, parse_snapshot
from dbranch.controller import timing
from dbranch.controller.cache import Cache
from dbranch.controller.event_requests import EventRequests
from dbranch.controller.snapshot.pressure import is_low, next_to_remove
from dbranch.kube.client import Cluster, object_path, path_of, project_path
from dbranch.runtime.logs import log_error

logger = logging.getLogger(__name__)

# The reason of an Event, of no condition.
UNDO_REMOVED = "UndoRemoved"
EmitUndoEvent = Callable[[Project | Snapshot, str, str, str], None]


class PoolRelief:
    """Deletes copies where a pool is low. `cache`: what the controller knows; None before it knows anything.

    After each it waits until the agent has measured the pool again, which follows the cleaner.
    """

    def __init__(
        self,
        cluster: Cluster,
        cache: Callable[[], Cache | None],
        clock: Callable[[], datetime] | None = None,
        emit_event: EmitUndoEvent | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster, self._cache, self._monotonic = cluster, cache, monotonic
        self._clock = clock or cluster.server_time
        self._emit_event = emit_event or EventRequests(cluster)
        # By project UID: when its last copy was deleted.
        self._last: dict[str, float] = {}

    def run(self, beat: Callable[[], None]) -> None:
        """Look for ever which pools are low. `beat` is called in each round."""
        while True:
            beat()
            time.sleep(timing.POOL_RELIEF_POLL_SECONDS)
            try:
                self.relieve()
            except Exception as error:  # noqa: BLE001
                log_error(logger, error, "room in pools")

    def relieve(self) -> None:
        """Delete the next copy of each project whose pool is low, where the last one has been counted."""
        cache = self._cache()
        low = [project for project in cache.all_projects() if is_low(project)] if cache else []
        # A pool that is low no more begins anew.
        self._last = {uid: at for uid, at in self._last.items() if any(p.uid == uid for p in low)}
        for project in low:
            last = self._last.get(project.uid)
            if last is not None and self._monotonic() - last < timing.POOL_MEASURED_SECONDS:
                continue
            if cache:
                self._relieve_one(project, cache)

    def _relieve_one(self, project: Project, cache: Cache) -> None:
        records = cache.snapshots.of_project(project.namespace, project.name)
        snapshots = [record.snapshot for record in records]
        branches = cache.branches_of(project.namespace, project.name)
        if next_to_remove(snapshots, branches, (), self._clock()) is None:
            return
        chosen = next_to_remove(snapshots, branches, self._named_by_restores(project), self._clock())
        body = self._cluster.get(project_path(project.namespace, project.name)) if chosen else None
        current = parse_project(body) if body else None
        if chosen is None or current is None or current.uid != project.uid or not is_low(current):
            return
        path = object_path(chosen)
        latest = self._cluster.get(path)
        snapshot = parse_snapshot(latest) if latest else None
        if snapshot is None or snapshot.uid != chosen.uid or snapshot.protected:
            return
        # As it is read now: what is written to it in the same second wins.
        self._cluster.delete(path, uid=chosen.uid, version=snapshot.resource_version)
        self._last[project.uid] = self._monotonic()
        after = self._cluster.get(path)
        if (
            after is None
            or after["metadata"]["uid"] != chosen.uid
            or after["metadata"].get("deletionTimestamp")
        ):
            logger.warning("snapshot %s/%s makes room", chosen.namespace, chosen.object_name)
            text = (
                f"snapshot {chosen.name} of branch {chosen.branch} ({chosen.reason}) is deleted before its time: "
                f"the pool of project {project.name} is almost full; raise spec.storage.size"
            )
            for item in (chosen, project):
                self._emit_event(item, "Warning", UNDO_REMOVED, text)

    def _named_by_restores(self, project: Project) -> set[str]:
        """Return the names of the snapshots that restores need which are not finished, uncached."""
        path = path_of(names.API_VERSION, names.RESTORES, project.namespace)
        bodies = self._cluster.find(path, fields=f"spec.project={project.name}")
        restores = (parse_restore(body) for body in bodies)
        return {r.source_snapshot for r in restores if r.source_snapshot and not r.finished}
