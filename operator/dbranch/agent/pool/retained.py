"""Pools that outlive their project: the record beside the image, and a new project that takes one over."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from dbranch.agent.layout import Layout
from dbranch.agent.linux.btrfs import superblock_uuid
from dbranch.agent.linux.files import write_whole
from dbranch.agent.linux.syscalls import rename_new
from dbranch.agent.pool.image import sync_directory
from dbranch.api.errors import PoolLost
from dbranch.runtime.file_lock import held
from dbranch.runtime.logs import log_command


def ensure_recorded(layout: Layout, project_uid: str, namespace: str, project: str) -> None:
    """The pool's record is on disk: whose it was. Without an image there is nothing to record."""
    uuid = superblock_uuid(layout.image(project_uid)) if layout.image(project_uid).exists() else None
    if uuid is None:
        return
    record = Retained(project_uid, uuid, namespace, project)
    write_whole(layout.record(project_uid), render_retained(record), mode=0o600)
    sync_directory(layout.pools)


def ensure_pool_adopted(layout: Layout, record: Retained, new_uid: str) -> None:
    """The retained image has the new project's name."""
    with held(layout.attach_lock, timeout=60):
        old, new = layout.image(record.project_uid), layout.image(new_uid)
        if old.exists():
            log_command("mv", "--no-clobber", old, new)
            rename_new(old, new)
            sync_directory(layout.pools)


def ensure_forgotten(layout: Layout, old_uid: str) -> None:
    """The record of a pool that another project has now, gone."""
    record = layout.record(old_uid)
    if record.exists():
        log_command("rm", record)
        record.unlink()
        sync_directory(layout.pools)


def observe_retained(layout: Layout, project_uid: str) -> Retained | None:
    """The record of a retained pool; None where there is none that can be read."""
    try:
        return parse_retained(layout.record(project_uid).read_text())
    except (OSError, UnicodeDecodeError):
        return None


@dataclass(frozen=True)
class Retained:
    """A retained pool: the UID of the project that made it, its filesystem's UUID, and whose it was."""

    project_uid: str
    pool_uuid: str
    namespace: str
    project: str


def render_retained(record: Retained) -> str:
    return json.dumps(asdict(record), indent=1, sort_keys=True) + "\n"


def parse_retained(text: str) -> Retained | None:
    """The record in `text`; None where it is none."""
    try:
        raw: Any = json.loads(text)
        return Retained(*(str(raw[k]) for k in ("project_uid", "pool_uuid", "namespace", "project")))
    except (ValueError, KeyError, TypeError):
        return None


def checked_retained(record: Retained | None, uid: str, namespace: str) -> Retained:
    """The record of pool `uid`. PoolLost where this namespace retained no such pool on this node."""
    if record is None or (record.project_uid, record.namespace) != (uid, namespace):
        raise PoolLost(
            f"namespace {namespace} has no retained pool {uid} on this node; nothing is made; "
            "make a project with the right spec.storage.adopt"
        )
    return record
