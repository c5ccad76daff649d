"""Make sure that no pod and no slot uses the data of an object that does not exist."""

from __future__ import annotations

from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.slot import pods
from dbranch.agent.slot.effect import ensure_slot_removed
from dbranch.agent.slot.observe import observe_bind_mounts, observe_both_slots, observe_pods
from dbranch.api import names
from dbranch.api.errors import Busy
from dbranch.kube.client import Cluster


def ensure_unused(cluster: Cluster, layout: Layout, context: NodeContext, label: str, uid: str) -> None:
    """Delete the pods with this label, then the slots that anything of the project or branch is bound into.

    `label`: LABEL_PROJECT_UID or LABEL_BRANCH_UID. Raises Busy while pods are terminating: Postgres writes its
    shutdown checkpoint.
    """
    existing = observe_pods(cluster, context.namespace, f"{label}={uid}")
    for pod in existing:
        if not pod.terminating:
            pods.delete_pod(cluster, context.namespace, pod)
    if existing:
        raise Busy(f"pods of {uid} are terminating; it is tried again")
    if label == names.LABEL_PROJECT_UID:
        mounts = observe_bind_mounts(layout).items()
        bound = tuple(slot for slot, (project_uid, _) in mounts if project_uid == uid)
    else:
        own, beside = observe_both_slots(layout, uid, None)
        bound = (*own, *beside)
    for name in bound:
        ensure_slot_removed(layout, name)
