"""What is true of a slot: its directory, what is bound there, whether Postgres made its socket. Reads only."""

from __future__ import annotations

from dataclasses import dataclass

from dbranch.plan.layout import Layout


@dataclass(frozen=True)
class SlotFacts:
    """A slot as it is now. `bound` is whether something is mounted at `data`; `project_uid` and `branch_uid`
    say whose subvolume that is, by mountinfo (None: an initdb area, a deleted or a foreign one; then
    `bound_root` is what mountinfo says). `socket_port` is the port in the socket's name, None without one.
    """

    exists: bool
    bound: bool = False
    project_uid: str | None = None
    branch_uid: str | None = None
    bound_root: str | None = None
    socket_port: int | None = None


def observe_slot(layout: Layout, slot: str) -> SlotFacts:
    """A slot by name."""
    raise NotImplementedError


def observe_slots(layout: Layout) -> tuple[str, ...]:
    """The names of all slots that have a directory on this node."""
    raise NotImplementedError
