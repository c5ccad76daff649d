"""Work beneath PGDATA, which its tenant writes: by descriptors, never by a path, never through a link."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from dbranch.agent.layout import PGDATA
from dbranch.agent.linux import btrfs
from dbranch.agent.linux.files import opened_directory, read_beneath, remove_at, walk_beneath
from dbranch.agent.linux.syscalls import RESOLVE_BENEATH, openat2
from dbranch.agent.volume.settings import read_prepared
from dbranch.api.errors import SourceUnsafe
from dbranch.runtime.logs import log_command

# What a stopped copy must not find: who ran it, what it should become, where it was copied from.
_STALE: Final = (
    "postmaster.pid",
    "postmaster.opts",
    "standby.signal",
    "recovery.signal",
    "promote",
    "backup_label",
    "backup_label.old",
    "tablespace_map",
    "tablespace_map.old",
)
_SLOTS: Final = "pg_replslot"
_SHOWN: Final = 160


def major_of(subvolume: Path) -> int | None:
    """PG_VERSION of the subvolume's PGDATA; None where there is no database."""
    try:
        with opened_directory(subvolume, PGDATA) as pgdata:
            text = read_beneath(pgdata, "PG_VERSION", limit=16)
    except OSError:
        return None
    return int(text) if text and text.strip().isdigit() else None


def prepared_of_system(subvolume: Path) -> int:
    """`max_prepared_transactions` of ALTER SYSTEM in this PGDATA; 0 where it is not set."""
    with opened_directory(subvolume, PGDATA) as pgdata:
        return read_prepared(read_beneath(pgdata, "postgresql.auto.conf") or "")


def check_whole(subvolume: Path, named: Path) -> None:
    """SourceUnsafe where PGDATA reaches outside its subvolume: a tablespace, a link, a nested subvolume.

    `subvolume` is looked at (the snapshot: nobody changes it any more), `named` is what the text calls it.
    """
    try:
        for nested in btrfs.nested_subvolumes(named):
            raise _unsafe(named / nested, "is a subvolume of its own")
        with opened_directory(subvolume, PGDATA) as pgdata:
            _check_tablespaces(pgdata, named / PGDATA / "pg_tblspc")
            _check_links(pgdata, named / PGDATA)
    except OSError as error:
        raise _unsafe(named / PGDATA, f"cannot be read without links ({error.strerror})") from error


def _check_links(pgdata: int, named: Path) -> None:
    for path, _, entries in walk_beneath(pgdata, strict=True):
        for name in sorted(str(path / entry.name) for entry in entries if entry.is_symlink()):
            if name == "pg_wal" or _leaves(pgdata, name):
                raise _unsafe(named / name, f"is a link to {os.readlink(name, dir_fd=pgdata)}")


def _leaves(pgdata: int, name: str) -> bool:
    try:
        os.close(openat2(pgdata, name, os.O_PATH, resolve=RESOLVE_BENEATH))
    except OSError as error:
        return error.errno != errno.ENOENT
    return False


def _check_tablespaces(pgdata: int, named: Path) -> None:
    try:
        handle = openat2(pgdata, "pg_tblspc", os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    try:
        with os.scandir(handle) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if not entry.is_dir(follow_symlinks=False):
                    raise _unsafe(named / entry.name, "is a tablespace outside PGDATA")
    finally:
        os.close(handle)


def _unsafe(path: Path, what: str) -> SourceUnsafe:
    # A tenant's path may be longer than any message.
    text = str(path) if len(str(path)) <= _SHOWN else f"…{str(path)[-_SHOWN:]}"
    return SourceUnsafe(
        f"{text} {what}; a snapshot would not hold it, so no branch is made; move the data into PGDATA"
    )


def ensure_cleaned_offline(subvolume: Path) -> None:
    """PGDATA of a snapshot without what only its source may keep: locks, signals, replication slots."""
    with opened_directory(subvolume, PGDATA) as pgdata:
        for name in _STALE:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=pgdata)
                log_command("rm", subvolume / PGDATA / name)
        try:
            slots = openat2(pgdata, _SLOTS, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return
        try:
            for name in os.listdir(slots):
                log_command("rm", "-r", subvolume / PGDATA / _SLOTS / name)
                remove_at(slots, name)
        finally:
            os.close(slots)


def make_pgdata(subvolume: Path, owner: int) -> None:
    """An empty `pgdata` in a subvolume that no tenant can reach yet."""
    path = subvolume / PGDATA
    path.mkdir(mode=0o700)
    os.chown(path, owner, owner, follow_symlinks=False)


def remove_beneath(subvolume: Path, name: str) -> None:
    """One file at the top of PGDATA, gone."""
    with opened_directory(subvolume, PGDATA) as pgdata, suppress(FileNotFoundError):
        os.unlink(name, dir_fd=pgdata)
