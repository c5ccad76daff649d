"""What a node has to offer before an agent on it is Ready. Pure."""

from __future__ import annotations

from pathlib import Path


def not_ready_reason(base: Path, propagates: bool, immutable: bool) -> str | None:
    """What the disk and mount under the base directory lack; None where nothing."""
    if not propagates:
        return (
            f"mounts below {base} do not reach the node: it is not a shared mount; nothing is placed here; "
            "mount it with Bidirectional propagation"
        )
    if not immutable:
        return (
            f"directories below {base} cannot be made immutable; nothing is placed here; "
            "put it on ext4, xfs or btrfs, and leave the agent its capabilities"
        )
    return None
