"""Events about projects and branches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dbranch.api.conditions import TROUBLED, Condition, Finding, find

EmitEvent = Callable[[str, str, str], None]


def emit_transition(status: Any, ready: Finding, tell: EmitEvent) -> None:
    """One Event for each new reason of Ready."""
    was = find(status, Condition.READY)
    if was is None or was.get("reason") != ready.reason.value:
        tell("Warning" if ready.reason in TROUBLED else "Normal", ready.reason.value, ready.message)
