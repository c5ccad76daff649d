"""Mounting and unmounting, never lazily."""

from __future__ import annotations

import time
from pathlib import Path

from dbranch.agent.linux import btrfs
from dbranch.agent.linux.command import run
from dbranch.agent.linux.mounts import mounts_at
from dbranch.api.errors import Busy, CommandFailed


def unmount(point: Path) -> None:
    """One mount taken away. Busy where it is in use; then nothing has changed."""
    try:
        run(["umount", "--no-canonicalize", point])
    except CommandFailed as error:
        if not mounts_at(point):
            return
        raise Busy(f"{point} cannot be unmounted now: {error.output}; it is tried again") from error


def await_released(device: str, seconds: float = 5.0) -> None:
    """The kernel has let go of the filesystem on it. Busy while another mount namespace still holds it."""
    end = time.monotonic() + seconds
    while btrfs.in_use(device):
        if time.monotonic() > end:
            raise Busy(
                f"the filesystem on {device} is unmounted here and still held by another mount namespace; "
                "it is neither detached nor deleted; it is tried again"
            )
        time.sleep(0.02)


def bind(source: Path, point: Path) -> None:
    """`source` mounted at `point` as well. The caller has looked that nothing is there: a bind stacks."""
    run(["mount", "--bind", source, point])
