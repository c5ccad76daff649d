"""Watermarks of space: what runs goes on as long as it can, so new branches are refused first. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dbranch.api.conditions import Finding, Reason
from dbranch.api.quantity import format_bytes

_MIB: Final = 2**20
# Fractions of the pool or the disk, and the floor in bytes beneath them.
_POOL_LOW, _POOL_FULL, _POOL_FLOOR = 0.10, 0.03, 64 * _MIB
_HOST_LOW, _HOST_FLOOR, _HOST_CEILING = 0.02, 256 * _MIB, 4096 * _MIB


@dataclass(frozen=True)
class Space:
    """Bytes of the pool and of the disk under it; None where they are not known (nothing is refused)."""

    total: int | None = None
    free: int | None = None
    host_total: int | None = None
    host_free: int | None = None


def host_floor(space: Space) -> int:
    """The free bytes of the node's disk below which nothing new is begun."""
    return int(min(max(_HOST_FLOOR, (space.host_total or 0) * _HOST_LOW), _HOST_CEILING))


def check_space(space: Space, who: str) -> Finding | None:
    """Why no new branch may be made now; None where there is room."""
    if space.host_free is not None and space.host_free < host_floor(space):
        return Finding(
            Reason.NODE_DISK_LOW,
            f"{who}: the node's disk has {format_bytes(space.host_free)} free, "
            f"{format_bytes(host_floor(space))} are needed; nothing new is made; free space on the node",
        )
    if space.free is not None and space.total:
        least = max(_POOL_FLOOR, int(space.total * _POOL_FULL))
        if space.free < least:
            return Finding(
                Reason.POOL_FULL,
                f"{who}: the pool has {format_bytes(space.free)} of {format_bytes(space.total)} free, "
                f"{format_bytes(least)} are needed; nothing new is made; delete branches or raise storage.size",
            )
    return None


def read_only_finding(space: Space, project: str, again: bool) -> Finding:
    """The step of a pool that the kernel has stopped writing to. `again`: soon after it was mounted anew.

    NodeDiskLow and PoolDamaged wait (for room, for a person); AttachFailed is mended by mounting it anew.
    """
    refused = check_space(
        Space(host_total=space.host_total, host_free=space.host_free), f"pool of project {project}"
    )
    if refused:
        text = f"{refused.message}; the kernel stopped writing to the pool and it goes on when there is room"
        return Finding(Reason.NODE_DISK_LOW, text)
    if again:
        text = (
            f"pool of project {project} cannot be written, again after it was mounted anew; nothing is started; "
            "see the node's kernel log, then btrfs check"
        )
        return Finding(Reason.POOL_DAMAGED, text)
    text = f"the kernel stopped writing to the pool of project {project}; it is mounted anew; it goes on by itself"
    return Finding(Reason.ATTACH_FAILED, text)


def pool_finding(space: Space, project: str, damaged: bool = False) -> Finding:
    """The step of a mounted pool, with a warning where little is left. `damaged`: btrfs has counted wrong blocks."""
    if damaged:
        return Finding(
            Reason.POOL_DAMAGED,
            f"pool of project {project} gave back blocks that were not written so; what can be read goes on; "
            "dump it, run btrfs scrub on the node, then btrfs device stats --reset",
        )
    refused = check_space(space, f"pool of project {project}")
    if refused and refused.reason == Reason.NODE_DISK_LOW:
        return Finding(Reason.POOL_LOW, refused.message)
    low = space.free is not None and space.total and space.free < space.total * _POOL_LOW
    if refused or low:
        return Finding(
            Reason.POOL_LOW,
            f"pool of project {project} is almost full; "
            "new branches will be refused; delete branches or raise storage.size",
        )
    return Finding(Reason.POOL_MOUNTED, f"pool of project {project} is mounted")
