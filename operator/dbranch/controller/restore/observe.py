"""Read what a restore's reconcile has to know: its objects uncached, its neighbours from the cache. Reads only."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Final

from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.conditions import Condition, find_condition
from dbranch.api.expiry import parse_time
from dbranch.api.project import Project, parse_project
from dbranch.api.restore import Restore
from dbranch.api.snapshot import parse_snapshot
from dbranch.controller.cache import Cache
from dbranch.controller.restore.admission import origin_of
from dbranch.controller.restore.facts import RestoreFacts
from dbranch.controller.restore_records import RestoreRecords
from dbranch.kube.client import Cluster, branch_path, project_path, snapshot_path
from dbranch.runtime.limited import LimitedDict

_MAX_REMEMBERED: Final = 1000
# An order that was written is in the cache long before.
_ORDERED_SECONDS: Final = 10.0


class RestoreObserver:
    """Observes restores. `clock`: the API server's time of day. Thread-safe for different restores."""

    def __init__(self, cluster: Cluster, records: RestoreRecords, clock: Callable[[], datetime]) -> None:
        self._cluster, self._records, self._clock = cluster, records, clock
        # By the restore's UID: since when new sessions are held, as `time.monotonic()` counts; None: not yet.
        self._held_since: LimitedDict[str, float | None] = LimitedDict(_MAX_REMEMBERED)
        # By the branch's UID: when a restore of it was ordered.
        self._ordered: LimitedDict[str, float] = LimitedDict(_MAX_REMEMBERED)

    def note_ordered(self, branch: Branch) -> None:
        """Remember that a restore of the branch was ordered, which the cache does not have yet."""
        self._ordered[branch.uid] = time.monotonic()

    def forget(self, facts: RestoreFacts) -> None:
        """Forget the times of a restore that has come to its end."""
        self._held_since.pop(facts.restore.uid, None)
        self._ordered.pop(facts.branch.uid if facts.branch else "", None)

    def observe(self, restore: Restore, cache: Cache, is_gone: bool, begins: bool = True) -> RestoreFacts:
        """Return the facts; the undo snapshot is read when it is asked for. `begins`: it may be admitted now."""
        namespace, project_name = restore.namespace, restore.project
        project = self._project_of(restore, cache, begins)
        object_name = names.branch_object_name(project_name, restore.branch)
        body = self._cluster.get(branch_path(namespace, object_name))
        branch = parse_branch(body) if body else None
        facts = RestoreFacts(restore, project, branch, is_gone=is_gone)
        branches = cache.branches_of(namespace, project_name)
        source_name, snapshot_name = origin_of(restore, branch)
        node = (branch.node_name if branch else None) or (project.node_name if project else None)
        if not restore.finished and facts.order is None:
            body = self._cluster.get(snapshot_path(namespace, snapshot_name)) if snapshot_name else None
            records = self._records.of_branch(namespace, project_name, restore.branch)
            facts = replace(
                facts,
                source=next((item for item in branches if item.name == source_name), None),
                snapshot=parse_snapshot(body) if body else None,
                queue=[other for other in records if not other.finished],
                busy=self._count_busy(branch, cache),
            )
        if not restore.finished:
            facts = replace(facts, is_undo_read=False)
        else:
            snapshots = cache.snapshots.of_project(namespace, project_name)
            orders = [item.restore for item in branches if item.restore]
            facts = replace(
                facts,
                copies=[r.snapshot for r in snapshots if r.snapshot.restore_uid],
                in_use=frozenset(order.source.uid for order in orders),
            )
        return replace(
            facts,
            node=cache.node(node) if node else None,
            pods=cache.proxies_of(project.uid) if project else (),
            held_seconds=self._held_seconds(facts),
        )

    def _project_of(self, restore: Restore, cache: Cache, begins: bool) -> Project | None:
        """Return the project; while the restore runs, as the cache has it: each change of it leads here again."""
        is_running = not (begins or restore.finished)
        cached = cache.project(restore.namespace, restore.project) if is_running else None
        if cached:
            return cached
        body = self._cluster.get(project_path(restore.namespace, restore.project))
        return parse_project(body) if body else None

    def _count_busy(self, branch: Branch | None, cache: Cache) -> int:
        """Count the other branches of the node whose data is being restored, also those ordered a moment ago."""
        if branch is None:
            return 0
        now = time.monotonic()
        ordered = {uid for uid, at in dict(self._ordered).items() if now - at < _ORDERED_SECONDS}
        return sum(
            other.uid != branch.uid
            and other.node_name == branch.node_name
            and (other.restore is not None or other.uid in ordered)
            for other in cache.all_branches()
        )

    def _held_seconds(self, facts: RestoreFacts) -> float | None:
        """Return since when new sessions are held; None if they are not, and this process has not seen it begin.

        A process that comes to it later goes by the condition Ready, in whole seconds.
        """
        uid, now = facts.restore.uid, time.monotonic()
        route = facts.branch.route if facts.branch else None
        is_held = route is not None and route.restore == uid
        if is_held and uid not in self._held_since:
            self._held_since[uid] = now - _reported_hold(facts, self._clock())
        elif is_held and self._held_since[uid] is None:
            self._held_since[uid] = now
        elif not (is_held or facts.restore.finished):
            self._held_since.setdefault(uid, None)
        since = self._held_since.get(uid)
        return None if since is None else now - since


def _reported_hold(facts: RestoreFacts, now: datetime) -> float:
    """Return for how many seconds new sessions are held, as the branch's condition says."""
    ready = find_condition(facts.branch.status if facts.branch else {}, Condition.READY) or {}
    times = (parse_time(ready.get("lastTransitionTime")), parse_time(facts.restore.start_time))
    # A branch that was not Ready before has no such time of its own.
    since = max((moment for moment in times if moment), default=now)
    return max(0.0, (now - since).total_seconds())
