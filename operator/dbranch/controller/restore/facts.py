"""What a restore's reconcile knows. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dbranch.api.branch import Branch
from dbranch.api.conditions import Finding
from dbranch.api.project import Project
from dbranch.api.restore import BranchRestore, NodeRestore, Restore, RestoreRecord
from dbranch.api.snapshot import Snapshot
from dbranch.controller.proxy_pods import ProxyPod
from dbranch.controller.scheduling import NodeFacts


@dataclass(frozen=True)
class RestoreFacts:
    """What a restore's reconcile knows.

    `branch`, `source`: the branches of those names; `snapshot`: the DBSnapshot that is the source; `undo`: the one of
    the name that this restore gives the old data, if it `is_undo_read`: it is read once it is asked for. `node`: the
    project's. `queue`: the restores of the branch that are not finished, also this one. `busy`: the other branches of
    the node whose data is being restored. `pods`: of the project's proxy. `refused`: why the API server does not take
    the undo snapshot. `copies`: the snapshots of the branch that hold what it had before earlier restores; `in_use`:
    UIDs of snapshots that are being copied. `held_seconds`: since new sessions are held, as far as this process saw
    it. `is_gone`: no DBRestore exists, and only what it left behind is looked at.
    """

    restore: Restore
    project: Project | None = None
    branch: Branch | None = None
    source: Branch | None = None
    snapshot: Snapshot | None = None
    undo: Snapshot | None = None
    is_undo_read: bool = True
    node: NodeFacts | None = None
    queue: Sequence[Restore] = ()
    busy: int = 0
    pods: tuple[ProxyPod, ...] = ()
    refused: Finding | None = None
    copies: Sequence[Snapshot] = ()
    in_use: frozenset[str] = frozenset()
    held_seconds: float | None = None
    is_gone: bool = False

    @property
    def order(self) -> BranchRestore | None:
        """`status.restore` of the branch, if it is this restore's."""
        order = self.branch.restore if self.branch else None
        return order if order and order.uid == self.restore.uid else None

    @property
    def answer(self) -> NodeRestore | None:
        """What the agent says of this restore."""
        answer = self.branch.node.restore if self.branch else None
        return answer if answer and answer.uid == self.restore.uid else None

    @property
    def record(self) -> RestoreRecord | None:
        """The entry of this restore in the branch's memory: the branch has its data."""
        records = self.branch.restores if self.branch else ()
        return next((record for record in records if record.uid == self.restore.uid), None)

    @property
    def own_undo(self) -> Snapshot | None:
        """The undo snapshot, if it was made for this restore."""
        return self.undo if self.undo and self.undo.restore_uid == self.restore.uid else None
