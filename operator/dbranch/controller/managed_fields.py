"""Ownership of fields: what this controller created becomes what it applied. Pure.

Server-side apply removes a field that is no longer applied only if nobody else owns it, and for the API server who
creates an object and who applies it are two, also under one name (`metadata.managedFields[].operation`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]


def ownership_patch(body: Mapping[str, Any], manager: str) -> list[Json]:
    """Return the JSON patch that makes what `manager` created as if it had applied it; [] if it created nothing.

    The API server rejects the patch (409) if the object has been written since `body` was read.
    """
    entries = body["metadata"].get("managedFields") or []
    ours = [e for e in entries if e.get("manager") == manager and not e.get("subresource")]
    if not any(entry.get("operation") == "Update" for entry in ours):
        return []
    fields: Json = {}
    for entry in ours:
        fields = _union(fields, entry.get("fieldsV1") or {})
    applied = {**ours[0], "operation": "Apply", "fieldsV1": fields}
    version = body["metadata"]["resourceVersion"]
    return [
        {"op": "replace", "path": "/metadata/managedFields", "value": [*_without(entries, ours), applied]},
        {"op": "replace", "path": "/metadata/resourceVersion", "value": version},
    ]


def _without(entries: list[Json], ours: list[Json]) -> list[Json]:
    return [entry for entry in entries if entry not in ours]


def _union(one: Json, other: Mapping[str, Any]) -> Json:
    return {**one, **{key: _union(one.get(key, {}), value) for key, value in other.items()}}
