"""Marks of pools and branches that no object names: files, so that their age outlives the agent."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress

from dbranch.agent.layout import Layout
from dbranch.runtime.logs import log_command


def ensure_orphan_marker(layout: Layout, uid: str) -> None:
    """The mark is there; one that was made earlier keeps its age."""
    mark = layout.orphan_marker(uid)
    if not mark.exists():
        log_command("touch", mark)
        mark.touch(mode=0o600)


def ensure_orphan_marker_removed(layout: Layout, uid: str) -> None:
    """No mark any more."""
    with suppress(FileNotFoundError):
        layout.orphan_marker(uid).unlink()


def ensure_orphan_markers_swept(layout: Layout, there: Collection[str]) -> None:
    """No mark is left of what is not on the disk any more; `there`: the UIDs that are."""
    for mark in layout.pools.glob("*.orphan"):
        if mark.stem not in there:
            mark.unlink(missing_ok=True)


def orphan_age(layout: Layout, uid: str) -> float:
    """Seconds since the mark was made; 0 without one."""
    try:
        return max(0.0, time.time() - layout.orphan_marker(uid).stat().st_mtime)
    except FileNotFoundError:
        return 0.0
