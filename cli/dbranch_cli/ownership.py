"""Who owns a field, by `metadata.managedFields`: what this command line applied, what Git's tools did.

Server-side apply takes away what a manager applied before and leaves out now. So each write of one
field sends along whatever the command line owns already (as client-go's `Extract…` does).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from dbranch.api import names

# Field managers that would write the field back: Argo CD, Flux, Helm.
_GIT = ("argocd", "argo-cd", "flux", "kustomize-controller", "helm-controller", "helm")


def owned(body: Mapping[str, Any], manager: str = names.CLI_MANAGER) -> dict[str, Any]:
    """The part of an object that `manager` applied, with the values that stand there now."""
    extracted: dict[str, Any] = {}
    for entry in body["metadata"].get("managedFields") or ():
        if (
            entry.get("manager") == manager
            and entry.get("operation") == "Apply"
            and not entry.get("subresource")
        ):
            part = _extract(entry.get("fieldsV1") or {}, body)
            extracted = merged(extracted, part if isinstance(part, dict) else {})
    return extracted


def git_manager(body: Mapping[str, Any], *path: str) -> str | None:
    """The tool that keeps the field `path` as Git says, or None: Argo CD's, Flux' or Helm's manager."""
    for entry in body["metadata"].get("managedFields") or ():
        manager = str(entry.get("manager", ""))
        fields: Any = entry.get("fieldsV1") or {}
        for key in path:
            fields = fields.get(f"f:{key}") if isinstance(fields, dict) else None
        if fields is not None and manager.lower().startswith(_GIT):
            return manager
    return None


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on `base`: maps are merged, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = (
            merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
        )
    return result


def _extract(fields: Mapping[str, Any], value: Any) -> Any:
    """`value` reduced to a fieldsV1 set; the whole value where the set is a leaf."""
    if not [key for key in fields if key != "."]:
        return copy.deepcopy(value)
    if isinstance(value, Mapping):
        return {
            key[2:]: _extract(below, value[key[2:]])
            for key, below in fields.items()
            if key.startswith("f:") and key[2:] in value
        }
    if isinstance(value, list):
        keys = [json.loads(key[2:]) for key in fields if key.startswith("k:")]
        return [
            copy.deepcopy(item)
            for item in value
            if any(isinstance(item, Mapping) and key.items() <= item.items() for key in keys)
        ] or copy.deepcopy(value)
    return copy.deepcopy(value)
