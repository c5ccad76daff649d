"""Whose a pool is: the record beside its image is kept as the project is, and a pool is adopted by a project."""

from __future__ import annotations

from dataclasses import replace

from dbranch.agent.cluster_identity import ClusterIdentity
from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.linux.btrfs import superblock_uuid
from dbranch.agent.linux.quotas import image_has_simple_quotas
from dbranch.agent.pool.effect import ensure_pool_down
from dbranch.agent.pool.record import PoolRecord, check_adoptable
from dbranch.agent.pool.records import ensure_pool_adopted, ensure_recorded, read_record, understood_record
from dbranch.agent.pool.tombstone import ensure_tombstone, ensure_tombstone_withdrawn, read_tombstone
from dbranch.agent.slot.unused import ensure_unused
from dbranch.api import names
from dbranch.api.errors import PoolLost
from dbranch.api.expiry import format_time
from dbranch.api.project import Project
from dbranch.kube.client import Cluster, path_of


class PoolOwnership:
    """Writes the records of projects' pools. Call it under the project's lock."""

    def __init__(self, cluster: Cluster, layout: Layout, context: NodeContext) -> None:
        self._cluster, self._layout, self._context = cluster, layout, context
        self._identity = ClusterIdentity(cluster)

    def claim(self, project: Project) -> str | None:
        """Make sure that the project's record exists, before its image does; return the UUID of its filesystem.

        None before it is made. A pool of `spec.storage.adopt` becomes the project's. Raises PoolLost if it may not be
        adopted, StorageUnclear if a newer release wrote a record.
        """
        ensure_tombstone_withdrawn(self._layout, project.uid)
        record = understood_record(self._layout, project.uid)
        if project.adopt is not None and project.node.pool_uuid is None:
            return self._adopt(project, project.adopt)
        if record is None:
            # An image without a record is one of release 0.1.0, which may hold data.
            existed = self._layout.image(project.uid).exists()
            self.record(project, project.node.pool_uuid or "", "", existed or project.node.initialized)
        return project.node.pool_uuid

    def record(self, project: Project, pool_uuid: str, machine_id: str, initialized: bool) -> None:
        """Write the record if something in it has changed. Reads the API only for what it does not have yet."""
        current = read_record(self._layout, project.uid)
        had_namespace = isinstance(current, PoolRecord) and current.namespace_uid
        namespace_uid = "" if had_namespace else self._identity.namespace_uid(project.namespace)
        cluster = self._identity.cluster_uid()
        image = self._layout.image(project.uid)
        has_quotas = image.exists() and image_has_simple_quotas(image)

        def change(record: PoolRecord | None) -> PoolRecord:
            record = record or PoolRecord(project.uid)
            return replace(
                record,
                pool_uuid=pool_uuid or record.pool_uuid,
                namespace=project.namespace,
                project=project.name,
                namespace_uid=record.namespace_uid or namespace_uid,
                cluster=cluster or record.cluster,
                deletion_policy=project.deletion_policy.value,
                machine_id=machine_id or record.machine_id,
                initialized=record.initialized or initialized,
                quotas=has_quotas,
                # It was given to the namespace that has adopted it.
                allowed_namespace_uid="",
            )

        ensure_recorded(self._layout, project.uid, change)

    def record_deletion(self, project: Project) -> None:
        """Write the record of a project that retains its pool; no-op without an image."""
        if self._layout.image(project.uid).exists():
            node = project.node
            existed = read_record(self._layout, project.uid) is None
            self.record(project, node.pool_uuid or "", node.machine_id or "", existed or node.initialized)

    def request_removal(self, project: Project) -> None:
        """Record that the pool of a project that is being deleted is to go: at once, or as its controller says.

        At once, too, where its namespace ends: nobody could undelete it there. It is said once: nothing that the
        object says afterwards lets the pool go sooner.
        """
        if read_tombstone(self._layout, project.uid) is not None:
            return
        not_before = project.kept_until or ""
        if not_before and self._identity.is_ending(project.namespace):
            not_before = ""
        requested = format_time(self._cluster.server_time())
        ensure_tombstone(self._layout, project.uid, project.node.pool_uuid, not_before, requested)

    def may_be_removed(self, project: Project) -> bool:
        """Return False if the pool of a project that is being deleted is kept for a time; the sweep removes it."""
        tombstone = read_tombstone(self._layout, project.uid)
        return tombstone is None or not tombstone.not_before

    def _adopt(self, project: Project, old_uid: str) -> str:
        """Make the pool of a project that does not exist this project's; return its filesystem's UUID.

        Raises Busy while its pods end.
        """
        namespace_uid = self._identity.namespace_uid(project.namespace)
        cluster = self._identity.cluster_uid()
        record = read_record(self._layout, old_uid)
        old = check_adoptable(record, old_uid, project.namespace, namespace_uid, cluster)
        if any(
            body["metadata"]["uid"] == old_uid
            for body in self._cluster.find(path_of(names.API_VERSION, names.PROJECTS))
        ):
            raise PoolLost(
                f"pool {old_uid} is in use by a DBProject; nothing is adopted; delete that project first"
            )
        ensure_unused(self._cluster, self._layout, self._context, names.LABEL_PROJECT_UID, old_uid)
        ensure_pool_down(self._layout, old_uid)
        tombstone = read_tombstone(self._layout, old_uid)
        if tombstone and not tombstone.is_due(self._cluster.server_time()):
            # It was deleted, and is wanted again: from here on nobody removes it.
            ensure_tombstone_withdrawn(self._layout, old_uid)
        new = PoolRecord(
            project.uid,
            namespace=project.namespace,
            project=project.name,
            namespace_uid=namespace_uid,
            cluster=cluster,
            deletion_policy=project.deletion_policy.value,
        )
        ensure_pool_adopted(self._layout, old, new)
        uuid = old.pool_uuid or superblock_uuid(self._layout.image(project.uid))
        if uuid is None:
            raise PoolLost(
                f"the image of pool {old_uid} holds no btrfs; nothing is created; inspect it on the node"
            )
        return uuid
