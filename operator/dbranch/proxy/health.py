"""HTTP server of a proxy pod: `/healthz` and `/readyz` for kubelet, `/metrics` for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from dbranch.proxy.metrics import CONTENT_TYPE


async def serve_health(
    port: int, not_ready_reason: Callable[[], str], metrics_text: Callable[[], bytes]
) -> web.AppRunner:
    """Serve `/healthz`, `/readyz` and `/metrics` on `port` until the returned runner is cleaned up.

    `not_ready_reason` returns why the pod takes no sessions, or an empty string if it does.
    """

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        reason = not_ready_reason()
        return web.Response(text=f"{reason or 'ok'}\n", status=503 if reason else 200)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics_text(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner
