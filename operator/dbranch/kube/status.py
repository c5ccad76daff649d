"""Writes to the status of a DBProject or DBBranch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dbranch.api.branch import Branch
from dbranch.api.project import Project
from dbranch.kube.client import Cluster, Json, object_path


def patch_status(
    cluster: Cluster, item: Project | Branch, changes: Mapping[str, Any], resource_version: str | None = None
) -> Json:
    """Merge `changes` into the status of this very object (by its UID) and return the object as written.

    A field that is None in `changes` is removed. Raises ApiError: 404 if the object does not exist, 409 if its
    name belongs to another object or, with `resource_version`, if the object has been written since.
    """
    identity = {"resourceVersion": resource_version} if resource_version else {"uid": item.uid}
    return cluster.merge(object_path(item, "status"), {"metadata": identity, "status": changes})
