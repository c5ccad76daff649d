"""Orphans: data on a node that no object names. The agent publishes them on its pod, where the CLI reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final

# An annotation may hold 256 KiB together with all others.
_MAX_PUBLISHED: Final = 200


class OrphanKind(StrEnum):
    """What an orphan is: a whole pool, or one branch or snapshot in the pool of a project that exists.

    PROJECT: the pool of a project that was deleted, and that is kept until its time has come.
    """

    POOL = "pool"
    PROJECT = "project"
    BRANCH = "branch"
    SNAPSHOT = "snapshot"

    @property
    def is_pool(self) -> bool:
        """True if it is a whole pool, which can be adopted."""
        return self in (OrphanKind.POOL, OrphanKind.PROJECT)


@dataclass(frozen=True)
class Orphan:
    """Data that no object names. An empty text is what is not known.

    `uid`: of the project, branch or snapshot whose data it was; `pool`: of the project in whose pool it is. `size`:
    what it takes of the disk (not a pool: what it shares with no other), as a quantity. `why`: a clause:
    why it is kept.
    """

    kind: OrphanKind
    uid: str
    pool: str
    namespace: str = ""
    project: str = ""
    branch: str = ""
    size: str = ""
    why: str = ""


@dataclass(frozen=True)
class Published:
    """What an agent publishes. `omitted`: orphans that had no room; `refused`: UID -> why a request was refused."""

    orphans: tuple[Orphan, ...] = ()
    omitted: int = 0
    refused: Mapping[str, str] = field(default_factory=dict)


def render_published(orphans: Sequence[Orphan], refused: Mapping[str, str]) -> str:
    """Render the annotation; an empty text if there is nothing to publish."""
    if not orphans and not refused:
        return ""
    items = [{k: v for k, v in asdict(orphan).items() if v} for orphan in orphans[:_MAX_PUBLISHED]]
    omitted = max(0, len(orphans) - _MAX_PUBLISHED)
    return json.dumps({"items": items, "omitted": omitted, "refused": dict(refused)}, separators=(",", ":"))


def parse_published(text: str | None) -> Published:
    """Parse the annotation; items that only another release understands are left out."""
    try:
        raw: Any = json.loads(text or "{}")
        items = [_parse_orphan(item) for item in raw.get("items") or ()]
        refused = {str(uid): str(why) for uid, why in (raw.get("refused") or {}).items()}
        return Published(tuple(orphan for orphan in items if orphan), int(raw.get("omitted") or 0), refused)
    except (ValueError, TypeError, AttributeError):
        return Published()


def _parse_orphan(item: Mapping[str, Any]) -> Orphan | None:
    try:
        names = ("namespace", "project", "branch", "size", "why")
        texts = (str(item.get(name, "")) for name in names)
        return Orphan(OrphanKind(item["kind"]), str(item["uid"]), str(item["pool"]), *texts)
    except (KeyError, ValueError):
        return None
