"""What a branch's own reconcile says of a restore: the memory of it, what the data is of, and its Ready. Pure.

The restore's reconcile orders it (`status.restore`), and looks at what stands here before it calls it complete.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from dbranch.api.branch import Branch, BranchRoute
from dbranch.api.conditions import Finding, Reason
from dbranch.api.enums import NodeRestoreState
from dbranch.api.restore import BranchData, RestoreRecord

Json = dict[str, Any]

# Of restores, in `status.restores`.
MAX_RECORDS: Final = 20
_EXCHANGED: Final = (NodeRestoreState.EXCHANGED, NodeRestoreState.DONE)


def restoring_finding(branch: Branch, route: BranchRoute | None) -> Finding | None:
    """Return the finding of Ready while the branch's data is exchanged, with the `route` that is desired."""
    if route is None or route.restore is None or branch.restore is None:
        return None
    text = f"restore {branch.restore.name} exchanges the data of branch {branch.name}"
    return Finding(Reason.RESTORING, f"{text}; new sessions are held for a moment; nothing is to be done")


def restoring_status(branch: Branch, now: str) -> Json:
    """Return the fields that a restore changes once the branch has the new data.

    They stand in the same write as the route to it: a name that is done is never done again. `restore` is removed
    (None) when the old data is put away, too.
    """
    order, answer = branch.restore, branch.node.restore
    if order is None or answer is None or answer.uid != order.uid or answer.state not in _EXCHANGED:
        return {}
    fields: Json = {}
    if not any(record.uid == order.uid for record in branch.restores):
        record = RestoreRecord(order.name, order.uid, order.source.text, now, order.undo_snapshot)
        records = [*branch.restores, record][-MAX_RECORDS:]
        data = BranchData(order.source.uid, order.source.text, answer.data_time, order.name)
        fields = {"restores": [entry.as_dict() for entry in records], "data": data.as_dict()}
    return fields | ({"restore": None} if answer.state == NodeRestoreState.DONE else {})


def copies_for_restores(source: Branch, siblings: Iterable[Branch]) -> list[str]:
    """Return the restores, in words, that still have to copy the branch `source`."""
    return [
        f"restore {branch.restore.name} of branch {branch.name}"
        for branch in siblings
        if branch.restore is not None
        and branch.restore.source.uid == source.uid
        and not branch.deleting
        and (
            branch.node.restore is None
            or branch.node.restore.uid != branch.restore.uid
            or branch.node.restore.state == NodeRestoreState.PREPARING
        )
    ]
