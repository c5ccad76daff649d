"""kopf in the controller and the agents: own finalizer and annotations, no peering, no scanning of CRDs."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any, cast

import kopf

from dbranch.runtime.kopf_storage import InMemoryDiffBaseStorage, InMemoryProgressStorage
from dbranch.runtime.kopf_toggles import wake_only_on_change

# More than processors, since handlers mostly wait for disks and the API server.
_MAX_WORKERS = 24
_REQUEST_TIMEOUT_SECONDS = 30
_WATCH_SECONDS = 300
_CONNECT_TIMEOUT_SECONDS = 10


def configure_kopf(
    settings: kopf.OperatorSettings, finalizer: str, prefix: str, ignored_fields: Sequence[tuple[str, ...]]
) -> None:
    """Configure kopf as all roles need it. `finalizer` and `prefix` differ by role and must never change.

    kopf's own annotation, which wakes it for a retry, gets the prefix `kopf-state.<prefix>`: kopf ignores changes of
    annotations below its storage's prefix, so a request for a reconcile there would start none (tried).
    `ignored_fields`: fields whose changes start no handler of this role.
    """
    wake_only_on_change()
    settings.persistence.finalizer = finalizer
    settings.persistence.progress_storage = InMemoryProgressStorage(f"kopf-state.{prefix}")
    settings.persistence.diffbase_storage = InMemoryDiffBaseStorage(ignored_fields)
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.execution.max_workers = _MAX_WORKERS
    settings.posting.enabled = True
    settings.posting.level = logging.WARNING
    settings.posting.reporting_component = f"dbranch-{finalizer.rpartition('/')[2]}"
    # Each reconcile logs what it did; kopf's lines would only add that it ran.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("kopf.objects").addFilter(_is_relevant)
    settings.networking.request_timeout = _REQUEST_TIMEOUT_SECONDS
    settings.watching.server_timeout = _WATCH_SECONDS
    settings.watching.connect_timeout = _CONNECT_TIMEOUT_SECONDS


def _is_relevant(record: logging.LogRecord) -> bool:
    """Drop kopf's ERROR for each TemporaryError: a requeued reconcile is no error, a failed one has logged why."""
    return "failed temporarily" not in record.getMessage()


def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """Return the credentials of the pod's service account or, outside a cluster, of the kubeconfig."""
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)


def requeue_after(seconds: float | None, reason: str) -> None:
    """Make kopf call the handler again after `seconds`, by raising kopf.TemporaryError; return if None."""
    if seconds is not None:
        raise kopf.TemporaryError(reason, delay=seconds)


def liveness_endpoint(pod_address: str) -> str:
    """Return where kopf answers kubelet's liveness probe: on all addresses of the IP family that kubelet asks.

    >>> liveness_endpoint("10.244.0.7"), liveness_endpoint("fd00:10:244::7")
    ('http://0.0.0.0:8080/healthz', 'http://[::]:8080/healthz')
    """
    # asyncio makes a socket of IPv6 for that family alone, so there is none for both.
    return f"http://{'[::]' if ':' in pod_address else '0.0.0.0'}:8080/healthz"


def serve(registry: kopf.OperatorRegistry, identity: str) -> None:
    """Run the handlers until the process is terminated; answer kubelet's liveness probe on :8080/healthz.

    DBRANCH_POD_IP is the address at which kubelet asks; without it that is one of IPv4.
    """
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    kopf.run(
        registry=registry,
        # All handlers of an object in one go: one after the other, each would cost a write.
        lifecycle=kopf.lifecycles.all_at_once,
        clusterwide=True,
        # By default kopf looks up the name of the user, which need not exist in a container.
        identity=cast(Any, identity),
        liveness_endpoint=liveness_endpoint(os.environ.get("DBRANCH_POD_IP", "")),
    )
