"""Keep a node's warm pods at their number, after the branches that claim them."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable

from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.slot import effect as slot
from dbranch.agent.slot import pods
from dbranch.agent.slot.pod_spec import SlotClass, template_hash, warm_pod
from dbranch.agent.slot.scripts import read_slot_start
from dbranch.agent.timing import (
    NODE_FULL_SECONDS,
    WARM_FAILED_RETRY_SECONDS,
    WARM_POD_DELETION_POLL_SECONDS,
    WARM_RESYNC_SECONDS,
    WARM_WAIT_IDLE_SECONDS,
)
from dbranch.agent.warm.observe import observe_scheduled_here, observe_warm_pods
from dbranch.agent.warm.plan import WarmFacts, free_counts, plan_warm, warm_count
from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.project import Project
from dbranch.kube.client import Cluster, path_of
from dbranch.kube.status import patch_status
from dbranch.runtime.logs import log_error
from dbranch.runtime.result import Result

logger = logging.getLogger(__name__)


class WarmReconciler:
    """Keeps `limit` warm pods of each class in use.

    The pods' state is always read from the API server. The projects and branches that may use them are those of
    the last list, and those that were reconciled since.
    """

    def __init__(
        self, cluster: Cluster, layout: Layout, context: NodeContext, limit: int, metrics: AgentMetrics
    ) -> None:
        self._cluster, self._layout, self._context, self._limit = cluster, layout, context, limit
        self._metrics = metrics
        self._script = read_slot_start()
        self.template_hash = template_hash(context, layout, self._script)
        self._reconcile_lock, self._triggered = threading.Lock(), threading.Event()
        # Slots whose pods were deleted and whose directories are left.
        self._deleted_slots: set[str] = set()
        self._node_full_until = 0.0
        # Projects and branches by UID; `_changed` are those that the next reconcile adds to `_scheduled_here`.
        self._scheduled_here: dict[str, Project | Branch] = {}
        self._changed: dict[str, Project | Branch] = {}
        self._changed_lock = threading.Lock()
        self._listed_at = -WARM_RESYNC_SECONDS
        # By UID: the count that was written into a project's status since the last list.
        self._reported: dict[str, int | None] = {}

    def trigger(self, *changed: Project | Branch) -> None:
        """Request a reconcile, with the projects and branches that have changed."""
        with self._changed_lock:
            _add_newer(self._changed, changed)
        self._triggered.set()

    def yield_slots(self) -> None:
        """Keep no warm pod for NODE_FULL_SECONDS: the node had no room for a branch's pod."""
        self._node_full_until = time.monotonic() + NODE_FULL_SECONDS
        self.trigger()

    def run(self, wait_idle: Callable[[float], None], beat: Callable[[], None]) -> None:
        """Reconcile for ever. `wait_idle(timeout)` blocks until no branch is starting, `timeout` seconds at most.

        `beat` is called in each round.
        """
        delay = 0.0
        while True:
            beat()
            triggered = self._triggered.wait(delay)
            self._triggered.clear()
            wait_idle(WARM_WAIT_IDLE_SECONDS)
            try:
                delay = self.reconcile(resync=not triggered).requeue_after or WARM_RESYNC_SECONDS
            except Exception as error:  # noqa: BLE001
                log_error(logger, error, "warm slots")
                delay, self._listed_at = WARM_FAILED_RETRY_SECONDS, -WARM_RESYNC_SECONDS

    def reconcile(self, resync: bool = False) -> Result:
        """Create and delete warm pods.

        `resync`: write the projects' status even while pods are starting or terminating.
        """
        with self._reconcile_lock:
            facts = self._observe()
            plan = plan_warm(self._limit, self.template_hash, facts)
            if plan.delete:
                # Never delete by what is remembered: another agent on this node may have seen newer objects.
                facts = self._observe(relist=True)
                plan = plan_warm(self._limit, self.template_hash, facts)
            self._metrics.set_warm_slots(free_counts(self.template_hash, facts))
            for pod in plan.delete:
                self._deleted_slots.add(pod.name)
                pods.delete_warm_pod(self._cluster, self._context.namespace, pod)
            for slot_class in plan.create:
                self._create(slot_class)
            self._remove_deleted_slots({warm.pod.name for warm in facts.warm_pods})
            all_running = not plan.create and all(warm.pod.running for warm in facts.warm_pods)
            if resync or (all_running and not self._deleted_slots):
                self._report(facts)
            return Result(WARM_POD_DELETION_POLL_SECONDS if self._deleted_slots else None)

    def _observe(self, relist: bool = False) -> WarmFacts:
        # Take the changed objects before the list is requested: then the list is not older than they are.
        with self._changed_lock:
            changed, self._changed = self._changed, {}
        if relist or time.monotonic() >= self._listed_at + WARM_RESYNC_SECONDS:
            listed = observe_scheduled_here(self._cluster, self._context)
            self._scheduled_here = {item.uid: item for item in listed}
            self._listed_at, self._reported = time.monotonic(), {}
        else:
            _add_newer(self._scheduled_here, changed.values())
        return WarmFacts(
            tuple(item for item in self._scheduled_here.values() if isinstance(item, Project)),
            tuple(item for item in self._scheduled_here.values() if isinstance(item, Branch)),
            observe_warm_pods(self._cluster, self._context),
            time.monotonic() < self._node_full_until,
        )

    def _create(self, slot_class: SlotClass) -> None:
        """Create a slot's directory, then its pod; housekeeping deletes a directory without a pod after a crash."""
        name = names.warm_slot_name(secrets.token_hex(8))
        slot.ensure_slot(self._layout, name, slot_class.run_as_user)
        pods.ensure_pod(self._cluster, warm_pod(self._context, self._layout, slot_class, name, self._script))
        logger.info("slot %s is warm (image %s)", name, slot_class.image)

    def _remove_deleted_slots(self, warm_pod_names: set[str]) -> None:
        """Delete the directories whose pods are gone; keep one whose pod a branch claimed before its deletion."""
        for name in self._deleted_slots - warm_pod_names:
            if self._cluster.get(path_of("v1", "pods", self._context.namespace, name)) is None:
                slot.ensure_slot_removed(self._layout, name)
            self._deleted_slots.discard(name)

    def _report(self, facts: WarmFacts) -> None:
        """Write status.node.warmSlots of each project whose count has changed."""
        for project in facts.projects:
            count = warm_count(self._limit, self.template_hash, facts, project)
            reported = self._reported.get(project.uid, project.node.warm_slots)
            if reported != count and not project.deleting:
                patch_status(self._cluster, project, {"node": {"warmSlots": count}})
                self._reported[project.uid] = count


def _add_newer(objects: dict[str, Project | Branch], changed: Iterable[Project | Branch]) -> None:
    """Add objects by UID, except those with an older spec than the existing one, which a slow reconcile has read."""
    objects |= {
        item.uid: item
        for item in changed
        if item.uid not in objects or item.generation >= objects[item.uid].generation
    }
