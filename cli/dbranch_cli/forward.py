"""Local ports into pods, as `kubectl port-forward`: each local connection is one websocket of its own.

Source: the API server's `pods/NAME/portforward?ports=N` with the subprotocol `v4.channel.k8s.io`. Of the one
port, channel 0 carries the bytes and channel 1 errors; a frame is the channel's number as a byte, then
data; the first frame of each channel repeats the port (two bytes, little-endian).
"""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import websocket

from dbranch.api import names
from dbranch.api.errors import ApiError, ClusterUnreachable, DbranchError
from dbranch_cli.connection import Connection, root_cause
from dbranch_cli.failure import FORBIDDEN, OTHER, Failure, failure_of

_DATA, _ERROR = 0, 1
_CHUNK = 1 << 16
_CONNECT_SECONDS = 30.0


@dataclass(frozen=True)
class Endpoint:
    """A port of a pod."""

    namespace: str
    pod: str
    port: int


def require_permission(connection: Connection, namespace: str) -> None:
    """Raises Failure where this user may not forward ports into a namespace's pods."""
    review = connection.request(
        "POST",
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        body={
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {
                "resourceAttributes": {
                    "namespace": namespace,
                    "verb": "get",
                    "resource": "pods",
                    "subresource": "portforward",
                }
            },
        },
    )
    if not review["status"].get("allowed"):
        raise _forbidden(namespace)


def _forbidden(namespace: str) -> Failure:
    return Failure(
        FORBIDDEN,
        "Forbidden",
        f"you may not forward ports into pods of namespace {namespace};"
        " ask for `get` and `create` of pods/portforward there",
    )


def proxy_endpoint(connection: Connection, project: Mapping[str, Any]) -> Endpoint:
    """A proxy pod of the DBProject that is Ready; the oldest one of those."""
    namespace, name, uid = (project["metadata"][key] for key in ("namespace", "name", "uid"))
    selector = f"{names.LABEL_COMPONENT}={names.COMPONENT_PROXY},{names.LABEL_PROJECT_UID}={uid}"
    listed = connection.get(f"/api/v1/namespaces/{namespace}/pods", labelSelector=selector)
    ready = [pod for pod in listed["items"] if _is_ready(pod)]
    if not ready:
        raise Failure(
            OTHER,
            "ProxyNotReady",
            f"no proxy pod of project {name} is Ready ({len(listed['items'])} there); see dbranch status",
        )
    chosen = min(ready, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
    return Endpoint(namespace, chosen["metadata"]["name"], names.POSTGRES_PORT)


def _is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and not pod["metadata"].get("deletionTimestamp")


class Listener:
    """A local port; each connection to it goes to the endpoint that `choose` names then.

    `failure` is why the last connection could not be forwarded, None where it could.
    """

    def __init__(
        self,
        connection: Connection,
        choose: Callable[[], Endpoint],
        port: int,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.connection, self.choose, self.say = connection, choose, say
        self.failure: Failure | None = None
        self.sockets = _bound(port)
        self.port = int(self.sockets[0].getsockname()[1])
        for listening in self.sockets:
            threading.Thread(target=self._accept, args=(listening,), daemon=True).start()

    def close(self) -> None:
        for listening in self.sockets:
            listening.close()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                endpoint = self.choose()
                tunnel = open_tunnel(self.connection, endpoint)
                self.failure = None
                problem = _relay(client, tunnel)
                if problem:
                    raise Failure(OTHER, "ForwardFailed", f"pod {endpoint.pod}: {problem}")
            except DbranchError as error:
                self.failure = failure_of(error)
                if self.say:
                    self.say(f"a connection was not forwarded: {error}")


def _bound(port: int) -> list[socket.socket]:
    """Listening on localhost: by IPv4, and by IPv6 where this machine has it."""
    try:
        first = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise Failure(
            OTHER,
            "PortTaken",
            f"cannot listen on localhost:{port}: {os.strerror(error.errno or 0)}; name another port with --port",
        ) from error
    chosen = first.getsockname()[1]
    second: list[socket.socket] = []
    with contextlib.suppress(OSError):
        second.append(socket.create_server(("::1", chosen), family=socket.AF_INET6))
    return [first, *second]


def open_tunnel(connection: Connection, endpoint: Endpoint) -> websocket.WebSocket:
    """The websocket to a pod's port. Raises Failure, ClusterUnreachable, ApiError."""
    base = urlsplit(connection.server)
    url = (
        f"{'wss' if base.scheme == 'https' else 'ws'}://{base.netloc}{base.path.rstrip('/')}"
        f"/api/v1/namespaces/{endpoint.namespace}/pods/{endpoint.pod}/portforward?ports={endpoint.port}"
    )
    try:
        return websocket.create_connection(
            url,
            timeout=_CONNECT_SECONDS,
            header=_authorization(connection.login.config.user),
            subprotocols=["v4.channel.k8s.io"],
            sslopt=_tls(connection.login.config),
            enable_multithread=True,
            suppress_origin=True,
        )
    except websocket.WebSocketBadStatusException as error:
        if error.status_code == 403:
            raise _forbidden(endpoint.namespace) from error
        body = error.resp_body.decode(errors="replace") if error.resp_body else str(error)
        raise ApiError(
            error.status_code, f"HTTP{error.status_code}", f"port-forward to pod {endpoint.pod}: {body}"
        ) from error
    except (websocket.WebSocketException, OSError) as error:
        raise ClusterUnreachable(
            f"port-forward by the API server {connection.server} failed: {root_cause(error)}"
        ) from error


def _authorization(user: Mapping[str, Any]) -> list[str]:
    token = user.get("token")
    if not token and "auth-provider" in user:  # pykube renewed it with the requests before this one
        token = (user["auth-provider"].get("config") or {}).get("id-token")
    if token:
        return [f"Authorization: Bearer {token}"]
    if user.get("username") and user.get("password"):
        both = base64.b64encode(f"{user['username']}:{user['password']}".encode()).decode()
        return [f"Authorization: Basic {both}"]
    return []


def _tls(config: Any) -> dict[str, Any]:
    options: dict[str, Any] = {}
    cluster, user = config.cluster, config.user
    if "certificate-authority" in cluster:
        options["ca_certs"] = cluster["certificate-authority"].filename()
    elif cluster.get("insecure-skip-tls-verify"):
        options |= {"cert_reqs": ssl.CERT_NONE, "check_hostname": False}
    if "client-certificate" in user:
        options |= {
            "certfile": user["client-certificate"].filename(),
            "keyfile": user["client-key"].filename(),
        }
    if cluster.get("tls-server-name"):
        options["server_hostname"] = cluster["tls-server-name"]
    return options


def _relay(client: socket.socket, tunnel: websocket.WebSocket) -> str:
    """Bytes both ways until either side ends; what the error channel said, or the empty string."""
    tunnel.settimeout(None)

    def upward() -> None:
        with contextlib.suppress(OSError, websocket.WebSocketException):
            while data := client.recv(_CHUNK):
                tunnel.send_binary(bytes([_DATA]) + data)
        # v4 has no half-close: the end of one direction is the end of the connection.
        with contextlib.suppress(OSError, websocket.WebSocketException):
            tunnel.close(timeout=1)

    sender = threading.Thread(target=upward, daemon=True)
    sender.start()
    opened: set[int] = set()
    problem = b""
    with contextlib.suppress(OSError, websocket.WebSocketException):
        while True:
            opcode, frame = tunnel.recv_data()
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                break
            channel, data = frame[0], frame[1:]
            if channel not in opened:  # the port, repeated
                opened.add(channel)
                data = data[2:]
            if channel == _ERROR:
                problem += data
            elif data:
                client.sendall(data)
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)
    sender.join(2)
    tunnel.shutdown()  # type: ignore[no-untyped-call]
    return problem.decode(errors="replace").strip()
