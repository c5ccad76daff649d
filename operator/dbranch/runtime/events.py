"""Events by a request of one's own, where kopf's queue of them cannot be reached."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.clock import now_rfc3339


def create_event(
    cluster: Cluster,
    about: Mapping[str, Any],
    event_type: str,
    reason: str,
    message: str,
    source: Mapping[str, str],
) -> None:
    """Create an Event about an object. `about`: its apiVersion, kind, name, namespace and UID."""
    now = now_rfc3339()
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{about['name']}.{secrets.token_hex(8)}", "namespace": about["namespace"]},
        "involvedObject": dict(about),
        "type": event_type,
        "reason": reason,
        "message": message,
        "source": dict(source),
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    cluster.create(path_of("v1", "events", about["namespace"]), event)
