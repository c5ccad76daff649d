"""Read what is true of a branch on its node: its pool, subvolume, pods and slots. Reads only."""

from __future__ import annotations

from dbranch.agent.branch.plan import BranchFacts
from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout, SubvolumeKind
from dbranch.agent.machine import observe_machine
from dbranch.agent.pool.observe import observe_pool
from dbranch.agent.pool.space import Space
from dbranch.agent.slot.observe import observe_branch_slots, observe_pods, observe_slot
from dbranch.agent.slot.pod_spec import slot_class_of
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.volume.adopt import retained_branch
from dbranch.agent.volume.marker import Marker, NewerMarker
from dbranch.agent.volume.observe import observe_initdb_done, observe_marker, observe_subvolumes
from dbranch.agent.warm.observe import observe_free_pods
from dbranch.api import names
from dbranch.api.branch import Branch, should_run
from dbranch.api.project import Project
from dbranch.kube.client import Cluster


def observe_branch(
    cluster: Cluster,
    layout: Layout,
    context: NodeContext,
    template_hash: str,
    project: Project,
    branch: Branch,
) -> BranchFacts:
    """Return the facts of a branch, but for `server_version` and `pending_settings`, which need an SQL session.

    `template_hash`: of the warm pods that the branch may claim.
    """
    pool = observe_pool(layout, project.uid)
    machine = observe_machine(layout)
    pods = observe_pods(cluster, context.namespace, f"{names.LABEL_BRANCH_UID}={branch.uid}")
    initdb_pod_name = names.initdb_pod_name(project.uid)
    stored = observe_marker(layout, project.uid, branch.uid)
    newer = stored if isinstance(stored, NewerMarker) else None
    retained_uid: str | None = None
    initdb_done = False
    if stored is None and (project.adopt or branch.is_root):
        subvolumes = observe_subvolumes(layout, project.uid)
        if project.adopt:
            retained_uid = retained_branch(subvolumes.branches, project.adopt, branch.name, branch.uid)
            if retained_uid is None:
                # The branch's data may be among what only a newer release understands.
                markers = subvolumes.branches.values()
                newer = next((marker for marker in markers if isinstance(marker, NewerMarker)), None)
        in_area = branch.uid in subvolumes.owners_of(SubvolumeKind.INIT)
        initdb_done = in_area and observe_initdb_done(layout, project.uid, branch.uid)
    marker = stored if isinstance(stored, Marker) else None
    warm_pods: tuple[PodFacts, ...] = ()
    if not pods and should_run(project, branch) and (marker or branch.source_uid or retained_uid):
        class_hash = slot_class_of(project, branch).class_hash
        warm_pods = observe_free_pods(cluster, context, class_hash, template_hash)
    initdb_slot = initdb_pod_name if branch.is_root else None
    bound_slots = observe_branch_slots(layout, branch.uid, initdb_slot)
    slots = [observe_slot(layout, slot) for slot in bound_slots]
    return BranchFacts(
        pool_mounted=pool.mounted and not pool.read_only,
        space=Space(pool.total_bytes, pool.free_bytes, machine.host_total_bytes, machine.host_free_bytes),
        marker=marker,
        newer=newer,
        retained_uid=retained_uid,
        pods=tuple(pod for pod in pods if pod.name != initdb_pod_name),
        warm_pods=warm_pods,
        initdb_pod=next((pod for pod in pods if pod.name == initdb_pod_name), None),
        initdb_done=initdb_done,
        bound_slots=bound_slots,
        bind_not_propagated=any(slot.bind_not_propagated for slot in slots),
        start_blocked_by=next((slot.start_blocked_by for slot in slots if slot.start_blocked_by), None),
    )
