"""Ownership of fields by `metadata.managedFields`: of this command line.

Server-side apply removes a field that its manager applied before and now omits. So each write of one field
also sends the fields that this command line owns already (as client-go's `Extract…` functions do).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from dbranch.api import names


def owned_fields(body: Mapping[str, Any], manager: str = names.CLI_MANAGER) -> dict[str, Any]:
    """Return the part of an object that `manager` applied, with the object's present values."""
    fields: dict[str, Any] = {}
    for entry in body["metadata"].get("managedFields") or ():
        if (
            entry.get("manager") == manager
            and entry.get("operation") == "Apply"
            and not entry.get("subresource")
        ):
            part = _extract(entry.get("fieldsV1") or {}, body)
            fields = merge_maps(fields, part if isinstance(part, dict) else {})
    return fields


def merge_maps(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `override` merged in: maps recursively, any other value is replaced."""
    result = dict(base)
    for key, value in override.items():
        base_value = result.get(key)
        result[key] = (
            merge_maps(base_value, value)
            if isinstance(base_value, Mapping) and isinstance(value, Mapping)
            else value
        )
    return result


def _extract(fields: Mapping[str, Any], value: Any) -> Any:
    """Return `value` reduced to a fieldsV1 set, or all of it if the set is a leaf."""
    if not [key for key in fields if key != "."]:
        return copy.deepcopy(value)
    if isinstance(value, Mapping):
        return {
            key[2:]: _extract(subset, value[key[2:]])
            for key, subset in fields.items()
            if key.startswith("f:") and key[2:] in value
        }
    if isinstance(value, list):
        sets = [(json.loads(key[2:]), subset) for key, subset in fields.items() if key.startswith("k:")]
        return [
            _extract_item(key, subset, item)
            for item in value
            for key, subset in sets
            if isinstance(item, Mapping) and key.items() <= item.items()
        ] or copy.deepcopy(value)
    return copy.deepcopy(value)


def _extract_item(key: Mapping[str, Any], subset: Mapping[str, Any], item: Mapping[str, Any]) -> Any:
    """Return an item of a list by its key: the key, and the fields of the set. Others may own the rest of it."""
    fields = [name for name in subset if name != "."]
    return {**key, **(_extract(subset, item) if fields else {})}
