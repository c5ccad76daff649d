"""Which fields Argo CD, Flux or Helm own, by `metadata.managedFields`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

# Prefixes of field managers that would revert the field, or make the object again: Argo CD, Flux, Helm.
_GITOPS_MANAGERS: Final = (
    "argocd",
    "argo-cd",
    "flux",
    "kustomize-controller",
    "helm-controller",
    "helm",
)
_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"


def gitops_manager(body: Mapping[str, Any], *path: str) -> str | None:
    """Return the field manager of Argo CD, Flux or Helm that owns the field at `path`, or None.

    Whoever creates an object by client-side apply owns the fields that the API server has set to their defaults,
    too; what the manifest named is in the annotation of kubectl's "last applied configuration".
    """
    applied = _last_applied(body)
    for entry in body["metadata"].get("managedFields") or ():
        manager = str(entry.get("manager", ""))
        fields: Any = entry.get("fieldsV1") or {}
        for key in path:
            fields = fields.get(f"f:{key}") if isinstance(fields, dict) else None
        if fields is None or not manager.lower().startswith(_GITOPS_MANAGERS):
            continue
        if entry.get("operation") == "Apply" or applied is None or _contains(applied, path):
            return manager
    return None


def _last_applied(body: Mapping[str, Any]) -> Any:
    """Return the manifest of the last client-side apply; None if there was none, or it cannot be read."""
    text = (body["metadata"].get("annotations") or {}).get(_LAST_APPLIED)
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None


def _contains(value: Any, path: tuple[str, ...]) -> bool:
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return False
        value = value[key]
    return True
