"""Local ports forwarded to pods, as `kubectl port-forward` does: one websocket for each local connection.

Source: the API server's `pods/NAME/portforward?ports=N` with the subprotocol `v4.channel.k8s.io`. With one
port, channel 0 carries the data and channel 1 errors; a frame is the channel's number as a byte, then the
payload; the first frame of each channel repeats the port (two bytes, little-endian).
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import websocket

from dbranch.api import names
from dbranch.api.conditions import is_ready
from dbranch.api.errors import ApiError, ClusterUnreachable, DbranchError
from dbranch_cli.connection import Connection, root_cause
from dbranch_cli.failure import ExitCode, Failure, failure_from

_DATA_CHANNEL, _ERROR_CHANNEL = 0, 1
_PORT_BYTES = 2
_CHUNK_BYTES = 1 << 16
_CONNECT_TIMEOUT_SECONDS = 30.0
_CLOSE_TIMEOUT_SECONDS = 1
_SENDER_JOIN_SECONDS = 2
_ACCEPT_RETRY_SECONDS = 0.2
_FREE_PORT_ATTEMPTS = 20


@dataclass(frozen=True)
class PodPort:
    """A port of a pod."""

    namespace: str
    pod: str
    port: int


def require_permission(connection: Connection, namespace: str) -> None:
    """Raise Failure if this user may not forward ports to pods of a namespace."""
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
        ExitCode.FORBIDDEN,
        "Forbidden",
        f"you are not allowed to forward ports to pods in namespace {namespace};"
        " request the verbs get and create on pods/portforward there",
    )


def ready_proxy_pod(connection: Connection, project: Mapping[str, Any]) -> PodPort:
    """Return the oldest Ready proxy pod of a DBProject. Raise Failure if none is Ready."""
    namespace, name, uid = (project["metadata"][key] for key in ("namespace", "name", "uid"))
    selector = f"{names.LABEL_COMPONENT}={names.COMPONENT_PROXY},{names.LABEL_PROJECT_UID}={uid}"
    listed = connection.get(f"/api/v1/namespaces/{namespace}/pods", labelSelector=selector)
    ready = [pod for pod in listed["items"] if is_ready(pod) and not pod["metadata"].get("deletionTimestamp")]
    if not ready:
        raise Failure(
            ExitCode.OTHER,
            "ProxyNotReady",
            f"no proxy pod of project {name} is Ready (0 of {len(listed['items'])}); see 'dbranch status'",
        )
    oldest = min(ready, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
    return PodPort(namespace, oldest["metadata"]["name"], names.POSTGRES_PORT)


class PortForward:
    """A local port; each connection to it is forwarded to the pod that `choose_pod` returns then.

    `failure` is why the last connection could not be forwarded, or None.
    """

    def __init__(
        self,
        connection: Connection,
        choose_pod: Callable[[], PodPort],
        port: int,
        print_note: Callable[[str], None] | None = None,
    ) -> None:
        self.connection, self.choose_pod, self.print_note = connection, choose_pod, print_note
        self.failure: Failure | None = None
        self.sockets = _listen(port)
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
            except OSError as error:
                if listening.fileno() < 0 or error.errno in (errno.EBADF, errno.EINVAL):
                    return  # closed
                # Too many open files, or a client that is gone already: the next one is served.
                if self.print_note:
                    self.print_note(f"cannot accept a connection: {error.strerror}")
                time.sleep(_ACCEPT_RETRY_SECONDS)
                continue
            threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        with client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                target = self.choose_pod()
                tunnel = open_websocket(self.connection, target)
                self.failure = None
                error_text = _relay(client, tunnel)
                if error_text:
                    raise Failure(ExitCode.OTHER, "ForwardFailed", f"pod {target.pod}: {error_text}")
            except DbranchError as error:
                self.failure = failure_from(error)
                if self.print_note:
                    self.print_note(f"cannot forward a connection: {error}")


def _listen(port: int) -> list[socket.socket]:
    """Listen on localhost: on IPv4, and on IPv6 if this machine has it. Raises Failure.

    On both or not at all: whoever listens on the other would get the password of a client that tries both.
    """
    for _ in range(_FREE_PORT_ATTEMPTS):
        ipv4 = _listen_on("127.0.0.1", port, socket.AF_INET)
        assert ipv4 is not None
        bound_port = int(ipv4.getsockname()[1])
        try:
            ipv6 = _listen_on("::1", bound_port, socket.AF_INET6)
        except Failure:
            ipv4.close()
            if port:
                raise
            continue  # of a free port of IPv4 the IPv6 one may be taken
        return [ipv4, ipv6] if ipv6 else [ipv4]
    raise Failure(ExitCode.OTHER, "PortTaken", "no port is free on both 127.0.0.1 and ::1")


def _listen_on(address: str, port: int, family: socket.AddressFamily) -> socket.socket | None:
    """Listen on an address; return None if this machine has no IPv6. Raises Failure."""
    try:
        return socket.create_server((address, port), family=family)
    except OSError as error:
        if family == socket.AF_INET6 and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return None
        reason = os.strerror(error.errno or 0)
        shown = f"[{address}]" if family == socket.AF_INET6 else address
        message = f"cannot listen on {shown}:{port}: {reason}; choose another port with --port"
        raise Failure(ExitCode.OTHER, "PortTaken", message) from error


def open_websocket(connection: Connection, target: PodPort) -> websocket.WebSocket:
    """Open the websocket to a pod's port. Raise Failure, ClusterUnreachable or ApiError if that fails."""
    renewal = connection.kube_context.renewal
    if renewal is None:
        return _open_websocket_once(connection, target)
    return renewal.call(lambda: _open_websocket_once(connection, target))


def _open_websocket_once(connection: Connection, target: PodPort) -> websocket.WebSocket:
    base = urlsplit(connection.server)
    url = (
        f"{'wss' if base.scheme == 'https' else 'ws'}://{base.netloc}{base.path.rstrip('/')}"
        f"/api/v1/namespaces/{target.namespace}/pods/{target.pod}/portforward?ports={target.port}"
    )
    config = connection.kube_context.config
    try:
        return websocket.create_connection(
            url,
            timeout=_CONNECT_TIMEOUT_SECONDS,
            header=[
                *_authorization_header(config.user),
                *(f"{name}: {value}" for name, value in connection.kube_context.impersonation),
            ],
            **_proxy_options(connection.kube_context.proxy),
            subprotocols=["v4.channel.k8s.io"],
            sslopt=_tls_options(config),
            enable_multithread=True,
            suppress_origin=True,
        )
    except websocket.WebSocketBadStatusException as error:
        if error.status_code == 403:
            raise _forbidden(target.namespace) from error
        body = error.resp_body.decode(errors="replace") if error.resp_body else str(error)
        raise ApiError(
            error.status_code,
            f"HTTP{error.status_code}",
            f"cannot forward a port to pod {target.pod}: {body}",
        ) from error
    except (websocket.WebSocketException, OSError) as error:
        raise ClusterUnreachable(
            f"cannot forward a port through the API server {connection.server}: {root_cause(error)}"
        ) from error


def _authorization_header(user: Mapping[str, Any]) -> list[str]:
    token = user.get("token")
    if not token and "auth-provider" in user:  # pykube renewed it for the requests before this one
        token = (user["auth-provider"].get("config") or {}).get("id-token")
    if token:
        return [f"Authorization: Bearer {token}"]
    if user.get("username") and user.get("password"):
        credentials = base64.b64encode(f"{user['username']}:{user['password']}".encode()).decode()
        return [f"Authorization: Basic {credentials}"]
    return []


def _proxy_options(proxy: str) -> dict[str, Any]:
    """Return the options of the HTTP proxy that the cluster is reached through, if there is one."""
    if not proxy:
        return {}
    url = urlsplit(proxy)
    auth = (unquote(url.username), unquote(url.password or "")) if url.username else None
    return {
        "http_proxy_host": url.hostname,
        "http_proxy_port": url.port or 80,
        "http_proxy_auth": auth,
        "http_no_proxy": [""],
        "proxy_type": "http",
    }


def _tls_options(config: Any) -> dict[str, Any]:
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
    """Relay bytes both ways until either side closes; return the error channel's text, empty without an error."""
    tunnel.settimeout(None)

    def send_to_pod() -> None:
        with contextlib.suppress(OSError, websocket.WebSocketException):
            while data := client.recv(_CHUNK_BYTES):
                tunnel.send_binary(bytes([_DATA_CHANNEL]) + data)
        # v4 has no half-close: the end of one direction is the end of the connection.
        with contextlib.suppress(OSError, websocket.WebSocketException):
            tunnel.close(timeout=_CLOSE_TIMEOUT_SECONDS)

    sender = threading.Thread(target=send_to_pod, daemon=True)
    sender.start()
    opened: set[int] = set()
    error_text = b""
    with contextlib.suppress(OSError, websocket.WebSocketException):
        while True:
            opcode, frame = tunnel.recv_data()
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                break
            channel, data = frame[0], frame[1:]
            if channel not in opened:  # the first frame begins with the port
                opened.add(channel)
                data = data[_PORT_BYTES:]
            if channel == _ERROR_CHANNEL:
                error_text += data
            elif data:
                client.sendall(data)
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)
    sender.join(_SENDER_JOIN_SECONDS)
    tunnel.shutdown()  # type: ignore[no-untyped-call]
    return error_text.decode(errors="replace").strip()
