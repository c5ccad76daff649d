"""HTTP for kubelet and Prometheus, in a thread beside kopf's event loop. (The proxy serves its own on its loop.)"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Response:
    """An answer to a GET request."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "text/plain"


def serve_http(port: int, routes: Mapping[str, Callable[[], Response]]) -> ThreadingHTTPServer:
    """Serve GET requests on every address of `port` (0: a free one), in a thread that ends with the process.

    `routes` maps a path to the function that answers it; other paths get 404 with the list of paths. Return the
    server, for its address and its shutdown. Raise OSError if the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
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

    server = ThreadingHTTPServer(("", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True, name="http").start()
    return server
