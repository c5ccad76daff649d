"""The text of a branch's marker. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class BranchNames:
    """The names of a branch, for people and for a pool that is taken over; paths are made of UIDs."""

    namespace: str = ""
    project: str = ""
    branch: str = ""


@dataclass(frozen=True)
class Marker:
    """`marker.json`: says that the subvolume is a whole branch. `source_uid` None: the root branch.

    `snapshot_time`: RFC 3339. `major`: PG_VERSION. `cleaned`: open to users. `prepared_floor`: the least
    max_prepared_transactions with which its prepared transactions can be recovered. `password`: the version
    of the owner's password that it surely has, empty where that is not known.
    """

    project_uid: str
    branch_uid: str
    source_uid: str | None
    snapshot_time: str
    major: int
    cleaned: bool
    prepared_floor: int = 0
    password: str = ""
    whose: BranchNames = BranchNames()

    @property
    def is_root(self) -> bool:
        return self.source_uid is None

    def opened(self) -> Marker:
        """The same branch, cleaned."""
        return replace(self, cleaned=True)

    def with_password_version(self, password: str) -> Marker:
        """The same branch with this version of the owner's password."""
        return replace(self, password=password)

    def reassigned_to(self, project_uid: str, branch_uid: str, whose: BranchNames) -> Marker:
        """The same data as a branch of another project."""
        return replace(self, project_uid=project_uid, branch_uid=branch_uid, whose=whose)


def render_marker(marker: Marker) -> str:
    """The marker as JSON. slot-start.sh looks for `"root": true`, so this form is a contract."""
    return json.dumps({**asdict(marker), "root": marker.is_root}, indent=1, sort_keys=True) + "\n"


def parse_marker(text: str) -> Marker | None:
    """The marker in `text`; None where it is none (cut off, or of another version)."""
    try:
        raw: Any = json.loads(text)
        return Marker(
            project_uid=str(raw["project_uid"]),
            branch_uid=str(raw["branch_uid"]),
            source_uid=None if raw["source_uid"] is None else str(raw["source_uid"]),
            snapshot_time=str(raw["snapshot_time"]),
            major=int(raw["major"]),
            cleaned=bool(raw["cleaned"]),
            prepared_floor=int(raw.get("prepared_floor", 0)),
            password=str(raw.get("password", "")),
            whose=BranchNames(**raw.get("whose", {})),
        )
    except (ValueError, KeyError, TypeError):
        return None
