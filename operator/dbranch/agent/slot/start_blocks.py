"""Why a slot's script does not start Postgres: its words, which its tenant can write, too, and what they mean. Pure.

Only these words become a sentence. Of anything else nothing is repeated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# What the script says while it sees no branch.
NO_BRANCH: Final = "no branch"


@dataclass(frozen=True)
class StartBlock:
    """A reason why Postgres is not started.

    `fact` and `advice` are parts of a message about a branch; `is_version`: the image has another major version than
    the data (`data_major`, `image_major`).
    """

    fact: str
    advice: str
    data_major: str = ""
    image_major: str = ""

    @property
    def is_version(self) -> bool:
        return bool(self.image_major)


_RESTART_AGENT: Final = "restart the node's agent"
_FIXED: Final = {
    "data is not btrfs": StartBlock("what is bound in its slot is not btrfs", _RESTART_AGENT),
    "data is not a root-owned subvolume": StartBlock(
        "what is bound in its slot is not a subvolume that root owns", _RESTART_AGENT
    ),
    "data is not a mount": StartBlock("nothing is mounted in its slot", _RESTART_AGENT),
    # Of release 0.1.0, whose pods may run on after an upgrade.
    "pgdata: owner or mode": StartBlock(
        "PGDATA has another owner than spec.postgres.runAsUser, or another mode than 700", "correct it"
    ),
    "no lock file": StartBlock(
        "its subvolume has no lock file", "create it on the node, empty, with mode 0644"
    ),
    "another container holds the lock": StartBlock(
        "another container still runs on its data", "it starts by itself once that has ended"
    ),
}
_VERSION: Final = re.compile(r"data is of PostgreSQL (\d{1,4}), image is (\d{1,4})")
_PGDATA: Final = re.compile(r"pgdata is (missing|(\d{1,10}):(\d{1,4})), not (\d{1,10}):700")
_UNKNOWN: Final = StartBlock("its script says so for an unknown reason", "see the log of its pod")


def start_block(text: str | None) -> StartBlock | None:
    """Return what the script's words mean; None if it says nothing, or that it sees no branch.

    >>> start_block("data is of PostgreSQL 16, image is 17").data_major
    '16'
    >>> start_block("pgdata is 70:750, not 999:700").fact
    'PGDATA belongs to user 70 and has mode 750, Postgres needs user 999 and mode 700'
    >>> start_block("no branch") is None, start_block("evil words").fact
    (True, 'its script says so for an unknown reason')
    """
    if not text or text == NO_BRANCH:
        return None
    version, pgdata = _VERSION.fullmatch(text), _PGDATA.fullmatch(text)
    if version:
        fact = f"its data is of PostgreSQL {version[1]}, the image is {version[2]}"
        return StartBlock(fact, f"set spec.postgres.image to a {version[1]}", version[1], version[2])
    if pgdata and pgdata[2] is None:
        return StartBlock("PGDATA is missing", "look at its data on the node")
    if pgdata:
        fact = (
            f"PGDATA belongs to user {pgdata[2]} and has mode {pgdata[3]}, "
            f"Postgres needs user {pgdata[4]} and mode 700"
        )
        return StartBlock(fact, "correct that, or spec.postgres.runAsUser")
    return _FIXED.get(text, _UNKNOWN)
