"""Read what lies beside a branch's own data: its subvolume, pods, slots and Postgres. Reads only."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Final

from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.observe import bound_slot_facts, observe_postgres, observe_space
from dbranch.agent.branch.pods import is_beside
from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.pool.observe import observe_pool
from dbranch.agent.restore.facts import RestoreFacts
from dbranch.agent.slot.observe import observe_both_slots, observe_pods
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.status import error_message
from dbranch.agent.volume.brake import observe_brake
from dbranch.agent.volume.copies import check_source
from dbranch.agent.volume.marker import Marker
from dbranch.agent.volume.observe import observe_marker
from dbranch.agent.volume.restore_rules import RestoreVolume, VolumeState
from dbranch.agent.volume.restores import observe_restore
from dbranch.agent.warm.observe import observe_free_pods
from dbranch.api import names
from dbranch.api.conditions import Finding, Reason
from dbranch.api.errors import DataLost, DbranchError, SourceUnsafe, StorageUnclear
from dbranch.kube.client import Cluster

_FINAL_ERRORS: Final[dict[type[Exception], Reason]] = {
    DataLost: Reason.SOURCE_NOT_FOUND,
    SourceUnsafe: Reason.SOURCE_UNSAFE,
    StorageUnclear: Reason.STORAGE_UNCLEAR,
}


def observe_restore_facts(
    cluster: Cluster, layout: Layout, context: NodeContext, template_hash: str, desired: Desired
) -> RestoreFacts:
    """Return the facts of what lies beside a branch's data. `template_hash`: of the warm pods that it may claim."""
    project, branch = desired.project, desired.branch
    pool = observe_pool(layout, project.uid)
    is_up = pool.mounted and not pool.read_only
    volume = observe_restore(layout, project.uid, branch.uid) if is_up else RestoreVolume()
    stored = observe_marker(layout, project.uid, branch.uid) if is_up else None
    own = stored if isinstance(stored, Marker) else None
    own_slots, slots = observe_both_slots(layout, branch.uid, None)
    restored_by = own.restore.uid if own and own.restore else None
    pods = observe_pods(cluster, context.namespace, f"{names.LABEL_BRANCH_UID}={branch.uid}")
    beside = tuple(pod for pod in pods if is_beside(pod, branch, own, own_slots, slots))
    source_problem: Finding | None = None
    warm_pods: tuple[PodFacts, ...] = ()
    if (
        desired.restore
        and volume.state is VolumeState.ABSENT
        and is_up
        and restored_by != desired.restore.uid
    ):
        source_problem = _source_problem(layout, desired, desired.restore.source.uid)
        if not beside:
            warm_pods = observe_free_pods(cluster, context, desired.slot_class, template_hash)
    is_coming = volume.state is VolumeState.COMING
    facts = BranchFacts(
        pool_mounted=is_up,
        space=observe_space(layout, context, pool),
        brake=observe_brake(layout, branch.uid),
        marker=volume.marker if is_coming and isinstance(volume.marker, Marker) else None,
        source_problem=source_problem,
        pods=beside,
        warm_pods=warm_pods,
        bound_slots=slots,
        **bound_slot_facts(layout, slots),
    )
    if is_coming and desired.restore:
        facts = observe_postgres(layout.prepared, desired, facts)
    return RestoreFacts(volume, own, facts, next(iter(own_slots), None))


def observe_prepared_anew(layout: Layout, desired: Desired, facts: RestoreFacts) -> RestoreFacts:
    """Return the facts with what the node says by now of the prepared data: its marker, slot and Postgres.

    Reads nothing of the API server. Facts that this does not look at stay as they are.
    """
    project, branch = desired.project, desired.branch
    volume = observe_restore(layout, project.uid, branch.uid)
    own_slots, slots = observe_both_slots(layout, branch.uid, None)
    is_coming = volume.state is VolumeState.COMING
    beside = replace(
        facts.beside,
        marker=volume.marker if is_coming and isinstance(volume.marker, Marker) else None,
        bound_slots=slots,
        **bound_slot_facts(layout, slots),
    )
    if is_coming:
        beside = observe_postgres(layout.prepared, desired, beside)
    return replace(facts, volume=volume, beside=beside, own_slot=next(iter(own_slots), None))


def _source_problem(layout: Layout, desired: Desired, source_uid: str) -> Finding | None:
    """Return why the source cannot be copied, if that can be seen without a snapshot."""
    try:
        check_source(layout, desired.project.uid, source_uid)
    except (DbranchError, OSError) as error:
        finding = final_finding(error, desired)
        return finding or Finding(Reason.SOURCE_UNSAFE, error_message(error, desired.subject))
    return None


def final_finding(error: Exception, desired: Desired) -> Finding | None:
    """Return why a restore cannot be done, if the error says so; None if it may pass."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return Finding(Reason.POOL_FULL, error_message(error, desired.subject))
    reason = next((reason for kind, reason in _FINAL_ERRORS.items() if isinstance(error, kind)), None)
    if reason is None:
        return None
    if reason == Reason.SOURCE_NOT_FOUND and desired.restore:
        text = f"{desired.restore.source.text} has no data on the node (any more); {desired.subject} keeps its data"
        return Finding(reason, f"{text}; make another DBRestore, from another source")
    return Finding(reason, error_message(error, desired.subject))
