"""Removal of a role's finalizer by its reconcile, not by kopf."""

from __future__ import annotations

from dbranch.api.errors import ApiError
from dbranch.kube.client import Cluster
from dbranch.runtime.logs import log_command


def remove_finalizer(cluster: Cluster, path: str, uid: str, finalizer: str) -> None:
    """Remove a role's finalizer from the object at `path`, if it still is that object and is being deleted."""
    body = cluster.get(path)
    if body is None or body["metadata"]["uid"] != uid or not body["metadata"].get("deletionTimestamp"):
        return
    finalizers = body["metadata"].get("finalizers") or []
    if finalizer not in finalizers:
        return
    remaining = [name for name in finalizers if name != finalizer]
    version = body["metadata"]["resourceVersion"]
    log_command("kubectl", "patch", path, "--type=merge", f"finalizers={remaining}")
    try:
        cluster.merge(path, {"metadata": {"resourceVersion": version, "finalizers": remaining}})
    except ApiError as error:
        # Written meanwhile by others: that is an event of the object, which leads here again.
        if error.status not in (404, 409):
            raise
