"""What a node has to offer before its agent is Ready. Pure."""

from __future__ import annotations

from pathlib import Path


def not_ready_reason(base: Path, propagates: bool, immutable: bool) -> str | None:
    """Return why the base directory cannot be used; None if it can.

    `propagates`: mounts below it reach the node; `immutable`: directories below it can be made immutable.
    """
    if not propagates:
        return (
            f"mounts below {base} do not reach the node: it is not a shared mount; no project is placed here; "
            "mount it with Bidirectional propagation"
        )
    if not immutable:
        return (
            f"directories below {base} cannot be made immutable; no project is placed here; "
            "put it on ext4, xfs or btrfs, and leave the agent its capabilities"
        )
    return None
