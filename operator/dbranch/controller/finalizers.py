"""Removal of finalizers: the controller's own, and the agent's where its node will never remove it."""

from __future__ import annotations

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.errors import ApiError
from dbranch.api.project import Project
from dbranch.controller.scheduling import NodeFacts, needs_release
from dbranch.kube.client import Cluster, object_path
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


def release_if_abandoned(cluster: Cluster, item: Project | Branch, node: NodeFacts | None) -> None:
    """Remove the agent's finalizer from an object that is being deleted if its node's agent will never do so."""
    if needs_release(item, node):
        remove_finalizer(cluster, object_path(item), item.uid, names.AGENT_FINALIZER)
