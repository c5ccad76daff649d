"""Writes to the status of a DBProject, DBBranch, DBSnapshot or DBRestore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dbranch.api.branch import Branch
from dbranch.api.errors import ApiError
from dbranch.api.project import Project
from dbranch.api.restore import Restore
from dbranch.api.snapshot import Snapshot
from dbranch.kube.client import Cluster, Json, object_path

# Each attempt fails only if somebody else has written the object within a few milliseconds.
_MAX_ATTEMPTS: Final = 10


def patch_status(
    cluster: Cluster,
    item: Project | Branch | Snapshot | Restore,
    changes: Mapping[str, Any],
    resource_version: str | None = None,
) -> Json:
    """Merge `changes` into the status of this very object (by its UID) and return the object as written.

    A field that is None in `changes` is removed. Raises ApiError: 404 if the object does not exist, 409 if its
    name belongs to another object or, with `resource_version`, if the object has been written since.
    """
    path = object_path(item, "status")
    if resource_version:
        return _merge(cluster, path, resource_version, changes)
    # The API server ignores metadata.uid in a patch of the status (tried on 1.34): only the version says which object
    # is meant. It is that of the last read, or of a new one, which compares the UID.
    version = item.resource_version or _read_version(cluster, item)
    for _ in range(_MAX_ATTEMPTS - 1):
        try:
            return _merge(cluster, path, version, changes)
        except ApiError as error:
            if error.status != 409:
                raise
        version = _read_version(cluster, item)
    return _merge(cluster, path, version, changes)


def _merge(cluster: Cluster, path: str, version: str, changes: Mapping[str, Any]) -> Json:
    return cluster.merge(path, {"metadata": {"resourceVersion": version}, "status": changes})


def _read_version(cluster: Cluster, item: Project | Branch | Snapshot | Restore) -> str:
    """Return the present resourceVersion of this very object. Raises ApiError: 404 or 409 if it is gone."""
    path = object_path(item)
    body = cluster.get(path)
    if body is None:
        raise ApiError(404, "NotFound", f"{path} does not exist any more")
    if body["metadata"]["uid"] != item.uid:
        raise ApiError(
            409, "Conflict", f"{path} is another object, created after the one with UID {item.uid}"
        )
    return str(body["metadata"]["resourceVersion"])
