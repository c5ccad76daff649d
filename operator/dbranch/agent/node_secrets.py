"""Secrets of this node's projects, read as the node's account: the agents' own may read none.

The agents of all nodes have one account. That of a node may read the Secrets of the projects that are bound to it,
and a policy lets an agent have a token of its own node's only (`helm/dbranch/templates/policies.yaml`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http import HTTPStatus

from dbranch.agent.context import NodeContext
from dbranch.agent.timing import NODE_TOKEN_RENEWAL_SECONDS, NODE_TOKEN_SECONDS
from dbranch.api import names
from dbranch.api.errors import ApiError
from dbranch.kube.client import Cluster, Json, path_of


class NodeSecrets:
    """Reads Secrets of the nodes' namespace. Thread-safe."""

    def __init__(
        self, cluster: Cluster, context: NodeContext, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster, self._context, self._clock = cluster, context, clock
        self._guard = threading.Lock()
        self._token, self._requested_at = "", 0.0

    def get(self, name: str) -> Json | None:
        """Return the Secret, or None if it does not exist.

        Raises ApiError (403) for one of another node's project, and as long as the API server's authorizer does not
        know that the project is of this node.
        """
        path = path_of("v1", "secrets", self._context.namespace, name)
        try:
            return self._cluster.get(path, self._current_token())
        except ApiError as error:
            if error.status != HTTPStatus.UNAUTHORIZED:
                raise
        # The account was deleted, and made again.
        return self._cluster.get(path, self._current_token(renewed=True))

    def _current_token(self, renewed: bool = False) -> str:
        with self._guard:
            now = self._clock()
            if renewed or not self._token or now - self._requested_at > NODE_TOKEN_RENEWAL_SECONDS:
                account = names.node_account_name(self._context.node)
                path = path_of("v1", "serviceaccounts", self._context.namespace, account)
                self._token = self._cluster.request_token(path, NODE_TOKEN_SECONDS)
                self._requested_at = now
            return self._token
