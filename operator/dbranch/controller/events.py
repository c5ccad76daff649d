"""Events about projects and branches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.conditions import (
    TRUE_REASONS,
    WARNING_REASONS,
    Condition,
    Finding,
    Reason,
    find_condition,
)
from dbranch.api.project import Project

# The reason of an Event, of no condition: a generated password's Secret was gone, and another one is in force.
PASSWORD_GENERATED: Final = "PasswordGenerated"

# Called with the object, and the Event's type (Normal or Warning), reason and message.
EmitEvent = Callable[[Project | Branch, str, str, str], None]


def emit_transition(
    item: Project | Branch, ready: Finding, conditions: Iterable[Mapping[str, Any]], emit_event: EmitEvent
) -> None:
    """Emit an Event about the object if the reason of Ready is another than in its status.

    Also for each of the new `conditions` that is True and yet a warning: Ready does not say it.
    """
    if _is_new(item, Condition.READY, ready.reason):
        event_type = "Warning" if ready.reason in WARNING_REASONS else "Normal"
        emit_event(item, event_type, ready.reason.value, ready.message)
    for condition in conditions:
        reason = Reason(condition["reason"])
        if reason in WARNING_REASONS & TRUE_REASONS and _is_new(item, Condition(condition["type"]), reason):
            emit_event(item, "Warning", reason.value, condition["message"])


def _is_new(item: Project | Branch, condition: Condition, reason: Reason) -> bool:
    """True if the condition in the object's status has another reason, or none."""
    previous = find_condition(item.status, condition)
    return previous is None or previous.get("reason") != reason.value


def reference_of(item: Project | Branch) -> dict[str, Any]:
    """Return as much of the object's body as an Event about it needs."""
    is_project = isinstance(item, Project)
    name = item.name if isinstance(item, Project) else item.object_name
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.PROJECT_KIND if is_project else names.BRANCH_KIND,
        "metadata": {"namespace": item.namespace, "name": name, "uid": item.uid},
    }
