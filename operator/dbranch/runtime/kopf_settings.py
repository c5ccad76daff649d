"""How kopf runs in every role of dbranch: own finalizer, own annotations, no peering, no scanning."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

import kopf

from dbranch.runtime.kopf_storage import InMemoryDiffBaseStorage, Progress

# Handlers wait for disks and the API server, so there are more of them than processors.
_WORKERS = 24


def configure_kopf(
    settings: kopf.OperatorSettings, finalizer: str, prefix: str, others: Sequence[tuple[str, ...]]
) -> None:
    """The settings that all roles share. `finalizer` and `prefix` differ by role and are fixed for ever.

    kopf's own annotation, with which it comes back to a visit, stands under `kopf-state.<prefix>`: what it finds
    under the prefix of a storage it takes for a storage's, and a poke there would wake nobody (tried).
    `others`: fields that are not this role's concern.
    """
    settings.persistence.finalizer = finalizer
    settings.persistence.progress_storage = Progress(f"kopf-state.{prefix}")
    settings.persistence.diffbase_storage = InMemoryDiffBaseStorage(finalizer, others)
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.execution.max_workers = _WORKERS
    settings.posting.enabled = True
    settings.posting.level = logging.WARNING
    settings.posting.reporting_component = f"dbranch-{finalizer.rpartition('/')[2]}"
    # Each visit says itself what it did; kopf's lines would only repeat that it did.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("kopf.objects").addFilter(_is_relevant)
    settings.networking.request_timeout = 30
    settings.watching.server_timeout = 300
    settings.watching.connect_timeout = 10


def _is_relevant(record: logging.LogRecord) -> bool:
    """Not kopf's ERROR for each TemporaryError: a visit that comes back is no error, and one that failed said why."""
    return "failed temporarily" not in record.getMessage()


def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """The pod's service account, or else the kubeconfig of who runs the role by hand."""
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)


def requeue_after(seconds: float | None, why: str) -> None:
    """Comes back after `seconds`; not at all where None: then an event will."""
    if seconds is not None:
        raise kopf.TemporaryError(why, delay=seconds)


def serve(registry: kopf.OperatorRegistry, identity: str) -> None:
    """Runs the handlers until the process is told to end; kubelet asks at :8080/healthz."""
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    kopf.run(
        registry=registry,
        # Handlers of one object share a visit; one after the other they would each cost a write.
        lifecycle=kopf.lifecycles.all_at_once,
        clusterwide=True,
        # Without one kopf asks for the name of the user, which a container need not have.
        identity=cast(Any, identity),
        liveness_endpoint="http://0.0.0.0:8080/healthz",
    )
