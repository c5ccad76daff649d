"""The actions of a restore besides those that prepare its data, which are the steps of a branch's life. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from dbranch.agent.branch.actions import DeletePod, RemoveSlot


@dataclass(frozen=True)
class DestroyPrepared:
    """Destroy the subvolume that was prepared."""


@dataclass(frozen=True)
class Close:
    """Close the Postgres on the branch's own data to its users, and see that loaded."""

    slot: str


@dataclass(frozen=True)
class EndSessions:
    """End the sessions of the Postgres on the branch's own data, and see none left."""

    slot: str


@dataclass(frozen=True)
class Exchange:
    """Look at what was prepared once more, and exchange it with the branch's own data."""


@dataclass(frozen=True)
class KeepOld:
    """Make the data that the branch had the subvolume of the undo snapshot with this UID."""

    undo_uid: str


@dataclass(frozen=True)
class TrashOld:
    """Make the data that the branch had trash."""


RestoreAction = DeletePod | RemoveSlot | DestroyPrepared | Close | EndSessions | Exchange | KeepOld | TrashOld
