"""The agent's HTTP server on port 8081: /readyz for kubelet (and for people, with the reason), /metrics."""

from __future__ import annotations

import logging
import threading
from http import HTTPStatus
from http.server import ThreadingHTTPServer

from dbranch.agent.layout import Layout
from dbranch.agent.machine import observe_machine
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.preflight import not_ready_reason
from dbranch.agent.slot.effect import immutable_supported
from dbranch.runtime.http import Response, serve_http

logger = logging.getLogger(__name__)


class Readiness:
    """The agent's readiness, checked at each request, so that a repair of the node shows by itself."""

    def __init__(self, layout: Layout, metrics: AgentMetrics) -> None:
        self._layout, self._metrics = layout, metrics
        self.started = threading.Event()
        self._immutable = False
        self._logged_reason: str | None = None

    def reason_not_ready(self) -> str | None:
        """Return why the agent is not Ready; None if it is."""
        if not self.started.is_set():
            return "the agent has not started yet"
        try:
            self._immutable = self._immutable or immutable_supported(self._layout)
            reason = not_ready_reason(
                self._layout.base, observe_machine(self._layout).propagates, self._immutable
            )
        except OSError as error:
            reason = f"{self._layout.base} cannot be used: {error}"
        if reason and reason != self._logged_reason:
            logger.error("not ready: %s", reason)
        self._logged_reason = reason
        return reason

    def serve(self, port: int = 8081) -> ThreadingHTTPServer:
        """Start the server in a thread of its own and return it, for its address and its shutdown."""
        return serve_http(port, {"/readyz": self._readyz, "/metrics": self._metrics.response})

    def _readyz(self) -> Response:
        reason = self.reason_not_ready()
        status = HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK
        return Response(f"{reason or 'ready'}\n".encode(), status)
