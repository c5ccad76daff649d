"""Branches on a mounted pool: initialized, taken as snapshots, thrown away."""

from __future__ import annotations

from dbranch.plan.layout import Layout
from dbranch.plan.settings_files import Marker, Settings


def ensure_initdb_area(layout: Layout, project_uid: str, branch_uid: str, owner: int) -> None:
    """A fresh subvolume for `initdb.sh`, its `pgdata` owned by the user ID `owner`.

    One that is there is destroyed: call only while no pod of an earlier attempt exists, and not again
    once the pod was made (bind it with `slot.ensure_initdb_bound`). DataLost-safe: never touches a branch.
    """
    raise NotImplementedError


def ensure_initdb_adopted(
    layout: Layout, project_uid: str, branch_uid: str, settings: Settings, now: str
) -> Marker:
    """What `initdb.sh` made becomes the root branch. Busy before the script is done; Unsafe where it left
    something that is no database. Already adopted: the marker that is there."""
    raise NotImplementedError


def ensure_snapshot(
    layout: Layout, project_uid: str, source_uid: str, branch_uid: str, settings: Settings, now: str
) -> Marker:
    """The branch as a snapshot of its source, cleaned offline, under its name, on disk for good.

    `now`: RFC 3339, kept as `snapshotTime`. A branch that is there stays as it is: its marker is
    returned. SourceUnsafe (with the path) where the source holds data outside its subvolume; DataLost
    where the source's subvolume is missing.
    """
    raise NotImplementedError


def ensure_settings(layout: Layout, project_uid: str, branch_uid: str, settings: Settings) -> bool:
    """The branch's settings files say `settings`. True where something changed (then reload or restart)."""
    raise NotImplementedError


def ensure_trashed(layout: Layout, project_uid: str, branch_uid: str) -> None:
    """The branch, and what was begun of it, renamed into the trash, on disk for good.

    Busy while a slot has it bound or a Postgres holds its lock. Gone already: nothing to do.
    """
    raise NotImplementedError


def ensure_trash_emptied(layout: Layout, project_uid: str) -> None:
    """Everything in the trash destroyed, what is nested in it first. Space comes back behind this."""
    raise NotImplementedError
