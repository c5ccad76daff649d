"""What stands beside the image of a pool that outlived its project. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dbranch.errors import PoolLost
from dbranch.plan.settings_files import Marker


@dataclass(frozen=True)
class Retained:
    """A retained pool: the UID of the project that made it, its filesystem's UUID, and whose it was."""

    project_uid: str
    pool_uuid: str
    namespace: str
    project: str


def render_retained(record: Retained) -> str:
    return json.dumps(asdict(record), indent=1, sort_keys=True) + "\n"


def parse_retained(text: str) -> Retained | None:
    """The record in `text`; None where it is none."""
    try:
        raw: Any = json.loads(text)
        return Retained(*(str(raw[k]) for k in ("project_uid", "pool_uuid", "namespace", "project")))
    except (ValueError, KeyError, TypeError):
        return None


def checked_retained(record: Retained | None, uid: str, namespace: str) -> Retained:
    """The record of pool `uid`. PoolLost where this namespace retained no such pool on this node."""
    if record is None or (record.project_uid, record.namespace) != (uid, namespace):
        raise PoolLost(
            f"namespace {namespace} has no retained pool {uid} on this node; nothing is made; "
            "make a project with the right spec.storage.adopt"
        )
    return record


def retained_branch(markers: Mapping[str, Marker | None], adopted: str, branch: str, uid: str) -> str | None:
    """The UID under which the pool of project `adopted` holds the branch of this name, for the DBBranch `uid`."""
    for at, marker in sorted(markers.items()):
        if marker is None or at == uid:
            continue
        begun = marker.branch_uid == uid
        if begun or (marker.project_uid == adopted and marker.whose.branch == branch):
            return at
    return None
