"""Requests and limits of containers, in the form of Kubernetes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def resources_with_defaults(
    resources: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return requests and limits, with the defaults of those resources that have neither.

    >>> resources_with_defaults({"limits": {"cpu": 1}}, {"requests": {"cpu": "2m", "memory": "32Mi"}})
    {'limits': {'cpu': 1}, 'requests': {'memory': '32Mi'}}
    """
    chosen = {name for amounts in resources.values() if isinstance(amounts, Mapping) for name in amounts}
    merged = {kind: dict(amounts) for kind, amounts in resources.items()}
    for kind, amounts in defaults.items():
        missing = {name: amount for name, amount in amounts.items() if name not in chosen}
        if missing:
            merged[kind] = {**merged.get(kind, {}), **missing}
    return merged
