"""The agent's finalizer taken away in its stead, where its node will never do so."""

from __future__ import annotations

from dbranch.api import names
from dbranch.api.errors import ApiError
from dbranch.kube.client import Cluster
from dbranch.runtime.logs import log_command


def ensure_agent_dropped(cluster: Cluster, path: str, uid: str) -> None:
    """The object at `path` (this very one, being deleted) waits for no agent any more."""
    body = cluster.get(path)
    if body is None or body["metadata"]["uid"] != uid or not body["metadata"].get("deletionTimestamp"):
        return
    finalizers = body["metadata"].get("finalizers") or []
    if names.AGENT_FINALIZER not in finalizers:
        return
    left = [name for name in finalizers if name != names.AGENT_FINALIZER]
    version = body["metadata"]["resourceVersion"]
    log_command("kubectl", "patch", path, "--type=merge", f"finalizers={left}")
    try:
        cluster.merge(path, {"metadata": {"resourceVersion": version, "finalizers": left}})
    except ApiError as error:
        # Somebody else wrote it meanwhile: that is an event, and this is asked again.
        if error.status not in (404, 409):
            raise
