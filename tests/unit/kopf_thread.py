"""A role's handlers, run by kopf against the fake API server over HTTP."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import kopf
from tests.fakes.api import FakeApi
from tests.fakes.http import serve_api


@contextmanager
def running_kopf(registry: kopf.OperatorRegistry, api: FakeApi, kubeconfig: Path) -> Iterator[str]:
    """Run kopf in a thread, with KUBECONFIG set to `kubeconfig`; the value is the URL of its liveness endpoint."""
    api.close_watches()
    server = serve_api(api, kubeconfig)
    stop, ready = threading.Event(), threading.Event()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        liveness = f"http://127.0.0.1:{free.getsockname()[1]}/healthz"

    def run() -> None:
        operator = kopf.operator(
            registry=registry,
            lifecycle=kopf.lifecycles.all_at_once,
            clusterwide=True,
            stop_flag=stop,
            ready_flag=ready,
            liveness_endpoint=liveness,
        )
        asyncio.run(operator)

    thread = threading.Thread(target=run, daemon=True, name="kopf")
    thread.start()
    try:
        assert ready.wait(20)
        yield liveness
    finally:
        api.close_watches()
        stop.set()
        thread.join(20)
        server.shutdown()
        server.server_close()
        assert not thread.is_alive()
