"""Events about projects and branches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dbranch.api.conditions import WARNING_REASONS, Condition, Finding, find_condition

EmitEvent = Callable[[str, str, str], None]


def emit_transition(status: Any, ready: Finding, tell: EmitEvent) -> None:
    """One Event for each new reason of Ready."""
    was = find_condition(status, Condition.READY)
    if was is None or was.get("reason") != ready.reason.value:
        tell("Warning" if ready.reason in WARNING_REASONS else "Normal", ready.reason.value, ready.message)
