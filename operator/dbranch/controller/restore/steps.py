"""What a restore's reconcile may do, and how it reports: one step, or the status. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import Any

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.conditions import Condition, Finding
from dbranch.api.enums import RestorePhase
from dbranch.api.expiry import format_time
from dbranch.api.restore import BranchRestore, Restore
from dbranch.api.snapshot import Snapshot
from dbranch.controller.conditions import report_true_conditions
from dbranch.controller.restore.facts import RestoreFacts

Json = dict[str, Any]


class Step(Enum):
    """What is done next. Each may have been done already by a process that was cut off: then it changes nothing."""

    READ_UNDO = auto()
    MAKE_UNDO = auto()
    ORDER = auto()
    # Behind the order, on which the agent works meanwhile.
    BIND_UNDO = auto()
    LABEL = auto()
    # The finalizer: from here the DBRestore cannot go before it is done.
    HOLD = auto()
    SWITCH = auto()
    CANCEL = auto()
    DELETE_UNDO = auto()
    END_ORDER = auto()
    DELETE_COPIES = auto()
    LET_GO = auto()
    DELETE = auto()


@dataclass(frozen=True)
class RestorePlan:
    """`step`: to be taken, and planned again behind it. None: `status` is reported, and an event is waited for.

    `order`: that ORDER writes. `surplus`: the snapshots that DELETE_COPIES deletes. `requeue_after`: seconds; None:
    only an event changes something.
    """

    status: Json
    step: Step | None = None
    order: BranchRestore | None = None
    surplus: tuple[Snapshot, ...] = ()
    requeue_after: float | None = None

    def changes(self, reported: Mapping[str, Any]) -> Json:
        """Return the fields that differ from the reported status."""
        return {key: value for key, value in self.status.items() if reported.get(key) != value}


def report(
    facts: RestoreFacts, phase: RestorePhase, finding: Finding, now: datetime, **fields: Any
) -> RestorePlan:
    """Return the status to report: one condition says it all. A field that is None is removed."""
    restore = facts.restore
    types = {
        RestorePhase.COMPLETE: (Condition.COMPLETE,),
        RestorePhase.FAILED: (Condition.FAILED, Condition.STALLED),
        RestorePhase.REJECTED: (Condition.FAILED, Condition.STALLED),
    }.get(phase, (Condition.RECONCILING,))
    previous = restore.status.get("conditions") or ()
    conditions = report_true_conditions(previous, types, finding, restore.generation, format_time(now))
    return RestorePlan(
        {
            "phase": phase.value,
            "observedGeneration": restore.generation,
            "conditions": conditions,
            **fields,
        }
    )


def failure_status(restore: Restore, finding: Finding, now: datetime) -> Json:
    """Return the status of a restore whose reconcile failed."""
    previous, types = restore.status.get("conditions") or (), (Condition.RECONCILING,)
    return {
        "conditions": report_true_conditions(previous, types, finding, restore.generation, format_time(now))
    }


def labels_of(restore: Restore, branch: Branch) -> dict[str, str]:
    """Return the labels that a restore has once it has begun. Whoever else manages it (Helm) stays named."""
    return {
        names.LABEL_PROJECT: restore.project,
        names.LABEL_BRANCH: restore.branch,
        names.LABEL_BRANCH_UID: branch.uid,
        names.LABEL_MANAGED_BY: restore.labels.get(names.LABEL_MANAGED_BY, "dbranch"),
    }
