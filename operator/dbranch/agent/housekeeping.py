"""What an agent does for its node, not for one object: it publishes what it holds and removes what nothing owns."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
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
from dbranch.agent.timing import HOUSEKEEPING_INTERVAL_SECONDS, ORPHAN_SLOT_MINIMUM_AGE_SECONDS
from dbranch.agent.volume.effect import ensure_trash_emptied, ensure_trashed
from dbranch.agent.volume.observe import observe_subvolumes
from dbranch.agent.volume.orphans import (
    ensure_orphan_marker,
    ensure_orphan_marker_removed,
    ensure_orphan_markers_swept,
    orphan_age,
)
from dbranch.api import names
from dbranch.api.errors import Busy
from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.logs import log_error

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishedFacts:
    """What the annotations of the agent's own pod say of its node."""

    host_free_bytes: int
    retained: str


def run_housekeeping(
    cluster: Cluster, layout: Layout, context: NodeContext, pod: str, grace: float, beat: Callable[[], None]
) -> None:
    """Publish and sweep for ever, at a slow pace. `grace`: seconds for which orphans are kept.

    `beat` is called in each round.
    """
    published: PublishedFacts | None = None
    while True:
        beat()
        try:
            published = publish_node_facts(cluster, layout, context, pod, published)
            sweep_slots(cluster, layout, context)
            sweep_orphans(cluster, layout, context, grace)
        except Exception as error:  # noqa: BLE001
            log_error(logger, error, "housekeeping")
        time.sleep(HOUSEKEEPING_INTERVAL_SECONDS)


def publish_node_facts(
    cluster: Cluster, layout: Layout, context: NodeContext, pod: str, published: PublishedFacts | None
) -> PublishedFacts:
    """Write the disk's free bytes and the retained pools to the annotations of the agent's own pod, if they changed.

    Returns what the annotations say now.
    """
    free = observe_machine(layout).host_free_bytes
    retained = ",".join(uid for uid in observe_pools(layout) if observe_retained(layout, uid))
    if (
        published
        and published.retained == retained
        and not free_bytes_differ(published.host_free_bytes, free)
    ):
        return published
    annotations = {names.AGENT_HOST_FREE: str(free), names.AGENT_RETAINED: retained}
    path = path_of("v1", "pods", context.namespace, pod)
    cluster.merge(path, {"metadata": {"annotations": annotations}})
    return PublishedFacts(free, retained)


def sweep_slots(
    cluster: Cluster,
    layout: Layout,
    context: NodeContext,
    minimum_age: float = ORPHAN_SLOT_MINIMUM_AGE_SECONDS,
) -> None:
    """Remove the directories of slots, older than `minimum_age` seconds, whose pod does not exist (any more)."""
    old = [slot for slot in observe_slots(layout) if _age(layout.slot(slot)) > minimum_age]
    if not old:
        return
    path = path_of("v1", "pods", context.namespace)
    pods = {pod["metadata"]["name"] for pod in cluster.find(path, labels=names.LABEL_SLOT)}
    for slot in old:
        if slot not in pods:
            ensure_slot_removed(layout, slot)


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def sweep_orphans(cluster: Cluster, layout: Layout, context: NodeContext, grace: float) -> None:
    """Mark pools, and what a UID owns in a pool, that no object names any more; remove them after `grace` seconds.

    A finalizer stripped by hand, or a node that came back after it was given up, leaves such. The disk is
    read before the API: an object is there before what is made for it. Retained pools, and what only a newer
    release understands, are left alone.
    """
    pools = {uid: observe_subvolumes(layout, uid) for uid in observe_pools(layout)}
    for pool, subvolumes in pools.items():
        for name in subvolumes.of_newer_release:
            _log_newer_once(pool, str(name))
    everywhere = (path_of(names.API_VERSION, plural) for plural in (names.PROJECTS, names.BRANCHES))
    existing = {body["metadata"]["uid"] for path in everywhere for body in cluster.find(path)}
    for pool, subvolumes in pools.items():
        newer = {name.owner_uid for name in subvolumes.of_newer_release}
        kept = pool in existing or bool(newer) or observe_retained(layout, pool) is not None
        if _is_expired(layout, pool, kept, grace) and _without_pods(
            cluster, context, names.LABEL_PROJECT_UID, pool
        ):
            logger.warning("pool %s has had no DBProject for %.0f s; it is removed", pool, grace)
            with _ignore_busy(pool):
                ensure_pool_removed(layout, pool)
                ensure_orphan_marker_removed(layout, pool)
        for owner in sorted(subvolumes.owners) if pool in existing else ():
            kept = owner in existing or owner in newer
            if _is_expired(layout, owner, kept, grace) and _without_pods(
                cluster, context, names.LABEL_BRANCH_UID, owner
            ):
                logger.warning("branch %s has had no DBBranch for %.0f s; its data is removed", owner, grace)
                with _ignore_busy(owner):
                    ensure_trashed(layout, pool, owner)
                    ensure_trash_emptied(layout, pool)
                    ensure_orphan_marker_removed(layout, owner)
    owners = {owner for subvolumes in pools.values() for owner in subvolumes.owners}
    ensure_orphan_markers_swept(layout, owners | set(pools))


@lru_cache(maxsize=1024)
def _log_newer_once(pool: str, name: str) -> None:
    logger.warning(
        "subvolume %s in the pool of project %s was written by a newer release of dbranch; it is left alone; "
        "upgrade the agent of this node",
        name,
        pool,
    )


def _is_expired(layout: Layout, uid: str, kept: bool, grace: float) -> bool:
    """Return True if an orphan was marked longer than `grace` seconds ago; mark it, or unmark what is `kept`."""
    if kept:
        ensure_orphan_marker_removed(layout, uid)
        return False
    ensure_orphan_marker(layout, uid)
    return orphan_age(layout, uid) > grace


def _without_pods(cluster: Cluster, context: NodeContext, label: str, uid: str) -> bool:
    """Return True if no pod has this label; delete those that have. Their slots are swept after them."""
    pods = observe_pods(cluster, context.namespace, f"{label}={uid}")
    for pod in pods:
        if not pod.terminating:
            delete_pod(cluster, context.namespace, pod)
    return not pods


@contextmanager
def _ignore_busy(uid: str) -> Iterator[None]:
    """Leave what is still in use to the next round."""
    try:
        yield
    except Busy as error:
        logger.info("%s: %s", uid, error)
