"""Apply the actions of a restore's plan. Each looks before it acts, and may be repeated after a crash anywhere."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from dbranch.agent.branch.actions import DeletePod, RemoveSlot
from dbranch.agent.branch.facts import Desired
from dbranch.agent.branch.observe import endpoint_of
from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.postgres.closing import ensure_closed, ensure_sessions_ended
from dbranch.agent.restore.actions import (
    Close,
    DestroyPrepared,
    EndSessions,
    Exchange,
    KeepOld,
    RestoreAction,
    TrashOld,
)
from dbranch.agent.slot import effect as slot
from dbranch.agent.slot import pods
from dbranch.agent.volume.effect import ensure_trash_emptied, marker_of
from dbranch.agent.volume.restores import (
    ensure_exchanged,
    ensure_old_kept,
    ensure_old_trashed,
    ensure_restore_destroyed,
)
from dbranch.api import names
from dbranch.api.snapshot import parse_snapshot
from dbranch.kube.client import Cluster, snapshot_path
from dbranch.runtime.clock import now_rfc3339


class RestoreEffects:
    """Applies actions on this node. `request_snapshot(namespace, name)` requests a reconcile of a DBSnapshot."""

    def __init__(
        self,
        cluster: Cluster,
        layout: Layout,
        context: NodeContext,
        request_snapshot: Callable[[str, str], None],
    ) -> None:
        self._cluster, self._layout, self._context = cluster, layout, context
        self._request_snapshot = request_snapshot

    def apply(self, desired: Desired, action: RestoreAction) -> None:
        """Apply one action."""
        project_uid, branch_uid, layout = desired.project.uid, desired.branch.uid, self._layout
        match action:
            case DeletePod(pod, grace):
                pods.delete_pod(self._cluster, self._context.namespace, pod, grace)
            case RemoveSlot(name):
                slot.ensure_slot_removed(layout, name)
            case DestroyPrepared():
                ensure_restore_destroyed(layout, project_uid, branch_uid)
            case Close(name):
                marker = marker_of(layout.branch(project_uid, branch_uid))
                ensure_closed(layout, project_uid, branch_uid, endpoint_of(desired, name, marker))
            case EndSessions(name):
                marker = marker_of(layout.branch(project_uid, branch_uid))
                ensure_sessions_ended(layout, endpoint_of(desired, name, marker))
            case Exchange():
                assert desired.restore is not None
                ensure_exchanged(layout, project_uid, branch_uid, desired.restore.uid)
            case KeepOld(undo_uid):
                self._keep_old(desired, undo_uid)
            case TrashOld():
                ensure_old_trashed(layout, project_uid, branch_uid)
                ensure_trash_emptied(layout, project_uid)

    def _keep_old(self, desired: Desired, undo_uid: str) -> None:
        """Make the old data the undo snapshot; its time to live counts from now on."""
        project, branch, layout = desired.project, desired.branch, self._layout
        done_by = marker_of(layout.branch(project.uid, branch.uid)).restore
        assert done_by is not None
        name = names.undo_snapshot_name(branch.object_name, done_by.uid)
        if desired.restore and desired.restore.undo_uid == undo_uid and desired.restore.undo_snapshot:
            name = desired.restore.undo_snapshot
        body = self._cluster.get(snapshot_path(project.namespace, name))
        snapshot = parse_snapshot(body) if body else None
        is_there = snapshot is not None and snapshot.uid == undo_uid
        expires = snapshot.expiration_at(datetime.now(UTC)) if snapshot and is_there else ""
        ensure_old_kept(layout, project.uid, branch.uid, name, now_rfc3339(), expires)
        if is_there:
            # Its data came by a rename, of which no event is seen.
            self._request_snapshot(project.namespace, name)
