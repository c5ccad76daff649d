"""A thread that watches this node's Postgres pods and wakes the branch whose pod has met with something.

A branch's pod that goes its way (pulled, started, ready) wakes nobody: the socket is watched for that.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from dbranch.agent.context import NodeContext
from dbranch.agent.slot.pod_status import PodFacts, pod_facts
from dbranch.agent.warm.reconciler import WarmReconciler
from dbranch.api import names
from dbranch.api.errors import DbranchError
from dbranch.kube.client import Cluster, path_of
from dbranch.kube.requeue import request_reconcile

logger = logging.getLogger(__name__)

_PAUSE = 1.0


def needs_reconcile(before: PodFacts | None, now: PodFacts | None) -> bool:
    """Whether the branch has to look: its pod is gone, over, in trouble, restarted, or fell silent."""
    if now is None:
        return True
    if before is None:
        return now.over or bool(now.reason and now.reason not in ("ContainerCreating", "PodInitializing"))
    changed = (before.over, before.restarts) != (now.over, now.restarts)
    trouble = now.reason != before.reason and now.reason not in ("", "ContainerCreating", "PodInitializing")
    moved = before.address is not None and now.address != before.address
    return changed or trouble or moved or (before.ready and not now.ready and not now.terminating)


def node_is_full(pod: PodFacts) -> bool:
    """Whether the node had no room for the pod."""
    return pod.over and pod.reason.startswith("OutOf")


def watch_pods(cluster: Cluster, context: NodeContext, warm: WarmReconciler) -> None:
    """For ever: pokes branches by the labels of their pods, and stirs what keeps the waiting ones."""
    path = path_of("v1", "pods", context.namespace)
    seen: dict[str, PodFacts] = {}
    while True:
        try:
            listed: set[str] = set()
            synced = False
            for event in cluster.watch(path, names.LABEL_SLOT, f"spec.nodeName={context.node}"):
                if event["type"] == "SYNCED":
                    synced = True
                    seen = {name: facts for name, facts in seen.items() if name in listed}
                    continue
                body = event["object"]
                facts = pod_facts(body)
                gone = event["type"] == "DELETED"
                if not synced:
                    listed.add(facts.name)
                before = seen.get(facts.name)
                if names.LABEL_BRANCH_UID not in body["metadata"]["labels"]:
                    if gone or facts.over or (facts.running and not (before and before.running)):
                        warm.stir()
                elif needs_reconcile(before, None if gone else facts):
                    if node_is_full(facts):
                        warm.yield_slots()
                    _wake(cluster, body)
                if gone:
                    seen.pop(facts.name, None)
                else:
                    seen[facts.name] = facts
        except (DbranchError, OSError, KeyError) as error:
            logger.warning("watch of pods: %s", error)
            time.sleep(_PAUSE)


def _wake(cluster: Cluster, pod: dict[str, Any]) -> None:
    labels = pod["metadata"].get("labels") or {}
    namespace, project = labels.get(names.LABEL_NAMESPACE), labels.get(names.LABEL_PROJECT)
    branch = labels.get(names.LABEL_BRANCH)
    if namespace and project and branch:
        try:
            request_reconcile(
                cluster, names.AGENT_REQUESTED_AT, namespace, names.branch_object_name(project, branch)
            )
        except DbranchError as error:
            logger.warning("branch %s of %s/%s not woken: %s", branch, namespace, project, error)
