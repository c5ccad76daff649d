"""Events about projects and branches."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from dbranch.api.conditions import TROUBLED, Condition, Step, find

Tell = Callable[[str, str, str], None]


def tell_transition(status: Any, ready: Step, tell: Tell) -> None:
    """One Event for each new reason of Ready."""
    was = find(status, Condition.READY)
    if was is None or was.get("reason") != ready.reason.value:
        tell("Warning" if ready.reason in TROUBLED else "Normal", ready.reason.value, ready.message)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
