"""Reconcile a branch on its node: observe, plan, apply, report. A crash at any point only means doing it again."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from dbranch.agent.branch.observe import observe_branch
from dbranch.agent.branch.plan import (
    Action,
    Adopt,
    AwaitPostgres,
    Bind,
    BranchFacts,
    BranchPlan,
    Claim,
    CreateInitdbArea,
    CreateInitdbPod,
    CreatePod,
    DeletePod,
    PromoteInitdb,
    RemoveSlot,
    SetPassword,
    TakeSnapshot,
    WriteSettings,
    plan_branch,
)
from dbranch.agent.branch.start_watch import StartingBranch, StartWatcher
from dbranch.agent.branch.usage import patch_sizes
from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.pool.effect import ensure_pool, ensure_pool_down
from dbranch.agent.pool.observe import observe_pool
from dbranch.agent.postgres import session
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.slot import effect as slot
from dbranch.agent.slot import pods
from dbranch.agent.slot.observe import observe_branch_slots, observe_pods
from dbranch.agent.slot.pod_spec import branch_pod, claim_patch, initdb_pod
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.slot.scripts import read_initdb, read_slot_start
from dbranch.agent.status import (
    changed_fields,
    drop_insignificant,
    failed_postgres_finding,
    failed_storage_finding,
)
from dbranch.agent.timing import (
    BRANCH_FAILED_RETRY_SECONDS,
    CHECKPOINT_TIMEOUT_SECONDS,
    CONTROLLER_FINALIZER_POLL_SECONDS,
    NO_CHECKPOINT_GRACE_SECONDS,
    POD_DELETION_POLL_SECONDS,
    RELOADED_SETTINGS_POLL_SECONDS,
    STORAGE_UNCLEAR_RETRY_SECONDS,
    WARM_START_TIMEOUT_SECONDS,
)
from dbranch.agent.volume import effect as subvolume
from dbranch.agent.volume.adopt import ensure_branch_adopted
from dbranch.agent.volume.marker import BranchNames, Marker, Role
from dbranch.agent.volume.settings import Settings
from dbranch.agent.warm.reconciler import WarmReconciler
from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.errors import DbranchError, NotAccepting, SlotTaken, StorageUnclear
from dbranch.api.project import Project, parse_project
from dbranch.kube.client import Cluster, branch_path, project_path
from dbranch.kube.status import patch_status
from dbranch.runtime.clock import now_rfc3339
from dbranch.runtime.locks import KeyedLocks
from dbranch.runtime.timings import StepTimer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Scope:
    """A project and one of its branches, as the API server has them now."""

    project: Project
    branch: Branch


@dataclass
class _Outcome:
    """What the actions of one reconcile did.

    `slot`: the slot that was bound or created last. `claimed_pod`: the warm pod that the branch got.
    `awaited_slot`: the slot in which Postgres is starting. `reloaded`: Postgres reads its settings again.
    """

    marker: Marker | None
    timer: StepTimer
    slot: str | None = None
    claimed_pod: PodFacts | None = None
    awaited_slot: str | None = None
    reloaded: bool = False


class BranchReconciler:
    """Reconciles branches. Each call returns the seconds after which it is to be called again, or None."""

    def __init__(
        self,
        cluster: Cluster,
        layout: Layout,
        context: NodeContext,
        locks: KeyedLocks,
        warm: WarmReconciler,
        metrics: AgentMetrics,
    ) -> None:
        self._cluster, self._layout, self._context, self._locks = cluster, layout, context, locks
        self._warm = warm
        self._start_watcher = StartWatcher(cluster, layout, context.namespace, locks, metrics)

    def wait_idle(self, timeout: float) -> None:
        """Block until no branch is reconciled or starting, `timeout` seconds at most."""
        self._start_watcher.wait_idle(timeout)

    def reconcile(self, namespace: str, name: str) -> float | None:
        """Reconcile a branch that is not being deleted."""
        with self._start_watcher.reconciling(), self._locks.held(namespace, name):
            timer = StepTimer()
            scope = self._read(namespace, name)
            timer.record("read")
            if scope is None or scope.branch.deleting or scope.project.deleting:
                return None
            retry_after = self._reconcile_until_claimed(scope, timer)
        # After the lock is released: measuring must not delay the start of the branch's Postgres.
        patch_sizes(self._cluster, self._layout, scope.project, scope.branch)
        return retry_after

    def _read(self, namespace: str, name: str) -> _Scope | None:
        """Return the branch and its project; None if one of them is gone or not scheduled to this node."""
        body = self._cluster.get(branch_path(namespace, name))
        if body is None or (body.get("status") or {}).get("nodeName") != self._context.node:
            return None
        branch = parse_branch(body)
        project_body = self._cluster.get(project_path(namespace, branch.project))
        if project_body is None or (project_body.get("status") or {}).get("nodeName") != self._context.node:
            return None
        return _Scope(parse_project(project_body), branch)

    def _reconcile_until_claimed(self, scope: _Scope, timer: StepTimer) -> float | None:
        """Reconcile, again without each pod that another branch claimed first; without any left it gets a new pod."""
        tried: set[str] = set()
        while True:
            try:
                return self._reconcile(scope, tried, timer)
            except SlotTaken as error:
                logger.info("branch %s/%s: %s", scope.branch.namespace, scope.branch.object_name, error)

    def _reconcile(self, scope: _Scope, tried: set[str], timer: StepTimer) -> float | None:
        """Observe, plan, apply and report once. `tried`: the pods not to claim; the one claimed here is added."""
        project, branch = scope.project, scope.branch
        facts = observe_branch(
            self._cluster, self._layout, self._context, self._warm.template_hash, project, branch
        )
        untried = tuple(pod for pod in facts.warm_pods if pod.name not in tried)
        facts = self._ask_postgres(scope, replace(facts, warm_pods=untried))
        plan = plan_branch(project, branch, facts)
        storage, postgres, retry_after = plan.storage, plan.postgres, plan.retry_after
        outcome = _Outcome(facts.marker, timer)
        timer.record("observe")
        tried |= {action.pod.name for action in plan.actions if isinstance(action, Claim)}
        try:
            for action in plan.actions:
                self._apply(scope, action, outcome)
                timer.record(type(action).__name__)
        except SlotTaken:
            raise
        except (DbranchError, OSError) as error:
            logger.warning("branch %s/%s: %s", branch.namespace, branch.object_name, error)
            subject, retry_after = f"branch {branch.name}", BRANCH_FAILED_RETRY_SECONDS
            if outcome.marker is None:
                storage, postgres = failed_storage_finding(error, subject), None
            else:
                postgres = failed_postgres_finding(error, subject)
        node: dict[str, Any] = {"observedGeneration": branch.generation, "storage": storage.as_dict()}
        if postgres:
            node["postgres"] = postgres.as_dict()
        node |= _endpoint_fields(branch, facts, outcome)
        if outcome.marker:
            node |= {"sourceUID": outcome.marker.origin.uid, "snapshotTime": outcome.marker.snapshot_time}
            if outcome.marker.role is Role.ROOT and not project.node.initialized:
                body = patch_status(self._cluster, project, {"node": {"initialized": True}})
                project = parse_project(body)
        self._report(scope, node, outcome)
        if _changes_pods(plan) or branch.node.observed_generation != branch.generation:
            self._warm.trigger(project, branch)
        if outcome.reloaded:
            retry_after = retry_after or RELOADED_SETTINGS_POLL_SECONDS
        return retry_after

    def _report(self, scope: _Scope, node: dict[str, Any], outcome: _Outcome) -> None:
        """Write `node`, with the start of Postgres if it accepts soon; else the start watcher writes that later."""
        branch = scope.branch
        if not (outcome.awaited_slot and outcome.marker):
            self._write(branch, node)
            return
        starting = StartingBranch(
            scope.project,
            branch,
            outcome.awaited_slot,
            outcome.marker,
            outcome.claimed_pod,
            outcome.timer,
        )
        if outcome.claimed_pod and self._start_watcher.try_open(starting, WARM_START_TIMEOUT_SECONDS, node):
            return
        self._write(branch, node)
        self._start_watcher.start(starting)

    def _ask_postgres(self, scope: _Scope, facts: BranchFacts) -> BranchFacts:
        """Return the facts with `server_version` and `pending_settings` of the Postgres in the bound slot."""
        live = {pod.name for pod in facts.pods if not pod.terminating and not pod.terminated}
        slot_name = next((name for name in facts.bound_slots if name in live), None)
        if slot_name is None or facts.marker is None:
            return facts
        endpoint = _endpoint(scope, slot_name, facts.marker)
        version = session.read_server_version(self._layout, endpoint)
        pending = session.read_pending_settings(self._layout, endpoint) if version else ()
        return replace(facts, server_version=version, pending_settings=pending)

    def _apply(self, scope: _Scope, action: Action, outcome: _Outcome) -> None:
        project, branch, layout = scope.project, scope.branch, self._layout
        owner = project.postgres.run_as_user
        match action:
            case DeletePod(pod):
                pods.delete_pod(self._cluster, self._context.namespace, pod)
            case RemoveSlot(name):
                slot.ensure_slot_removed(layout, name)
            case CreateInitdbArea(name):
                subvolume.ensure_initdb_area(layout, project.uid, branch.uid, owner)
                slot.ensure_slot(layout, name, owner)
                slot.ensure_initdb_bound(layout, name, project.uid, branch.uid)
            case CreateInitdbPod():
                pods.ensure_pod(
                    self._cluster, initdb_pod(self._context, layout, project, branch, read_initdb())
                )
            case PromoteInitdb():
                outcome.marker = subvolume.ensure_initdb_promoted(
                    layout, project.uid, branch.uid, _settings(scope), now_rfc3339()
                )
            case Claim(pod):
                outcome.claimed_pod = pods.ensure_claimed(
                    self._cluster, self._context.namespace, pod, claim_patch(project, branch, pod.uid)
                )
                outcome.slot = pod.name
            case CreatePod(name):
                slot.ensure_slot(layout, name, owner)
                body = branch_pod(self._context, layout, project, branch, name, read_slot_start())
                pods.ensure_pod(self._cluster, body)
                outcome.slot = name
            case TakeSnapshot(source_uid):
                self._checkpoint(scope, source_uid)
                outcome.timer.record("Checkpoint")
                outcome.marker = subvolume.ensure_snapshot(
                    layout, project.uid, source_uid, branch.uid, _settings(scope), now_rfc3339()
                )
            case Adopt(retained_uid):
                outcome.marker = ensure_branch_adopted(
                    layout, project.uid, retained_uid, branch.uid, _settings(scope)
                )
            case Bind(name):
                slot.ensure_slot(layout, name, owner)
                slot.ensure_bound(layout, name, project.uid, branch.uid)
                outcome.slot = name
            case WriteSettings(name):
                changed = subvolume.ensure_settings(layout, project.uid, branch.uid, _settings(scope))
                if changed and outcome.marker:
                    self._reload(_endpoint(scope, name, outcome.marker))
                    outcome.reloaded = True
            case SetPassword(name):
                if outcome.marker:
                    self._start_watcher.set_password(project, branch, _endpoint(scope, name, outcome.marker))
            case AwaitPostgres(name):
                outcome.awaited_slot = outcome.slot = name

    def _reload(self, endpoint: Endpoint) -> None:
        try:
            session.reload(self._layout, endpoint)
        except NotAccepting:
            logger.info("slot %s: Postgres does not run; it reads the settings at its start", endpoint.slot)

    def _checkpoint(self, scope: _Scope, source_uid: str) -> None:
        """Run CHECKPOINT on the source if it runs, best effort, so that the branch has little WAL to replay."""
        marker = subvolume.read_marker(self._layout.branch(scope.project.uid, source_uid))
        for name in observe_branch_slots(self._layout, source_uid, None):
            if marker:
                user = scope.project.postgres.user
                endpoint = Endpoint(name, names.branch_port(source_uid), user, marker.major)
                if not session.checkpoint(self._layout, endpoint, CHECKPOINT_TIMEOUT_SECONDS):
                    logger.info(
                        "source %s: no CHECKPOINT; the branch replays more WAL at its start", source_uid
                    )

    def _write(self, branch: Branch, node: dict[str, Any]) -> None:
        current = branch.status.get("node") or {}
        changed = changed_fields(current, drop_insignificant(current, node))
        changed = {key: value for key, value in changed.items() if value is not None or key in current}
        if changed:
            patch_status(self._cluster, branch, {"node": changed})

    def remove(self, body: dict[str, Any]) -> float | None:
        """Delete the pods, slots and data of a branch that is being deleted; return None once nothing is left."""
        branch = parse_branch(body)
        if names.CONTROLLER_FINALIZER in branch.finalizers:
            return CONTROLLER_FINALIZER_POLL_SECONDS
        with self._locks.held(branch.namespace, branch.object_name):
            self._start_watcher.stop(branch.namespace, branch.object_name)
            existing = observe_pods(
                self._cluster, self._context.namespace, f"{names.LABEL_BRANCH_UID}={branch.uid}"
            )
            for pod in existing:
                if not pod.terminating:
                    pods.delete_pod(self._cluster, self._context.namespace, pod, NO_CHECKPOINT_GRACE_SECONDS)
            if existing:
                return POD_DELETION_POLL_SECONDS
            try:
                self._delete_data(branch)
            except StorageUnclear as error:
                # Wait for a newer agent: data with a marker that this one does not understand is not deleted.
                finding = failed_storage_finding(error, f"branch {branch.name}")
                logger.warning("branch %s/%s: %s", branch.namespace, branch.object_name, error)
                self._write(branch, {"storage": finding.as_dict()})
                return STORAGE_UNCLEAR_RETRY_SECONDS
            self._warm.trigger(branch)
            return None

    def _delete_data(self, branch: Branch) -> None:
        """Remove the branch's slots and its subvolume. Raises StorageUnclear if a newer release wrote the data."""
        # Also the slot in its status, which may have been created and never bound.
        for name in observe_branch_slots(self._layout, branch.uid, branch.node.slot):
            slot.ensure_slot_removed(self._layout, name)
        body = self._cluster.get(project_path(branch.namespace, branch.project))
        project = parse_project(body) if body else None
        # A project that is being deleted deletes its pool, or retains it as it is.
        if project is None or project.deleting or project.node.pool_uuid is None:
            return
        pool = observe_pool(self._layout, project.uid)
        if not pool.image_exists:
            return
        if not pool.mounted:
            node = project.node
            ensure_pool(self._layout, project.uid, 0, node.pool_uuid, node.machine_id)
        subvolume.ensure_trashed(self._layout, project.uid, branch.uid)
        subvolume.ensure_trash_emptied(self._layout, project.uid)
        if not pool.mounted:
            ensure_pool_down(self._layout, project.uid)


def _changes_pods(plan: BranchPlan) -> bool:
    return any(isinstance(action, Claim | CreatePod | DeletePod) for action in plan.actions)


def _endpoint_fields(branch: Branch, facts: BranchFacts, outcome: _Outcome) -> dict[str, Any]:
    """Return slot, pod, address and port for the status; the address is None unless Postgres accepts connections."""
    live = next((pod for pod in facts.pods if not pod.terminating and not pod.terminated), None)
    port = names.branch_port(branch.uid)
    if facts.server_version and live:
        return {
            "slot": live.name,
            "pod": live.name,
            "address": live.address,
            "port": port,
            "imageID": live.image_id,
            "postgresVersion": facts.server_version,
            "restartedAt": live.restarted_at,
        }
    name = outcome.slot or (live.name if live else None)
    fields: dict[str, Any] = {"pod": name, "address": None, "port": port}
    # Without a pod the last slot's name stays in the status: the next name is derived from it.
    return fields | ({"slot": name} if name else {})


def _settings(scope: _Scope) -> Settings:
    project, branch = scope.project, scope.branch
    parameters = {**project.postgres.parameters, **branch.parameters}
    branch_names = BranchNames(project.namespace, project.name, branch.name)
    own_parameters = frozenset(branch.parameters)
    return Settings(
        project.postgres.user, names.branch_port(branch.uid), parameters, branch_names, own_parameters
    )


def _endpoint(scope: _Scope, slot_name: str, marker: Marker) -> Endpoint:
    port = names.branch_port(scope.branch.uid)
    return Endpoint(slot_name, port, scope.project.postgres.user, marker.major)
