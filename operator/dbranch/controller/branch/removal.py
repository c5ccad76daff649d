"""The deletion of a branch: its routes are withdrawn, its data is kept, and then its agent may remove it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.conditions import Finding
from dbranch.api.snapshot import Snapshot, parse_snapshot
from dbranch.controller import timing
from dbranch.controller.branch.deletion import keeps_data
from dbranch.controller.branch.deletion_copies import DeletionCopies
from dbranch.controller.branch.plan import BranchFacts, BranchRemovalPlan, held_status, plan_removal
from dbranch.controller.branch.sources import Sources
from dbranch.controller.events import EmitEvent
from dbranch.controller.finalizers import AbandonmentRefusals, release_if_abandoned
from dbranch.controller.owned import OwnedObjects
from dbranch.controller.scheduling import NodeFacts, needs_release
from dbranch.kube.client import Cluster, Json, object_path, path_of
from dbranch.kube.status import patch_status
from dbranch.runtime.clock import seconds_since
from dbranch.runtime.finalizers import remove_finalizer
from dbranch.runtime.result import DONE, Result
from dbranch.runtime.shared_reads import SharedReads


class BranchRemoval:
    """Removes branches that are being deleted, as far as that is the controller's. `now`: RFC 3339."""

    def __init__(
        self,
        cluster: Cluster,
        reads: SharedReads,
        owned: OwnedObjects,
        sources: Sources,
        emit_event: EmitEvent,
        now: Callable[[], str],
    ) -> None:
        self._cluster, self._reads, self._owned, self._sources = cluster, reads, owned, sources
        self._now = now
        self._abandonment_refusals = AbandonmentRefusals(emit_event)
        self._copies = DeletionCopies(cluster)

    def remove(self, facts: BranchFacts, spec: Mapping[str, Any]) -> Result:
        """Report the deletion; in its end keep the data, delete what was made for the branch, and let go of it.

        Until then snapshots of the branch are awaited, or a proxy does not obey the route that excludes it yet: an
        event of those leads here again. `spec`: the branch's, as the API server has it.
        """
        branch = facts.branch
        self._abandonment_refusals.report(branch, facts.node)
        if branch.is_released:
            release_if_abandoned(self._cluster, branch, facts.node)
            held = held_status(branch, self._now())
            if held:
                patch_status(self._cluster, branch, held)
            return DONE
        with self._sources.held(branch.uid):
            removal = self._plan(facts)
            changes = removal.changes(branch.status)
            if changes and not removal.done:
                # Where no proxy is to be waited for, nothing but this has to be written.
                branch = parse_branch(patch_status(self._cluster, branch, changes))
                facts = replace(facts, branch=branch)
                removal = self._plan(facts)
            if removal.done:
                # A copy that was bound a moment ago may not be in the cache yet; none is bound behind this.
                facts = replace(
                    facts, siblings=self._list_siblings(branch), taken=self._list_snapshots(branch)
                )
                removal = self._plan(facts)
            if removal.done:
                self._sources.close(branch.uid)
        if removal.done and facts.project and keeps_data(branch, facts.project, facts.node):
            copy = self._copies.ensure(branch, facts.project, spec)
            problem = copy if isinstance(copy, Finding) else None
            facts = replace(facts, copy_problem=problem, copy=None if isinstance(copy, Finding) else copy)
            removal = self._plan(facts)
        changes = removal.changes(branch.status)
        if not removal.done:
            if changes:
                patch_status(self._cluster, branch, changes)
            if facts.copy_problem:
                longest = timing.REFUSED_LONGEST_RETRY_SECONDS
                return Result(timing.REFUSED_RETRY_SECONDS, unfinished=True, longest=longest)
            return Result(removal.requeue_after or timing.DELETION_RESYNC_SECONDS)
        namespace, name = branch.namespace, branch.object_name
        for api, plural, owned_name in (
            ("discovery.k8s.io/v1", "endpointslices", name),
            ("v1", "services", name),
            ("v1", "secrets", names.conn_secret_name(name)),
        ):
            self._owned.delete(api, plural, namespace, owned_name, branch.uid)
        self._release(branch, facts.node, changes)
        return DONE

    def _plan(self, facts: BranchFacts) -> BranchRemovalPlan:
        return plan_removal(facts, seconds_since(facts.branch.deleted), self._now())

    def _release(self, branch: Branch, node: NodeFacts | None, changes: Json) -> None:
        """Let go of the branch, by the `changes` of its status: behind them the agent may remove it at any time."""
        has_no_agent = branch.node_name is None or needs_release(branch, node)
        ours = (names.CONTROLLER_FINALIZER, *([names.AGENT_FINALIZER] if has_no_agent else []))
        # What goes with its last finalizer has no reader.
        if changes and not (has_no_agent and set(branch.finalizers) <= set(ours)):
            patch_status(self._cluster, branch, changes)
        if set(ours) & set(branch.finalizers):
            remove_finalizer(self._cluster, object_path(branch), branch.uid, *ours)

    def _list_siblings(self, branch: Branch) -> tuple[Branch, ...]:
        """List the branches of the project uncached that may still have to copy the branch.

        Those that are deleted together share the lists: each is as long as the project has branches.
        """
        path = path_of(names.API_VERSION, names.BRANCHES, branch.namespace)
        bodies = self._reads.find(path, f"spec.project={branch.project}")
        return tuple(parse_branch(body) for body in bodies if _may_copy(body, branch.uid))

    def _list_snapshots(self, branch: Branch) -> tuple[Snapshot, ...]:
        """List the snapshots that are bound to the branch uncached."""
        path = path_of(names.API_VERSION, names.SNAPSHOTS, branch.namespace)
        labels = f"{names.LABEL_BRANCH_UID}={branch.uid}"
        return tuple(map(parse_snapshot, self._cluster.find(path, labels)))


def _may_copy(body: Json, source_uid: str) -> bool:
    """Return True unless the branch is bound to another source and is not being restored."""
    status = body.get("status") or {}
    return status.get("sourceUID") == source_uid or status.get("restore") is not None
