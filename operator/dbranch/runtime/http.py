"""HTTP for kubelet and Prometheus, in threads beside kopf's event loop. (The proxy serves its own on its loop.)

Whoever reaches the port may open connections, so there are few at a time, and the oldest makes room for a new one.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from dbranch.api.errors import Busy
from dbranch.runtime.listening import create_listener

# Connections at a time, each with a thread.
CONNECTIONS_LIMIT: Final = 16
# An answer takes milliseconds; who needs longer for a request, or to take its answer, is cut off.
_REQUEST_SECONDS: Final = 5.0
_ROOM_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Response:
    """An answer to a GET request."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "text/plain"


class BoundedServer(ThreadingHTTPServer):
    """Serves CONNECTIONS_LIMIT connections at a time; a new one takes the place of the oldest."""

    request_queue_size = 128

    def __init__(self, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self._changed = threading.Condition()
        # In the order in which they were accepted, and when.
        self._open: dict[socket.socket, float] = {}
        super().__init__(("", port), handler, bind_and_activate=False)
        # The base class makes a socket for IPv4 only.
        self.socket.close()
        self.socket = create_listener(port, self.request_queue_size)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Make room, and handle the request in a thread. Raises Busy if there is no room in time."""
        with self._changed:
            if len(self._open) >= CONNECTIONS_LIMIT:
                _shut_down(next(iter(self._open)))
            if not self._changed.wait_for(lambda: len(self._open) < CONNECTIONS_LIMIT, _ROOM_SECONDS):
                raise Busy("all connections are busy")
            self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Cut off the connections that are too slow."""
        with self._changed:
            for request, since in self._open.items():
                if time.monotonic() - since > _REQUEST_SECONDS:
                    _shut_down(request)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, and give its place to another one."""
        try:
            super().shutdown_request(request)
        finally:
            with self._changed:
                self._open.pop(request, None)
                self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing: whoever reaches the port could fill the log."""


def _shut_down(request: socket.socket) -> None:
    """End a connection whose thread waits for it; the thread closes it."""
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:
        # It has ended already.
        return


def serve_http(port: int, routes: Mapping[str, Callable[[], Response]]) -> BoundedServer:
    """Serve GET requests on every address of `port` (0: a free one), in a thread that ends with the process.

    `routes` maps a path to the function that answers it; other paths get 404 with the list of paths. Return the
    server, for its address and its shutdown. Raise OSError if the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_SECONDS

        def do_GET(self) -> None:
            answer = routes.get(self.path)
            paths = " and ".join(sorted(routes))
            response = answer() if answer else Response(f"{paths}\n".encode(), HTTPStatus.NOT_FOUND)
            self.send_response(response.status)
            self.send_header("Content-Type", response.content_type)
            self.send_header("Content-Length", str(len(response.body)))
            self.end_headers()
            self.wfile.write(response.body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Log nothing: kubelet asks every two seconds."""

    server = BoundedServer(port, Handler)
    threading.Thread(target=server.serve_forever, daemon=True, name="http").start()
    return server
