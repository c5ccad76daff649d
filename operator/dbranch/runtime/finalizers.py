"""Finalizers of a role, put on an object and removed by its reconcile, not by kopf."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dbranch.api.errors import ApiError
from dbranch.kube.client import Cluster, Json
from dbranch.runtime.logs import log_command

# Each attempt fails only if somebody else has written the object within a few milliseconds.
_MAX_ATTEMPTS: Final = 5


def ensure_finalizers(
    cluster: Cluster, path: str, uid: str, version: str, existing: Sequence[str], missing: Sequence[str]
) -> Json | None:
    """Add finalizers to the object at `path`, as read with these ones; return it as written.

    None if it does not exist any more, is another one, or is being deleted, when none can be added.
    """
    for _ in range(_MAX_ATTEMPTS):
        finalizers = list(dict.fromkeys((*existing, *missing)))
        meta = {"resourceVersion": version, "finalizers": finalizers}
        log_command("kubectl", "patch", path, "--type=merge", f"finalizers={finalizers}")
        try:
            return cluster.merge(path, {"metadata": meta})
        except ApiError as error:
            if error.status not in (404, 409):
                raise
        body = cluster.get(path)
        if body is None or body["metadata"]["uid"] != uid or body["metadata"].get("deletionTimestamp"):
            return None
        version, existing = body["metadata"]["resourceVersion"], body["metadata"].get("finalizers") or ()
    raise ApiError(409, "Conflict", f"{path} is written by others all the time")


def remove_finalizer(cluster: Cluster, path: str, uid: str, *finalizers: str) -> None:
    """Remove finalizers from the object at `path`, if it still is that object and is being deleted."""
    body = cluster.get(path)
    if body is None or body["metadata"]["uid"] != uid or not body["metadata"].get("deletionTimestamp"):
        return
    existing = body["metadata"].get("finalizers") or []
    remaining = [name for name in existing if name not in finalizers]
    if remaining == existing:
        return
    version = body["metadata"]["resourceVersion"]
    log_command("kubectl", "patch", path, "--type=merge", f"finalizers={remaining}")
    try:
        cluster.merge(path, {"metadata": {"resourceVersion": version, "finalizers": remaining}})
    except ApiError as error:
        # Written meanwhile by others: that is an event of the object, which leads here again.
        if error.status not in (404, 409):
            raise
