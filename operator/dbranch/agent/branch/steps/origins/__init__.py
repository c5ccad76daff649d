"""The origins of a branch's data, one file each. The first one that applies makes the data. Pure."""

from __future__ import annotations

from typing import Final

from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.steps.origins.adopt import ADOPT
from dbranch.agent.branch.steps.origins.initdb import INITDB
from dbranch.agent.branch.steps.origins.origin import DataOrigin
from dbranch.agent.branch.steps.origins.restore import RESTORE
from dbranch.agent.branch.steps.origins.snapshot import SNAPSHOT

# The last one applies to every branch.
ORIGINS: Final = (RESTORE, ADOPT, INITDB, SNAPSHOT)


def origin_of(desired: Desired, facts: BranchFacts) -> DataOrigin:
    """Return the origin that makes the data of a branch that is not stored yet."""
    return next(origin for origin in ORIGINS if origin.applies(desired, facts))
