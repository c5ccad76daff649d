"""Where everything is on a node: paths below the base directory, built from UIDs and slot names only.

No part of a path comes from what a user wrote: UIDs are the API server's, slot names are generated, and both are
checked here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from dbranch.api.errors import InvalidInput

_UID_PATTERN: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_UID: Final = re.compile(_UID_PATTERN)
_SUBVOLUME: Final = re.compile(
    rf"(?:\.(?P<kind>[a-z]+)-)?(?P<owner_uid>{_UID_PATTERN})(?:-(?P<suffix>[0-9a-z]+))?"
)
_SLOT: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

PGDATA: Final = "pgdata"
MARKER: Final = "marker.json"
LOCK: Final = "lock"
PORT: Final = "port"
POSTGRESQL_CONF: Final = "postgresql.conf"
PG_HBA: Final = "pg_hba.conf"
PG_IDENT: Final = "pg_ident.conf"
# Written to PGDATA by initdb.sh when the database is complete; removed when it becomes the root branch.
INITDB_DONE: Final = "dbranch_initdb_done"


def is_uid(text: str) -> bool:
    """Return True if `text` has the form of the UID of a Kubernetes object."""
    return _UID.fullmatch(text) is not None


def checked_uid(uid: str) -> str:
    """Return the UID. Raises InvalidInput if it is none, so that it can never be another path."""
    if not is_uid(uid):
        raise InvalidInput(f"{uid!r} is no UID of a Kubernetes object")
    return uid


def is_slot(text: str) -> bool:
    """Return True if `text` has the form of a slot's name."""
    return _SLOT.fullmatch(text) is not None


def checked_slot(slot: str) -> str:
    """Return the slot's name. Raises InvalidInput if it is no DNS label."""
    if not is_slot(slot):
        raise InvalidInput(f"{slot!r} is no name of a slot")
    return slot


class SubvolumeKind(StrEnum):
    """What a subvolume is whose name is not just its owner's UID. It is never its owner's data as of now."""

    # A snapshot that is being taken.
    NEW = "new"
    # Where initdb runs, before it is the root branch.
    INIT = "init"
    # Data that is being prepared to take the place of its owner's, or that was replaced.
    RESTORE = "restore"
    # Waits to be destroyed. It stays in the directory where it was: a read-only subvolume cannot be moved into
    # another one (tried: EROFS).
    TRASH = "trash"


@dataclass(frozen=True)
class SubvolumeName:
    """The name of a subvolume at the top of a pool: `[.<kind>-]<owner-uid>[-<suffix>]`.

    The owner is the DBBranch or DBSnapshot with that UID. A bare UID is its data; what else it owns has a kind.
    `kind` may be one that only a newer release knows: see `is_understood`. `suffix` makes several of a kind differ:
    [0-9a-z]+.
    """

    owner_uid: str
    kind: str | None = None
    suffix: str | None = None

    @property
    def is_data(self) -> bool:
        """True for the data of the owner itself."""
        return self.kind is None and self.suffix is None

    @property
    def may_hold_data(self) -> bool:
        """True for a subvolume that holds somebody's data, or did, or was about to."""
        return self.is_data or self.kind == SubvolumeKind.RESTORE

    @property
    def is_understood(self) -> bool:
        """True for a name that this release makes or destroys; any other is left alone."""
        return self.is_data or self.kind in frozenset[str](SubvolumeKind)

    def __str__(self) -> str:
        """Render the name as it stands on disk.

        >>> str(SubvolumeName("0f5b3b0c-9d0e-4b52-8d4c-5f8d3c1b2a19", SubvolumeKind.TRASH, "1f"))
        '.trash-0f5b3b0c-9d0e-4b52-8d4c-5f8d3c1b2a19-1f'
        """
        prefix = "" if self.kind is None else f".{self.kind}-"
        return f"{prefix}{self.owner_uid}" + ("" if self.suffix is None else f"-{self.suffix}")

    @classmethod
    def parse(cls, text: str) -> SubvolumeName | None:
        """Parse a name on disk; None where it has another form, so that dbranch did not make it."""
        match = _SUBVOLUME.fullmatch(text)
        return cls(**match.groupdict()) if match else None


@dataclass(frozen=True)
class Layout:
    """The paths below one base directory (absolute).

    `data_kind`: of the subvolumes that are the branches' data in this view, see `prepared`.
    """

    base: Path
    data_kind: SubvolumeKind | None = None

    @property
    def prepared(self) -> Layout:
        """The same node, where a branch's data is what a restore prepares (or has left behind) beside its own.

        So whatever is done to a branch's data can be done to that one, too, by the same functions.
        """
        return replace(self, data_kind=SubvolumeKind.RESTORE)

    def data_name(self, branch_uid: str) -> str:
        """Return the name of the subvolume with a branch's data."""
        return str(SubvolumeName(branch_uid, self.data_kind))

    def owner_of(self, subvolume: str) -> str | None:
        """Return the UID of the branch whose data the subvolume of this name is; None if it is no branch's.

        >>> uid = "0f5b3b0c-9d0e-4b52-8d4c-5f8d3c1b2a19"
        >>> layout = Layout(Path("/base"))
        >>> layout.owner_of(uid) == layout.prepared.owner_of(f".restore-{uid}") == uid
        True
        >>> layout.owner_of(f".restore-{uid}"), layout.prepared.owner_of(uid)
        (None, None)
        """
        name = SubvolumeName.parse(subvolume)
        is_data = name is not None and (name.kind, name.suffix) == (self.data_kind, None)
        return name.owner_uid if name is not None and is_data else None

    @property
    def pools(self) -> Path:
        """The image files and their records. Root's alone."""
        return self.base / "pools"

    @property
    def mounts(self) -> Path:
        return self.base / "mnt"

    @property
    def slots(self) -> Path:
        """The slots. Root's alone: a pod gets its own by a mount, and needs no way to it on the node."""
        return self.base / "slots"

    @property
    def machine_id(self) -> Path:
        """The file with an ID that was generated once for this base directory."""
        return self.base / "machine-id"

    @property
    def attach_lock(self) -> Path:
        """The lock under which a free loop device is taken. Held for nothing that takes long: it is all projects'."""
        return self.pools / ".lock"

    def pool_lock(self, project_uid: str) -> Path:
        """The lock, a temporary file, under which a pool is brought up, taken down, adopted or removed."""
        return self.locks / checked_uid(project_uid)

    def trash_lock(self, project_uid: str) -> Path:
        """The lock, a temporary file, under which the trash of a pool is destroyed."""
        return self.locks / f"trash-{checked_uid(project_uid)}"

    @property
    def slots_lock(self) -> Path:
        """The lock of all slots, outside their directories: a tenant must not be able to hold it."""
        return self.slots / ".lock"

    @property
    def locks(self) -> Path:
        """The locks of objects that are being reconciled, and of pools. Root's alone."""
        return self.base / "locks"

    @property
    def brakes(self) -> Path:
        """The brakes on branches that fill the disk. Root's alone."""
        return self.base / "brakes"

    def brake(self, branch_uid: str, brake: str) -> Path:
        """The empty file that says that a branch has this brake."""
        return self.brakes / f"{checked_uid(branch_uid)}.{brake}"

    @property
    def ballast(self) -> Path:
        """The file that is deleted in an emergency to make room."""
        return self.base / "ballast"

    def image(self, project_uid: str) -> Path:
        return self.pools / f"{checked_uid(project_uid)}.img"

    @property
    def records_lock(self) -> Path:
        """The lock under which records are read and rewritten."""
        return self.pools / ".records"

    def record(self, project_uid: str) -> Path:
        """The record of the project that the image belongs to."""
        return self.pools / f"{checked_uid(project_uid)}.json"

    def tombstone(self, project_uid: str) -> Path:
        """The file that says that the removal of the project's pool was requested."""
        return self.pools / f"{checked_uid(project_uid)}.tombstone"

    def pool(self, project_uid: str) -> Path:
        """Where the project's pool is mounted."""
        return self.mounts / checked_uid(project_uid)

    def subvolume(self, project_uid: str, name: SubvolumeName) -> Path:
        """A subvolume at the top of the project's pool."""
        checked_uid(name.owner_uid)
        return self.pool(project_uid) / str(name)

    def branch(self, project_uid: str, branch_uid: str) -> Path:
        """The subvolume with a branch's data."""
        return self.pool(project_uid) / self.data_name(checked_uid(branch_uid))

    def new_snapshot(self, project_uid: str, branch_uid: str) -> Path:
        """The subvolume in which a branch's snapshot is made, before it is the branch."""
        return self.subvolume(project_uid, SubvolumeName(branch_uid, SubvolumeKind.NEW))

    def initdb_area(self, project_uid: str, branch_uid: str) -> Path:
        """The subvolume in which `initdb` runs, before it is the root branch."""
        return self.subvolume(project_uid, SubvolumeName(branch_uid, SubvolumeKind.INIT))

    def restore(self, project_uid: str, branch_uid: str) -> Path:
        """The subvolume with what is to replace a branch's data; once it has, with the data that it replaced."""
        return self.subvolume(project_uid, SubvolumeName(branch_uid, SubvolumeKind.RESTORE))

    def slot(self, slot: str) -> Path:
        """The directory that the slot's pod mounts at `/slot`."""
        return self.slots / checked_slot(slot)

    def data(self, slot: str) -> Path:
        return self.slot(slot) / "data"

    def run(self, slot: str) -> Path:
        """The directory of the Postgres socket, which the tenant owns."""
        return self.slot(slot) / "run"

    def wake(self, slot: str) -> Path:
        return self.slot(slot) / "wake"
