"""`/healthz` and `/readyz` for kubelet, `/metrics` for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from dbranch.proxy.metrics import CONTENT_TYPE


async def serve_health(
    port: int, why_not_ready: Callable[[], str], metrics: Callable[[], bytes]
) -> web.AppRunner:
    """Serves them on `port`; `why_not_ready` gives a reason, or nothing when sessions are taken."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        reason = why_not_ready()
        return web.Response(text=f"{reason or 'ok'}\n", status=503 if reason else 200)

    async def metricsz(_: web.Request) -> web.Response:
        return web.Response(body=metrics(), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metricsz)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner
