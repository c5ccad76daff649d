"""Who else owns an object of dbranch's: what it is deleted with. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dbranch.api import names


def foreign_owners(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """Return `Kind name` of each owner in an object's metadata that is not dbranch's, in order of the names.

    >>> foreign_owners({"ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "pr-1", "uid": "u"}]})
    ('ConfigMap pr-1',)
    """
    references = meta.get("ownerReferences") or ()
    foreign = (r for r in references if not str(r.get("apiVersion", "")).startswith(f"{names.GROUP}/"))
    return tuple(sorted(f"{reference.get('kind')} {reference.get('name')}" for reference in foreign))
