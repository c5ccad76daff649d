"""Read what is true of a branch on its node: its pool, subvolume, pods, slots and Postgres. Reads only."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from dbranch.agent.branch.facts import BranchFacts, Desired
from dbranch.agent.branch.pods import is_beside
from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout, SubvolumeKind
from dbranch.agent.machine import observe_machine
from dbranch.agent.pool.observe import PoolFacts, observe_pool
from dbranch.agent.pool.record import PoolRecord
from dbranch.agent.pool.records import read_record
from dbranch.agent.pool.space import Space
from dbranch.agent.postgres.answer import ServerFacts
from dbranch.agent.postgres.collations import outdated_collations
from dbranch.agent.postgres.server import JOBS_SETTING, observe_server
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.slot.image_ref import digest_of
from dbranch.agent.slot.observe import (
    observe_both_slots,
    observe_branch_slots,
    observe_pods,
    observe_slot,
)
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.status import failed_storage_finding
from dbranch.agent.volume.alter_system import has_altered_settings
from dbranch.agent.volume.brake import observe_brake
from dbranch.agent.volume.copies import check_source
from dbranch.agent.volume.effect import is_hba_closed, settings_outdated, settings_written_at
from dbranch.agent.volume.marker import Marker, NewerMarker, Role
from dbranch.agent.volume.observe import observe_initdb_done, observe_marker, observe_subvolumes
from dbranch.agent.volume.origins.adopt import retained_branch
from dbranch.agent.warm.observe import observe_free_pods
from dbranch.agent.warm.watched import WatchedWarmPods
from dbranch.api import names
from dbranch.api.conditions import Finding
from dbranch.api.errors import DbranchError
from dbranch.api.scram import split_version
from dbranch.kube.client import Cluster

logger = logging.getLogger(__name__)


def observe_branch(
    cluster: Cluster,
    layout: Layout,
    context: NodeContext,
    template_hash: str,
    desired: Desired,
    watched: WatchedWarmPods,
    tried: Collection[str] = (),
) -> BranchFacts:
    """Return the facts of a branch, but for those that only its Postgres knows (`observe_postgres`).

    `template_hash`: of the warm pods that the branch may claim, which are listed if none is `watched`; `tried`: the
    names of those that it may not.
    """
    project, branch = desired.project, desired.branch
    pool = observe_pool(layout, project.uid)
    observed_pods = observe_pods(cluster, context.namespace, f"{names.LABEL_BRANCH_UID}={branch.uid}")
    initdb_pod_name = names.initdb_pod_name(project.uid)
    stored = observe_marker(layout, project.uid, branch.uid)
    newer = stored if isinstance(stored, NewerMarker) else None
    retained_uid: str | None = None
    initdb_done = False
    if stored is None and (project.adopt or branch.is_root):
        subvolumes = observe_subvolumes(layout, project.uid)
        if project.adopt:
            record = read_record(layout, project.uid)
            previous = record.lineage if isinstance(record, PoolRecord) else ()
            retained_uid = retained_branch(
                subvolumes.branches, {project.adopt, *previous}, branch.name, branch.uid
            )
            if retained_uid is None:
                # The branch's data may be among what only a newer release understands.
                markers = subvolumes.branches.values()
                newer = next((marker for marker in markers if isinstance(marker, NewerMarker)), None)
        in_area = branch.uid in subvolumes.owners_of(SubvolumeKind.INIT)
        initdb_done = in_area and observe_initdb_done(layout, project.uid, branch.uid)
    marker = stored if isinstance(stored, Marker) else None
    source_problem: Finding | None = None
    if stored is None and retained_uid is None and branch.source_uid and pool.mounted:
        source_problem = find_source_problem(layout, desired, branch.source_uid)
    initdb_slot = initdb_pod_name if branch.is_root else None
    bound_slots, restore_slots = observe_both_slots(layout, branch.uid, initdb_slot)
    beside = tuple(pod for pod in observed_pods if is_beside(pod, branch, marker, bound_slots, restore_slots))
    pods = tuple(pod for pod in observed_pods if pod not in beside)
    warm_pods: tuple[PodFacts, ...] = ()
    if not pods and desired.runs and (marker or branch.source_uid or retained_uid):
        free = watched.free(desired.slot_class, template_hash)
        warm_pods = tuple(pod for pod in free if pod.name not in tried)
        if not warm_pods:
            listed = observe_free_pods(cluster, context, desired.slot_class, template_hash)
            warm_pods = tuple(pod for pod in listed if pod.name not in tried)
    return BranchFacts(
        pool_mounted=pool.mounted and not pool.read_only,
        space=observe_space(layout, context, pool),
        brake=observe_brake(layout, branch.uid),
        marker=marker,
        newer=newer,
        retained_uid=retained_uid,
        source_problem=source_problem,
        pods=tuple(pod for pod in pods if pod.name != initdb_pod_name),
        stray_pods=tuple(pod for pod in beside if pod.name not in restore_slots),
        warm_pods=warm_pods,
        initdb_pod=next((pod for pod in pods if pod.name == initdb_pod_name), None),
        initdb_done=initdb_done,
        bound_slots=bound_slots,
        **bound_slot_facts(layout, bound_slots),
    )


def observe_space(layout: Layout, context: NodeContext, pool: PoolFacts) -> Space:
    """Return the bytes of a pool, and of the node's disk."""
    machine = observe_machine(layout)
    return Space(
        pool.total_bytes,
        pool.free_bytes,
        machine.host_total_bytes,
        machine.host_free_bytes,
        context.eviction.of(machine.host_total_bytes),
    )


def bound_slot_facts(layout: Layout, bound_slots: Sequence[str]) -> dict[str, Any]:
    """Return what the scripts in the slots say in which the data is bound, as fields of BranchFacts."""
    slots = [observe_slot(layout, slot) for slot in bound_slots]
    return {
        "bind_not_propagated": any(slot.bind_not_propagated for slot in slots),
        "start_blocked_by": next((slot.start_blocked_by for slot in slots if slot.start_blocked_by), None),
    }


def find_source_problem(layout: Layout, desired: Desired, source_uid: str) -> Finding | None:
    """Return why the source cannot be copied, if that can be seen without a snapshot."""
    try:
        check_source(layout, desired.project.uid, source_uid)
    except (DbranchError, OSError) as error:
        return failed_storage_finding(error, desired.subject)
    return None


def endpoint_of(desired: Desired, slot: str, marker: Marker) -> Endpoint:
    """Return how to reach the branch's Postgres in a slot."""
    port, database = names.branch_port(desired.branch.uid), desired.project.postgres.database
    return Endpoint(slot, port, marker.superuser, marker.major, database)


def observe_postgres(layout: Layout, desired: Desired, facts: BranchFacts) -> BranchFacts:
    """Return the facts with what the Postgres in the bound slot answers, and whether its settings are loaded."""
    project, branch, pod = desired.project, desired.branch, facts.live_pod
    if pod is None or pod.name not in facts.bound_slots or facts.marker is None:
        return facts
    roles, endpoint = desired.roles(facts.marker.superuser), endpoint_of(desired, pod.name, facts.marker)
    server = observe_server(layout, endpoint, roles)
    outdated = settings_outdated(layout, project.uid, branch.uid, desired.settings)
    if server.version and not outdated:
        written_at = settings_written_at(layout, project.uid, branch.uid)
        # A time in the future is that of a clock that was set back.
        outdated = server.loaded_at < written_at <= time.time()
    return replace(
        facts,
        server_version=server.version,
        refusal=server.answer,
        server_error=server.error,
        missing_superuser=server.missing_superuser,
        outdated_collations=_outdated_collations(layout, endpoint, pod, facts.marker)
        if server.version
        else None,
        pending_settings=_pending_settings(server, facts.marker),
        rejected_settings=server.rejected_settings,
        settings_outdated=outdated,
        hba_closed=facts.marker.opened and is_hba_closed(layout, project.uid, branch.uid, facts.marker),
        altered=not server.version and has_altered_settings(layout, project.uid, branch.uid),
        **_password_facts(desired, facts.marker, server, roles),
    )


def _pending_settings(server: ServerFacts, marker: Marker) -> tuple[str, ...]:
    """Return the settings that need a restart; the jobs' among them once the data is the root's."""
    if marker.running_role is Role.ROOT:
        return server.pending_settings
    return tuple(name for name in server.pending_settings if name != JOBS_SETTING)


def _password_facts(
    desired: Desired, marker: Marker, server: ServerFacts, roles: Sequence[str]
) -> dict[str, Any]:
    """Return what the passwords that Postgres reports mean; nothing while it does not accept connections."""
    if not server.version:
        return {}
    actual, user = server.passwords, desired.project.postgres.user
    version = marker.verifiers or desired.project.password_version or ""
    desired_versions = dict(zip(roles, split_version(version), strict=False))
    return {
        "passwords_differ": any(
            actual[role] != version for role, version in desired_versions.items() if role in actual
        ),
        "missing_role": None if user in actual else user,
    }


def _outdated_collations(
    layout: Layout, endpoint: Endpoint, pod: PodFacts, marker: Marker
) -> tuple[str, ...] | None:
    """Look up what sorts otherwise, if the pod has another image than the marker; None if not, or not possible."""
    if not pod.image_id or digest_of(pod.image_id) == marker.image:
        return None
    try:
        return outdated_collations(layout, endpoint)
    except DbranchError as error:
        logger.info("slot %s: collations not compared: %s", endpoint.slot, error)
        return None


def observe_started(
    layout: Layout, desired: Desired, facts: BranchFacts, pod: PodFacts, version: str
) -> BranchFacts:
    """Return the facts anew of a branch that has just claimed `pod`, where Postgres accepts connections now.

    The pod is as the claim's answer showed it, the settings as the bind wrote them, so neither is read again.
    """
    project, branch = desired.project, desired.branch
    marker = observe_marker(layout, project.uid, branch.uid)
    return replace(
        facts,
        marker=marker if isinstance(marker, Marker) else None,
        pods=(pod,),
        warm_pods=(),
        bound_slots=observe_branch_slots(layout, branch.uid, None),
        server_version=version,
        settings_outdated=False,
        start_blocked_by=None,
        bind_not_propagated=False,
    )
