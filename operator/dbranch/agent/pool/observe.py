"""Facts about a project's pool: image, loop devices, filesystem, mount, space. Reads only."""

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

    `loops` are the paths of the loop devices attached to the image, by its (device, inode). `uuid` is the
    filesystem's in the image's superblock, None if it holds no btrfs. `mounted`: exactly this filesystem is mounted
    at the pool's mount point; `shared`: that mount propagates; `read_only`: the kernel has stopped writing to it
    after an error. `damaged`: the device has returned other data than was written (btrfs' counters, until they are
    reset). `bound_slots` are the slots in which a subvolume of the pool is bind-mounted. `allocated_bytes` is what
    the sparse image takes of the node's disk; `total_bytes`, `used_bytes`, `free_bytes` are of the mounted
    filesystem; `host_free_bytes` of the disk under the base directory.
    """

    image_exists: bool
    image_bytes: int | None = None
    allocated_bytes: int | None = None
    loops: tuple[str, ...] = ()
    uuid: str | None = None
    mounted: bool = False
    shared: bool = False
    read_only: bool = False
    damaged: bool = False
    bound_slots: tuple[str, ...] = ()
    total_bytes: int | None = None
    used_bytes: int | None = None
    free_bytes: int | None = None
    host_free_bytes: int | None = None


def observe_pool(layout: Layout, project_uid: str) -> PoolFacts:
    """Read the facts about a project's pool. Raises OSError if the node cannot be read."""
    file, point = layout.image(project_uid), layout.pool(project_uid)
    host = os.statvfs(layout.base) if layout.base.exists() else None
    host_free = host.f_bavail * host.f_frsize if host else None
    mounts = read_mounts()
    pool_mounts = mounts_at(point, mounts)
    if not file.exists():
        return PoolFacts(False, host_free_bytes=host_free)
    loops = tuple(loop.path for loop in loops_of(file))
    top = pool_mounts[-1] if pool_mounts else None
    mounted = top is not None and top.fstype == "btrfs" and os.path.realpath(top.source) in loops
    facts = PoolFacts(
        image_exists=True,
        image_bytes=file.stat().st_size,
        allocated_bytes=file.stat().st_blocks * 512,
        loops=loops,
        uuid=superblock_uuid(file),
        mounted=mounted,
        shared=top is not None and mounted and top.shared,
        read_only=top is not None and mounted and top.read_only,
        host_free_bytes=host_free,
    )
    if not mounted:
        return facts
    devices = {mount.device for mount in pool_mounts}
    bind_mounts = (m.point for m in mounts if m.device in devices and m.point.startswith(f"{layout.slots}/"))
    pool = os.statvfs(point)
    return replace(
        facts,
        damaged=device_damaged(point),
        bound_slots=tuple(sorted({Path(path).parent.name for path in bind_mounts})),
        total_bytes=pool.f_blocks * pool.f_frsize,
        used_bytes=(pool.f_blocks - pool.f_bfree) * pool.f_frsize,
        free_bytes=pool.f_bavail * pool.f_frsize,
    )


def observe_pools(layout: Layout) -> tuple[str, ...]:
    """Return the UIDs of all projects that have an image on this node."""
    stems = (path.stem for path in layout.pools.glob("*.img"))
    return tuple(sorted(uid for uid in stems if is_uid(uid)))
