"""Events about projects and branches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dbranch.api.conditions import WARNING_REASONS, Condition, Finding, find_condition

# Called with the Event's type (Normal or Warning), reason and message.
EmitEvent = Callable[[str, str, str], None]


def emit_transition(status: Any, ready: Finding, emit_event: EmitEvent) -> None:
    """Emit an Event if the reason of Ready is another than in `status`."""
    previous = find_condition(status, Condition.READY)
    if previous is None or previous.get("reason") != ready.reason.value:
        event_type = "Warning" if ready.reason in WARNING_REASONS else "Normal"
        emit_event(event_type, ready.reason.value, ready.message)
