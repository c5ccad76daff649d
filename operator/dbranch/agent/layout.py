"""Where everything lies on a node: paths below the base directory, built from UIDs only.

No part of a path comes from what a user wrote: UIDs are the API server's, slot names are ours, and
both are checked here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dbranch.api.errors import InvalidInput

_UID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SLOT: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

PGDATA: Final = "pgdata"
MARKER: Final = "marker.json"
LOCK: Final = "lock"
PORT: Final = "port"
POSTGRESQL_CONF: Final = "postgresql.conf"
PG_HBA: Final = "pg_hba.conf"
PG_IDENT: Final = "pg_ident.conf"
# Left in PGDATA by initdb.sh when everything is made; taken away at the adoption.
INITDB_DONE: Final = "dbranch_initdb_done"

# Subvolumes that are no branch (yet, any more); a branch's name is its bare UID.
TEMPORARY_PREFIX: Final = ".new-"
INITDB_PREFIX: Final = ".init-"
TRASH: Final = ".trash"


def is_uid(text: str) -> bool:
    """Whether `text` has the form of the UID of a Kubernetes object."""
    return _UID.fullmatch(text) is not None


def checked_uid(uid: str) -> str:
    """The UID itself; InvalidInput where it is none, so that it can never be a path."""
    if not is_uid(uid):
        raise InvalidInput(f"{uid!r} is no UID of a Kubernetes object")
    return uid


def is_slot(text: str) -> bool:
    """Whether `text` has the form of a slot's name."""
    return _SLOT.fullmatch(text) is not None


def checked_slot(slot: str) -> str:
    """The slot's name itself; InvalidInput where it is no DNS label."""
    if not is_slot(slot):
        raise InvalidInput(f"{slot!r} is no name of a slot")
    return slot


@dataclass(frozen=True)
class Layout:
    """The paths below one base directory (absolute)."""

    base: Path

    @property
    def pools(self) -> Path:
        """The image files, and the lock under which loop devices are attached. Root's alone."""
        return self.base / "pools"

    @property
    def mounts(self) -> Path:
        return self.base / "mnt"

    @property
    def slots(self) -> Path:
        return self.base / "slots"

    @property
    def machine_id(self) -> Path:
        """A word drawn once for this base directory."""
        return self.base / "machine-id"

    @property
    def attach_lock(self) -> Path:
        return self.pools / ".lock"

    @property
    def slots_lock(self) -> Path:
        """Outside every slot's directory: a tenant must not be able to hold it."""
        return self.slots / ".lock"

    @property
    def locks(self) -> Path:
        """Locks of the objects that are being worked on. Root's alone."""
        return self.base / "locks"

    def image(self, project_uid: str) -> Path:
        return self.pools / f"{checked_uid(project_uid)}.img"

    def record(self, project_uid: str) -> Path:
        """What says whose a retained image was."""
        return self.pools / f"{checked_uid(project_uid)}.json"

    def unclaimed(self, uid: str) -> Path:
        """The mark of a pool or branch that no object names; as old as that is known."""
        return self.pools / f"{checked_uid(uid)}.unclaimed"

    def pool(self, project_uid: str) -> Path:
        """Where the project's pool is mounted."""
        return self.mounts / checked_uid(project_uid)

    def branch(self, project_uid: str, branch_uid: str) -> Path:
        """A branch's subvolume."""
        return self.pool(project_uid) / checked_uid(branch_uid)

    def temporary(self, project_uid: str, branch_uid: str) -> Path:
        """A snapshot that is not a branch yet."""
        return self.pool(project_uid) / f"{TEMPORARY_PREFIX}{checked_uid(branch_uid)}"

    def initdb_area(self, project_uid: str, branch_uid: str) -> Path:
        """The subvolume in which `initdb` runs, before it is the root branch."""
        return self.pool(project_uid) / f"{INITDB_PREFIX}{checked_uid(branch_uid)}"

    def trash(self, project_uid: str) -> Path:
        return self.pool(project_uid) / TRASH

    def slot(self, slot: str) -> Path:
        """What the slot's pod mounts at `/slot`."""
        return self.slots / checked_slot(slot)

    def data(self, slot: str) -> Path:
        return self.slot(slot) / "data"

    def run(self, slot: str) -> Path:
        """The directory of the Postgres socket; the tenant's."""
        return self.slot(slot) / "run"

    def wake(self, slot: str) -> Path:
        return self.slot(slot) / "wake"
