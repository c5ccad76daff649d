"""The node and the namespace in which an agent acts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NodeContext:
    """Where an agent creates its pods: its node (name and UID), the nodes' namespace, the Helm release."""

    node: str
    node_uid: str
    namespace: str
    release: str
