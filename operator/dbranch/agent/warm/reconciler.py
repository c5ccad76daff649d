"""Keep a node's warm pods at their number, after the branches that claim them."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.metrics import AgentMetrics, SlotOrigin
from dbranch.agent.slot import effect as slot
from dbranch.agent.slot import pods
from dbranch.agent.slot.pod_spec import SlotClass, template_hash, warm_pod
from dbranch.agent.slot.scripts import read_slot_start
from dbranch.agent.timing import (
    LONGEST_RETRY_SECONDS,
    NODE_FULL_SECONDS,
    REJECTED_CLASS_RETRY_SECONDS,
    WARM_FAILED_RETRY_SECONDS,
    WARM_IDLE_POLL_SECONDS,
    WARM_POD_DELETION_POLL_SECONDS,
    WARM_QUIET_SECONDS,
    WARM_REFILL_DELAY_SECONDS,
    WARM_RESYNC_SECONDS,
)
from dbranch.agent.warm.demand import Demand
from dbranch.agent.warm.observe import observe_scheduled_here, observe_warm_pods
from dbranch.agent.warm.plan import (
    WarmFacts,
    classes_in_use,
    count_starting,
    free_counts,
    labelled,
    next_batch,
    plan_warm,
    rejection_finding,
    target_counts,
    warm_count,
)
from dbranch.agent.warm.sizing import WarmLimits, desired_slots, remembered_seconds
from dbranch.agent.warm.watched import WatchedWarmPods
from dbranch.api import names
from dbranch.api.errors import ApiError, PodRejected
from dbranch.api.project import Project
from dbranch.api.resources import resources_with_defaults
from dbranch.kube.client import Cluster, path_of
from dbranch.kube.status import patch_status
from dbranch.runtime.backoff import Backoff
from dbranch.runtime.logs import log_error
from dbranch.runtime.result import Result

logger = logging.getLogger(__name__)


class WarmReconciler:
    """Keeps the warm pods of each class in use at their number: more of a class that was asked for in bursts lately.

    The pods' state is always read from the API server; `watched`, which the watch of pods fills, is for branches. The
    projects that may use them are those of the last list, and those that were reconciled since. A class whose pods
    the API server rejects holds no other one up.
    """

    def __init__(
        self,
        cluster: Cluster,
        layout: Layout,
        context: NodeContext,
        limits: WarmLimits,
        metrics: AgentMetrics,
    ) -> None:
        self._cluster, self._layout, self._context = cluster, layout, context
        self._limits, self._metrics = limits, metrics
        self._script = read_slot_start()
        self.template_hash = template_hash(context, layout, self._script)
        self._reconcile_lock, self._triggered = threading.Lock(), threading.Event()
        # Slots whose pods were deleted and whose directories are left.
        self._deleted_slots: set[str] = set()
        self.watched = WatchedWarmPods()
        self._node_full_until = 0.0
        # Projects by UID; `_changed` are those that the next reconcile adds to `_scheduled_here`.
        self._scheduled_here: dict[str, Project] = {}
        self._changed: dict[str, Project] = {}
        # When branches got slots, by time.monotonic().
        self._demand = Demand()
        # Since when pods are to be created that were not, by time.monotonic().
        self._behind_since: float | None = None
        self._changed_lock = threading.Lock()
        self._listed_at = -WARM_RESYNC_SECONDS
        # By UID: the fields that were written into a project's status since the last list.
        self._reported: dict[str, dict[str, Any]] = {}
        # By class hash: why the API server rejects the class's pods.
        self._rejected: dict[str, str] = {}
        self._backoff = Backoff(LONGEST_RETRY_SECONDS)

    def trigger(self, *changed: Project) -> None:
        """Request a reconcile, with the projects that have changed."""
        with self._changed_lock:
            _add_newer(self._changed, changed)
        self._triggered.set()

    def record_use(self, slot_class: SlotClass, origin: SlotOrigin) -> None:
        """Record that a branch got a slot of a class that warm slots are kept of: a warm one, or a new one."""
        self._demand.record(slot_class.class_hash, time.monotonic())
        self._metrics.count_claim(origin)

    def yield_slots(self) -> None:
        """Keep no warm pod for NODE_FULL_SECONDS: the node had no room for a branch's pod."""
        self._node_full_until = time.monotonic() + NODE_FULL_SECONDS
        self.trigger()

    def run(self, wait_idle: Callable[[float], bool], beat: Callable[[], None]) -> None:
        """Reconcile for ever. `wait_idle(timeout)` waits `timeout` seconds at most until no branch is starting.

        It returns whether none is. `beat` is called in each round.
        """
        delay = 0.0
        while True:
            beat()
            triggered = self._triggered.wait(delay)
            self._triggered.clear()
            since = time.monotonic() if self._behind_since is None else self._behind_since
            self._await_quiet(wait_idle, since + WARM_REFILL_DELAY_SECONDS)
            try:
                delay = self.reconcile(resync=not triggered).requeue_after or WARM_RESYNC_SECONDS
            except Exception as error:  # noqa: BLE001
                log_error(logger, error, "warm slots")
                delay, self._listed_at = WARM_FAILED_RETRY_SECONDS, -WARM_RESYNC_SECONDS
            if self._behind_since is not None:
                self._behind_since = since

    def _await_quiet(self, wait_idle: Callable[[float], bool], deadline: float) -> None:
        """Wait until no branch is starting and none of a burst follows; until `deadline` at most.

        On a full node nothing is waited for: the branches that start wait for the room of the warm pods.
        """
        while (now := time.monotonic()) < deadline and now >= self._node_full_until:
            if not wait_idle(min(deadline - now, WARM_IDLE_POLL_SECONDS)):
                continue
            now = time.monotonic()
            quiet_in = WARM_QUIET_SECONDS - self._demand.quiet_seconds(now)
            if quiet_in <= 0:
                return
            time.sleep(max(0.0, min(quiet_in, deadline - now)))

    def reconcile(self, resync: bool = False) -> Result:
        """Create and delete warm pods; few are created at a time, and the next ones when these run.

        `resync`: write the projects' status even while pods are starting or terminating.
        """
        with self._reconcile_lock:
            limits, facts = self._limits, self._observe()
            plan = plan_warm(limits.minimum, limits.maximum, self.template_hash, facts)
            if plan.delete:
                # Never delete by what is remembered: another agent on this node may have seen newer objects.
                facts = self._observe(relist=True)
                plan = plan_warm(limits.minimum, limits.maximum, self.template_hash, facts)
            targets = labelled(target_counts(limits.minimum, limits.maximum, facts), facts)
            self._metrics.set_warm_slots(free_counts(self.template_hash, facts), targets)
            for pod in plan.delete:
                self._deleted_slots.add(pod.name)
                self.watched.forget(pod.name)
                pods.delete_warm_pod(self._cluster, self._context.namespace, pod)
            batch = next_batch(plan.create, facts)
            created = [slot_class for slot_class in batch if self._create(slot_class)]
            self._remove_deleted_slots({warm.pod.name for warm in facts.warm_pods})
            is_behind = len(batch) < len(plan.create) and bool(batch or count_starting(facts))
            self._behind_since = time.monotonic() if is_behind else None
            all_running = not plan.create and all(warm.pod.running for warm in facts.warm_pods)
            is_rejected = len(created) < len(batch)
            if resync or is_rejected or (all_running and not self._deleted_slots):
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
        projects, now = tuple(self._scheduled_here.values()), time.monotonic()
        in_use = classes_in_use(projects)
        ages = self._demand.ages(in_use, now, remembered_seconds(self._limits))
        for class_hash in self._rejected.keys() - in_use.keys():
            del self._rejected[class_hash]
            self._backoff.succeed(class_hash)
        not_tried = {key for key in self._rejected if self._backoff.remaining(key, None, now)}
        return WarmFacts(
            projects,
            observe_warm_pods(self._cluster, self._context),
            now < self._node_full_until,
            {key: min(of_class) for key, of_class in ages.items()},
            {key: self._target(slot_class, ages.get(key, [])) for key, slot_class in in_use.items()},
            dict(self._rejected),
            frozenset(not_tried),
        )

    def _target(self, slot_class: SlotClass, ages: list[float]) -> int:
        resources = resources_with_defaults(slot_class.resources, self._context.pods.resources)
        # The API server takes a limit for the request where there is none.
        requests = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
        return desired_slots(self._limits, requests, ages)

    def _create(self, slot_class: SlotClass) -> bool:
        """Create a slot and its pod; return False if the API server rejects the pods of this class."""
        class_hash, name = slot_class.class_hash, names.warm_slot_name(secrets.token_hex(8))
        body = warm_pod(self._context, self._layout, slot_class, name, self._script)
        try:
            pods.ensure_slot_with_pod(self._cluster, self._layout, slot_class.run_as_user, body)
        except PodRejected as error:
            logger.warning("class %s (image %s): %s", class_hash, slot_class.image, error)
            # The name is another one at each try, and the message of a condition stays the same.
            self._rejected[class_hash] = str(error).replace(f'"{name}" ', "").replace(name, "")
            self._backoff.fail(class_hash, REJECTED_CLASS_RETRY_SECONDS, None, time.monotonic())
            return False
        logger.info("slot %s is warm (image %s)", name, slot_class.image)
        self._rejected.pop(class_hash, None)
        self._backoff.succeed(class_hash)
        return True

    def _remove_deleted_slots(self, warm_pod_names: set[str]) -> None:
        """Delete the directories whose pods are gone; keep one whose pod a branch claimed before its deletion."""
        for name in self._deleted_slots - warm_pod_names:
            if self._cluster.get(path_of("v1", "pods", self._context.namespace, name)) is None:
                slot.ensure_slot_removed(self._layout, name)
            self._deleted_slots.discard(name)

    def _report(self, facts: WarmFacts) -> None:
        """Write status.node.warmSlots and .slots of each project for which they have changed."""
        facts = replace(facts, rejected=dict(self._rejected))
        for project in facts.projects:
            rejection = rejection_finding(facts, project)
            fields = {
                "warmSlots": warm_count(self._limits.minimum, self.template_hash, facts, project),
                "slots": rejection.as_dict() if rejection else None,
            }
            slots = project.node.slots
            status = {"warmSlots": project.node.warm_slots, "slots": slots.as_dict() if slots else None}
            if self._reported.get(project.uid, status) == fields or project.deleting:
                continue
            try:
                patch_status(self._cluster, project, {"node": fields})
            except ApiError as error:
                # Gone, or written all the time: the others' report does not wait for it.
                logger.info("project %s/%s: %s", project.namespace, project.name, error)
                continue
            self._reported[project.uid] = fields


def _add_newer(objects: dict[str, Project], changed: Iterable[Project]) -> None:
    """Add projects by UID, except those with an older spec than the existing one, which a slow reconcile has read."""
    objects |= {
        item.uid: item
        for item in changed
        if item.uid not in objects or item.generation >= objects[item.uid].generation
    }
