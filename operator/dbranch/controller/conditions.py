"""Findings -> the list of conditions, and the one word for them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dbranch.api.conditions import AT_REST_REASONS, STALLED_REASONS, Condition, Finding, Reason, clip
from dbranch.api.enums import ConditionStatus

Json = dict[str, Any]


def ready_finding(steps: Sequence[tuple[Condition, Finding]], available: str) -> Finding:
    """Ready copies the first step that fails, else it is Available."""
    for _, step in steps:
        if not step.done:
            return step
    return Finding(Reason.AVAILABLE, available)


def report_conditions(
    before: Sequence[Mapping[str, Any]],
    steps: Sequence[tuple[Condition, Finding]],
    ready: Finding,
    generation: int,
    now: str,
) -> list[Json]:
    """`status.conditions`: Ready, Reconciling or Stalled where they apply, then the steps in their order.

    `now`: RFC 3339; a condition whose status did not change keeps its lastTransitionTime.
    """
    listed: list[tuple[str, str, Finding]] = [(Condition.READY, ready.status, ready)]
    if ready.reason in STALLED_REASONS:
        listed.append((Condition.STALLED, ConditionStatus.TRUE, ready))
    elif not ready.done and ready.reason not in AT_REST_REASONS and ready.reason != Reason.DELETING:
        listed.append((Condition.RECONCILING, ConditionStatus.TRUE, ready))
    listed += [(kind, step.status, step) for kind, step in steps]
    was = {entry["type"]: entry for entry in before}
    conditions = []
    for kind, status, step in listed:
        old = was.get(kind)
        same = old is not None and old.get("status") == status
        conditions.append(
            {
                "type": str(kind),
                "status": str(status),
                "reason": step.reason.value,
                "message": clip(step.message),
                "lastTransitionTime": old["lastTransitionTime"] if old and same else now,
                "observedGeneration": generation,
            }
        )
    return conditions


def phase_of(ready: Finding) -> str:
    """One word for people, shown and never read."""
    if ready.done:
        return "Ready"
    if ready.reason in STALLED_REASONS:
        return "Stalled"
    if ready.reason in (Reason.STOPPED, Reason.DELETING):
        return ready.reason.value
    return "Pending"


Findings = list[tuple[Condition, Finding]]
