"""The text of a branch's settings files and marker. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True)
class Settings:
    """What a branch's files say. `parameters`: the project's, then the branch's over them; `port`: the branch's
    (names.branch_port); `user`: `spec.postgres.user`, the superuser."""

    user: str
    port: int
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Marker:
    """`marker.json`: says that the subvolume is a whole branch. `source_uid` None: the root branch.

    `snapshot_time`: RFC 3339. `major`: PG_VERSION. `cleaned`: open to users. `prepared_floor`: the least
    max_prepared_transactions with which its prepared transactions can be recovered.
    """

    project_uid: str
    branch_uid: str
    source_uid: str | None
    snapshot_time: str
    major: int
    cleaned: bool
    prepared_floor: int = 0


def check_parameters(parameters: Mapping[str, str]) -> None:
    """InvalidInput naming the parameter that users may not set, or a value that no file can hold."""
    raise NotImplementedError
