"""What is true of the node itself. Reads only."""

from __future__ import annotations

from dataclasses import dataclass

from dbranch.plan.layout import Layout


@dataclass(frozen=True)
class MachineFacts:
    """`machine_id`: of the disk that holds the base directory (a word that dbranch drew there once, or
    None before `ensure_base`): a node made anew, or a base directory not mounted yet, has another.
    `btrfs`, `loop`: whether the kernel offers them. `propagates`: whether a mount made below the base
    directory reaches the node (`shared:` in mountinfo). `host_free_bytes` of the base's disk.
    """

    machine_id: str | None
    btrfs: bool
    loop: bool
    propagates: bool
    host_free_bytes: int
    host_total_bytes: int


def observe_machine(layout: Layout) -> MachineFacts:
    """The node under the base directory. OSError where it cannot be read."""
    raise NotImplementedError
