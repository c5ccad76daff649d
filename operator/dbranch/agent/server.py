"""What the agent answers at :8081: /readyz (for kubelet; why not, for people) and /metrics (for Prometheus)."""

from __future__ import annotations

import logging
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from dbranch.agent.layout import Layout
from dbranch.agent.machine import observe_machine
from dbranch.agent.metrics import CONTENT_TYPE, AgentMetrics
from dbranch.agent.preflight import not_ready_reason
from dbranch.agent.slot.effect import immutable_supported

logger = logging.getLogger(__name__)


class Readiness:
    """Looks anew at each question, so that what is mended on the node shows by itself."""

    def __init__(self, layout: Layout, metrics: AgentMetrics) -> None:
        self._layout, self._metrics = layout, metrics
        self.started = threading.Event()
        self._immutable = False
        self._said: str | None = None

    def lack(self) -> str | None:
        """What keeps the agent from being Ready; None where it is."""
        if not self.started.is_set():
            return "the agent has not started yet"
        try:
            self._immutable = self._immutable or immutable_supported(self._layout)
            lack = not_ready_reason(
                self._layout.base, observe_machine(self._layout).propagates, self._immutable
            )
        except OSError as error:
            lack = f"{self._layout.base} cannot be used: {error}"
        if lack and lack != self._said:
            logger.error("not ready: %s", lack)
        self._said = lack
        return lack

    def serve(self, port: int = 8081) -> ThreadingHTTPServer:
        """Answers in a thread of its own; the server, for its address and its end."""
        readiness = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                match self.path:
                    case "/readyz":
                        lack = readiness.lack()
                        status = HTTPStatus.SERVICE_UNAVAILABLE if lack else HTTPStatus.OK
                        kind, body = "text/plain", f"{lack or 'ready'}\n".encode()
                    case "/metrics":
                        status, kind, body = HTTPStatus.OK, CONTENT_TYPE, readiness._metrics.text()
                    case _:
                        status, kind, body = HTTPStatus.NOT_FOUND, "text/plain", b"/readyz and /metrics\n"
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Kubelet asks every two seconds: nothing is logged of that."""

        server = ThreadingHTTPServer(("", port), Answer)
        threading.Thread(target=server.serve_forever, daemon=True, name="readyz").start()
        return server
