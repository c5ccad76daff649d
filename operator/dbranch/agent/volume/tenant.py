"""Work beneath PGDATA, which its tenant writes: by descriptors, never by a path, never through a symbolic link."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from dbranch.agent.layout import INITDB_DONE, PGDATA
from dbranch.agent.linux import btrfs
from dbranch.agent.linux.files import (
    empty_directory,
    entries_of,
    opened_directory,
    read_beneath,
    read_bytes_beneath,
    remove_at,
    walk_beneath,
)
from dbranch.agent.linux.syscalls import RESOLVE_BENEATH, openat2
from dbranch.agent.volume import pg_control
from dbranch.agent.volume.settings import initdb_settings_in
from dbranch.api.errors import SourceUnsafe
from dbranch.runtime.logs import log_command

logger = logging.getLogger(__name__)

# Files of the source's server process: they would mislead another one.
_PROCESS_FILES: Final = ("postmaster.pid", "postmaster.opts")
# Files of the source's server that would mislead the copy's besides: a standby or recovery, a base backup.
_STALE_FILES: Final = (
    "standby.signal",
    "recovery.signal",
    "promote",
    "backup_label",
    "backup_label.old",
    "tablespace_map",
    "tablespace_map.old",
)
_REPLICATION_SLOTS: Final = "pg_replslot"
# What ALTER SYSTEM writes, and the name that it has once it was undone.
_ALTERED_SETTINGS: Final = "postgresql.auto.conf"
_MOVED_SETTINGS: Final = "postgresql.auto.conf.before-reset"
# Subvolumes nested in a source: each is a commit of the filesystem, while other copies of it wait.
NESTED_LIMIT: Final = 100
# Characters of a path in a message.
_PATH_LIMIT: Final = 160
# A role's name has 63 bytes at most; a line break ends it.
_NAME_LIMIT: Final = 64


def major_of(subvolume: Path) -> int | None:
    """Return the major version in PG_VERSION of the subvolume's PGDATA; None if it holds no database."""
    try:
        with opened_directory(subvolume, PGDATA) as pgdata:
            text = read_beneath(pgdata, "PG_VERSION", limit=16)
    except OSError:
        return None
    return int(text) if text and text.strip().isdigit() else None


def superuser_of_initdb(area: Path) -> str | None:
    """Return the superuser that `initdb.sh` leaves when it is done: None before, "" if the script was cut off.

    Raises OSError if the area holds no PGDATA.
    """
    with opened_directory(area, PGDATA) as pgdata:
        name = read_beneath(pgdata, INITDB_DONE, limit=_NAME_LIMIT)
    return None if name is None else name.strip()


def initdb_settings_of(subvolume: Path) -> dict[str, str]:
    """Return what initdb chose in its own postgresql.conf. Call it before a tenant could have changed that."""
    with opened_directory(subvolume, PGDATA) as pgdata:
        return initdb_settings_in(read_beneath(pgdata, "postgresql.conf") or "")


def max_prepared_of_server(subvolume: Path) -> int:
    """Return the `max_prepared_transactions` with which the Postgres of this PGDATA ran last.

    Its prepared transactions need as much at the next start, whatever the settings files say by now. 0 if this
    release does not know the version's pg_control. Raises SourceUnsafe if no Postgres would start with the file.
    """
    with opened_directory(subvolume, PGDATA) as pgdata:
        data = read_bytes_beneath(pgdata, pg_control.PATH, pg_control.FILE_BYTES + 1)
    try:
        value = pg_control.max_prepared_transactions(data or b"")
    except pg_control.Damaged as error:
        raise SourceUnsafe(
            f"{pg_control.PATH} of the source is damaged ({error}); nothing is copied; "
            "see whether the source's Postgres starts"
        ) from error
    if value is None:
        logger.warning("%s: pg_control is of an unknown version", subvolume)
    return value or 0


def check_not_nested(source: Path) -> None:
    """Raise SourceUnsafe if a subvolume is nested in a source that is in use: no copy of both is of one moment."""
    try:
        for nested in btrfs.nested_subvolumes(source):
            raise _unsafe(source / nested, "is a subvolume of its own")
    except OSError as error:
        raise _unsafe(source / PGDATA, f"cannot be read without links ({error.strerror})") from error


def check_links(snapshot: Path, source: Path) -> None:
    """Raise SourceUnsafe if PGDATA reaches outside its subvolume by a tablespace or a link.

    `snapshot` is checked, since nobody changes it any more; the message names the path in `source`. For a first look
    it may be the source itself; what is removed while that is read is no reason to reject it.
    """
    try:
        with opened_directory(snapshot, PGDATA) as pgdata:
            _check_tablespaces(pgdata, source / PGDATA / "pg_tblspc")
            _check_links(pgdata, source / PGDATA)
    except OSError as error:
        raise _unsafe(source / PGDATA, f"cannot be read without links ({error.strerror})") from error


def ensure_nested_copied(copy: Path, source: Path) -> None:
    """Copy the subvolumes nested in a source that nobody writes to, at any depth, into a fresh copy of it.

    btrfs leaves an empty directory in the place of each (btrfs-subvolume(8)). Raises SourceUnsafe if there are more
    than NESTED_LIMIT, or a path is too long; OSError if there is no room, or the disk fails.
    """
    copied = 0
    try:
        pending = [Path(path) for path in btrfs.nested_subvolumes(source)]
        while pending:
            path, copied = pending.pop(), copied + 1
            if copied > NESTED_LIMIT:
                raise _unsafe(source, f"has more than {NESTED_LIMIT} subvolumes nested in it")
            with (
                opened_directory(source, str(path)) as old,
                opened_directory(copy, str(path.parent)) as parent,
            ):
                log_command("btrfs", "subvolume", "snapshot", source / path, copy / path)
                os.rmdir(path.name, dir_fd=parent)
                btrfs.create_snapshot_at(old, parent, path.name)
                pending += [path / nested for nested in btrfs.nested_subvolumes_of(old)]
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise _unsafe(source / PGDATA, f"has a subvolume that cannot be copied ({error.strerror})") from error


def _check_links(pgdata: int, shown_path: Path) -> None:
    for path, _, entries in walk_beneath(pgdata, strict=True):
        for entry in entries:
            if not entry.is_symlink():
                continue
            name = str(path / entry.name)
            if name == "pg_wal" or _leads_out(pgdata, name):
                with suppress(FileNotFoundError):
                    raise _unsafe(shown_path / name, f"is a link to {os.readlink(name, dir_fd=pgdata)}")


def _leads_out(pgdata: int, name: str) -> bool:
    try:
        os.close(openat2(pgdata, name, os.O_PATH, resolve=RESOLVE_BENEATH))
    except OSError as error:
        return error.errno != errno.ENOENT
    return False


def _check_tablespaces(pgdata: int, shown_path: Path) -> None:
    try:
        handle = openat2(pgdata, "pg_tblspc", os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    try:
        with os.scandir(handle) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    raise _unsafe(shown_path / entry.name, "is a tablespace outside PGDATA")
    finally:
        os.close(handle)


def _unsafe(path: Path, problem: str) -> SourceUnsafe:
    # A tenant's path may be longer than any message.
    text = str(path) if len(str(path)) <= _PATH_LIMIT else f"…{str(path)[-_PATH_LIMIT:]}"
    return SourceUnsafe(
        f"{text} {problem}; a snapshot would not contain it, so nothing is copied; move the data into PGDATA"
    )


def ensure_process_files_removed(subvolume: Path) -> None:
    """Remove from PGDATA of a snapshot what was the server's process that wrote it, and nothing else."""
    with opened_directory(subvolume, PGDATA) as pgdata:
        _remove_files(subvolume, pgdata, _PROCESS_FILES)


def _remove_files(subvolume: Path, pgdata: int, file_names: Sequence[str]) -> None:
    for name in file_names:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=pgdata)
            log_command("rm", subvolume / PGDATA / name)


def ensure_cleaned_offline(subvolume: Path) -> None:
    """Remove from PGDATA of a snapshot what only its source may keep: PID and signal files, replication slots."""
    with opened_directory(subvolume, PGDATA) as pgdata:
        _remove_files(subvolume, pgdata, (*_PROCESS_FILES, *_STALE_FILES))
        try:
            slots = openat2(pgdata, _REPLICATION_SLOTS, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return
        try:
            if next(entries_of(slots), None):
                log_command("rm", "-r", subvolume / PGDATA / _REPLICATION_SLOTS / "*")
            empty_directory(slots)
        finally:
            os.close(slots)


def has_altered_settings(subvolume: Path) -> bool:
    """True if ALTER SYSTEM has set something, or something else than a file has the name of what it writes.

    Raises OSError if the subvolume holds no PGDATA.
    """
    with opened_directory(subvolume, PGDATA) as pgdata:
        text = read_beneath(pgdata, _ALTERED_SETTINGS)
        if text is None:
            return _exists_at(pgdata, _ALTERED_SETTINGS)
    lines = (line.strip() for line in text.splitlines())
    return any(line and not line.startswith("#") for line in lines)


def ensure_altered_settings_moved(subvolume: Path) -> None:
    """Move what ALTER SYSTEM has set out of Postgres' sight, whatever has its name, durably; nothing is followed.

    It stays beside its place, as one file: that of an earlier call goes once there is another to be moved.
    """
    with opened_directory(subvolume, PGDATA) as pgdata:
        if _exists_at(pgdata, _ALTERED_SETTINGS):
            if _exists_at(pgdata, _MOVED_SETTINGS):
                remove_at(pgdata, _MOVED_SETTINGS)
            path = subvolume / PGDATA
            log_command("mv", path / _ALTERED_SETTINGS, path / _MOVED_SETTINGS)
            os.rename(_ALTERED_SETTINGS, _MOVED_SETTINGS, src_dir_fd=pgdata, dst_dir_fd=pgdata)
        # Also after a call that was cut off behind the rename.
        os.fsync(pgdata)


def _exists_at(directory: int, name: str) -> bool:
    try:
        os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    return True


def make_pgdata(subvolume: Path, owner: int) -> None:
    """Create an empty `pgdata` in a subvolume that no tenant can reach yet."""
    path = subvolume / PGDATA
    path.mkdir(mode=0o700)
    os.chown(path, owner, owner, follow_symlinks=False)


def remove_beneath(subvolume: Path, name: str) -> None:
    """Remove one file at the top of PGDATA; no-op if it is missing."""
    with opened_directory(subvolume, PGDATA) as pgdata, suppress(FileNotFoundError):
        os.unlink(name, dir_fd=pgdata)
