"""The agent's work on a branch: observe, plan, apply, report. Every step may be cut off and repeated."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from dbranch.agent import status as report
from dbranch.agent.branch import plan
from dbranch.agent.branch.observe import observe_branch
from dbranch.agent.branch.start_watch import Watched, Watchers
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

# Seconds that a source's CHECKPOINT may take; without it the branch only starts slower.
_CHECKPOINT = 10.0
# Seconds that a visit itself waits for a Postgres in a slot that ran already: one write then says all.
_AT_ONCE = 1.0
# Between two looks at a deletion that waits for a newer agent.
_UNCLEAR_RETRY_SECONDS = 60.0
# Seconds of grace for a Postgres whose data is thrown away.
_END = 2


@dataclass(frozen=True)
class Scope:
    """A project and one of its branches, as the API server has them now."""

    project: Project
    branch: Branch


class BranchReconciler:
    """What handlers call. Each call answers with the seconds after which it wants to come back, or None."""

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
        self._watchers = Watchers(cluster, layout, context.namespace, locks, metrics)

    def quiet(self, seconds: float) -> None:
        """Waits until no branch is starting, so many seconds at most."""
        self._watchers.quiet(seconds)

    def reconcile(self, namespace: str, name: str) -> float | None:
        """One visit of a branch that is not being deleted."""
        with self._watchers.visiting(), self._locks.held(namespace, name):
            laps = StepTimer()
            scene = self._scene(namespace, name)
            laps.record("read")
            if scene is None or scene.branch.deleting or scene.project.deleting:
                return None
            retry = self._visit_until_claimed(scene, laps)
        # Out of turn: its Postgres is not to wait for that.
        patch_sizes(self._cluster, self._layout, scene.project, scene.branch)
        return retry

    def _visit_until_claimed(self, scene: Scope, laps: StepTimer) -> float | None:
        tried: set[str] = set()
        while True:
            try:
                return self._visit(scene, tried, laps)
            except SlotTaken as error:
                # Looked at again without it: a burst goes the cold way.
                logger.info("branch %s/%s: %s", scene.branch.namespace, scene.branch.object_name, error)

    def _scene(self, namespace: str, name: str) -> Scope | None:
        body = self._cluster.get(branch_path(namespace, name))
        if body is None or (body.get("status") or {}).get("nodeName") != self._context.node:
            return None
        branch = parse_branch(body)
        above = self._cluster.get(project_path(namespace, branch.project))
        if above is None or (above.get("status") or {}).get("nodeName") != self._context.node:
            return None
        return Scope(parse_project(above), branch)

    def _visit(self, scene: Scope, tried: set[str], laps: StepTimer) -> float | None:
        project, branch = scene.project, scene.branch
        facts = observe_branch(self._cluster, self._layout, self._context, self._warm.template_hash, project, branch)
        free = tuple(pod for pod in facts.waiting if pod.name not in tried)
        facts = self._asked(scene, replace(facts, waiting=free))
        todo = plan.plan_branch(project, branch, facts)
        storage, postgres, retry = todo.storage, todo.postgres, todo.retry_after
        done = _Done(facts.marker, laps)
        laps.record("look")
        tried |= {action.pod.name for action in todo.actions if isinstance(action, plan.Claim)}
        try:
            for action in todo.actions:
                self._apply(scene, action, done)
                laps.record(type(action).__name__)
        except SlotTaken:
            raise
        except (DbranchError, OSError) as error:
            logger.warning("branch %s/%s: %s", branch.namespace, branch.object_name, error)
            who, retry = f"branch {branch.name}", 2.0
            if done.marker is None:
                storage, postgres = report.failed_storage_finding(error, who), None
            else:
                postgres = report.failed_postgres_finding(error, who)
        node: dict[str, Any] = {"observedGeneration": branch.generation, "storage": storage.as_dict()}
        if postgres:
            node["postgres"] = postgres.as_dict()
        node |= self._place(scene, facts, done)
        if done.marker:
            node |= {"sourceUID": done.marker.origin.uid, "snapshotTime": done.marker.snapshot_time}
            if done.marker.role is Role.ROOT and not project.node.initialized:
                said = patch_status(self._cluster, project, {"node": {"initialized": True}})
                project = parse_project(said)
        self._tell(scene, node, done)
        if _moves_pods(todo) or branch.node.observed_generation != branch.generation:
            self._warm.stir(project, branch)
        if done.reloaded:
            # What of it waits for a restart is known when Postgres has read it.
            retry = retry or 0.3
        return retry

    def _tell(self, scene: Scope, node: dict[str, Any], done: _Done) -> None:
        """`node`, and that Postgres accepts: with it where it starts at once, by a thread where it takes longer."""
        branch = scene.branch
        if not (done.awaited and done.marker):
            self._write(branch, node)
            return
        watched = Watched(scene.project, branch, done.awaited, done.marker, done.pod, done.laps)
        if done.pod and self._watchers.at_once(watched, _AT_ONCE, node):
            return
        self._write(branch, node)
        self._watchers.start(watched)

    def _asked(self, scene: Scope, facts: plan.BranchFacts) -> plan.BranchFacts:
        """What the Postgres of a bound slot says itself."""
        live = {pod.name for pod in facts.pods if not pod.terminating and not pod.terminated}
        bound = next((name for name in facts.bound if name in live), None)
        if bound is None or facts.marker is None:
            return facts
        endpoint = _endpoint(scene, bound, facts.marker)
        version = session.accepting(self._layout, endpoint)
        pending = session.restart_pending(self._layout, endpoint) if version else ()
        return replace(facts, accepting=version, pending=pending)

    def _apply(self, scene: Scope, action: plan.Action, done: _Done) -> None:
        project, branch, layout = scene.project, scene.branch, self._layout
        owner = project.postgres.run_as_user
        match action:
            case plan.DeletePod(pod):
                pods.delete_pod(self._cluster, self._context.namespace, pod)
            case plan.RemoveSlot(name):
                slot.ensure_slot_removed(layout, name)
            case plan.CreateInitdbArea(name):
                subvolume.ensure_initdb_area(layout, project.uid, branch.uid, owner)
                slot.ensure_slot(layout, name, owner)
                slot.ensure_initdb_bound(layout, name, project.uid, branch.uid)
            case plan.CreateInitdbPod():
                pods.ensure_pod(
                    self._cluster, initdb_pod(self._context, layout, project, branch, read_initdb())
                )
            case plan.PromoteInitdb():
                done.marker = subvolume.ensure_initdb_promoted(
                    layout, project.uid, branch.uid, _settings(scene), now_rfc3339()
                )
            case plan.Claim(pod):
                done.pod = pods.ensure_claimed(
                    self._cluster, self._context.namespace, pod, claim_patch(project, branch, pod.uid)
                )
                done.slot = pod.name
            case plan.CreatePod(name):
                slot.ensure_slot(layout, name, owner)
                body = branch_pod(self._context, layout, project, branch, name, read_slot_start())
                pods.ensure_pod(self._cluster, body)
                done.slot = name
            case plan.TakeSnapshot(source):
                self._checkpoint(scene, source)
                done.laps.record("Checkpoint")
                done.marker = subvolume.ensure_snapshot(
                    layout, project.uid, source, branch.uid, _settings(scene), now_rfc3339()
                )
            case plan.Adopt(old):
                done.marker = ensure_branch_adopted(layout, project.uid, old, branch.uid, _settings(scene))
            case plan.Bind(name):
                slot.ensure_slot(layout, name, owner)
                slot.ensure_bound(layout, name, project.uid, branch.uid)
                done.slot = name
            case plan.WriteSettings(name):
                changed = subvolume.ensure_settings(layout, project.uid, branch.uid, _settings(scene))
                if changed and done.marker:
                    self._reload(_endpoint(scene, name, done.marker))
                    done.reloaded = True
            case plan.SetPassword(name):
                if done.marker:
                    self._watchers.take_password(project, branch, _endpoint(scene, name, done.marker))
            case plan.AwaitPostgres(name):
                done.awaited = done.slot = name

    def _reload(self, endpoint: Endpoint) -> None:
        try:
            session.reload(self._layout, endpoint)
        except NotAccepting:
            logger.info("slot %s: its Postgres reads the settings when it starts", endpoint.slot)

    def _checkpoint(self, scene: Scope, source_uid: str) -> None:
        """Best effort, on the slot in which the source runs: the copy then has little to recover."""
        marker = subvolume.read_marker(self._layout.branch(scene.project.uid, source_uid))
        for name in observe_branch_slots(self._layout, source_uid, None):
            if marker:
                user = scene.project.postgres.user
                endpoint = Endpoint(name, names.branch_port(source_uid), user, marker.major)
                if not session.checkpoint(self._layout, endpoint, _CHECKPOINT):
                    logger.info("source %s: no CHECKPOINT; the copy recovers more", source_uid)

    def _place(self, scene: Scope, facts: plan.BranchFacts, done: _Done) -> dict[str, Any]:
        """Slot, pod and address: those of the pod that answers; none of a branch that does not run."""
        live = next((pod for pod in facts.pods if not pod.terminating and not pod.terminated), None)
        if facts.accepting and live:
            return {
                **{"slot": live.name, "pod": live.name, "address": live.address, "imageID": live.image_id},
                **{"port": names.branch_port(scene.branch.uid), "postgresVersion": facts.accepting},
                "restartedAt": live.restarted_at,
            }
        name = done.slot or (live.name if live else None)
        place: dict[str, Any] = {"pod": name, "address": None, "port": names.branch_port(scene.branch.uid)}
        # The last slot's name stays: the next one's is drawn from it.
        return place | ({"slot": name} if name else {})

    def _write(self, branch: Branch, node: dict[str, Any]) -> None:
        now = branch.status.get("node") or {}
        changed = report.changes(now, report.told(now, node))
        changed = {key: value for key, value in changed.items() if value is not None or key in now}
        if changed:
            patch_status(self._cluster, branch, {"node": changed})

    def remove(self, body: dict[str, Any]) -> float | None:
        """One visit of a branch being deleted: None once nothing of it is left but space to reclaim."""
        branch = parse_branch(body)
        if names.CONTROLLER_FINALIZER in branch.finalizers:
            return 0.5
        with self._locks.held(branch.namespace, branch.object_name):
            self._watchers.stop(branch.namespace, branch.object_name)
            left = observe_pods(
                self._cluster, self._context.namespace, f"{names.LABEL_BRANCH_UID}={branch.uid}"
            )
            for pod in left:
                if not pod.terminating:
                    pods.delete_pod(self._cluster, self._context.namespace, pod, _END)
            if left:
                return 0.3
            try:
                self._throw_away(branch)
            except StorageUnclear as error:
                # Waits for the newer agent: what this one cannot understand it does not destroy.
                finding = report.failed_storage_finding(error, f"branch {branch.name}")
                logger.warning("branch %s/%s: %s", branch.namespace, branch.object_name, error)
                self._write(branch, {"storage": finding.as_dict()})
                return _UNCLEAR_RETRY_SECONDS
            self._warm.stir(branch)
            return None

    def _throw_away(self, branch: Branch) -> None:
        # That of its status, too: one that was made and never bound.
        for name in observe_branch_slots(self._layout, branch.uid, branch.node.slot):
            slot.ensure_slot_removed(self._layout, name)
        above = self._cluster.get(project_path(branch.namespace, branch.project))
        project = parse_project(above) if above else None
        # A project that is being deleted takes its pool with it, or keeps it as it is.
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


@dataclass
class _Done:
    """What the actions of one visit have come to."""

    marker: Marker | None
    laps: StepTimer
    slot: str | None = None
    pod: PodFacts | None = None
    awaited: str | None = None
    reloaded: bool = False


def _moves_pods(todo: plan.BranchPlan) -> bool:
    return any(isinstance(action, plan.Claim | plan.CreatePod | plan.DeletePod) for action in todo.actions)


def _settings(scene: Scope) -> Settings:
    project, branch = scene.project, scene.branch
    parameters = {**project.postgres.parameters, **branch.parameters}
    branch_names = BranchNames(project.namespace, project.name, branch.name)
    own = frozenset(branch.parameters)
    return Settings(project.postgres.user, names.branch_port(branch.uid), parameters, branch_names, own)


def _endpoint(scene: Scope, slot_name: str, marker: Marker) -> Endpoint:
    port = names.branch_port(scene.branch.uid)
    return Endpoint(slot_name, port, scene.project.postgres.user, marker.major)
