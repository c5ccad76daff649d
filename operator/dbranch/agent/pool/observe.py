"""What is true of a project's pool: image, loop devices, filesystem, mount, space. Reads only."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from dbranch.agent.layout import Layout, is_uid
from dbranch.agent.linux.btrfs import device_damaged, superblock_uuid
from dbranch.agent.linux.loops import loops_of
from dbranch.agent.linux.mounts import mounts_at, read_mounts


@dataclass(frozen=True)
class PoolFacts:
    """A pool as it is now. Sizes are in bytes; what does not apply is None.

    `loops` are the device paths attached to the image, by its (device, inode). `uuid` is the
    filesystem's as the image's superblock says, None where there is no btrfs. `mounted` is whether
    exactly this filesystem is mounted at the pool's place; `shared` whether that mount propagates; `frozen`
    whether the kernel has stopped writing to it after an error.
    `foreign` says what is mounted there instead, where something else is.
    `damaged`: the device gave back something else than was written (btrfs' own counts, until they are reset).
    `allocated_bytes` is what the sparse image takes of the node's disk;
    `total_bytes`, `used_bytes`, `free_bytes` are of the mounted filesystem; `host_free_bytes` of the
    disk under the base directory.
    """

    image_exists: bool
    image_bytes: int | None = None
    allocated_bytes: int | None = None
    loops: tuple[str, ...] = ()
    uuid: str | None = None
    mounted: bool = False
    shared: bool = False
    frozen: bool = False
    damaged: bool = False
    foreign: str | None = None
    bound_slots: tuple[str, ...] = ()
    total_bytes: int | None = None
    used_bytes: int | None = None
    free_bytes: int | None = None
    host_free_bytes: int | None = None


def observe_pool(layout: Layout, project_uid: str) -> PoolFacts:
    """The pool of a project. OSError where the node cannot be read."""
    file, point = layout.image(project_uid), layout.pool(project_uid)
    host = os.statvfs(layout.base) if layout.base.exists() else None
    host_free = host.f_bavail * host.f_frsize if host else None
    mounts = read_mounts()
    there = mounts_at(point, mounts)
    if not file.exists():
        return PoolFacts(False, foreign=there[-1].source if there else None, host_free_bytes=host_free)
    loops = tuple(loop.path for loop in loops_of(file))
    mounted = bool(there) and there[-1].kind == "btrfs" and os.path.realpath(there[-1].source) in loops
    facts = PoolFacts(
        image_exists=True,
        image_bytes=file.stat().st_size,
        allocated_bytes=file.stat().st_blocks * 512,
        loops=loops,
        uuid=superblock_uuid(file),
        mounted=mounted,
        shared=mounted and there[-1].shared,
        frozen=mounted and there[-1].frozen,
        foreign=there[-1].source if there and not mounted else None,
        host_free_bytes=host_free,
    )
    if not mounted:
        return facts
    devices = {mount.device for mount in there}
    bound = (m.point for m in mounts if m.device in devices and m.point.startswith(f"{layout.slots}/"))
    pool = os.statvfs(point)
    return replace(
        facts,
        damaged=device_damaged(point),
        bound_slots=tuple(sorted({Path(path).parent.name for path in bound})),
        total_bytes=pool.f_blocks * pool.f_frsize,
        used_bytes=(pool.f_blocks - pool.f_bfree) * pool.f_frsize,
        free_bytes=pool.f_bavail * pool.f_frsize,
    )


def observe_pools(layout: Layout) -> tuple[str, ...]:
    """The UIDs of all projects that have an image on this node."""
    found = (path.stem for path in layout.pools.glob("*.img"))
    return tuple(sorted(uid for uid in found if is_uid(uid)))
