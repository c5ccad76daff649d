"""The controller's work on a branch: binding, its Service and Secret, conditions; its end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.conditions import Condition, Finding, Reason, find_condition
from dbranch.api.enums import TargetState
from dbranch.api.errors import NameTaken
from dbranch.api.project import Project, parse_project
from dbranch.api.secrets import secret_text
from dbranch.controller import manifests
from dbranch.controller.branch.status import branch_findings
from dbranch.controller.cache import Cache
from dbranch.controller.conditions import phase_of, ready_finding, report_conditions
from dbranch.controller.events import EmitEvent, emit_transition
from dbranch.controller.manifests import Login, Release
from dbranch.controller.owned import OwnedObjects
from dbranch.controller.routing import target_of
from dbranch.controller.scheduling import Binding, bind_branch, is_abandoned, node_trouble
from dbranch.kube.client import Cluster, branch_path, path_of, project_path
from dbranch.kube.requeue import request_reconcile
from dbranch.kube.status import patch_status
from dbranch.runtime.clock import now_rfc3339, seconds_since
from dbranch.runtime.locks import KeyedLocks

logger = logging.getLogger(__name__)

# Seconds that a deletion waits for proxies that do not answer; the sessions end with Postgres then.
_PATIENCE = 30.0


class BranchReconciler:
    """What handlers call, with the cache of the moment and a way to tell an Event."""

    def __init__(self, cluster: Cluster, release: Release, owned: OwnedObjects, locks: KeyedLocks) -> None:
        self._cluster, self._release, self._owned, self._locks = cluster, release, owned, locks
        # By project UID: the password's version and the login that goes with it.
        self._logins: dict[str, tuple[str, Login]] = {}

    def reconcile(
        self, namespace: str, name: str, cache: Cache, tell: EmitEvent, fresh: bool = False
    ) -> None:
        """One visit of a branch that is not being deleted. `fresh`: look at what is remembered, too."""
        with self._locks.held(namespace, name):
            body = self._cluster.get(branch_path(namespace, name))
            if body is None or body["metadata"].get("deletionTimestamp"):
                return
            branch = parse_branch(body)
            above = self._cluster.get(project_path(namespace, branch.project))
            project = parse_project(above) if above else None
            siblings = cache.branches_of(namespace, branch.project)
            wanted: dict[str, Any] = {}
            scheduled = self._bind(project, branch, siblings, cache, fresh, wanted)
            is_new = "nodeName" in wanted
            branch = replace(branch, node_name=wanted.get("nodeName", branch.node_name))
            if project and not is_new:
                scheduled = self._named(self._ensure_reached, project, branch, fresh) or scheduled
            self._write(project, branch, scheduled, wanted, tell)
            if project and is_new:
                # Behind its binding: the agent works meanwhile.
                taken = self._named(self._ensure_reached, project, branch, fresh)
                if taken:
                    self._write(project, branch, taken, wanted, tell)
            self._wake(project, branch, siblings)

    def _write(
        self,
        project: Project | None,
        branch: Branch,
        scheduled: Finding,
        wanted: dict[str, Any],
        tell: EmitEvent,
    ) -> None:
        steps = branch_findings(project, branch, scheduled)
        host = names.service_host(branch.object_name, branch.namespace)
        ready = ready_finding(steps, f"branch {branch.name} accepts connections at {host}")
        before = branch.status.get("conditions") or ()
        wanted |= {
            "observedGeneration": branch.generation,
            "conditions": report_conditions(before, steps, ready, branch.generation, now_rfc3339()),
            "phase": phase_of(ready),
            "active": bool(project and project.route and project.route.branch == branch.name),
        }
        changed = {key: value for key, value in wanted.items() if branch.status.get(key) != value}
        if changed:
            patch_status(self._cluster, branch, changed)
            emit_transition(branch.status, ready, tell)

    def _bind(
        self,
        project: Project | None,
        branch: Branch,
        siblings: tuple[Branch, ...],
        cache: Cache,
        fresh: bool,
        wanted: dict[str, Any],
    ) -> Finding:
        """The binding; a name that is taken is found before anything is made."""
        taken = self._named(self._ensure_service, project, branch, fresh) if project else None
        if taken:
            return taken
        if branch.node_name is None:
            answer = bind_branch(project, branch, siblings)
            if isinstance(answer, Finding):
                return answer
            wanted["nodeName"] = answer.node
            if answer.source_uid:
                wanted["sourceUID"] = answer.source_uid
            return Finding(Reason.BOUND, f"branch {branch.name} is bound to node {answer.node}")
        trouble = node_trouble(cache.node(branch.node_name))
        return trouble or Finding(Reason.BOUND, f"branch {branch.name} is bound to node {branch.node_name}")

    def _named(
        self, ensure: Callable[[Project, Branch, bool], None], project: Project, branch: Branch, fresh: bool
    ) -> Finding | None:
        """What `ensure` makes is there; the step where somebody else has the name."""
        try:
            ensure(project, branch, fresh)
        except NameTaken as error:
            return Finding(Reason.NAME_TAKEN, str(error))
        return None

    def _ensure_service(self, project: Project, branch: Branch, fresh: bool) -> None:
        service = manifests.branch_service(project, branch, self._release)
        self._owned.ensure("v1", "services", service, fresh, new=_is_new(branch))

    def _ensure_reached(self, project: Project, branch: Branch, fresh: bool) -> None:
        """How the branch is reached: before it is told to be Ready."""
        target = target_of(project, branch)
        reachable = target is not None and target.state == TargetState.READY
        endpoints = manifests.branch_endpoints(project, branch, self._release, reachable)
        self._owned.ensure("discovery.k8s.io/v1", "endpointslices", endpoints, fresh, new=_is_new(branch))
        login = self._login(project, fresh)
        if login:
            secret = manifests.conn_secret(project, self._release, login, branch)
            self._owned.ensure("v1", "secrets", secret, fresh, new=_is_new(branch))

    def _login(self, project: Project, fresh: bool) -> Login | None:
        """What the project's own Secret says; None before the project has one. Read once for each password."""
        version, known = self._logins.get(project.uid, ("", None))
        if known and version == project.password_version and not fresh:
            return Login(project.postgres.user, known.password, project.postgres.database)
        path = path_of("v1", "secrets", project.namespace, names.conn_secret_name(project.name))
        body = self._cluster.get(path)
        if body is None or project.uid not in (
            owner.get("uid") for owner in body["metadata"].get("ownerReferences") or ()
        ):
            return None
        password = secret_text(body, "password")
        if password is None:
            return None
        login = Login(project.postgres.user, password, project.postgres.database)
        if project.password_version:
            self._logins[project.uid] = project.password_version, login
        return login

    def _wake(self, project: Project | None, branch: Branch, siblings: tuple[Branch, ...]) -> None:
        """Wakes the branches that wait for this one and would say something else now."""
        for other in siblings:
            if other.node_name is None and not other.deleting and other.source == branch.name:
                answer = bind_branch(project, other, siblings)
                told = (find_condition(other.status, Condition.SCHEDULED) or {}).get("reason")
                if isinstance(answer, Binding) or answer.reason.value != told:
                    request_reconcile(
                        self._cluster, names.CONTROLLER_REQUESTED_AT, other.namespace, other.object_name
                    )

    def remove(self, branch: Branch, cache: Cache) -> float | None:
        """One visit of a branch being deleted: None once nobody is sent there; seconds to wait else."""
        with self._locks.held(branch.namespace, branch.object_name):
            above = self._cluster.get(project_path(branch.namespace, branch.project))
            project = parse_project(above) if above else None
            siblings = cache.branches_of(branch.namespace, branch.project)
            self._tell_deleting(branch)
            lost = bool(branch.node_name) and is_abandoned(
                cache.node(branch.node_name or ""), branch.annotations
            )
            if not lost and any(_copies(other, branch) for other in siblings):
                return 0.3
            if project and not project.deleting and seconds_since(branch.deleted) < _PATIENCE:
                entry = next((t for t in project.routes if t.branch == branch.name), None)
                route = project.route
                obeyed = not route or all(p.generation >= route.generation for p in project.proxies)
                if entry and (entry.state != TargetState.DELETING or not obeyed):
                    return 0.2
            self._owned.drop(
                "discovery.k8s.io/v1", "endpointslices", branch.namespace, branch.object_name, branch.uid
            )
            return None

    def _tell_deleting(self, branch: Branch) -> None:
        ready = Finding(Reason.DELETING, f"branch {branch.name} is being deleted")
        steps = (
            [(Condition.DELETION_BLOCKED, _waiting(branch))]
            if seconds_since(branch.deleted) > _PATIENCE
            else []
        )
        before = branch.status.get("conditions") or ()
        conditions = report_conditions(before, steps, ready, branch.generation, now_rfc3339())
        if conditions != list(before):
            patch_status(self._cluster, branch, {"conditions": conditions, "phase": "Deleting"})


def _is_new(branch: Branch) -> bool:
    """Whether nothing was said of it yet: then nothing is there of it."""
    return not branch.status.get("conditions")


def _waiting(branch: Branch) -> Finding:
    text = f"branch {branch.name} waits for a branch that is being made of it; it ends by itself"
    return Finding(Reason.WAITING_FOR_AGENT, text)


def _copies(other: Branch, source: Branch) -> bool:
    """Whether a snapshot of `source` is still to be taken."""
    return other.source_uid == source.uid and other.node.snapshot_time is None and not other.deleting
