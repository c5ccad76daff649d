"""Reconcile a branch on its node: observe, plan, apply, report. A crash at any point only means doing it again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from dbranch.agent.branch.actions import Claim, CreatePod, DeletePod
from dbranch.agent.branch.answers import AnswerMemory
from dbranch.agent.branch.applying import apply_plan
from dbranch.agent.branch.backoffs import BranchBackoffs
from dbranch.agent.branch.beside import RestorePart, RestoreReconciles
from dbranch.agent.branch.effect import BranchEffects, Outcome
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.observe import endpoint_of, observe_branch, observe_postgres
from dbranch.agent.branch.plan import BranchPlan, plan_branch
from dbranch.agent.branch.removal import BranchRemoval
from dbranch.agent.branch.report import (
    failed_findings,
    node_fields,
    serving_pod,
    still_starting_finding,
)
from dbranch.agent.branch.start_watch import StartWatcher
from dbranch.agent.branch.usage import patch_sizes
from dbranch.agent.context import NodeContext
from dbranch.agent.held import HeldDeletions
from dbranch.agent.layout import Layout
from dbranch.agent.metrics import AgentMetrics, SlotOrigin
from dbranch.agent.node_status import patch_node
from dbranch.agent.postgres import session
from dbranch.agent.postgres.answer import Answer
from dbranch.agent.slot.image_ref import digest_of
from dbranch.agent.slot.pod_spec import slot_class_of
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.status import (
    failed_postgres_finding,
    failed_storage_finding,
    held_deletion_finding,
)
from dbranch.agent.timing import (
    BRANCH_FAILED_RETRY_SECONDS,
    FAILED_RETRY_SECONDS,
    FINALIZER_REMOVED_CHECK_SECONDS,
    MEASURED_LATER_SECONDS,
    POD_ADDRESS_POLL_SECONDS,
    RELOADED_SETTINGS_POLL_SECONDS,
)
from dbranch.agent.volume.marker import Role
from dbranch.agent.warm.reconciler import WarmReconciler
from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.conditions import Reason
from dbranch.api.errors import ApiError, Busy, ClusterUnreachable, SlotTaken
from dbranch.api.project import Project, parse_project
from dbranch.kube.client import Cluster, branch_path, object_path, project_path
from dbranch.kube.status import patch_status
from dbranch.runtime.finalizers import remove_finalizer
from dbranch.runtime.limited import LimitedDict
from dbranch.runtime.locks import KeyedLocks
from dbranch.runtime.logs import log_error
from dbranch.runtime.result import GONE, Result
from dbranch.runtime.shared_reads import SharedReads
from dbranch.runtime.timings import StepTimer

logger = logging.getLogger(__name__)

# Branches that never accepted and are gone; only a metric needs them.
_MAX_STARTS: Final = 1000


class BranchReconciler:
    """Reconciles branches. All writes of a branch's `status.node` come from here, but for its sizes.

    `request(namespace, name)` requests a reconcile of a branch, `request_snapshot` one of a DBSnapshot. `restores`
    reconciles what lies beside a branch's data.
    """

    def __init__(
        self,
        cluster: Cluster,
        layout: Layout,
        context: NodeContext,
        locks: KeyedLocks,
        warm: WarmReconciler,
        metrics: AgentMetrics,
        request: Callable[[str, str], None],
        restores: RestoreReconciles,
        request_snapshot: Callable[[str, str], None] = lambda namespace, name: None,
    ) -> None:
        self._cluster, self._layout, self._context, self._locks = cluster, layout, context, locks
        self._warm, self._metrics = warm, metrics
        self._effects, self._restores = BranchEffects(cluster, layout, context, warm.watched), restores
        self._reads = SharedReads(cluster)
        self._start_watcher = StartWatcher(layout, request)
        self._removal = BranchRemoval(cluster, layout, context, warm, request_snapshot)
        self._backoffs, self._answers = BranchBackoffs(), AnswerMemory()
        self._held = HeldDeletions()
        # By UID: the timers of reconciles whose Postgres is starting, and the origins of their slots.
        self._starts: LimitedDict[str, tuple[StepTimer, SlotOrigin]] = LimitedDict(_MAX_STARTS)

    def wait_started(self, timeout: float) -> bool:
        """Block until no branch is starting, `timeout` seconds at most; return True if none is."""
        return self._start_watcher.wait_idle(timeout)

    def forget_failures(self, branch: Branch) -> None:
        """Try at once, in the next reconcile, what had failed."""
        self._backoffs.succeed(branch)

    def reconcile(self, namespace: str, name: str) -> Result:
        """Reconcile a branch; remove it if it is being deleted, and then the agent's finalizer."""
        with self._locks.held(namespace, name):
            timer = StepTimer()
            branch = self._read(namespace, name)
            if branch is None:
                return GONE
            if branch.deleting:
                return self._remove(branch)
            project = self._read_project(branch)
            timer.record("read")
            if project is None or project.deleting:
                return Result()
            desired = Desired(project, branch)
            try:
                with session.shared_connections():
                    part = self._restores.begin(desired, timer)
                    if part.holds:
                        patch_node(self._cluster, branch, part.fields(desired, False))
                        result = Result()
                    else:
                        result = self._reconcile_until_claimed(desired, part, timer)
                    result = self._restores.finish(desired, part, result)
            except (ApiError, ClusterUnreachable, Busy):
                # Neither says anything about the branch.
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the branch's status says it
                result = self._report_failure(desired, error)
        if branch.restore is None and not self._is_measured_later(branch, result):
            # After the lock is released: measuring must not delay the start of the branch's Postgres. Nor the next
            # step of a restore, which is a reconcile of this branch and begins behind this one.
            patch_sizes(self._cluster, self._layout, project, branch)
        return result

    def _is_measured_later(self, branch: Branch, result: Result) -> bool:
        """Return True if another reconcile follows soon: a new branch is measured once, when its users have it."""
        if result.requeue_after is not None and result.requeue_after <= MEASURED_LATER_SECONDS:
            return True
        return branch.node.snapshot_time is None and branch.uid in self._starts

    def _remove(self, branch: Branch) -> Result:
        """Remove pods, slots and data as far as they can be removed now; once nothing is left, the finalizer."""
        if names.AGENT_FINALIZER not in branch.finalizers:
            return GONE
        self._start_watcher.stop(branch)
        self._restores.forget(branch)
        try:
            result, finding = self._removal.remove(branch)
        except Busy as error:
            return self._hold(branch, error)
        except (ApiError, ClusterUnreachable):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the branch's status says it
            log_error(logger, error, f"removal of branch {branch.namespace}/{branch.object_name}")
            finding = failed_storage_finding(error, f"branch {branch.name}")
            result = Result(FAILED_RETRY_SECONDS, unfinished=True)
        if finding:
            patch_node(self._cluster, branch, {"storage": finding.as_dict()})
        if result.requeue_after is not None:
            return result
        self._held.forget(branch.uid)
        self._backoffs.succeed(branch)
        self._answers.forget(branch.uid)
        self._starts.pop(branch.uid, None)
        remove_finalizer(self._cluster, object_path(branch), branch.uid, names.AGENT_FINALIZER)
        return Result(FINALIZER_REMOVED_CHECK_SECONDS)

    def _hold(self, branch: Branch, error: Busy) -> Result:
        """Report what holds the deletion up, if it does so for long; return when to try again."""
        logger.info("branch %s/%s: %s", branch.namespace, branch.object_name, error)
        delay, is_reported = self._held.hold(branch.uid)
        if is_reported:
            finding = held_deletion_finding(error, f"branch {branch.name}")
            patch_node(self._cluster, branch, {"deletion": finding.as_dict()})
        return Result(delay)

    def _read(self, namespace: str, name: str) -> Branch | None:
        """Return the branch; None if it is gone or not scheduled to this node."""
        body = self._cluster.get(branch_path(namespace, name))
        if body is None or (body.get("status") or {}).get("nodeName") != self._context.node:
            return None
        return parse_branch(body)

    def _read_project(self, branch: Branch) -> Project | None:
        """Return the branch's project; None if it is gone or not scheduled to this node."""
        body = self._reads.get(project_path(branch.namespace, branch.project))
        if body is None or (body.get("status") or {}).get("nodeName") != self._context.node:
            return None
        return parse_project(body)

    def _reconcile_until_claimed(self, desired: Desired, part: RestorePart, timer: StepTimer) -> Result:
        """Reconcile, again without each pod that another branch claimed first; without any left it gets a new pod."""
        tried: set[str] = set()
        while True:
            try:
                return self._reconcile(desired, part, tried, timer)
            except SlotTaken as error:
                logger.info("branch %s/%s: %s", desired.branch.namespace, desired.branch.object_name, error)

    def _reconcile(self, desired: Desired, part: RestorePart, tried: set[str], timer: StepTimer) -> Result:
        """Observe, plan, apply and report once. `tried`: the pods not to claim; the one claimed here is added."""
        project, branch = desired.project, desired.branch
        facts = self._observe(desired, tried)
        plan = plan_branch(project, branch, facts)
        timer.record("observe")
        self._start_watcher.keep_only(branch, plan.awaits)
        tried |= {action.pod.name for action in plan.actions if isinstance(action, Claim)}
        outcome = Outcome(facts.marker, timer)
        changes_pods = any(isinstance(action, Claim | CreatePod | DeletePod) for action in plan.actions)

        def make_plan(changed: BranchFacts) -> BranchPlan:
            return plan_branch(project, branch, changed)

        applied = apply_plan(self._effects, self._layout, desired, facts, make_plan, plan, outcome)
        facts, plan, error = applied.facts, applied.plan, applied.error
        if error:
            self._log(desired, error)
        if outcome.rejected_settings and not error:
            # Postgres has not loaded what was written just now.
            rejecting = replace(
                facts,
                marker=outcome.marker,
                rejected_settings=outcome.rejected_settings,
                settings_outdated=False,
                passwords_differ=False,
            )
            plan = replace(plan, postgres=plan_branch(project, branch, rejecting).postgres)
        result = self._report(desired, part, facts, plan, outcome, error)
        if outcome.has_new_pod and desired.slot_class.class_hash == slot_class_of(project).class_hash:
            self._warm.record_use(desired.slot_class, "warm" if outcome.claimed_pod else "new")
        if changes_pods or branch.node.observed_generation != branch.generation:
            self._warm.trigger(project)
        return result

    def _observe(self, desired: Desired, tried: set[str]) -> BranchFacts:
        facts = observe_branch(
            self._cluster,
            self._layout,
            self._context,
            self._warm.template_hash,
            desired,
            self._warm.watched,
            tried,
        )
        facts = replace(facts, backoff_seconds=self._backoffs.remaining(desired))
        return self._answers.judged(desired, observe_postgres(self._layout, desired, facts))

    def _report(
        self,
        desired: Desired,
        part: RestorePart,
        facts: BranchFacts,
        plan: BranchPlan,
        outcome: Outcome,
        error: Exception | None,
    ) -> Result:
        """Write the status, and return when to reconcile again."""
        branch, marker, timer = desired.branch, outcome.marker, outcome.timer
        storage, postgres, opened = plan.storage, plan.postgres, serving_pod(facts, marker)
        if error:
            storage, postgres = failed_findings(desired, facts, marker, storage, error)
        has_no_address = opened is not None and not opened.address
        if has_no_address:
            # The API server does not have it yet. Until then nobody can be sent there, and the status stays as it is.
            facts = replace(facts, server_version=None, refusal=Answer.STARTING)
            postgres = still_starting_finding(desired)
        node = node_fields(desired, facts, marker, outcome.slot, storage, postgres)
        if has_no_address:
            # It is said in the same write as the address.
            node.pop("opened", None)
        node |= part.fields(desired, serves=opened is not None and bool(opened.address) and error is None)
        if marker and marker.role is Role.ROOT and not desired.project.node.initialized:
            initialized = {"initialized": True, "superuser": marker.superuser}
            body = patch_status(self._cluster, desired.project, {"node": initialized})
            desired = replace(desired, project=parse_project(body))
        if outcome.has_new_pod or not desired.runs:
            self._starts.pop(branch.uid, None)
        starting_slot = None if error else plan.awaits
        if starting_slot:
            origin: SlotOrigin = "warm" if outcome.claimed_pod else "new"
            self._starts.setdefault(branch.uid, (timer, origin))
        image_pod = opened or (facts.initdb_pod if facts.initdb_done else None)
        if image_pod:
            self._record_image(desired, image_pod)
        patch_node(self._cluster, desired.branch, node)
        if opened and facts.server_version and postgres and postgres.admits:
            self._report_start(desired, facts, outcome)
        if starting_slot and marker:
            endpoint = endpoint_of(desired, starting_slot, marker)
            self._start_watcher.start(branch, endpoint, facts.start_blocked_by)
        if has_no_address:
            return Result(POD_ADDRESS_POLL_SECONDS)
        return Result(self._delay(desired, plan, outcome, error))

    def _delay(
        self, desired: Desired, plan: BranchPlan, outcome: Outcome, error: Exception | None
    ) -> float | None:
        """Return the seconds after which to reconcile again: less and less often what fails again and again."""
        if isinstance(error, Busy):
            return BRANCH_FAILED_RETRY_SECONDS
        if error:
            return self._backoffs.fail(desired)
        if plan.retry_after:
            return self._backoffs.fail(desired, plan.steps[-1], plan.retry_after)
        if plan.postgres and (plan.postgres.admits or plan.postgres.reason == Reason.STOPPED):
            self._backoffs.succeed(desired.branch)
        if outcome.reloaded:
            return plan.requeue_after or RELOADED_SETTINGS_POLL_SECONDS
        return plan.requeue_after

    def _report_start(self, desired: Desired, facts: BranchFacts, outcome: Outcome) -> None:
        """Count and log that Postgres has begun to accept, and write the project's Postgres version if it is new."""
        branch, project, version = desired.branch, desired.project, facts.server_version
        reported = branch.node.postgres
        claimed: tuple[StepTimer, SlotOrigin] = outcome.timer, "warm"
        started = self._starts.pop(branch.uid, claimed if outcome.claimed_pod else None)
        if started:
            timer, origin = started
            timer.record("report")
            self._metrics.observe_start(origin, timer.total_seconds())
            fields = {"fields": timer.milliseconds()}
            logger.info("branch %s/%s accepts", branch.namespace, branch.object_name, extra=fields)
        elif reported and reported.admits:
            return
        if project.node.postgres_version != version:
            patch_status(self._cluster, project, {"node": {"postgresVersion": version}})

    def _record_image(self, desired: Desired, pod: PodFacts) -> None:
        """Write which image spec.postgres.image is, unless that is known: pods that are created later use it."""
        project, image = desired.project, desired.project.postgres.image
        if project.node.image == image or not pod.image_id or pod.image != image:
            return
        fields = {"image": image, "imageID": pod.image_id, "imageDigest": digest_of(pod.image_id)}
        self._warm.trigger(parse_project(patch_status(self._cluster, project, {"node": fields})))

    def _report_failure(self, desired: Desired, error: Exception) -> Result:
        """Write that the branch could not be observed or planned."""
        self._log(desired, error)
        reported = desired.branch.node.storage
        if reported and reported.reason == Reason.STORED:
            node = {"postgres": failed_postgres_finding(error, desired.subject).as_dict()}
        else:
            node = {"storage": failed_storage_finding(error, desired.subject).as_dict()}
        patch_node(self._cluster, desired.branch, node)
        return Result(self._backoffs.fail(desired))

    def _log(self, desired: Desired, error: Exception) -> None:
        log_error(logger, error, f"branch {desired.branch.namespace}/{desired.branch.object_name}")
