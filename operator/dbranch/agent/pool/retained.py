"""Pools that outlive their project: the record beside the image, and the adoption by a new project."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from dbranch.agent.layout import Layout
from dbranch.agent.linux.btrfs import superblock_uuid
from dbranch.agent.linux.files import write_atomically
from dbranch.agent.linux.syscalls import rename_new
from dbranch.agent.pool.image import sync_directory
from dbranch.api.errors import PoolLost
from dbranch.runtime.file_lock import held
from dbranch.runtime.logs import log_command


def ensure_retained_record(layout: Layout, project_uid: str, namespace: str, project: str) -> None:
    """Write the record of the project that the pool belonged to; no-op without an image."""
    uuid = superblock_uuid(layout.image(project_uid)) if layout.image(project_uid).exists() else None
    if uuid is None:
        return
    record = Retained(project_uid, uuid, namespace, project)
    write_atomically(layout.record(project_uid), render_retained(record), mode=0o600)
    sync_directory(layout.pools)


def ensure_pool_adopted(layout: Layout, record: Retained, new_uid: str) -> None:
    """Rename the retained image to the new project's UID."""
    with held(layout.attach_lock, timeout=60):
        old, new = layout.image(record.project_uid), layout.image(new_uid)
        if old.exists():
            log_command("mv", "--no-clobber", old, new)
            rename_new(old, new)
            sync_directory(layout.pools)


def ensure_retained_record_removed(layout: Layout, old_uid: str) -> None:
    """Remove the record of a pool that another project has adopted."""
    record = layout.record(old_uid)
    if record.exists():
        log_command("rm", record)
        record.unlink()
        sync_directory(layout.pools)


def observe_retained(layout: Layout, project_uid: str) -> Retained | None:
    """Read the record of a retained pool; None if there is none that can be read."""
    try:
        return parse_retained(layout.record(project_uid).read_text())
    except (OSError, UnicodeDecodeError):
        return None


@dataclass(frozen=True)
class Retained:
    """A retained pool: the UID of the project that created it, its filesystem's UUID, namespace and project."""

    project_uid: str
    pool_uuid: str
    namespace: str
    project: str


def render_retained(record: Retained) -> str:
    return json.dumps(asdict(record), indent=1, sort_keys=True) + "\n"


def parse_retained(text: str) -> Retained | None:
    """Parse a record; None if it cannot be read."""
    try:
        raw: Any = json.loads(text)
        return Retained(*(str(raw[k]) for k in ("project_uid", "pool_uuid", "namespace", "project")))
    except (ValueError, KeyError, TypeError):
        return None


def check_retained(record: Retained | None, uid: str, namespace: str) -> Retained:
    """Return the record of pool `uid`. Raises PoolLost if this namespace retained no such pool on this node."""
    if record is None or (record.project_uid, record.namespace) != (uid, namespace):
        raise PoolLost(
            f"namespace {namespace} has no retained pool {uid} on this node; nothing is created; "
            "create a project with the right spec.storage.adopt"
        )
    return record
