"""A thread that looks whether something was written to branches that have schedules of snapshots.

A run of a schedule takes nothing where nothing was written since the last one; the controller knows that by two
transactions of the pool's filesystem: the one that took the last scheduled snapshot, and a later one that changed the
branch, which this thread writes once behind each of them. So a branch at rest costs a look, and no write.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dbranch.agent.layout import Layout
from dbranch.agent.linux.btrfs import is_subvolume, transactions_of
from dbranch.agent.node_status import patch_node
from dbranch.agent.timing import WRITTEN_POLL_SECONDS
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.errors import ApiError
from dbranch.kube.client import Cluster, object_path
from dbranch.runtime.logs import log_error

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Scheduled:
    """A branch with schedules. `reported`: the transaction in its status."""

    namespace: str
    object_name: str
    project: str
    reported: int


class WrittenWatch:
    """The branches of this node that have schedules. `last`: returns the last scheduled snapshots' transactions."""

    def __init__(self, cluster: Cluster, layout: Layout, last: Callable[[], Mapping[str, int]]) -> None:
        self._cluster, self._layout, self._last = cluster, layout, last
        self._lock = threading.Lock()
        self._branches: dict[str, _Scheduled] = {}
        # By namespace and name of a project.
        self._projects: dict[tuple[str, str], str] = {}

    def follow_project(self, event_type: str | None, body: Mapping[str, Any]) -> None:
        """Remember the project's UID, or forget it."""
        meta = body["metadata"]
        key = meta["namespace"], meta["name"]
        with self._lock:
            if event_type != "DELETED":
                self._projects[key] = meta["uid"]
            elif self._projects.get(key) == meta["uid"]:
                del self._projects[key]

    def follow_branch(self, event_type: str | None, body: Mapping[str, Any]) -> None:
        """Remember the branch if it has schedules that are Active, else forget it."""
        branch = parse_branch(body)
        has_schedules = any(schedule.active for schedule in branch.snapshots)
        with self._lock:
            if (
                event_type == "DELETED"
                or branch.deleting
                or not has_schedules
                or not branch.node.snapshot_time
            ):
                self._branches.pop(branch.uid, None)
                return
            reported = branch.node.transaction or 0
            self._branches[branch.uid] = _Scheduled(
                branch.namespace, branch.object_name, branch.project, reported
            )

    def run(self, beat: Callable[[], None]) -> None:
        """Look for ever. `beat` is called in each round."""
        while True:
            beat()
            time.sleep(WRITTEN_POLL_SECONDS)
            self.check()

    def check(self) -> None:
        """Report the branches that have been written to since their last scheduled snapshots, once for each."""
        with self._lock:
            branches, projects = dict(self._branches), dict(self._projects)
        last = self._last() if branches else {}
        for uid, item in branches.items():
            project_uid = projects.get((item.namespace, item.project))
            if uid not in last or item.reported > last[uid] or project_uid is None:
                continue
            try:
                path = self._layout.branch(project_uid, uid)
                changed = transactions_of(path).changed if is_subvolume(path) else 0
                if changed > last[uid]:
                    self._report(uid, item, changed)
            except Exception as error:  # noqa: BLE001 - the others are looked at, too
                log_error(logger, error, f"branch {item.namespace}/{item.object_name}: not looked at")

    def _report(self, uid: str, item: _Scheduled, transaction: int) -> None:
        body = self._cluster.get(object_path(Branch(item.namespace, item.object_name, uid, item.project)))
        if body is None or body["metadata"]["uid"] != uid:
            return
        try:
            patch_node(self._cluster, parse_branch(body), {"transaction": transaction})
        except ApiError as error:
            if error.status != 404:
                raise
