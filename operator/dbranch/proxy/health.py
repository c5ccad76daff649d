"""HTTP server of a proxy pod: `/healthz` and `/readyz` for kubelet, `/metrics` for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from dbranch.proxy import timing
from dbranch.proxy.metrics import CONTENT_TYPE, Metrics
from dbranch.proxy.sockets import LISTEN_BACKLOG
from dbranch.runtime.listening import create_listener

# Open connections; for one more, the oldest is closed: whoever can reach the port can hold them open.
MAX_CONNECTIONS: Final = 64


class HealthServer:
    """The server, with at most MAX_CONNECTIONS, until `close`."""

    def __init__(self, not_ready_reason: Callable[[], str], metrics: Metrics) -> None:
        """`not_ready_reason` returns why the pod takes no sessions, or an empty string if it does."""
        self._not_ready_reason, self._metrics = not_ready_reason, metrics
        app = web.Application()
        routes = (("/healthz", self._healthz), ("/readyz", self._readyz), ("/metrics", self._scrape))
        app.add_routes([web.get(path, handler) for path, handler in routes])
        self._runner = web.AppRunner(app, access_log=None, keepalive_timeout=timing.HEALTH_KEEPALIVE_SECONDS)
        self._server: asyncio.Server | None = None

    async def start(self, port: int) -> None:
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._make_protocol, sock=create_listener(port, LISTEN_BACKLOG), backlog=LISTEN_BACKLOG
        )

    def _make_protocol(self) -> Any:
        assert self._runner.server
        # The server counts a connection once it is made, which comes after this call.
        asyncio.get_running_loop().call_soon(self._crowd_out)
        return self._runner.server()

    def _crowd_out(self) -> None:
        """Close the oldest connections if there are too many; they stay in the list until they are lost."""
        connections = self._runner.server.connections if self._runner.server else []
        for connection in connections[: max(len(connections) - MAX_CONNECTIONS, 0)]:
            if connection.transport:
                connection.transport.abort()

    async def close(self) -> None:
        if self._server:
            self._server.close()
        await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        reason = self._not_ready_reason()
        return web.Response(text=f"{reason or 'ok'}\n", status=503 if reason else 200)

    async def _scrape(self, _: web.Request) -> web.Response:
        # Counting takes a millisecond for a thousand sessions; formatting takes longer, in a thread.
        self._metrics.take_snapshot()
        body = await asyncio.to_thread(self._metrics.text)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})
