"""Groups of simple quotas: what a branch wrote and anybody still holds is charged to its own group.

`0/<id>`, the kernel's group of a subvolume, is a member of `1/<id>`, the subvolume's own, and of `2/1`, the pool's.
`1/<id>` is in nothing: in both, bytes would stay charged to the pool for ever (tried). What a tenant nests in its
subvolume becomes a member of the same groups by the kernel's doing.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from dbranch.agent.layout import Layout
from dbranch.agent.linux import btrfs, quotas
from dbranch.agent.linux.quotas import group_of, level_and_number
from dbranch.runtime.logs import log_command

POOL_GROUP: Final = group_of(2, 1)
_OWN, _KERNELS = 1, 0


def ensure_quotas(pool: Path) -> None:
    """Enable simple quotas in a mounted pool without subvolumes; no-op if its kernel has none.

    One that has subvolumes stays as it is: enabled later, they count new extents only.
    """
    if any(pool.iterdir()):
        return
    if not quotas.simple_quotas_enabled(pool):
        if not quotas.simple_quotas_supported():
            return
        log_command("btrfs", "quota", "enable", "--simple", pool)
        quotas.enable_simple_quotas(pool)
    log_command("btrfs", "qgroup", "create", _text(POOL_GROUP), pool)
    quotas.ensure_group(pool, POOL_GROUP)


def create_subvolume(path: Path, source: Path | None = None) -> None:
    """Create a subvolume at the top of a pool, or a writable snapshot of `source`, with its groups.

    The groups come before the first byte of its own. One that is cut off before that is no branch yet, and is
    destroyed. Raises FileExistsError if the name is taken.
    """
    pool, has_quotas = path.parent, quotas.simple_quotas_enabled(path.parent)
    log_command("btrfs", "subvolume", *(("snapshot", source) if source else ("create",)), path)
    if not has_quotas:
        if source:
            btrfs.create_snapshot(source, path)
        else:
            btrfs.create_subvolume(path)
        return
    quotas.create_in_groups(path, source, (POOL_GROUP,))
    number = quotas.subvolume_id(path)
    log_command("btrfs", "qgroup", "create", f"{_OWN}/{number}", pool)
    quotas.ensure_group(pool, group_of(_OWN, number))
    log_command("btrfs", "qgroup", "assign", f"{_KERNELS}/{number}", f"{_OWN}/{number}", pool)
    quotas.ensure_member(pool, group_of(_KERNELS, number), group_of(_OWN, number))


def observe_written_bytes(subvolume: Path) -> int | None:
    """Return the bytes that the subvolume wrote and anybody still holds, as of the last commit (within 30 s).

    None in a pool without simple quotas.
    """
    if not quotas.simple_quotas_enabled(subvolume.parent):
        return None
    return quotas.charged_bytes(subvolume.parent, group_of(_OWN, quotas.subvolume_id(subvolume)))


def ensure_dead_groups_removed(layout: Layout, project_uid: str) -> None:
    """Remove the groups of subvolumes that are gone and whose bytes nobody holds any more."""
    pool = layout.pool(project_uid)
    if not quotas.simple_quotas_enabled(pool):
        return
    groups = quotas.read_groups(pool)
    members = {group: set(parents) for group, parents in groups.parents.items()}
    # The kernel's groups first: a subvolume's own group may have members that its tenant had nested.
    for group in sorted(groups.charged):
        level, number = level_and_number(group)
        has_members = any(group in parents for parents in members.values())
        if level > _OWN or groups.charged[group] or has_members or quotas.subvolume_exists(pool, number):
            continue
        try:
            for parent in members.pop(group, ()):
                log_command("btrfs", "qgroup", "remove", _text(group), _text(parent), pool)
                quotas.remove_member(pool, group, parent)
            log_command("btrfs", "qgroup", "destroy", _text(group), pool)
            quotas.remove_group(pool, group)
        except OSError as error:
            # Charged again since the last commit, by a subvolume that was just made with its extents.
            if error.errno != errno.EBUSY:
                raise


def _text(group: int) -> str:
    level, number = level_and_number(group)
    return f"{level}/{number}"
