"""What is true of a branch on its node: pool, subvolume, pods, slots, Postgres. Reads only."""

from __future__ import annotations

from collections.abc import Iterable

from dbranch import names
from dbranch.api.branch import Branch
from dbranch.api.project import Project
from dbranch.cluster import Cluster, path_of
from dbranch.observe.machine import observe_machine
from dbranch.observe.pools import observe_pool
from dbranch.observe.slots import observe_bound_branches, observe_slot
from dbranch.observe.subvolumes import observe_initdb_done, observe_marker, observe_subvolumes
from dbranch.observe.warm import observe_free
from dbranch.plan.agent_branch import BranchFacts
from dbranch.plan.layout import Layout
from dbranch.plan.pod_trouble import PodFacts, pod_facts
from dbranch.plan.retained import retained_branch
from dbranch.plan.slot_pod import Home, slot_class
from dbranch.plan.space import Space


def observe_branch(
    cluster: Cluster, layout: Layout, home: Home, form: str, project: Project, branch: Branch
) -> BranchFacts:
    """The branch as it is now. `form` is that of the waiting slots which it may take. `accepting` and `pending`
    are left to who has a session."""
    pool = observe_pool(layout, project.uid)
    machine = observe_machine(layout)
    pods = observe_pods(cluster, home.namespace, f"{names.LABEL_BRANCH_UID}={branch.uid}")
    initdb = names.initdb_pod(project.uid)
    marker = observe_marker(layout, project.uid, branch.uid)
    retained: str | None = None
    initdb_done = False
    if marker is None and (project.adopt or branch.is_root):
        subvolumes = observe_subvolumes(layout, project.uid)
        if project.adopt:
            retained = retained_branch(subvolumes.branches, project.adopt, branch.branch, branch.uid)
        initdb_done = branch.uid in subvolumes.initdb and observe_initdb_done(layout, project.uid, branch.uid)
    waiting: tuple[PodFacts, ...] = ()
    if not pods and branch.running and project.running and (marker or branch.source_uid or retained):
        waiting = observe_free(cluster, home, slot_class(project, branch), form)
    bound = observe_bound(layout, branch.uid, initdb if branch.is_root else None)
    slots = [observe_slot(layout, slot) for slot in bound]
    return BranchFacts(
        pool_mounted=pool.mounted and not pool.frozen,
        space=Space(pool.total_bytes, pool.free_bytes, machine.host_total_bytes, machine.host_free_bytes),
        marker=marker,
        retained=retained,
        pods=tuple(pod for pod in pods if pod.name != initdb),
        waiting=waiting,
        initdb=next((pod for pod in pods if pod.name == initdb), None),
        initdb_done=initdb_done,
        bound=bound,
        unseen=any(slot.unseen for slot in slots),
        refused=next((slot.refused for slot in slots if slot.refused), None),
    )


def observe_pods(cluster: Cluster, namespace: str, labels: str) -> tuple[PodFacts, ...]:
    """The pods with these labels, uncached."""
    found = cluster.find(path_of("v1", "pods", namespace), labels=labels)
    return tuple(sorted((pod_facts(body) for body in found), key=lambda pod: pod.name))


def observe_bound(layout: Layout, branch_uid: str, also: str | None) -> tuple[str, ...]:
    """The slots in which the branch is bound, and the slot `also` while it has a directory."""
    return _with(layout, also, (s for s, of in observe_bound_branches(layout).items() if of[1] == branch_uid))


def observe_project_slots(layout: Layout, project_uid: str) -> tuple[str, ...]:
    """The slots in which anything of this project's pool is bound, and that of its initdb."""
    of_project = (s for s, of in observe_bound_branches(layout).items() if of[0] == project_uid)
    return _with(layout, names.initdb_pod(project_uid), of_project)


def _with(layout: Layout, also: str | None, slots: Iterable[str]) -> tuple[str, ...]:
    more = [also] if also and layout.slot(also).is_dir() else []
    return tuple(sorted({*slots, *more}))
