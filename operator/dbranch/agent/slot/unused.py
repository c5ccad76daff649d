"""Make sure that no pod and no slot uses the data of an object that does not exist."""

from __future__ import annotations

from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.slot import pods
from dbranch.agent.slot.effect import ensure_slot_removed
from dbranch.agent.slot.observe import observe_bind_mounts, observe_pods
from dbranch.api import names
from dbranch.api.errors import Busy
from dbranch.kube.client import Cluster


def ensure_unused(cluster: Cluster, layout: Layout, context: NodeContext, label: str, uid: str) -> None:
    """Delete the pods with this label, then the slots that the project or branch is bound into.

    `label`: LABEL_PROJECT_UID or LABEL_BRANCH_UID. Raises Busy while pods are terminating: Postgres writes its
    shutdown checkpoint.
    """
    existing = observe_pods(cluster, context.namespace, f"{label}={uid}")
    for pod in existing:
        if not pod.terminating:
            pods.delete_pod(cluster, context.namespace, pod)
    if existing:
        raise Busy(f"pods of {uid} are terminating; it is tried again")
    for name, (project_uid, branch_uid) in observe_bind_mounts(layout).items():
        if uid == (project_uid if label == names.LABEL_PROJECT_UID else branch_uid):
            ensure_slot_removed(layout, name)
