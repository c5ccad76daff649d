"""Remove what nothing owns: slots without a pod, what never was anybody's data. Pools go only with a tombstone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from dbranch.agent.cluster_identity import ClusterIdentity
from dbranch.agent.context import NodeContext
from dbranch.agent.housekeeping.isolation import Isolation
from dbranch.agent.housekeeping.observe import observe_existing, observe_stored_pools
from dbranch.agent.housekeeping.orphans import (
    Existing,
    Fate,
    Rounds,
    StoredPool,
    Unnamed,
    oldest_kept,
    unnamed,
)
from dbranch.agent.layout import Layout, SubvolumeKind, SubvolumeName
from dbranch.agent.linux.btrfs import superblock_uuid
from dbranch.agent.machine import observe_machine
from dbranch.agent.pool.effect import ensure_pool, ensure_pool_down, ensure_pool_removed
from dbranch.agent.pool.record import PoolRecord
from dbranch.agent.pool.records import (
    ensure_initialized_recorded,
    ensure_record_removed,
    observe_records,
    read_record,
)
from dbranch.agent.pool.space import watermarks_of
from dbranch.agent.pool.tombstone import ensure_tombstone, observe_tombstones, read_tombstone
from dbranch.agent.slot.effect import ensure_slot_removed
from dbranch.agent.slot.observe import observe_bind_mounts, observe_slots
from dbranch.agent.slot.unused import ensure_unused
from dbranch.agent.timing import ORPHAN_ROUNDS, ORPHAN_SLOT_ROUNDS
from dbranch.agent.volume.effect import ensure_temporaries_destroyed
from dbranch.agent.volume.marker import Marker, SnapshotMarker
from dbranch.agent.volume.observe import observe_subvolumes
from dbranch.agent.volume.restores import ensure_restore_finished
from dbranch.agent.volume.sizes import observe_sizes
from dbranch.api import names
from dbranch.api.orphans import Orphan, OrphanKind
from dbranch.api.quantity import format_bytes
from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.clock import now_rfc3339
from dbranch.runtime.file_lock import held_temporary
from dbranch.runtime.steady_clock import SteadyClock

logger = logging.getLogger(__name__)


class Sweeper:
    """Sweeps one node, and remembers how often it has seen what no object names.

    `shown`: UIDs of the orphans that were published, maybe by an earlier process. `orphans`: with their bytes, as of
    the last round. `stored`, `existing`: what that round read; None before it.
    """

    def __init__(self, cluster: Cluster, layout: Layout, context: NodeContext, isolation: Isolation) -> None:
        self._cluster, self._layout, self._context, self._isolation = cluster, layout, context, isolation
        self._identity = ClusterIdentity(cluster)
        # A clock that is wrong for a while removes no pool before its time.
        self._clock = SteadyClock(cluster.server_time)
        self._rounds, self._slot_rounds = Rounds(), Rounds()
        # Bytes of orphan branches, by UID: measured once.
        self._branch_bytes: dict[str, int] = {}
        # UIDs of owners and projects that pods or bind mounts on this node name.
        self._in_use: frozenset[str] = frozenset()
        self.shown: frozenset[str] = frozenset()
        self.orphans: dict[Orphan, int] = {}
        # Called with what is said of a deleted project that is not kept any longer.
        self.on_undo_removed: Callable[[str], None] = lambda text: None
        self.stored: tuple[StoredPool, ...] = ()
        self.existing: Existing | None = None

    def sweep(self) -> None:
        """Run one round. The rounds in which something was seen are counted here, so call it at a slow pace."""
        with self._isolation.item("slots"):
            self.sweep_slots()
        with self._isolation.item("pods"):
            self._in_use = self._observe_in_use()
        with self._isolation.item("markers of release 0.1.0"):
            for marker in self._layout.pools.glob("*.orphan"):
                marker.unlink(missing_ok=True)
        with self._isolation.item("orphans"):
            self.observe()
            self._rounds.count(unnamed(self.stored, self._read_existing()))
            self._finish_removals()
            for item in unnamed(self.stored, self._read_existing()):
                if self._rounds.of(item) >= ORPHAN_ROUNDS:
                    with self._isolation.item(f"{item.fate} {item.owner_uid} in pool {item.pool_uid}"):
                        self._treat(item)
            self._sweep_records()
            self.observe()

    def observe(self) -> None:
        """Read the disk, then the API; nothing is counted."""
        stored = observe_stored_pools(self._layout, self._isolation, self._clock())
        existing = observe_existing(self._cluster, self._identity)
        self.stored, self.existing = stored, existing
        pools = {pool.uid: pool for pool in stored}
        orphans: dict[Orphan, int] = {}
        for item in unnamed(stored, existing):
            if item.fate is Fate.KEEP and (self._is_shown(item)):
                with self._isolation.item(f"orphan {item.owner_uid}"):
                    orphan, size = self._describe(pools[item.pool_uid], item)
                    orphans[orphan] = size
        self._branch_bytes = {
            uid: size for uid, size in self._branch_bytes.items() if any(o.uid == uid for o in orphans)
        }
        self.orphans, self.shown = orphans, frozenset(orphan.uid for orphan in orphans)

    def _is_shown(self, item: Unnamed) -> bool:
        return item.certain or item.owner_uid in self.shown or self._rounds.of(item) >= ORPHAN_ROUNDS

    def _read_existing(self) -> Existing:
        assert self.existing is not None
        return self.existing

    def _describe(self, pool: StoredPool, item: Unnamed) -> tuple[Orphan, int]:
        if item.is_pool:
            record = pool.record if isinstance(pool.record, PoolRecord) else PoolRecord(pool.uid)
            size = pool.allocated_bytes
            orphan = Orphan(
                OrphanKind.PROJECT if pool.kept_until else OrphanKind.POOL,
                pool.uid,
                pool.uid,
                record.namespace,
                record.project,
                size=format_bytes(size),
                why=item.why,
            )
            return orphan, size
        uid = item.owner_uid
        held = SubvolumeName(uid), SubvolumeName(uid, SubvolumeKind.RESTORE)
        marker = next((pool.markers[name] for name in held if name in pool.markers), None)
        if uid not in self._branch_bytes:
            sizes = observe_sizes(self._layout, pool.uid, uid)
            self._branch_bytes[uid] = sizes.unique_bytes if sizes else 0
        size = self._branch_bytes[uid]
        snapshot = marker if isinstance(marker, SnapshotMarker) else None
        data = snapshot.data if snapshot else marker
        branch_names = data.names if isinstance(data, Marker) else None
        texts = (
            (branch_names.namespace, branch_names.project, branch_names.branch)
            if branch_names
            else ("", "", "")
        )
        kind = OrphanKind.SNAPSHOT if snapshot else OrphanKind.BRANCH
        return Orphan(kind, uid, pool.uid, *texts, format_bytes(size), item.why), size

    def _treat(self, item: Unnamed) -> None:
        """Remove what never was anybody's data. Of an orphan only what holds it goes: its pods, slots and mount."""
        if item.foreign:
            return
        label = names.LABEL_PROJECT_UID if item.is_pool else names.LABEL_BRANCH_UID
        if item.fate is not Fate.KEEP or item.owner_uid in self._in_use:
            ensure_unused(self._cluster, self._layout, self._context, label, item.owner_uid)
        match item.fate:
            case Fate.REMOVE_POOL if self._holds_data(item.pool_uid):
                ensure_initialized_recorded(self._layout, item.pool_uid)
            case Fate.REMOVE_POOL:
                logger.warning("pool %s never held data and has no DBProject; it is removed", item.pool_uid)
                ensure_tombstone(self._layout, item.pool_uid)
                ensure_pool_removed(self._layout, item.pool_uid)
            case Fate.REMOVE_TEMPORARY:
                logger.warning(
                    "what %s was being made in has no DBBranch or DBSnapshot; it is removed", item.owner_uid
                )
                ensure_temporaries_destroyed(self._layout, item.pool_uid, item.owner_uid)
            case Fate.FINISH_RESTORE:
                logger.warning(
                    "what a restore left beside branch %s has no DBBranch; it is finished", item.owner_uid
                )
                ensure_restore_finished(self._layout, item.pool_uid, item.owner_uid, now_rfc3339())
            case Fate.KEEP if item.is_pool:
                if observe_subvolumes(self._layout, item.pool_uid).holds_data:
                    # Once it is down this cannot be seen.
                    ensure_initialized_recorded(self._layout, item.pool_uid)
                ensure_pool_down(self._layout, item.pool_uid)

    def _holds_data(self, pool_uid: str) -> bool:
        """Mount a pool that never held data, as its record says, and look."""
        uuid = superblock_uuid(self._layout.image(pool_uid))
        if uuid is None:
            return False
        ensure_pool(self._layout, pool_uid, 0, uuid, None)
        return observe_subvolumes(self._layout, pool_uid).holds_data

    def _finish_removals(self) -> None:
        """Go on with the removals that were requested and are due, of pools whose project does not exist any more."""
        now = self._clock()
        self._make_room(now)
        for uid in observe_tombstones(self._layout):
            if uid not in self._read_existing().projects:
                with self._isolation.item(f"removal of pool {uid}"):
                    # As it is now: that it is to be kept may have been written since the disk was read.
                    tombstone = read_tombstone(self._layout, uid)
                    if tombstone is None or not tombstone.is_due(now):
                        continue
                    ensure_unused(self._cluster, self._layout, self._context, names.LABEL_PROJECT_UID, uid)
                    ensure_pool_removed(self._layout, uid)

    def _make_room(self, now: datetime) -> None:
        """Let the oldest deleted project that is kept go before its time if the node's disk is low; one at a time."""
        machine = observe_machine(self._layout)
        watermarks = watermarks_of(
            machine.host_total_bytes, self._context.eviction.of(machine.host_total_bytes)
        )
        if machine.host_free_bytes >= watermarks.refuse:
            return
        gone = [pool for pool in self.stored if pool.uid not in self._read_existing().projects]
        tombstones = {pool.uid: read_tombstone(self._layout, pool.uid) for pool in gone}
        requested = {uid: t.requested for uid, t in tombstones.items() if t and not t.is_due(now)}
        uid = oldest_kept(requested, now)
        if uid is None or any(t and t.is_due(now) for t in tombstones.values()):
            # One that is going already makes room first.
            return
        with self._isolation.item(f"room on the disk by pool {uid}"):
            if self._end_keeping(uid):
                record = read_record(self._layout, uid)
                project = f"{record.namespace}/{record.project}" if isinstance(record, PoolRecord) else uid
                text = f"the pool of deleted project {project} is removed before its time: the node's disk is low"
                logger.warning("%s", text)
                self.on_undo_removed(text)

    def _end_keeping(self, uid: str) -> bool:
        """Let the removal of a kept pool be due, which the sweep goes on with; False if it was adopted meanwhile."""
        with held_temporary(self._layout.pool_lock(uid), timeout=60):
            if read_tombstone(self._layout, uid) is None:
                return False
            ensure_tombstone(self._layout, uid, superblock_uuid(self._layout.image(uid)))
            return True

    def _observe_in_use(self) -> frozenset[str]:
        """Return the UIDs of the projects and branches that pods and bind mounts on this node name."""
        path = path_of("v1", "pods", self._context.namespace)
        bodies = self._cluster.find(path, names.LABEL_SLOT, f"spec.nodeName={self._context.node}")
        labels = [body["metadata"]["labels"] for body in bodies]
        layouts = self._layout, self._layout.prepared
        bound = (uid for each in layouts for uids in observe_bind_mounts(each).values() for uid in uids)
        labelled = (
            each.get(label) for each in labels for label in (names.LABEL_PROJECT_UID, names.LABEL_BRANCH_UID)
        )
        return frozenset(uid for uid in (*bound, *labelled) if uid)

    def _sweep_records(self) -> None:
        """Remove the records of pools that were adopted: an adoption may have been cut off before it did so."""
        records = {uid: read_record(self._layout, uid) for uid in observe_records(self._layout)}
        adopted = {uid for r in records.values() if isinstance(r, PoolRecord) for uid in r.lineage}
        for uid in adopted & set(records):
            if not self._layout.image(uid).exists():
                with self._isolation.item(f"record {uid}"):
                    ensure_record_removed(self._layout, uid)

    def sweep_slots(self, minimum_rounds: int = ORPHAN_SLOT_ROUNDS) -> None:
        """Remove the slots that have had no pod for so many consecutive rounds."""
        slots = observe_slots(self._layout)
        if not slots:
            return
        path = path_of("v1", "pods", self._context.namespace)
        pods = {pod["metadata"]["name"] for pod in self._cluster.find(path, labels=names.LABEL_SLOT)}
        self._slot_rounds.count(slot for slot in slots if slot not in pods)
        for slot in slots:
            if self._slot_rounds.of(slot) >= minimum_rounds:
                with self._isolation.item(f"slot {slot}"):
                    ensure_slot_removed(self._layout, slot)
