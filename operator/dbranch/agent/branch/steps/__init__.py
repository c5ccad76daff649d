"""The table of steps of a branch's life, one file each. Their order is the order of their conditions. Pure."""

from __future__ import annotations

from typing import Final

from dbranch.agent.branch.step import Step
from dbranch.agent.branch.steps.bind import BIND
from dbranch.agent.branch.steps.clean import CLEAN
from dbranch.agent.branch.steps.credentials import CREDENTIALS
from dbranch.agent.branch.steps.image import IMAGE
from dbranch.agent.branch.steps.open_ import OPEN
from dbranch.agent.branch.steps.pool import POOL
from dbranch.agent.branch.steps.reset import RESET
from dbranch.agent.branch.steps.settings import SETTINGS
from dbranch.agent.branch.steps.slot import SLOT
from dbranch.agent.branch.steps.start import START
from dbranch.agent.branch.steps.verifiers import VERIFIERS
from dbranch.agent.branch.steps.volume import VOLUME

STEPS: Final[tuple[Step, ...]] = (
    *(POOL, VOLUME, SLOT, RESET, BIND, START),
    *(CLEAN, CREDENTIALS, SETTINGS, OPEN, IMAGE, VERIFIERS),
)
