"""The life of a pool in order: image, loop device, filesystem, mount; and the way back."""

from __future__ import annotations

from dbranch.plan.layout import Layout


def ensure_base(layout: Layout) -> str:
    """The base directory's own directories; the machine ID, drawn once and kept in the base directory."""
    raise NotImplementedError


def ensure_pool(
    layout: Layout, project_uid: str, size: int, known_uuid: str | None, known_machine: str | None
) -> str:
    """The pool attached, made (once), mounted and as large as `size` bytes; returns the filesystem's UUID.

    `known_uuid`, `known_machine`: what `status.node` has of `poolUUID` and `machineID`. Once `known_uuid`
    is there, nothing is made any more: PoolLost where the image is missing, another machine's or holds
    another filesystem, PoolDamaged where it holds none. Busy where something else holds the
    image; CommandFailed, OSError where the node refuses.
    """
    raise NotImplementedError


def ensure_pool_down(layout: Layout, project_uid: str) -> None:
    """Unmounted and detached. Busy (with what holds it) while a slot or another namespace uses it."""
    raise NotImplementedError


def ensure_pool_removed(layout: Layout, project_uid: str) -> None:
    """Down, and then the image and the mount point deleted. Busy as in `ensure_pool_down`."""
    raise NotImplementedError
