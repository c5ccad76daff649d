"""Watermarks of free space: new branches are rejected first, so that running ones go on. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dbranch.api.conditions import Finding, Reason
from dbranch.api.quantity import format_bytes

_MIB: Final = 2**20
# Fractions of the pool or of the node's disk, and bounds in bytes.
_POOL_LOW, _POOL_FULL, _POOL_FLOOR = 0.10, 0.03, 64 * _MIB
_HOST_LOW, _HOST_FLOOR, _HOST_CEILING = 0.02, 256 * _MIB, 4096 * _MIB


@dataclass(frozen=True)
class Space:
    """Bytes of the pool and of the disk under it; None if unknown (then nothing is rejected)."""

    total: int | None = None
    free: int | None = None
    host_total: int | None = None
    host_free: int | None = None


def host_floor(space: Space) -> int:
    """Return the free bytes of the node's disk below which nothing new is created."""
    return int(min(max(_HOST_FLOOR, (space.host_total or 0) * _HOST_LOW), _HOST_CEILING))


def check_space(space: Space, subject: str) -> Finding | None:
    """Return why no new branch may be created now; None if there is room. `subject` begins the message."""
    if space.host_free is not None and space.host_free < host_floor(space):
        return Finding(
            Reason.NODE_DISK_LOW,
            f"{subject}: the node's disk has {format_bytes(space.host_free)} free, "
            f"{format_bytes(host_floor(space))} are needed; nothing new is created; free space on the node",
        )
    if space.free is not None and space.total:
        minimum = max(_POOL_FLOOR, int(space.total * _POOL_FULL))
        if space.free < minimum:
            return Finding(
                Reason.POOL_FULL,
                f"{subject}: the pool has {format_bytes(space.free)} of {format_bytes(space.total)} free, "
                f"{format_bytes(minimum)} are needed; nothing new is created; delete branches or raise storage.size",
            )
    return None


def read_only_finding(space: Space, project: str, remounted_recently: bool) -> Finding:
    """Return the finding about a pool that the kernel has stopped writing to.

    NodeDiskLow and PoolDamaged wait (for room, for a person); AttachFailed is repaired by a remount.
    """
    no_space = check_space(
        Space(host_total=space.host_total, host_free=space.host_free), f"pool of project {project}"
    )
    if no_space:
        text = (
            f"{no_space.message}; the kernel stopped writing to the pool; it is remounted when there is room"
        )
        return Finding(Reason.NODE_DISK_LOW, text)
    if remounted_recently:
        text = (
            f"pool of project {project} cannot be written, again after a remount; nothing is started; "
            "see the node's kernel log, then run btrfs check"
        )
        return Finding(Reason.POOL_DAMAGED, text)
    text = (
        f"the kernel stopped writing to the pool of project {project}; it is remounted; no action is needed"
    )
    return Finding(Reason.ATTACH_FAILED, text)


def pool_finding(space: Space, project: str, damaged: bool = False) -> Finding:
    """Return the finding about a mounted pool: a warning if little is free, or if btrfs has counted wrong blocks."""
    if damaged:
        return Finding(
            Reason.POOL_DAMAGED,
            f"pool of project {project} returned blocks that differ from what was written; "
            "the rest stays in service; dump it, run btrfs scrub on the node, then btrfs device stats --reset",
        )
    no_space = check_space(space, f"pool of project {project}")
    if no_space and no_space.reason == Reason.NODE_DISK_LOW:
        return Finding(Reason.POOL_LOW, no_space.message)
    low = space.free is not None and space.total and space.free < space.total * _POOL_LOW
    if no_space or low:
        return Finding(
            Reason.POOL_LOW,
            f"pool of project {project} is almost full; "
            "new branches will be rejected; delete branches or raise storage.size",
        )
    return Finding(Reason.POOL_MOUNTED, f"pool of project {project} is mounted")
