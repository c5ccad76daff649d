"""The records beside the images, and the adoption of a pool. A record is there before its image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dbranch.agent.layout import Layout, is_uid
from dbranch.agent.linux.files import write_atomically
from dbranch.agent.linux.syscalls import rename_new
from dbranch.agent.pool.image import ensure_file_removed, sync_directory
from dbranch.agent.pool.record import NewerRecord, PoolRecord, parse_record, render_record
from dbranch.api.errors import PoolLost, StorageUnclear
from dbranch.runtime.file_lock import held, held_temporary
from dbranch.runtime.logs import log_command


def read_record(layout: Layout, project_uid: str) -> PoolRecord | NewerRecord | None:
    """Read the record of a pool; None if there is none that can be read."""
    try:
        return parse_record(layout.record(project_uid).read_text())
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def understood_record(layout: Layout, project_uid: str) -> PoolRecord | None:
    """Read the record of a pool. Raises StorageUnclear if a newer release wrote it."""
    record = read_record(layout, project_uid)
    if isinstance(record, NewerRecord):
        raise StorageUnclear(
            f"the record of pool {project_uid} was written by a newer release of dbranch ({record}); "
            "nothing is touched; upgrade the agent of this node"
        )
    return record


def ensure_recorded(
    layout: Layout, project_uid: str, change: Callable[[PoolRecord | None], PoolRecord]
) -> PoolRecord:
    """Write the record as `change` returns it, durably, if that differs; return it.

    Raises StorageUnclear, with nothing changed, if a newer release wrote it.
    """
    with held(layout.records_lock):
        current = understood_record(layout, project_uid)
        changed = change(current)
        if changed != current:
            _write(layout, project_uid, changed)
        return changed


def ensure_initialized_recorded(layout: Layout, project_uid: str) -> None:
    """Record durably that the pool may hold data, before it does: from then on it is removed on request only."""
    with held(layout.records_lock):
        record = understood_record(layout, project_uid)
        if record and not record.initialized:
            _write(layout, project_uid, replace(record, initialized=True))


def _write(layout: Layout, project_uid: str, record: PoolRecord) -> None:
    write_atomically(layout.record(project_uid), render_record(record), mode=0o600)
    sync_directory(layout.pools)


def observe_records(layout: Layout) -> tuple[str, ...]:
    """Return the UIDs of all pools that have a record."""
    return tuple(sorted(path.stem for path in layout.pools.glob("*.json") if is_uid(path.stem)))


def ensure_record_removed(layout: Layout, project_uid: str) -> None:
    """Remove the record of a pool that is gone, or that another project has adopted."""
    ensure_file_removed(layout.record(project_uid))


def ensure_pool_adopted(layout: Layout, old: PoolRecord, new: PoolRecord) -> None:
    """Rename the image of a pool that is down to the project that adopts it, after writing its record.

    The old record is left: until the new project's status names the pool, this is done again from it.
    """
    with (
        held_temporary(layout.pool_lock(old.project_uid), timeout=60),
        held_temporary(layout.pool_lock(new.project_uid), timeout=60),
    ):
        old_image, new_image = layout.image(old.project_uid), layout.image(new.project_uid)
        if layout.tombstone(old.project_uid).exists():
            raise PoolLost(f"pool {old.project_uid} is being removed; nothing is adopted")
        if not old_image.exists() and not new_image.exists():
            raise PoolLost(
                f"the image of pool {old.project_uid} is missing; nothing is created; bring it back"
            )
        ensure_recorded(layout, new.project_uid, lambda current: old.adopted_by(current or new))
        if old_image.exists():
            log_command("mv", "--no-clobber", old_image, new_image)
            rename_new(old_image, new_image)
            sync_directory(layout.pools)
