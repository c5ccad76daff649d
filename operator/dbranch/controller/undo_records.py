"""Make the DBSnapshots that are records of deletions and restores, once, by names derived from what they are of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dbranch.api import names
from dbranch.api.errors import ApiError, NamespaceEnding, NameTaken, ObjectRefused
from dbranch.controller.failure import is_refusal
from dbranch.kube.client import Cluster, Json, path_of, snapshot_path


def ensure_record(
    cluster: Cluster, manifest: Mapping[str, Any], is_ours: Callable[[Mapping[str, Any]], bool]
) -> Json:
    """Create the DBSnapshot, unless it exists; return it.

    Raises ObjectRefused if the API server rejects it (NamespaceEnding: its namespace is being deleted), NameTaken
    if another snapshot, by `is_ours`, has its name.
    """
    namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
    try:
        return cluster.create(path_of(names.API_VERSION, names.SNAPSHOTS, namespace), manifest)
    except ApiError as error:
        if error.reason == "AlreadyExists":
            existing = cluster.get(snapshot_path(namespace, name))
            if existing is None:
                raise
            if not is_ours(existing):
                raise NameTaken("another snapshot has its name") from error
            return existing
        if not is_refusal(error):
            raise
        refused = NamespaceEnding if _is_ending(cluster, namespace) else ObjectRefused
        raise refused(f"{names.SNAPSHOT_KIND} {name} cannot be created", error) from error


def _is_ending(cluster: Cluster, namespace: str) -> bool:
    body = cluster.get(path_of("v1", "namespaces", name=namespace))
    return body is None or bool(body["metadata"].get("deletionTimestamp"))
