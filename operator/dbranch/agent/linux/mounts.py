"""The mounts of this process' mount namespace, from /proc/self/mountinfo (proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo.

    `point` is the mount point. `root`: the path within the filesystem that forms the root of this mount
    (it follows renames and ends in `//deleted`); `device` is `major:minor`; `shared`: it propagates;
    `read_only`: the filesystem itself takes no writes (a mount may be read-only besides).
    """

    point: str
    root: str
    device: str
    fstype: str
    source: str
    shared: bool
    read_only: bool = False


_OCTAL: Final = re.compile(r"\\([0-7]{3})")


def _unescape(text: str) -> str:
    return text if "\\" not in text else _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


# A reconcile reads it some ten times, and it seldom changes in between. Each branch has some mounts more.
@lru_cache(maxsize=2)
def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """Parse mountinfo; a later mount at the same point lies over an earlier one."""
    mounts = []
    for line in text.splitlines():
        mount_part, _, filesystem_part = line.partition(" - ")
        fields, filesystem = mount_part.split(" "), filesystem_part.split(" ")
        if len(fields) < 6 or len(filesystem) < 2:
            continue
        mounts.append(
            Mount(
                point=_unescape(fields[4]),
                root=_unescape(fields[3]),
                device=fields[2],
                fstype=filesystem[0],
                source=_unescape(filesystem[1]),
                shared=any(option.startswith("shared:") for option in fields[6:]),
                read_only=len(filesystem) > 2 and "ro" in filesystem[2].split(","),
            )
        )
    return tuple(mounts)


def read_mounts() -> tuple[Mount, ...]:
    """Read the mounts that this process sees now."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))


def mounts_at(point: Path, mounts: tuple[Mount, ...] | None = None) -> tuple[Mount, ...]:
    """Return the mounts stacked at exactly this (absolute, link-free) path, the visible one last."""
    return tuple(m for m in (read_mounts() if mounts is None else mounts) if m.point == str(point))


def mounts_of_device(device: str, mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
    """Return the mounts whose source is this device, by its path: btrfs shows a device number of its own."""
    path = os.path.realpath(device)
    return tuple(m for m in mounts if m.source.startswith("/dev/") and os.path.realpath(m.source) == path)


def mount_containing(path: Path) -> Mount | None:
    """Return the mount that holds `path`."""
    innermost: Mount | None = None
    for mount in read_mounts():
        contains = mount.point == "/" or f"{path}/".startswith(f"{mount.point}/")
        if contains and (innermost is None or len(mount.point) >= len(innermost.point)):
            innermost = mount
    return innermost
