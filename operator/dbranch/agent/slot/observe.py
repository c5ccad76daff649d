"""What is true of a slot: its directory, what is bound there, whether Postgres made its socket. Reads only."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dbranch.agent.layout import Layout, is_slot, is_uid
from dbranch.agent.linux.files import opened_directory, read_beneath
from dbranch.agent.linux.mounts import Mount, mounts_at, read_mounts
from dbranch.agent.slot.pod_status import PodFacts, pod_facts
from dbranch.api import names
from dbranch.kube.client import Cluster, path_of

_SOCKET: Final = re.compile(r"\.s\.PGSQL\.(\d{1,5})")
# What slot-start.sh says while it sees no branch; it looks every two seconds.
WAITING: Final = "waiting"
_SEEN: Final = 5.0


@dataclass(frozen=True)
class SlotFacts:
    """A slot as it is now. `bound` is whether something is mounted at `data`; `project_uid` and `branch_uid`
    say whose subvolume that is, by mountinfo (None: an initdb area, a deleted or a foreign one; then
    `bound_root` is what mountinfo says). `socket_port` is the port in the socket's name, None without one.
    `refused` is what the script that waits there says keeps it from starting Postgres (a tenant may write it);
    `unseen`: seconds after the bind it still said that it waits for one, so the bind did not reach it.
    """

    exists: bool
    bound: bool = False
    project_uid: str | None = None
    branch_uid: str | None = None
    bound_root: str | None = None
    socket_port: int | None = None
    refused: str | None = None
    unseen: bool = False


def observe_bind_mounts(layout: Layout) -> dict[str, tuple[str, str | None]]:
    """What is bound in which slot, from one reading of the mounts: slot -> the UIDs of project and branch.

    The branch is None where it is an initdb area or a deleted one; a slot with something else is not there.
    """
    mounts = read_mounts()
    pools = _pools(layout, mounts)
    found: dict[str, tuple[str, str | None]] = {}
    # Strings: a Path for each of a node's mounts costs more than all the rest of a visit.
    place = f"{layout.slots}/"
    for mount in mounts:
        if not (mount.point.startswith(place) and mount.point.endswith("/data")):
            continue
        slot = mount.point.removeprefix(place).removesuffix("/data")
        if is_slot(slot):
            found.pop(slot, None)
            if mount.device in pools:
                name = mount.root.removeprefix("/")
                found[slot] = pools[mount.device], name if is_uid(name) else None
    return found


def _pools(layout: Layout, mounts: tuple[Mount, ...]) -> dict[str, str]:
    """The device of each mounted pool -> the UID of its project."""
    place = f"{layout.mounts}/"
    found = (
        (mount.device, mount.point.removeprefix(place)) for mount in mounts if mount.point.startswith(place)
    )
    return {device: name for device, name in found if is_uid(name)}


def observe_slot(layout: Layout, slot: str) -> SlotFacts:
    """A slot by name."""
    directory = layout.slot(slot)
    if not directory.exists():
        return SlotFacts(exists=False)
    mounts = read_mounts()
    there = mounts_at(layout.data(slot), mounts)
    port, refused = _socket_port(directory), _refused(directory)
    unseen = bool(there) and refused == WAITING and _waits_since(layout.wake(slot), layout.run(slot)) > _SEEN
    if not there:
        return SlotFacts(exists=True, socket_port=port, refused=refused)
    top = there[-1]
    name = top.root.removeprefix("/")
    pools = _pools(layout, mounts)
    return SlotFacts(
        exists=True,
        bound=True,
        project_uid=pools.get(top.device),
        branch_uid=name if is_uid(name) and top.device in pools else None,
        bound_root=top.root,
        socket_port=port,
        refused=refused,
        unseen=unseen,
    )


def _waits_since(wake: Path, run: Path) -> float:
    """The seconds from the bind (it touches `wake`) to the script's last word."""
    try:
        return (run / "refused").lstat().st_mtime - wake.lstat().st_mtime
    except OSError:
        return 0.0


def _refused(directory: Path) -> str | None:
    try:
        with opened_directory(directory, "run") as run:
            text = read_beneath(run, "refused", limit=200)
    except OSError:
        return None
    return text.strip() or None if text else None


def _socket_port(directory: Path) -> int | None:
    try:
        with opened_directory(directory, "run") as run:
            names = os.listdir(run)
    except OSError:
        return None
    ports = (_SOCKET.fullmatch(name) for name in names)
    return next((int(match[1]) for match in ports if match), None)


def observe_slots(layout: Layout) -> tuple[str, ...]:
    """The names of all slots that have a directory on this node."""
    if not layout.slots.exists():
        return ()
    return tuple(sorted(path.name for path in layout.slots.iterdir() if is_slot(path.name) and path.is_dir()))


def observe_pods(cluster: Cluster, namespace: str, labels: str) -> tuple[PodFacts, ...]:
    """The pods with these labels, uncached."""
    found = cluster.find(path_of("v1", "pods", namespace), labels=labels)
    return tuple(sorted((pod_facts(body) for body in found), key=lambda pod: pod.name))


def observe_branch_slots(layout: Layout, branch_uid: str, also: str | None) -> tuple[str, ...]:
    """The slots in which the branch is bound, and the slot `also` while it has a directory."""
    return _with(layout, also, (s for s, of in observe_bind_mounts(layout).items() if of[1] == branch_uid))


def observe_project_slots(layout: Layout, project_uid: str) -> tuple[str, ...]:
    """The slots in which anything of this project's pool is bound, and that of its initdb."""
    of_project = (s for s, of in observe_bind_mounts(layout).items() if of[0] == project_uid)
    return _with(layout, names.initdb_pod_name(project_uid), of_project)


def _with(layout: Layout, also: str | None, slots: Iterable[str]) -> tuple[str, ...]:
    more = [also] if also and layout.slot(also).is_dir() else []
    return tuple(sorted({*slots, *more}))
