"""Reconcile the restore of a branch on its node, around the reconcile of the branch, which opens the new data."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace

from dbranch.agent.branch.applying import Applied, apply_plan
from dbranch.agent.branch.beside import RestorePart, restore_fields
from dbranch.agent.branch.effect import BranchEffects, Outcome
from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.observe import endpoint_of
from dbranch.agent.branch.plan import BranchPlan, plan_steps
from dbranch.agent.branch.start_watch import StartWatcher
from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.node_status import patch_node
from dbranch.agent.restore.actions import Exchange
from dbranch.agent.restore.effect import RestoreEffects
from dbranch.agent.restore.facts import RestoreFacts
from dbranch.agent.restore.memory import RestoreMemory
from dbranch.agent.restore.observe import (
    final_finding,
    observe_prepared_anew,
    observe_restore_facts,
)
from dbranch.agent.restore.plan import RestorePlan, plan_restore
from dbranch.agent.slot.pod_spec import slot_class_of
from dbranch.agent.timing import RESTORE_START_POLL_SECONDS, RESTORE_SWITCH_RETRY_SECONDS
from dbranch.agent.volume.restore_rules import RestoreVolume, VolumeState
from dbranch.agent.warm.reconciler import WarmReconciler
from dbranch.api.branch import Branch
from dbranch.api.conditions import Finding
from dbranch.api.enums import NodeRestoreState, RestoreState
from dbranch.api.errors import ApiError, Busy, ClusterUnreachable, SlotTaken
from dbranch.api.restore import ENDED_STATES, NodeRestore
from dbranch.kube.client import Cluster
from dbranch.runtime.logs import log_error
from dbranch.runtime.result import Result
from dbranch.runtime.timings import StepTimer

logger = logging.getLogger(__name__)


class RestoreReconciler:
    """Reconciles restores: `agent/branch/beside.RestoreReconciles`. Called under the branch's lock.

    `request(namespace, name)` requests a reconcile of a branch, `request_snapshot` one of a DBSnapshot.
    """

    def __init__(
        self,
        cluster: Cluster,
        layout: Layout,
        context: NodeContext,
        warm: WarmReconciler,
        metrics: AgentMetrics,
        request: Callable[[str, str], None],
        request_snapshot: Callable[[str, str], None],
    ) -> None:
        self._cluster, self._layout, self._context = cluster, layout, context
        self._warm, self._metrics = warm, metrics
        self._steps = BranchEffects(cluster, layout, context, warm.watched)
        self._effects = RestoreEffects(cluster, layout, context, request_snapshot)
        self._start_watcher = StartWatcher(layout.prepared, request)
        self._memory = RestoreMemory()

    def begin(self, desired: Desired, timer: StepTimer) -> RestorePart:
        """Prepare what is to be the branch's data, and exchange it if that is due."""
        branch = desired.branch
        if self._is_idle(desired):
            self.forget(branch)
            return RestorePart(is_idle=True)
        desired = replace(desired, restore=branch.restore)
        part: RestorePart | None = None
        while part is None:
            try:
                part = self._reconcile(desired, timer)
            except SlotTaken as error:
                logger.info("restore of branch %s/%s: %s", branch.namespace, branch.object_name, error)
            except (ApiError, ClusterUnreachable):
                raise
            except Exception as error:  # noqa: BLE001 - the branch's own status does not say it
                self._log(desired, error)
                part = RestorePart(requeue_after=RESTORE_START_POLL_SECONDS)
        if part.is_answered and (part.answer is None or part.answer.state in ENDED_STATES):
            self._memory.release(branch.uid)
        return part

    def forget(self, branch: Branch) -> None:
        """Forget a branch that has no restore, or is going."""
        self._start_watcher.stop(branch)
        self._memory.forget(branch.uid)

    def _is_idle(self, desired: Desired) -> bool:
        branch = desired.branch
        if branch.restore or branch.node.restore:
            return False
        return not os.path.lexists(self._layout.prepared.branch(desired.project.uid, branch.uid))

    def _reconcile(self, desired: Desired, timer: StepTimer) -> RestorePart | None:
        """Observe, plan and apply once; None: again at once. Raises SlotTaken."""
        order, branch = desired.restore, desired.branch
        facts = self._observe(desired)
        plan = plan_restore(desired, facts)
        timer.record("observe restore")
        is_switching = order is not None and order.state == RestoreState.SWITCHING
        if order and is_switching and facts.volume.state is VolumeState.COMING and not facts.failure:
            self._memory.note_switching(branch.uid, order.uid)
        if plan.failure and order:
            # The next plan throws away what was prepared.
            self._memory.fail(branch.uid, order.uid, plan.failure)
            return None
        if plan.steps:
            return self._prepare(desired, facts, plan, plan.steps, timer)
        self._start_watcher.stop(branch)
        if facts.volume.state is VolumeState.OLD:
            # First the branch's own reconcile opens the new data; then the old pod ends.
            return _part(plan, is_behind=True)
        is_exchange = any(isinstance(action, Exchange) for action in plan.actions)
        try:
            for action in plan.actions:
                if isinstance(action, Exchange):
                    self._look_once_more(desired, facts)
                self._effects.apply(desired, action)
                timer.record(type(action).__name__)
        except (ApiError, ClusterUnreachable):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the restore's answer says it
            self._log(desired, error)
            if is_exchange:
                return self._retry_switch(desired, error)
            return RestorePart(requeue_after=RESTORE_START_POLL_SECONDS)
        if is_exchange:
            return replace(_part(plan), holds=False, is_behind=True)
        self._count(desired, plan.answer)
        return _part(plan)

    def _observe(self, desired: Desired) -> RestoreFacts:
        facts = observe_restore_facts(
            self._cluster, self._layout, self._context, self._warm.template_hash, desired
        )
        order = desired.restore
        if order is None:
            return facts
        uid = desired.branch.uid
        is_coming = facts.volume.state is VolumeState.COMING
        return replace(
            facts,
            failure=self._memory.failure(uid, order.uid),
            has_place=self._memory.take_place(uid, order.uid, is_coming),
        )

    def _prepare(
        self, desired: Desired, facts: RestoreFacts, plan: RestorePlan, steps: BranchPlan, timer: StepTimer
    ) -> RestorePart | None:
        """Carry out steps of the preparation; None if the restore is to be planned again at once."""
        project, branch, order = desired.project, desired.branch, desired.restore
        assert order is not None
        outcome = Outcome(facts.beside.marker, timer)

        def make_plan(beside: BranchFacts) -> BranchPlan:
            return plan_steps(desired, beside)

        self._start_watcher.keep_only(branch, steps.awaits)
        applied = apply_plan(
            self._steps, self._layout.prepared, desired, facts.beside, make_plan, steps, outcome
        )
        if outcome.has_new_pod:
            if desired.slot_class.class_hash == slot_class_of(project).class_hash:
                self._warm.record_use(desired.slot_class, "warm" if outcome.claimed_pod else "new")
            self._warm.trigger(project)
        failure = self._judge(desired, applied, facts)
        if failure:
            self._memory.fail(branch.uid, order.uid, failure)
            return None
        if applied.error is None and applied.plan.complete:
            self._memory.note_progress(branch.uid)
            if order.state == RestoreState.SWITCHING:
                return None
            volume = RestoreVolume(VolumeState.COMING, outcome.marker)
            prepared = plan_restore(
                desired, replace(facts, volume=volume, beside=_complete(applied, outcome))
            )
            if prepared.answer and prepared.answer.state == NodeRestoreState.PREPARED:
                self._note_prepared(desired, prepared.answer, timer)
                # The order to exchange follows at once. The branch's own reconcile comes with it, or else soon.
                is_new = prepared.answer != branch.node.restore
                delay = RESTORE_START_POLL_SECONDS if is_new else None
                return replace(_part(prepared), holds=is_new, requeue_after=delay)
        if applied.plan.awaits and outcome.marker and applied.error is None:
            endpoint = endpoint_of(desired, applied.plan.awaits, outcome.marker)
            self._start_watcher.start(branch, endpoint, facts.beside.start_blocked_by)
        delay = RESTORE_SWITCH_RETRY_SECONDS if plan.holds else RESTORE_START_POLL_SECONDS
        return replace(_part(plan), requeue_after=min(plan.requeue_after or delay, delay))

    def _note_prepared(self, desired: Desired, answer: NodeRestore, timer: StepTimer) -> None:
        """Count and log that a restore is prepared, once."""
        branch, reported = desired.branch, desired.branch.node.restore
        if reported and (reported.uid, reported.state) == (answer.uid, answer.state):
            return
        self._metrics.observe_restore("prepare", self._memory.seconds(branch.uid))
        fields = {"fields": timer.milliseconds()}
        logger.info(
            "branch %s/%s: its restore is prepared", branch.namespace, branch.object_name, extra=fields
        )

    def _judge(self, desired: Desired, applied: Applied, facts: RestoreFacts) -> Finding | None:
        """Return why the preparation is given up now, if it is."""
        order = desired.restore
        assert order is not None
        if applied.error:
            self._log(desired, applied.error)
            final = final_finding(applied.error, desired)
            if final:
                return final
        return self._memory.judge(desired, applied, facts)

    def _look_once_more(self, desired: Desired, facts: RestoreFacts) -> None:
        """Raise Busy if what was prepared is not as the spec asks by now: it is brought up to date first.

        Its pods are those of `facts`, from before the sessions were ended: new sessions are held meanwhile.
        """
        plan = plan_restore(desired, observe_prepared_anew(self._layout, desired, facts))
        if not any(isinstance(action, Exchange) for action in plan.actions):
            raise Busy(
                f"what was prepared for branch {desired.branch.name} has to be changed; it is tried again"
            )

    def _retry_switch(self, desired: Desired, error: Exception) -> RestorePart | None:
        """Hold the branch a moment longer; None once it took too long: the old data is opened again."""
        order = desired.restore
        assert order is not None
        failure = self._memory.judge_switch(desired, error)
        if failure:
            self._memory.fail(desired.branch.uid, order.uid, failure)
            return None
        return RestorePart(holds=True, requeue_after=RESTORE_SWITCH_RETRY_SECONDS)

    def finish(self, desired: Desired, part: RestorePart, result: Result) -> Result:
        """Do what is left behind an exchange; return when to reconcile again, at the latest as `result` says."""
        if part.is_behind:
            self._finish(replace(desired, restore=desired.branch.restore), part)
        return _sooner(result, part.requeue_after)

    def _finish(self, desired: Desired, part: RestorePart) -> None:
        if part.serves:
            self._metrics_of_switch(desired)
        facts = self._observe(desired)
        plan = plan_restore(desired, facts)
        part.requeue_after = plan.requeue_after
        if facts.volume.state is not VolumeState.OLD:
            return
        try:
            for action in plan.actions:
                self._effects.apply(desired, action)
        except (ApiError, ClusterUnreachable):
            raise
        except Exception as error:  # noqa: BLE001 - it is tried again
            self._log(desired, error)
            part.requeue_after = RESTORE_START_POLL_SECONDS
            return
        if plan.answer is None or plan.answer.state != NodeRestoreState.DONE:
            return
        if not part.serves:
            part.requeue_after = RESTORE_START_POLL_SECONDS
            return
        self._count(desired, plan.answer)
        # What was read says Prepared at most, or Exchanged.
        patch_node(self._cluster, desired.branch, restore_fields(desired.branch.node.restore, plan.answer))
        self._memory.release(desired.branch.uid)

    def _metrics_of_switch(self, desired: Desired) -> None:
        seconds = self._memory.pop_switching(desired.branch.uid)
        if seconds is not None:
            self._metrics.observe_restore("switch", seconds)
            fields = {"fields": {"seconds": round(seconds, 3)}}
            where = desired.branch.namespace, desired.branch.object_name
            logger.info("branch %s/%s has the data of its restore", *where, extra=fields)

    def _count(self, desired: Desired, answer: NodeRestore | None) -> None:
        """Count and log the end of a restore, once."""
        reported = desired.branch.node.restore
        if (
            answer is None
            or answer.state not in ENDED_STATES
            or (reported and reported.state == answer.state)
        ):
            return
        self._metrics.count_restore(answer.state.value)
        text = answer.finding.message if answer.finding else ""
        where = desired.branch.namespace, desired.branch.object_name
        logger.info("branch %s/%s: restore %s: %s %s", *where, answer.uid, answer.state, text)

    def _log(self, desired: Desired, error: Exception) -> None:
        log_error(logger, error, f"restore of branch {desired.branch.namespace}/{desired.branch.object_name}")


def _part(plan: RestorePlan, is_behind: bool = False) -> RestorePart:
    return RestorePart(
        plan.answer,
        plan.is_answered,
        holds=plan.holds,
        is_behind=is_behind,
        requeue_after=plan.requeue_after,
    )


def _complete(applied: Applied, outcome: Outcome) -> BranchFacts:
    """Return the facts after all steps were done, as far as a plan asks for them."""
    slot, pod = outcome.slot, outcome.claimed_pod
    facts = replace(applied.facts, marker=outcome.marker, settings_outdated=False, passwords_differ=False)
    facts = replace(facts, outdated_collations=None)
    return replace(facts, pods=(pod,), bound_slots=(slot,)) if pod and slot else facts


def _sooner(result: Result, seconds: float | None) -> Result:
    delays = [delay for delay in (result.requeue_after, seconds) if delay is not None]
    return replace(result, requeue_after=min(delays, default=None))
