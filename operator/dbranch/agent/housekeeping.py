"""What an agent does for its node, not for one branch: what it holds is told, what nobody owns is swept."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.machine import observe_machine
from dbranch.agent.pool.effect import ensure_pool_removed
from dbranch.agent.pool.observe import observe_pools
from dbranch.agent.pool.retained import observe_retained
from dbranch.agent.slot.effect import ensure_slot_removed
from dbranch.agent.slot.observe import observe_pods, observe_slots
from dbranch.agent.slot.pods import delete_pod
from dbranch.agent.status import free_bytes_differ
from dbranch.agent.volume.effect import ensure_trash_emptied, ensure_trashed
from dbranch.agent.volume.observe import observe_subvolumes
from dbranch.agent.volume.orphans import (
    ensure_orphan_marker,
    ensure_orphan_marker_removed,
    ensure_orphan_markers_swept,
    orphan_age,
)
from dbranch.api import names
from dbranch.api.errors import Busy, DbranchError
from dbranch.kube.client import Cluster, path_of

logger = logging.getLogger(__name__)

_EVERY = 60.0
# A slot's directory is made before its pod, so a young one may still get it: within the time of a few requests.
_YOUNG = 60.0

Told = tuple[int, str]


def run_housekeeping(cluster: Cluster, layout: Layout, context: NodeContext, pod: str, grace: float) -> None:
    """For ever, at a slow pace. `grace`: seconds for which what no object names is kept."""
    told: Told | None = None
    while True:
        try:
            told = tell(cluster, layout, context, pod, told)
            sweep_slots(cluster, layout, context)
            sweep_unclaimed(cluster, layout, context, grace)
        except (DbranchError, OSError) as error:
            logger.warning("housekeeping: %s", error)
        time.sleep(_EVERY)


def tell(cluster: Cluster, layout: Layout, context: NodeContext, pod: str, told: Told | None) -> Told:
    """The disk's free bytes and the retained pools on the agent's own pod; what stands there now."""
    free = observe_machine(layout).host_free_bytes
    retained = ",".join(uid for uid in observe_pools(layout) if observe_retained(layout, uid))
    if told is not None and told[1] == retained and not free_bytes_differ(told[0], free):
        return told
    marks = {names.AGENT_HOST_FREE: str(free), names.AGENT_RETAINED: retained}
    path = path_of("v1", "pods", context.namespace, pod)
    cluster.merge(path, {"metadata": {"annotations": marks}})
    return free, retained


def sweep_slots(cluster: Cluster, layout: Layout, context: NodeContext, young: float = _YOUNG) -> None:
    """Removes the directories of slots, older than `young` seconds, whose pod does not exist (any more)."""
    old = [slot for slot in observe_slots(layout) if _age(layout.slot(slot)) > young]
    if not old:
        return
    path = path_of("v1", "pods", context.namespace)
    there = {pod["metadata"]["name"] for pod in cluster.find(path, labels=names.LABEL_SLOT)}
    for slot in old:
        if slot not in there:
            ensure_slot_removed(layout, slot)


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def sweep_unclaimed(cluster: Cluster, layout: Layout, context: NodeContext, grace: float) -> None:
    """Pools and branches that no object names any more: marked, and after `grace` seconds removed.

    A finalizer stripped by hand, or a node that came back after it was given up, leaves such. The disk is
    read before the API: an object is there before what is made for it. Retained pools are left alone.
    """
    pools = observe_pools(layout)
    held = {uid: tuple(observe_subvolumes(layout, uid).branches) for uid in pools}
    everywhere = (path_of(names.API_VERSION, plural) for plural in (names.PROJECTS, names.BRANCHES))
    claimed = {body["metadata"]["uid"] for path in everywhere for body in cluster.find(path)}
    for pool, branches in held.items():
        kept = pool in claimed or observe_retained(layout, pool) is not None
        if _is_over(layout, pool, kept, grace) and _without_pods(
            cluster, context, names.LABEL_PROJECT_UID, pool
        ):
            logger.warning("pool %s has had no DBProject for %.0f s; it is removed", pool, grace)
            with _later(pool):
                ensure_pool_removed(layout, pool)
                ensure_orphan_marker_removed(layout, pool)
        for branch in branches if pool in claimed else ():
            over = _is_over(layout, branch, branch in claimed, grace)
            if over and _without_pods(cluster, context, names.LABEL_BRANCH_UID, branch):
                logger.warning("branch %s has had no DBBranch for %.0f s; it is removed", branch, grace)
                with _later(branch):
                    ensure_trashed(layout, pool, branch)
                    ensure_trash_emptied(layout, pool)
                    ensure_orphan_marker_removed(layout, branch)
    ensure_orphan_markers_swept(
        layout, {*held, *(branch for branches in held.values() for branch in branches)}
    )


def _is_over(layout: Layout, uid: str, claimed: bool, grace: float) -> bool:
    if claimed:
        ensure_orphan_marker_removed(layout, uid)
        return False
    ensure_orphan_marker(layout, uid)
    return orphan_age(layout, uid) > grace


def _without_pods(cluster: Cluster, context: NodeContext, label: str, uid: str) -> bool:
    """Whether no pod of it is left; those that are end, and their slots are swept after them."""
    left = observe_pods(cluster, context.namespace, f"{label}={uid}")
    for pod in left:
        if not pod.terminating:
            delete_pod(cluster, context.namespace, pod)
    return not left


@contextmanager
def _later(uid: str) -> Iterator[None]:
    """What is still in use is tried again in the next round."""
    try:
        yield
    except Busy as error:
        logger.info("%s: %s", uid, error)
