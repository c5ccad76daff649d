"""The request to remove a pool, as a file beside its image: written before anything is removed, deleted last."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from dbranch.agent.layout import Layout, is_uid
from dbranch.agent.linux.btrfs import superblock_uuid
from dbranch.agent.linux.files import write_atomically
from dbranch.agent.pool.image import ensure_file_removed, sync_directory
from dbranch.agent.pool.records import understood_record
from dbranch.api.errors import StorageUnclear
from dbranch.api.expiry import parse_time
from dbranch.runtime.logs import log_command

FORMAT: Final = 1


@dataclass(frozen=True)
class Tombstone:
    """`pools/<project-uid>.tombstone`. `pool_uuid`: of the filesystem that may be removed, empty if it had none.

    `not_before`: until then the pool is kept, detached, and its project can be undeleted; empty: it goes at once.
    `requested`: when its removal was requested; both RFC 3339.
    """

    pool_uuid: str
    not_before: str = ""
    requested: str = ""

    def is_due(self, now: datetime) -> bool:
        """Return True if the pool may go. A time that cannot be read is waited for until somebody asks again."""
        if not self.not_before:
            return True
        moment = parse_time(self.not_before)
        return moment is not None and moment <= now


def read_tombstone(layout: Layout, project_uid: str) -> Tombstone | None:
    """Read the tombstone of a pool; None if its removal was not requested.

    Raises StorageUnclear if it cannot be read, or a newer release wrote it.
    """
    path = layout.tombstone(project_uid)
    try:
        raw: Any = json.loads(path.read_text())
        if raw["format"] > FORMAT:
            raise StorageUnclear(
                f"{path} was written by a newer release of dbranch; nothing is removed; "
                "upgrade the agent of this node"
            )
        times = (str(raw.get(key, "")) for key in ("not_before", "requested"))
        return Tombstone(str(raw["pool_uuid"]), *times)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StorageUnclear(f"{path} cannot be read; nothing is removed; inspect it on the node") from error


def observe_tombstones(layout: Layout) -> tuple[str, ...]:
    """Return the UIDs of all pools whose removal was requested."""
    return tuple(sorted(path.stem for path in layout.pools.glob("*.tombstone") if is_uid(path.stem)))


def ensure_tombstone(
    layout: Layout,
    project_uid: str,
    pool_uuid: str | None = None,
    not_before: str = "",
    requested: str = "",
) -> None:
    """Record durably that the removal of this pool was requested; no-op if it was, or if there is nothing to remove.

    `pool_uuid`: of its filesystem, as far as it is known; else that of the image or the record. `not_before`,
    `requested`: as in Tombstone; what was to be kept for a time and is not any more is recorded anew. Raises
    StorageUnclear if a newer release wrote the record.
    """
    record, image = understood_record(layout, project_uid), layout.image(project_uid)
    existing = read_tombstone(layout, project_uid)
    is_recorded = existing is not None and (bool(not_before) or not existing.not_before)
    if (record is None and not image.exists()) or is_recorded:
        return
    recorded = pool_uuid or (record.pool_uuid if record else "")
    uuid = recorded or (superblock_uuid(image) if image.exists() else None) or ""
    path = layout.tombstone(project_uid)
    log_command("touch", path)
    fields = {"format": FORMAT, "pool_uuid": uuid, "not_before": not_before, "requested": requested}
    text = json.dumps(fields, indent=1, sort_keys=True) + "\n"
    write_atomically(path, text, mode=0o600)
    sync_directory(layout.pools)


def ensure_tombstone_withdrawn(layout: Layout, project_uid: str) -> None:
    """Remove the tombstone: last of a removal, or of a pool that is wanted after all."""
    ensure_file_removed(layout.tombstone(project_uid))


def names_image(layout: Layout, project_uid: str, tombstone: Tombstone) -> bool:
    """Return False if the image holds another filesystem than the one that the tombstone is for."""
    image = layout.image(project_uid)
    uuid = superblock_uuid(image) if image.exists() else None
    return uuid is None or uuid == tombstone.pool_uuid
