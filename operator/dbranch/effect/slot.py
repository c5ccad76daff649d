"""Slots: the directory that a Postgres pod mounts, and the bind of a branch into it."""

from __future__ import annotations

from dbranch.plan.layout import Layout


def ensure_slot(layout: Layout, slot: str, owner: int) -> None:
    """The slot's directory: `data` empty and immutable, `run` owned by the user ID `owner`, the FIFO `wake`."""
    raise NotImplementedError


def ensure_bound(layout: Layout, slot: str, project_uid: str, branch_uid: str) -> bool:
    """The branch bound at the slot's `data`, and the waiting script woken. False: it was there already.

    Busy where the slot or the branch is in use otherwise; DataLost where the branch has no subvolume.
    """
    raise NotImplementedError


def ensure_initdb_bound(layout: Layout, slot: str, project_uid: str, branch_uid: str) -> bool:
    """The root branch's initdb area bound at the slot's `data`. As `ensure_bound`."""
    raise NotImplementedError


def ensure_unbound(layout: Layout, slot: str) -> None:
    """Nothing mounted at the slot's `data`. Call only when the slot's pod object is gone. Busy while in use."""
    raise NotImplementedError


def ensure_slot_removed(layout: Layout, slot: str) -> None:
    """Unbound and the directory gone. As `ensure_unbound`."""
    raise NotImplementedError
