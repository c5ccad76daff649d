"""The brake on a branch that fills the node's disk: an empty file beside the pools, so that it outlives the agent."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from dbranch.agent.layout import Layout, is_uid


class Brake(StrEnum):
    """What a branch may not do while the node's disk is almost full."""

    # Its transactions are read-only, unless they ask for more.
    READ_ONLY = "read-only"
    # Its Postgres does not run.
    STOPPED = "stopped"


# The stronger one counts if a change was cut off.
_STRONGEST_FIRST: Final = (Brake.STOPPED, Brake.READ_ONLY)


def observe_brake(layout: Layout, branch_uid: str) -> Brake | None:
    """Return the brake on a branch; None if it may write."""
    return next((brake for brake in _STRONGEST_FIRST if layout.brake(branch_uid, brake).exists()), None)


def observe_brakes(layout: Layout) -> dict[str, Brake]:
    """Return the brakes in force, by the branch's UID."""
    if not layout.brakes.exists():
        return {}
    uids = {path.stem for path in layout.brakes.iterdir() if is_uid(path.stem)}
    brakes = {uid: observe_brake(layout, uid) for uid in uids}
    return {uid: brake for uid, brake in brakes.items() if brake}


def ensure_brake(layout: Layout, branch_uid: str, brake: Brake | None) -> None:
    """Set the brake on a branch, or lift it. An empty file finds room on a disk that is full."""
    if brake:
        layout.brakes.mkdir(mode=0o700, exist_ok=True)
        layout.brake(branch_uid, brake).touch()
    for other in Brake:
        if other is not brake:
            layout.brake(branch_uid, other).unlink(missing_ok=True)
