"""What a branch's reconcile knows of the restore beside it. The restore's reconciler is in a layer above this one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

from dbranch.agent.branch.facts import Desired
from dbranch.api.branch import Branch
from dbranch.api.enums import NodeRestoreState
from dbranch.api.restore import NodeRestore
from dbranch.runtime.result import Result
from dbranch.runtime.timings import StepTimer

_EXCHANGED_STATES: Final = (NodeRestoreState.EXCHANGED, NodeRestoreState.DONE)


@dataclass
class RestorePart:
    """The part of one reconcile that concerns the restore of a branch.

    `answer`: what `status.node.restore` is to be; None: nothing; `is_answered` False: it stays. `holds`: the branch's
    own data is not touched now. `is_idle`: there is no restore, and nothing of one. `is_behind`: something of the
    data that was replaced is left. `serves`: the branch's status says where its users reach the new data.
    """

    answer: NodeRestore | None = None
    is_answered: bool = False
    holds: bool = False
    is_idle: bool = False
    is_behind: bool = False
    serves: bool = False
    requeue_after: float | None = None

    def fields(self, desired: Desired, serves: bool) -> dict[str, Any]:
        """Return the fields of `status.node` that have to be written; note whether the new data serves.

        `serves`: users reach the branch's data. Where a restore has exchanged it, that is said together with its
        address only.
        """
        current = desired.branch.node.restore
        if self.answer is not None and self.answer.state in _EXCHANGED_STATES:
            is_reported = current is not None and current.state in _EXCHANGED_STATES
            self.serves = serves or is_reported or not desired.runs
            if not self.serves:
                return {}
        return restore_fields(current, self.answer) if self.is_answered else {}


def restore_fields(current: NodeRestore | None, answer: NodeRestore | None) -> dict[str, Any]:
    """Return `status.node.restore` as a merge patch; {} if nothing has changed."""
    if answer == current:
        return {}
    absent = dict.fromkeys(("reason", "message", "dataTime"))
    return {"restore": {**absent, **answer.as_dict()} if answer else None}


class RestoreReconciles(Protocol):
    """Reconciles the restore of a branch, in two parts around the reconcile of the branch itself."""

    def begin(self, desired: Desired, timer: StepTimer) -> RestorePart:
        """Prepare what is to be the branch's data, and exchange it if that is due."""
        ...

    def forget(self, branch: Branch) -> None:
        """Forget a branch that is going."""
        ...

    def finish(self, desired: Desired, part: RestorePart, result: Result) -> Result:
        """Do what is left behind an exchange; return when to reconcile again, at the latest as `result` says."""
        ...
