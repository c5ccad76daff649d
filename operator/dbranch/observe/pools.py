"""What is true of a project's pool: image, loop devices, filesystem, mount, space. Reads only."""

from __future__ import annotations

from dataclasses import dataclass

from dbranch.plan.layout import Layout


@dataclass(frozen=True)
class PoolFacts:
    """A pool as it is now. Sizes are in bytes; what does not apply is None.

    `loops` are the device paths attached to the image, by its (device, inode). `uuid` is the
    filesystem's as the image's superblock says, None where there is no btrfs. `mounted` is whether
    exactly this filesystem is mounted at the pool's place; `shared` whether that mount propagates.
    `foreign` says what is mounted there instead, where something else is.
    `total_bytes`, `used_bytes`, `free_bytes` are of the mounted filesystem; `host_free_bytes` of the
    disk under the base directory.
    """

    image_exists: bool
    image_bytes: int | None = None
    loops: tuple[str, ...] = ()
    uuid: str | None = None
    mounted: bool = False
    shared: bool = False
    foreign: str | None = None
    bound_slots: tuple[str, ...] = ()
    total_bytes: int | None = None
    used_bytes: int | None = None
    free_bytes: int | None = None
    host_free_bytes: int | None = None


def observe_pool(layout: Layout, project_uid: str) -> PoolFacts:
    """The pool of a project. OSError where the node cannot be read."""
    raise NotImplementedError


def observe_pools(layout: Layout) -> tuple[str, ...]:
    """The UIDs of all projects that have an image on this node."""
    raise NotImplementedError
