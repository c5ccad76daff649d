"""Markers of pools and branches that no object names: files, so that their age outlives the agent."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress

from dbranch.agent.layout import Layout
from dbranch.runtime.logs import log_command


def ensure_orphan_marker(layout: Layout, uid: str) -> None:
    """Create the marker; one that exists keeps its age."""
    marker = layout.orphan_marker(uid)
    if not marker.exists():
        log_command("touch", marker)
        marker.touch(mode=0o600)


def ensure_orphan_marker_removed(layout: Layout, uid: str) -> None:
    """Remove the marker; no-op if there is none."""
    with suppress(FileNotFoundError):
        layout.orphan_marker(uid).unlink()


def ensure_orphan_markers_swept(layout: Layout, stored_uids: Collection[str]) -> None:
    """Remove the markers of all UIDs but `stored_uids`, those that still have data on the disk."""
    for marker in layout.pools.glob("*.orphan"):
        if marker.stem not in stored_uids:
            marker.unlink(missing_ok=True)


def orphan_age(layout: Layout, uid: str) -> float:
    """Return the seconds since the marker was created; 0 without one."""
    try:
        return max(0.0, time.time() - layout.orphan_marker(uid).stat().st_mtime)
    except FileNotFoundError:
        return 0.0
