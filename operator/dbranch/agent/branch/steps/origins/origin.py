"""An origin of a branch's data. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.step import Planned
from dbranch.agent.volume.marker import FROM_BRANCH, Marker, Origin


@dataclass(frozen=True)
class DataOrigin:
    """Where the data of a branch comes from: the origin makes it if it `applies`.

    `runs_pod`: it has a pod of its own, which also a stopped branch waits for.
    """

    name: str
    applies: Callable[[Desired, BranchFacts], bool]
    plan: Callable[[Desired, BranchFacts], Planned]
    runs_pod: bool = False


def with_marker(desired: Desired, facts: BranchFacts, cleaned: bool) -> BranchFacts:
    """Return the facts of a branch that has just been stored; of its marker only `cleaned` is of interest."""
    branch, role = desired.branch, desired.settings.names.role
    origin = Origin(FROM_BRANCH, branch.source_uid, "")
    marker = Marker(desired.project.uid, branch.uid, role, origin, "", 0, cleaned)
    return replace(facts, marker=marker, retained_uid=None)
