"""The UIDs of the cluster and of namespaces, by which records say whose a pool is."""

from __future__ import annotations

import logging
from typing import Final

from dbranch.api.errors import ApiError
from dbranch.kube.client import Cluster, path_of

logger = logging.getLogger(__name__)

# Every cluster has it from its beginning, and its UID is in its backups.
_CLUSTER_NAMESPACE: Final = "kube-system"


class ClusterIdentity:
    """Reads UIDs of namespaces. That of the cluster is read once."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._cluster_uid = ""

    def cluster_uid(self) -> str:
        """Return the UID of the namespace kube-system; an empty text if it cannot be read."""
        self._cluster_uid = self._cluster_uid or self.namespace_uid(_CLUSTER_NAMESPACE)
        return self._cluster_uid

    def is_ending(self, namespace: str) -> bool:
        """Return True if a namespace is being deleted, or does not exist; False if it may not be read."""
        try:
            body = self._cluster.get(path_of("v1", "namespaces", name=namespace))
        except ApiError as error:
            logger.warning("namespace %s cannot be read: %s", namespace, error)
            return False
        return body is None or bool(body["metadata"].get("deletionTimestamp"))

    def namespace_uid(self, namespace: str) -> str:
        """Return the UID of a namespace, uncached; an empty text if it does not exist or may not be read."""
        try:
            body = self._cluster.get(path_of("v1", "namespaces", name=namespace))
        except ApiError as error:
            logger.warning("namespace %s cannot be read: %s", namespace, error)
            return ""
        return str(body["metadata"]["uid"]) if body else ""
