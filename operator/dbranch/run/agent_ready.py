"""Whether this node's agent is Ready: kubelet asks at :8081/readyz, people read why not in the answer and log."""

from __future__ import annotations

import logging
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from dbranch.effect.slot import immutable_supported
from dbranch.observe.machine import observe_machine
from dbranch.plan.fitness import lack_of
from dbranch.plan.layout import Layout

logger = logging.getLogger(__name__)


class Readiness:
    """Looks anew at each question, so that what is mended on the node shows by itself."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.started = threading.Event()
        self._immutable = False
        self._said: str | None = None

    def lack(self) -> str | None:
        """What keeps the agent from being Ready; None where it is."""
        if not self.started.is_set():
            return "the agent has not started yet"
        try:
            self._immutable = self._immutable or immutable_supported(self._layout)
            lack = lack_of(self._layout.base, observe_machine(self._layout).propagates, self._immutable)
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
                lack = readiness.lack()
                body = f"{lack or 'ready'}\n".encode()
                self.send_response(HTTPStatus.SERVICE_UNAVAILABLE if lack else HTTPStatus.OK)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Kubelet asks every two seconds: nothing is logged of that."""

        server = ThreadingHTTPServer(("", port), Answer)
        threading.Thread(target=server.serve_forever, daemon=True, name="readyz").start()
        return server
