"""The controller's reconciles of a branch: observe, plan, effect, report."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Final

from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.conditions import Finding, Reason
from dbranch.api.errors import ApiError, BeingDeleted, InvalidInput, NameTaken, ObjectRefused
from dbranch.api.expiry import format_time
from dbranch.api.gitops import gitops_manager
from dbranch.api.project import Project, parse_project
from dbranch.api.secrets import secret_text
from dbranch.api.snapshot import Snapshot, parse_snapshot
from dbranch.api.versions import is_newer
from dbranch.controller import manifests, timing
from dbranch.controller.branch.plan import BranchFacts, BranchPlan, plan_branch
from dbranch.controller.branch.refreshed import refreshed_of
from dbranch.controller.branch.removal import BranchRemoval
from dbranch.controller.branch.snapshotted import snapshotted_of
from dbranch.controller.branch.sources import Sources
from dbranch.controller.cache import Cache
from dbranch.controller.event_requests import EventRequests
from dbranch.controller.events import UNDELETED, EmitEvent, emit_transition
from dbranch.controller.failure import failure_finding, refusal_finding
from dbranch.controller.foreign_owners import ForeignOwners
from dbranch.controller.limits import Limits
from dbranch.controller.manifests import Credentials, Release
from dbranch.controller.metrics import ControllerMetrics
from dbranch.controller.owned import OwnedObjects, owner_uids
from dbranch.controller.places import Places
from dbranch.controller.scheduling import missing_finalizers
from dbranch.kube.client import Cluster, branch_path, object_path, path_of, project_path, snapshot_path
from dbranch.kube.status import patch_status
from dbranch.runtime.finalizers import ensure_finalizers
from dbranch.runtime.limited import LimitedDict
from dbranch.runtime.locks import KeyedLocks
from dbranch.runtime.result import DONE, GONE, Key, Result
from dbranch.runtime.shared_reads import SharedReads

logger = logging.getLogger(__name__)

# Of projects; others are read again from their Secrets.
_MAX_CREDENTIALS: Final = 1000
# Branches that were written a moment ago; of others the cache is believed, and a write that is refused costs a read.
_MAX_WRITTEN: Final = 1000


class _MustRead(Exception):
    """A branch cannot be reconciled as the cache has it."""


class BranchReconciler:
    """Reconciles branches; handlers call it with the cache and a way to emit Events about the branch."""

    def __init__(
        self,
        cluster: Cluster,
        release: Release,
        owned: OwnedObjects,
        locks: KeyedLocks,
        metrics: ControllerMetrics,
        emit_event: EmitEvent,
        limits: Limits | None = None,
        sources: Sources | None = None,
        announce: EmitEvent | None = None,
        clock: Callable[[], datetime] | None = None,
        request: Callable[[Key], None] = lambda key: None,
    ) -> None:
        """`sources`: shared with who else binds something to a branch.

        `announce`: emits an Event before what it announces is written. `clock`: the API server's time of day.
        `request`: has an object reconciled, from any thread.
        """
        self._cluster, self._release, self._owned, self._locks = cluster, release, owned, locks
        self._metrics, self._emit_event = metrics, emit_event
        self._clock = clock or cluster.server_time
        self._foreign_owners = ForeignOwners(emit_event)
        # By project UID: the password's version and the credentials with that password.
        self._credentials: LimitedDict[str, tuple[str, Credentials]] = LimitedDict(_MAX_CREDENTIALS)
        self._sources = sources or Sources()
        self._reads = SharedReads(cluster)
        self._removal = BranchRemoval(cluster, self._reads, owned, self._sources, emit_event, self._now)
        self._limits = limits or Limits()
        self._places = Places(self._limits, "branches")
        self._announce, self._request = announce or EventRequests(cluster), request
        # By UID: as they were written last, until the cache has that.
        self._written: LimitedDict[str, Branch] = LimitedDict(_MAX_WRITTEN)

    def forget_project(self, uid: str) -> None:
        """Forget the credentials of a project that is gone."""
        self._credentials.pop(uid, None)

    def reconcile(self, namespace: str, name: str, cache: Cache, bypass_cache: bool = False) -> Result:
        """Reconcile a branch, also one that is being deleted. `bypass_cache`: read again what is remembered."""
        with self._locks.held(namespace, name), self._metrics.reconcile(names.BRANCH_KIND):
            cached = None if bypass_cache else self._newest(cache.branch(namespace, name))
            if cached and not cached.deleting:
                try:
                    return self._reconcile_cached(cached, cache)
                except _MustRead as error:
                    logger.debug("branch %s/%s is read: %s", namespace, name, error)
            body = self._cluster.get(branch_path(namespace, name))
            if body is None:
                return GONE
            facts = self._observe(parse_branch(body), cache)
            facts = replace(facts, git_manager=gitops_manager(body, "spec", "project"))
            if facts.branch.deleting:
                self._foreign_owners.report(facts.branch)
                return self._removal.remove(facts, body["spec"])
            return self._reconcile(facts, cache, bypass_cache)

    def _newest(self, cached: Branch | None) -> Branch | None:
        """Return the branch as the cache has it, or as it was written here, if the event of that is still to come."""
        written = self._written.get(cached.uid) if cached else None
        if cached and written and is_newer(written.resource_version, cached.resource_version):
            return written
        if written:
            self._written.pop(written.uid, None)
        return cached

    def _reconcile_cached(self, branch: Branch, cache: Cache) -> Result:
        """Reconcile a branch as the cache has it, which an event has filled, without a read of it.

        Each write of it names the version that it follows. Raises _MustRead if that is another one by now, or if more
        has to be known than the cache has; what was made for the branch is made once.
        """
        facts = self._observe(branch, cache, is_cached=True)
        try:
            return self._reconcile(facts, cache, bypass_cache=False, is_cached=True)
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            raise _MustRead(str(error)) from error

    def _reconcile(
        self, facts: BranchFacts, cache: Cache, bypass_cache: bool, is_cached: bool = False
    ) -> Result:
        """Reconcile a branch that is not being deleted. `is_cached`: it may have been written since."""
        self._foreign_owners.report(facts.branch)
        if facts.is_refused:
            self._report(facts.branch, plan_branch(facts, self._now()), is_cached)
            return Result(timing.UNREADY_RESYNC_SECONDS, unfinished=True)
        # Nothing has been applied for it before its first report.
        is_new = not facts.branch.status.get("conditions")
        # Before the binding: if the Service's name is taken, the agent must make nothing.
        facts = replace(facts, problem=self._apply_service(facts, bypass_cache, is_new))
        plan = plan_branch(facts, self._now())
        if plan.binding is None:
            facts = self._with_finalizers(facts)
            facts = self._with_access(facts, plan, bypass_cache, is_new)
            plan = plan_branch(facts, self._now())
            self._report(facts.branch, plan, is_cached)
        else:
            with self._sources.held(plan.binding.source_uid) as may_be_used:
                if not may_be_used:
                    # The cache still has it.
                    return Result(timing.SOURCE_GONE_RETRY_SECONDS)
                in_namespace = partial(cache.branches_in, facts.branch.namespace)
                if not self._places.take(facts.branch, in_namespace):
                    return Result(timing.PLACE_TAKEN_RETRY_SECONDS)
                written = self._bind(facts, plan, is_cached)
            if written is None:
                # It is being deleted: that is an event.
                return DONE
            # Behind the binding: the agent works meanwhile.
            facts = replace(facts, branch=written, node=cache.node(plan.binding.node))
            facts = self._with_access(facts, plan, bypass_cache, is_new)
            plan = plan_branch(facts, self._now())
            if facts.problem:
                self._report(written, plan, is_cached)
        if plan.ready.done:
            return DONE
        if facts.problem and facts.problem.reason in (Reason.OBJECT_REFUSED, Reason.WAITING_FOR_DELETION):
            longest = timing.REFUSED_LONGEST_RETRY_SECONDS
            return Result(timing.REFUSED_RETRY_SECONDS, unfinished=True, longest=longest)
        # The controller does not watch what has a name that it needs.
        return Result(timing.UNREADY_RESYNC_SECONDS, unfinished=facts.problem is None)

    def _now(self) -> str:
        return format_time(self._clock())

    def _bind(self, facts: BranchFacts, plan: BranchPlan, is_cached: bool) -> Branch | None:
        """Write finalizers, then the binding; return the branch as it is now, None if it is not to be bound.

        These are two requests, since the status is a resource of its own. In this order the agent, which the binding
        makes aware of the branch, finds its finalizer in place.
        """
        try:
            branch = self._with_finalizers(facts, plan).branch
            if branch.deleting:
                self._places.release(branch)
                return None
            written = self._report(branch, plan, is_cached)
        except Exception:
            self._places.release(facts.branch)
            raise
        if written.undeletes:
            text = f"branch {branch.name}, which was deleted, is made again with its data: {written.source_snapshot}"
            self._emit_event(written, "Normal", UNDELETED, text)
        return written

    def _with_finalizers(self, facts: BranchFacts, plan: BranchPlan | None = None) -> BranchFacts:
        """Put the finalizers on the branch that it needs on its node, or on the one that it is to be bound to."""
        branch, node = facts.branch, facts.project_node if plan else facts.node
        if node is None or (plan is None and branch.node_name is None):
            return facts
        missing = missing_finalizers(branch, node)
        if not missing:
            return facts
        version, existing = branch.resource_version, branch.finalizers
        body = ensure_finalizers(self._cluster, object_path(branch), branch.uid, version, existing, missing)
        return replace(facts, branch=parse_branch(body) if body else replace(branch, deleted=self._now()))

    def _observe(self, branch: Branch, cache: Cache, is_cached: bool = False) -> BranchFacts:
        project = self._project_of(branch, cache, is_cached)
        return BranchFacts(
            branch,
            project,
            cache.branches_of(branch.namespace, branch.project),
            cache.node(branch.node_name) if branch.node_name else None,
            cache.proxies_of(project.uid) if project else (),
            limits=self._limits.of(branch.namespace),
            is_excess=self._places.is_excess(branch, partial(cache.branches_in, branch.namespace)),
            snapshot=self._source_snapshot(branch),
            project_node=cache.node(project.node_name) if project and project.node_name else None,
            taken=_snapshots_of(branch, cache),
            snapshotted=snapshotted_of(branch, cache.snapshots, self._limits.of(branch.namespace)),
            refreshed=refreshed_of(branch, cache.restores),
        )

    def _project_of(self, branch: Branch, cache: Cache, is_cached: bool) -> Project | None:
        """Return the branch's project: as the cache has it only where each change of it leads here again.

        A binding is for good, so it goes by what is read.
        """
        cached = cache.project(branch.namespace, branch.project) if is_cached and branch.node_name else None
        if cached:
            return cached
        body = self._reads.get(project_path(branch.namespace, branch.project))
        return parse_project(body) if body else None

    def _source_snapshot(self, branch: Branch) -> Snapshot | None:
        """Read the snapshot that an unbound branch is to be made of, uncached."""
        if branch.source_snapshot is None or branch.node_name is not None:
            return None
        body = self._cluster.get(snapshot_path(branch.namespace, branch.source_snapshot))
        return parse_snapshot(body) if body else None

    def _report(self, branch: Branch, plan: BranchPlan, is_cached: bool = False) -> Branch:
        """Write the fields of the status that differ; return the branch as it is now.

        `is_cached`: it may have been written since; then nothing is, and ApiError (409) or _MustRead raised.
        """
        changes = plan.changes(branch.status)
        if not changes:
            return branch
        if is_cached and "expirationTime" in changes:
            raise _MustRead("the cache does not know who makes it again when it has expired")
        # Nothing goes sooner without an Event: one that is emitted twice, since the process ended here, does no harm.
        for reason, message in plan.announcements:
            self._announce(branch, "Normal", reason, message)
        written = patch_status(self._cluster, branch, changes, branch.resource_version if is_cached else None)
        if branch.restore and "restores" in changes:
            # It is complete by that.
            self._request(Key(names.RESTORE_KIND, branch.namespace, branch.restore.name))
        emit_transition(branch, plan.ready, plan.status["conditions"], self._emit_event)
        self._written[branch.uid] = parse_branch(written)
        return self._written[branch.uid]

    def _apply_service(self, facts: BranchFacts, bypass_cache: bool, is_new: bool) -> Finding | None:
        """Apply the Service; return the finding of Scheduled if that cannot be."""
        if facts.project is None:
            return None
        branch = facts.branch
        service = manifests.branch_service(facts.project, branch, self._release)
        effect = "nothing is bound" if branch.node_name is None else "the Service stays as it was"
        return _problem_of(
            lambda: self._owned.apply("v1", "services", service, bypass_cache, probably_new=is_new), effect
        )

    def _with_access(
        self, facts: BranchFacts, plan: BranchPlan, bypass_cache: bool, is_new: bool
    ) -> BranchFacts:
        """Apply the EndpointSlice and the connection Secret, so that they exist before the branch is Ready.

        The EndpointSlice not if another owner has the Service: it would send that one's sessions to the branch. Nor
        before a new branch is reachable: every node is sent each change of one, and it has no address to say; but if
        a branch of the same name has left one, that leads nowhere any more.
        """
        project, branch = facts.project, facts.branch
        if project is None or (branch.node_name is None and facts.problem):
            return facts
        problems = [facts.problem]
        ip_family = self._owned.ip_family(branch.namespace, branch.object_name)
        api, plural = "discovery.k8s.io/v1", "endpointslices"
        # One that release 0.1.0 has bound has no route yet.
        was_never_ready = branch.node_name is None or (
            branch.route is not None and branch.route.generation == 1
        )
        is_needed = (
            bool(plan.addresses)
            or bypass_cache
            or not was_never_ready
            or self._owned.is_remembered(api, plural, branch.namespace, branch.object_name)
        )
        if (
            ip_family
            and is_needed
            and (facts.problem is None or facts.problem.reason == Reason.OBJECT_REFUSED)
        ):
            endpoints = manifests.branch_endpoints(project, branch, self._release, ip_family, plan.addresses)
            problems.append(
                _problem_of(
                    lambda: self._owned.apply(api, plural, endpoints, bypass_cache, was_never_ready),
                    "the Service does not lead to the branch",
                )
            )
        credentials = self._project_credentials(project, bypass_cache)
        if credentials:
            secret = manifests.conn_secret(project, self._release, credentials, branch)
            problems.append(
                _problem_of(
                    lambda: self._owned.apply("v1", "secrets", secret, bypass_cache, is_new),
                    "it stays as it was",
                )
            )
        return replace(facts, problem=next(filter(None, problems), None))

    def _project_credentials(self, project: Project, bypass_cache: bool) -> Credentials | None:
        """Read the project's connection Secret, once for each password; None while the project has none."""
        version, remembered = self._credentials.get(project.uid, ("", None))
        if remembered and version == project.password_version and not bypass_cache:
            return replace(remembered, user=project.postgres.user, database=project.postgres.database)
        path = path_of("v1", "secrets", project.namespace, names.conn_secret_name(project.name))
        body = self._cluster.get(path)
        if body is None or project.uid not in owner_uids(body):
            return None
        try:
            password = secret_text(body, "password")
        except InvalidInput:
            # The project's reconcile puts it right.
            return None
        if password is None:
            return None
        credentials = Credentials(project.postgres.user, password, project.postgres.database)
        if project.password_version:
            self._credentials[project.uid] = project.password_version, credentials
        return credentials

    def report_failure(self, namespace: str, name: str, cache: Cache, error: Exception) -> None:
        """Report a reconcile that failed in the condition Scheduled, if the branch is to blame for it."""
        finding = failure_finding(f"branch {name}", error)
        with self._locks.held(namespace, name):
            body = self._cluster.get(branch_path(namespace, name)) if finding else None
            if body is None or body["metadata"].get("deletionTimestamp"):
                return
            facts = replace(self._observe(parse_branch(body), cache), problem=finding)
            self._report(facts.branch, plan_branch(facts, self._now()))


def _snapshots_of(branch: Branch, cache: Cache) -> tuple[Snapshot, ...]:
    """Return the snapshots of a branch that is being deleted."""
    if not branch.deleting:
        return ()
    records = cache.snapshots.of_project(branch.namespace, branch.project)
    return tuple(record.snapshot for record in records if record.snapshot.branch_uid == branch.uid)


def _problem_of(apply: Callable[[], None], effect: str) -> Finding | None:
    """Call `apply`; return the finding of Scheduled if the object could not be applied, with the `effect` of that."""
    try:
        apply()
    except (NameTaken, BeingDeleted, ObjectRefused) as error:
        return refusal_finding(error, effect)
    return None
