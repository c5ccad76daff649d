"""Findings -> `status.conditions` and `status.phase`. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dbranch.api.conditions import AT_REST_REASONS, STALLED_REASONS, Condition, Finding, Reason, clip
from dbranch.api.enums import ConditionStatus

Json = dict[str, Any]
Findings = Sequence[tuple[Condition, Finding]]


def ready_finding(findings: Findings, available_message: str) -> Finding:
    """Return the finding of Ready: the first one that is not done, else Available."""
    for _, finding in findings:
        if not finding.done:
            return finding
    return Finding(Reason.AVAILABLE, available_message)


def report_conditions(
    previous: Sequence[Mapping[str, Any]], findings: Findings, ready: Finding, generation: int, now: str
) -> list[Json]:
    """Return `status.conditions`: Ready, then Reconciling or Stalled if they apply, then `findings` in order.

    A condition whose status is the same as in `previous` keeps its lastTransitionTime; else it is `now` (RFC 3339).
    """
    listed: list[tuple[Condition, ConditionStatus, Finding]] = [(Condition.READY, ready.status, ready)]
    if ready.reason in STALLED_REASONS:
        listed.append((Condition.STALLED, ConditionStatus.TRUE, ready))
    elif not ready.done and ready.reason not in AT_REST_REASONS and ready.reason != Reason.DELETING:
        listed.append((Condition.RECONCILING, ConditionStatus.TRUE, ready))
    # Of what is no part of Ready.
    invalid = next((finding for _, finding in findings if finding.reason == Reason.INVALID_SCHEDULE), None)
    if invalid and ready.done:
        listed.append((Condition.STALLED, ConditionStatus.TRUE, invalid))
    listed += [(condition_type, finding.status, finding) for condition_type, finding in findings]
    return _conditions(listed, previous, generation, now)


def report_true_conditions(
    previous: Sequence[Mapping[str, Any]],
    types: Sequence[Condition],
    finding: Finding,
    generation: int,
    now: str,
) -> list[Json]:
    """Return `status.conditions` of an object without Ready: these `types`, which are True for the same reason."""
    listed = [(condition_type, ConditionStatus.TRUE, finding) for condition_type in types]
    return _conditions(listed, previous, generation, now)


def _conditions(
    listed: Sequence[tuple[Condition, ConditionStatus, Finding]],
    previous: Sequence[Mapping[str, Any]],
    generation: int,
    now: str,
) -> list[Json]:
    previous_by_type = {condition.get("type"): condition for condition in previous}
    conditions = []
    for condition_type, status, finding in listed:
        old = previous_by_type.get(condition_type)
        unchanged = old is not None and old.get("status") == status and "lastTransitionTime" in old
        conditions.append(
            {
                "type": str(condition_type),
                "status": str(status),
                "reason": finding.reason.value,
                "message": clip(finding.message),
                "lastTransitionTime": old["lastTransitionTime"] if old and unchanged else now,
                "observedGeneration": generation,
            }
        )
    return conditions


def held_deletion_status(
    subject: str, deletion: Finding | None, status: Mapping[str, Any], generation: int, now: str
) -> Json:
    """Return the fields of a status that change while an agent reports what holds up its part of a deletion.

    `deletion`: that report; `status`: of the object, which the controller has let go of. `now`: RFC 3339.
    """
    if deletion is None:
        return {}
    ready = Finding(Reason.DELETING, f"{subject} is being deleted")
    held = [(Condition.DELETION_BLOCKED, deletion)]
    conditions = report_conditions(status.get("conditions") or (), held, ready, generation, now)
    fields: Json = {"conditions": conditions, "phase": phase_of(ready)}
    return {key: value for key, value in fields.items() if status.get(key) != value}


def phase_of(ready: Finding) -> str:
    """Return `status.phase`: one word for people, which no role reads."""
    if ready.done:
        return "Ready"
    if ready.reason in STALLED_REASONS:
        return "Stalled"
    if ready.reason in (Reason.STOPPED, Reason.DELETING):
        return ready.reason.value
    return "Pending"
