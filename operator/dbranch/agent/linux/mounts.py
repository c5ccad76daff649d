"""The mounts of this process' mount namespace, from /proc/self/mountinfo (proc_pid_mountinfo(5))."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo. `root`: the path within the filesystem that forms the root of this mount
    (it follows renames and ends in `//deleted`); `device` is `major:minor`; `shared`: it propagates;
    `frozen`: the filesystem itself takes no writes (a mount may be read-only besides)."""

    point: str
    root: str
    device: str
    kind: str
    source: str
    shared: bool
    frozen: bool = False


_OCTAL = re.compile(r"\\([0-7]{3})")


def _plain(text: str) -> str:
    return text if "\\" not in text else _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """The mounts in the order of the text: a later one at the same point lies over an earlier one."""
    mounts = []
    for line in text.splitlines():
        head, _, tail = line.partition(" - ")
        fields, more = head.split(" "), tail.split(" ")
        if len(fields) < 6 or len(more) < 2:
            continue
        mounts.append(
            Mount(
                point=_plain(fields[4]),
                root=_plain(fields[3]),
                device=fields[2],
                kind=more[0],
                source=_plain(more[1]),
                shared=any(option.startswith("shared:") for option in fields[6:]),
                frozen=len(more) > 2 and "ro" in more[2].split(","),
            )
        )
    return tuple(mounts)


def read_mounts() -> tuple[Mount, ...]:
    """The mounts that this process sees now."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))


def mounts_at(point: Path, mounts: tuple[Mount, ...] | None = None) -> tuple[Mount, ...]:
    """The mounts stacked at exactly this (absolute, link-free) place, the visible one last."""
    return tuple(m for m in (read_mounts() if mounts is None else mounts) if m.point == str(point))


def mount_over(path: Path) -> Mount | None:
    """The mount that holds `path`."""
    best: Mount | None = None
    for mount in read_mounts():
        inside = mount.point == "/" or f"{path}/".startswith(f"{mount.point}/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best
