"""Watermarks of free space: new branches are rejected first, so that running ones go on. Pure.

Where kubelet evicts pods below some free space of the same disk, all watermarks are above that: pods that are evicted
free nothing, since the bytes are in the pools.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from dbranch.api.conditions import Finding, Reason
from dbranch.api.quantity import format_bytes

_MIB: Final = 2**20
# Fractions of the pool or of the node's disk, and bounds in bytes.
_POOL_LOW, _POOL_FULL, _POOL_FLOOR = 0.10, 0.03, 64 * _MIB
_HOST_LOW, _HOST_FLOOR, _HOST_CEILING = 0.02, 256 * _MIB, 4096 * _MIB
# From one watermark to the next, above kubelet's threshold: what a writer can do before it is restrained.
_STEP, _STEP_FLOOR, _STEP_CEILING = 0.025, 128 * _MIB, 8192 * _MIB


@dataclass(frozen=True)
class Space:
    """Bytes of the pool and of the disk under it; None if unknown (then nothing is rejected).

    `eviction`: the free bytes of that disk below which kubelet evicts pods, 0 if it does not look at this disk.
    """

    total: int | None = None
    free: int | None = None
    host_total: int | None = None
    host_free: int | None = None
    eviction: int = 0

    @property
    def watermarks(self) -> Watermarks:
        """Those of the node's disk."""
        return watermarks_of(self.host_total or 0, self.eviction)


@dataclass(frozen=True)
class Watermarks:
    """Free bytes of the node's disk, each less than the one before.

    Below `refuse` nothing new is created, below `warn` the projects say what is next, below `brake` the fastest
    writer gets read-only transactions, below `stop` it is stopped if it goes on writing.
    """

    refuse: int
    warn: int
    brake: int
    stop: int


def watermarks_of(total: int, eviction: int) -> Watermarks:
    """Return the watermarks of a disk of `total` bytes, below whose free `eviction` bytes kubelet evicts (0: never).

    >>> [mark // 2**20 for mark in vars(watermarks_of(100 * 2**30, 10 * 2**30)).values()]
    [20480, 17920, 15360, 12800]
    >>> [mark // 2**20 for mark in vars(watermarks_of(100 * 2**30, 0)).values()]
    [2048, 1536, 1024, 512]
    """
    if eviction:
        step = int(min(max(_STEP_FLOOR, total * _STEP), _STEP_CEILING))
    else:
        step = int(min(max(_HOST_FLOOR, total * _HOST_LOW), _HOST_CEILING)) // 4
    return Watermarks(*(eviction + count * step for count in (4, 3, 2, 1)))


def check_space(space: Space, subject: str) -> Finding | None:
    """Return why no new branch may be created now; None if there is room. `subject` begins the message."""
    refuse = space.watermarks.refuse
    if space.host_free is not None and space.host_free < refuse:
        return Finding(
            Reason.NODE_DISK_LOW,
            f"{subject}: the node's disk has {format_bytes(space.host_free)} free, "
            f"{format_bytes(refuse)} are needed; nothing new is created; free space on the node",
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
    no_space = check_space(replace(space, total=None, free=None), f"pool of project {project}")
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
        if (space.host_free or 0) >= space.watermarks.warn:
            return Finding(Reason.POOL_LOW, no_space.message)
        return Finding(
            Reason.POOL_LOW,
            f"pool of project {project}: the node's disk has less than {format_bytes(space.watermarks.warn)} free; "
            f"below {format_bytes(space.watermarks.brake)} the fastest writer is made read-only, then stopped; "
            "delete branches or free space on the node",
        )
    low = space.free is not None and space.total and space.free < space.total * _POOL_LOW
    if no_space or low:
        return Finding(
            Reason.POOL_LOW,
            f"pool of project {project} is almost full; "
            "new branches will be rejected; delete branches or raise storage.size",
        )
    return Finding(Reason.POOL_MOUNTED, f"pool of project {project} is mounted")
