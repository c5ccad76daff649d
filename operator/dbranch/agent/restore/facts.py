"""What is true of a restore of a branch on its node. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from dbranch.agent.branch.facts import BranchFacts
from dbranch.agent.volume.marker import Marker
from dbranch.agent.volume.restore_rules import RestoreVolume
from dbranch.api.conditions import Finding


@dataclass(frozen=True)
class RestoreFacts:
    """The data beside a branch's own: what a restore prepares, or what it has left behind.

    `volume`: the subvolume beside the branch's; ABSENT, too, where the pool is not mounted. `own`: the marker of the
    branch's own data. `own_slot`: where that is bound. `beside`: the facts of the data beside it, as of a branch: its
    marker while it is prepared, its pods and slots, its Postgres.

    `has_place`: the node has room for another restore. `failure`: why this one cannot be done.
    """

    volume: RestoreVolume
    own: Marker | None
    beside: BranchFacts
    own_slot: str | None = None
    has_place: bool = True
    failure: Finding | None = None

    @property
    def exchanged_by(self) -> str | None:
        """The UID of the restore that the branch's own data is of; None if it is of none."""
        return self.own.restore.uid if self.own and self.own.restore else None
