"""Read a slot's directory, what is bind-mounted there, and what its script reports. Reads only."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dbranch.agent.layout import Layout, is_slot, is_uid
from dbranch.agent.linux.files import opened_directory, read_beneath
from dbranch.agent.linux.mounts import Mount, mounts_at, read_mounts
from dbranch.agent.slot.pod_status import PodFacts, pod_facts
from dbranch.agent.slot.start_blocks import NO_BRANCH
from dbranch.agent.timing import MOUNT_PROPAGATION_TIMEOUT_SECONDS
from dbranch.api import names
from dbranch.kube.client import Cluster, path_of

# slot-start.sh writes into `run/start-blocked-by` why it does not start Postgres.
_START_BLOCKED_BY: Final = "start-blocked-by"


@dataclass(frozen=True)
class SlotFacts:
    """A slot.

    `bound`: something is mounted at `data`. `project_uid`, `branch_uid`: of the subvolume mounted there, from
    mountinfo; `branch_uid` is None if it is no branch's data (`observe_bind_mounts`), or a foreign subvolume.
    `start_blocked_by`: why the slot's script does not start Postgres; the tenant may write this, too.
    `bind_not_propagated`: seconds after the bind the script still saw no branch.
    """

    exists: bool
    bound: bool = False
    project_uid: str | None = None
    branch_uid: str | None = None
    start_blocked_by: str | None = None
    bind_not_propagated: bool = False


def observe_bind_mounts(layout: Layout) -> dict[str, tuple[str, str | None]]:
    """Return `{slot: (project UID, branch UID)}` of all slots with a subvolume of a pool, by one read of mountinfo.

    The branch UID is None if the subvolume is no branch's data: an initdb area, one of a restore, or deleted.
    """
    mounted = _observe_bound_subvolumes(layout)
    return {slot: (project_uid, layout.owner_of(name)) for slot, (project_uid, name) in mounted.items()}


def _observe_bound_subvolumes(layout: Layout) -> dict[str, tuple[str, str]]:
    """Return `{slot: (project UID, name of the subvolume)}` of all slots with a subvolume of a pool."""
    mounts = read_mounts()
    pools = _pools(layout, mounts)
    bind_mounts: dict[str, tuple[str, str]] = {}
    # Strings: a Path for each of a node's mounts costs more than the rest of a reconcile.
    prefix = f"{layout.slots}/"
    for mount in mounts:
        if not (mount.point.startswith(prefix) and mount.point.endswith("/data")):
            continue
        slot = mount.point.removeprefix(prefix).removesuffix("/data")
        if is_slot(slot):
            # A later mount lies over an earlier one.
            bind_mounts.pop(slot, None)
            if mount.device in pools:
                bind_mounts[slot] = pools[mount.device], mount.root.removeprefix("/")
    return bind_mounts


def _pools(layout: Layout, mounts: tuple[Mount, ...]) -> dict[str, str]:
    """Return `{device: project UID}` of the mounted pools."""
    prefix = f"{layout.mounts}/"
    pools = (
        (mount.device, mount.point.removeprefix(prefix)) for mount in mounts if mount.point.startswith(prefix)
    )
    return {device: name for device, name in pools if is_uid(name)}


def observe_slot(layout: Layout, slot: str) -> SlotFacts:
    """Return the facts of the slot of this name."""
    directory = layout.slot(slot)
    if not directory.exists():
        return SlotFacts(exists=False)
    mounts = read_mounts()
    bind_mounts = mounts_at(layout.data(slot), mounts)
    start_blocked_by = _start_blocked_by(directory)
    if not bind_mounts:
        return SlotFacts(exists=True, start_blocked_by=start_blocked_by)
    top = bind_mounts[-1]
    name = top.root.removeprefix("/")
    pools = _pools(layout, mounts)
    return SlotFacts(
        exists=True,
        bound=True,
        project_uid=pools.get(top.device),
        branch_uid=layout.owner_of(name) if top.device in pools else None,
        start_blocked_by=start_blocked_by,
        bind_not_propagated=_is_run_unseen(layout, slot, mounts)
        or (
            start_blocked_by == NO_BRANCH and _report_delay(layout, slot) > MOUNT_PROPAGATION_TIMEOUT_SECONDS
        ),
    )


def _is_run_unseen(layout: Layout, slot: str, mounts: tuple[Mount, ...]) -> bool:
    """Return True if the script, seconds after the bind, has written nothing to the filesystem mounted at `run`.

    It writes there before it looks for a branch: then its pod does not see that mount either.
    """
    if not mounts_at(layout.run(slot), mounts):
        return False
    try:
        waited = time.time() - layout.wake(slot).lstat().st_mtime
        return waited > 2 * MOUNT_PROPAGATION_TIMEOUT_SECONDS and not any(layout.run(slot).iterdir())
    except OSError:
        return False


def _report_delay(layout: Layout, slot: str) -> float:
    """Return the seconds from the bind (which touches `wake`) to the script's last report; 0 without a report."""
    try:
        report, wake = layout.run(slot) / _START_BLOCKED_BY, layout.wake(slot)
        return report.lstat().st_mtime - wake.lstat().st_mtime
    except OSError:
        return 0.0


def _start_blocked_by(directory: Path) -> str | None:
    try:
        with opened_directory(directory, "run") as run:
            text = read_beneath(run, _START_BLOCKED_BY, limit=200)
    except OSError:
        return None
    return text.strip() or None if text else None


def observe_slots(layout: Layout) -> tuple[str, ...]:
    """Return the names of all slots with a directory on this node."""
    if not layout.slots.exists():
        return ()
    return tuple(sorted(path.name for path in layout.slots.iterdir() if is_slot(path.name) and path.is_dir()))


def observe_pods(cluster: Cluster, namespace: str, labels: str) -> tuple[PodFacts, ...]:
    """Return the pods that match the label selector, uncached, by name."""
    pods = cluster.find(path_of("v1", "pods", namespace), labels=labels)
    return tuple(sorted((pod_facts(body) for body in pods), key=lambda pod: pod.name))


def observe_branch_slots(layout: Layout, branch_uid: str, extra_slot: str | None) -> tuple[str, ...]:
    """Return the slots in which the branch is bound, and `extra_slot` if it has a directory."""
    return observe_both_slots(layout, branch_uid, extra_slot)[0]


def observe_both_slots(
    layout: Layout, branch_uid: str, extra_slot: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the slots as `observe_branch_slots`, and those in which the data of a restore is bound beside it."""
    bound = _observe_bound_subvolumes(layout)
    own_name, beside_name = layout.data_name(branch_uid), layout.prepared.data_name(branch_uid)
    own = (slot for slot, (_, name) in bound.items() if name == own_name)
    beside = (slot for slot, (_, name) in bound.items() if name == beside_name)
    return _with_extra(layout, extra_slot, own), tuple(sorted(beside))


def observe_project_slots(layout: Layout, project_uid: str) -> tuple[str, ...]:
    """Return the slots with a subvolume of the project's pool, and that of its initdb if it has a directory."""
    slots = (slot for slot, (uid, _) in observe_bind_mounts(layout).items() if uid == project_uid)
    return _with_extra(layout, names.initdb_pod_name(project_uid), slots)


def _with_extra(layout: Layout, extra_slot: str | None, slots: Iterable[str]) -> tuple[str, ...]:
    extra_slots = [extra_slot] if extra_slot and layout.slot(extra_slot).is_dir() else []
    return tuple(sorted({*slots, *extra_slots}))
