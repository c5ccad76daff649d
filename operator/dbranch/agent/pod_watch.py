"""A thread that watches this node's Postgres pods and requests a reconcile of the branch whose pod needs one.

A branch's pod that starts as it should (pulled, running, ready) needs none: start_watch watches its socket. The
requests stay in this process: a write to the branch for each change of its pod would wake everybody who watches it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from dbranch.agent.context import NodeContext
from dbranch.agent.slot.pod_status import PodFacts, pod_facts
from dbranch.agent.timing import POD_WATCH_RETRY_SECONDS
from dbranch.agent.warm.reconciler import WarmReconciler
from dbranch.api import names
from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.logs import log_error

logger = logging.getLogger(__name__)

_STARTING_REASONS: Final = ("ContainerCreating", "PodInitializing")


def needs_reconcile(old: PodFacts | None, new: PodFacts | None) -> bool:
    """True if the branch of a pod has to be reconciled after a change of it from `old` to `new`.

    That is if the pod is gone, has terminated, restarted, reports a failure, got another address or is no longer
    ready. None: the pod does not exist.
    """
    if new is None:
        return True
    if old is None:
        return new.terminated or bool(new.reason and new.reason not in _STARTING_REASONS)
    terminated_or_restarted = (old.terminated, old.restarts) != (new.terminated, new.restarts)
    failed = new.reason != old.reason and new.reason not in ("", *_STARTING_REASONS)
    moved = old.address is not None and new.address != old.address
    no_longer_ready = old.ready and not new.ready and not new.terminating
    return terminated_or_restarted or failed or moved or no_longer_ready


def node_is_full(pod: PodFacts) -> bool:
    """True if the node had no room for the pod."""
    return pod.terminated and pod.reason.startswith("OutOf")


def watch_pods(
    cluster: Cluster,
    context: NodeContext,
    warm: WarmReconciler,
    request: Callable[[str, str], None],
    beat: Callable[[], None],
) -> None:
    """Watch for ever: request reconciles of branches by their pods' labels, and trigger those of the warm slots.

    `request(namespace, name)` requests a reconcile of a DBBranch; `beat` is called in each round and at each event.
    """
    path = path_of("v1", "pods", context.namespace)
    pods: dict[str, PodFacts] = {}
    while True:
        beat()
        try:
            listed: set[str] = set()
            synced = False
            for event in cluster.watch(path, names.LABEL_SLOT, f"spec.nodeName={context.node}"):
                beat()
                if event["type"] == "SYNCED":
                    synced = True
                    pods = {name: facts for name, facts in pods.items() if name in listed}
                    warm.watched.keep_only(listed)
                    continue
                body = event["object"]
                facts = pod_facts(body)
                deleted = event["type"] == "DELETED"
                if not synced:
                    listed.add(facts.name)
                old = pods.get(facts.name)
                is_claimed = names.LABEL_BRANCH_UID in body["metadata"]["labels"]
                if deleted or is_claimed:
                    warm.watched.forget(facts.name)
                else:
                    warm.watched.put(facts)
                if not is_claimed:
                    started = facts.running and not (old and old.running)
                    if deleted or facts.terminated or started:
                        warm.trigger()
                elif needs_reconcile(old, None if deleted else facts):
                    if node_is_full(facts):
                        warm.yield_slots()
                    _request_branch_reconcile(request, body)
                if deleted:
                    pods.pop(facts.name, None)
                else:
                    pods[facts.name] = facts
        except Exception as error:  # noqa: BLE001
            log_error(logger, error, "watch of pods")
            time.sleep(POD_WATCH_RETRY_SECONDS)


def _request_branch_reconcile(request: Callable[[str, str], None], pod: dict[str, Any]) -> None:
    labels = pod["metadata"].get("labels") or {}
    namespace, project = labels.get(names.LABEL_NAMESPACE), labels.get(names.LABEL_PROJECT)
    branch = labels.get(names.LABEL_BRANCH)
    if namespace and project and branch:
        request(namespace, names.branch_object_name(project, branch))
