"""Read what the node's disk holds and which objects exist. Reads only."""

from __future__ import annotations

import logging
from datetime import datetime
from functools import lru_cache

from dbranch.agent.cluster_identity import ClusterIdentity
from dbranch.agent.housekeeping.isolation import Isolation
from dbranch.agent.housekeeping.orphans import Existing, StoredPool
from dbranch.agent.layout import Layout
from dbranch.agent.linux.btrfs import superblock_uuid
from dbranch.agent.pool.observe import observe_pools
from dbranch.agent.pool.records import read_record
from dbranch.agent.pool.tombstone import read_tombstone
from dbranch.agent.volume.observe import observe_subvolumes
from dbranch.api import names
from dbranch.api.errors import StorageUnclear
from dbranch.kube.client import Cluster, path_of

logger = logging.getLogger(__name__)


def observe_stored_pools(layout: Layout, isolation: Isolation, now: datetime) -> tuple[StoredPool, ...]:
    """Read all pools on the disk; one that cannot be read is left out. `now`: of the API server."""
    pools = []
    for uid in observe_pools(layout):
        with isolation.item(f"pool {uid}"):
            pools.append(_observe_stored_pool(layout, uid, now))
    return tuple(pools)


def _observe_stored_pool(layout: Layout, uid: str, now: datetime) -> StoredPool:
    image, subvolumes = layout.image(uid), observe_subvolumes(layout, uid)
    for name in subvolumes.of_newer_release:
        _log_newer_once(uid, str(name))
    return StoredPool(
        uid,
        read_record(layout, uid),
        subvolumes.markers,
        image.stat().st_blocks * 512,
        superblock_uuid(image),
        *_removal_of(layout, uid, now),
    )


def _removal_of(layout: Layout, uid: str, now: datetime) -> tuple[bool, str]:
    """Return whether the pool's removal was requested and is due, and until when it is kept before (RFC 3339)."""
    try:
        tombstone = read_tombstone(layout, uid)
    except StorageUnclear:
        # It is neither removed nor offered.
        return True, ""
    if tombstone is None:
        return False, ""
    return (True, "") if tombstone.is_due(now) else (False, tombstone.not_before)


def observe_existing(cluster: Cluster, identity: ClusterIdentity) -> Existing:
    """List the objects of all namespaces, uncached.

    Call it after the disk was read: an object is there before its data. A project that is being deleted and that the
    agent has let go of does not count.
    """
    projects, branches, snapshots = (
        cluster.find(path_of(names.API_VERSION, plural))
        for plural in (names.PROJECTS, names.BRANCHES, names.SNAPSHOTS)
    )
    return Existing(
        frozenset(
            body["metadata"]["uid"]
            for body in projects
            if not body["metadata"].get("deletionTimestamp")
            or names.AGENT_FINALIZER in (body["metadata"].get("finalizers") or ())
        ),
        frozenset(body["metadata"]["uid"] for body in branches),
        identity.cluster_uid(),
        frozenset(body["metadata"]["uid"] for body in snapshots),
    )


@lru_cache(maxsize=1024)
def _log_newer_once(pool: str, name: str) -> None:
    logger.warning(
        "subvolume %s in the pool of project %s was written by a newer release of dbranch; it is left alone; "
        "upgrade the agent of this node",
        name,
        pool,
    )
