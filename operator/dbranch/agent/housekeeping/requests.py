"""What administrators ask of the agent by annotations on its pod: to delete an orphan, or to let it be adopted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from dbranch.agent.cluster_identity import ClusterIdentity
from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout, is_uid
from dbranch.agent.linux.btrfs import superblock_uuid
from dbranch.agent.pool.effect import ensure_pool_removed
from dbranch.agent.pool.record import PoolRecord
from dbranch.agent.pool.records import ensure_recorded
from dbranch.agent.pool.tombstone import ensure_tombstone
from dbranch.agent.slot.unused import ensure_unused
from dbranch.agent.timing import OWN_POD_WATCH_RETRY_SECONDS
from dbranch.agent.volume.effect import ensure_trash_emptied, ensure_trashed
from dbranch.agent.volume.restores import ensure_restore_finished
from dbranch.api import names
from dbranch.api.errors import Busy, DbranchError, InvalidInput, StorageUnclear
from dbranch.api.orphans import Orphan
from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.clock import now_rfc3339
from dbranch.runtime.file_lock import held_temporary
from dbranch.runtime.logs import log_error

logger = logging.getLogger(__name__)

_PREFIXES: Final = (names.ORPHAN_DELETE_PREFIX, names.ORPHAN_ALLOW_PREFIX)


@dataclass(frozen=True)
class Request:
    """One annotation: its key, the orphan's UID, and the namespace that may adopt it (None: it is to be deleted)."""

    key: str
    uid: str
    namespace: str | None = None


def requests_of(annotations: Mapping[str, str]) -> Iterator[Request]:
    """Yield the requests among a pod's annotations. A key is `<prefix><uid>`; others are none."""
    for key, value in sorted(annotations.items()):
        prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), None)
        uid = key.removeprefix(prefix) if prefix else ""
        if prefix and is_uid(uid):
            yield Request(key, uid, value if prefix == names.ORPHAN_ALLOW_PREFIX else None)


class Obedience:
    """Obeys requests about orphans of this node."""

    def __init__(self, cluster: Cluster, layout: Layout, context: NodeContext) -> None:
        self._cluster, self._layout, self._context = cluster, layout, context
        self._identity = ClusterIdentity(cluster)

    def obey(self, request: Request, orphans: Mapping[str, Orphan]) -> None:
        """Obey a request about one of `orphans` (by UID), which were observed just now.

        Raises InvalidInput if it is none of these, Busy if a later round has to go on, DbranchError if it cannot be
        obeyed.
        """
        orphan = orphans.get(request.uid)
        if orphan is None:
            raise InvalidInput(
                f"{request.uid} is no orphan on node {self._context.node}; nothing is done; see dbranch orphan list"
            )
        if request.namespace is not None:
            self._allow(orphan, request.namespace)
        elif orphan.kind.is_pool:
            self._delete_pool(orphan.uid)
        else:
            self._delete_branch(orphan)

    def _delete_pool(self, uid: str) -> None:
        # The filesystem that is there now is what was shown, whatever the record says.
        with held_temporary(self._layout.pool_lock(uid), timeout=60):
            ensure_tombstone(self._layout, uid, superblock_uuid(self._layout.image(uid)))
        logger.warning("pool %s is removed on request", uid)
        try:
            ensure_unused(self._cluster, self._layout, self._context, names.LABEL_PROJECT_UID, uid)
            ensure_pool_removed(self._layout, uid)
        except Busy as error:
            # The sweep goes on with it.
            logger.info("pool %s: %s", uid, error)

    def _delete_branch(self, orphan: Orphan) -> None:
        ensure_unused(self._cluster, self._layout, self._context, names.LABEL_BRANCH_UID, orphan.uid)
        logger.warning("subvolume %s in pool %s is removed on request", orphan.uid, orphan.pool)
        try:
            ensure_restore_finished(self._layout, orphan.pool, orphan.uid, now_rfc3339())
        except StorageUnclear as error:
            logger.warning("orphan %s is removed with what lies beside it: %s", orphan.uid, error)
        ensure_trashed(self._layout, orphan.pool, orphan.uid)
        ensure_trash_emptied(self._layout, orphan.pool)

    def _allow(self, orphan: Orphan, namespace: str) -> None:
        if not orphan.kind.is_pool:
            raise InvalidInput(
                f"{orphan.uid} is a {orphan.kind}; only a pool can be adopted; nothing is changed"
            )
        namespace_uid = self._identity.namespace_uid(namespace)
        if not namespace_uid:
            raise InvalidInput(f"namespace {namespace} does not exist; nothing is changed; create it first")
        image_uuid = superblock_uuid(self._layout.image(orphan.uid)) or ""

        def change(record: PoolRecord | None) -> PoolRecord:
            record = record or PoolRecord(orphan.uid, image_uuid, initialized=True)
            return replace(record, allowed_namespace_uid=namespace_uid)

        ensure_recorded(self._layout, orphan.uid, change)


def refusal(error: Exception) -> str:
    """Return why a request was not obeyed, for the administrator."""
    return str(error) if isinstance(error, DbranchError) else f"{type(error).__name__}: {error}"


def watch_requests(
    cluster: Cluster, context: NodeContext, pod: str, trigger: Callable[[], None], beat: Callable[[], None]
) -> None:
    """Watch the agent's own pod for ever; call `trigger` when there is a request. `beat`: called at each event."""
    path = path_of("v1", "pods", context.namespace)
    while True:
        beat()
        try:
            for event in cluster.watch(path, fields=f"metadata.name={pod}"):
                beat()
                body: dict[str, Any] = event["object"]
                if any(requests_of((body.get("metadata") or {}).get("annotations") or {})):
                    trigger()
        except Exception as error:  # noqa: BLE001
            log_error(logger, error, "watch of the agent's own pod")
            time.sleep(OWN_POD_WATCH_RETRY_SECONDS)
