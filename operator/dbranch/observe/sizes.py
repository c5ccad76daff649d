"""How much of the pool a branch takes. Reads only."""

from __future__ import annotations

from dataclasses import dataclass

from dbranch.plan.layout import Layout


@dataclass(frozen=True)
class Sizes:
    """In bytes: what the branch's files hold, and the part of it that no other branch shares."""

    logical_bytes: int
    unique_bytes: int


def observe_sizes(layout: Layout, project_uid: str, branch_uid: str) -> Sizes | None:
    """Walks the branch's extents (FIEMAP; about 20 µs a file); None where there is no such branch."""
    raise NotImplementedError
