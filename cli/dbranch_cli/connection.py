"""The API server as the command line uses it: requests, watches, and errors with messages for users."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import pykube
import requests
from urllib3 import HTTPHeaderDict
from urllib3.exceptions import ReadTimeoutError

from dbranch.api import names
from dbranch.api.errors import ApiError, ClusterUnreachable
from dbranch.api.server_clock import ServerClock
from dbranch_cli.kubeconfig import KubeContext

_CONNECT_TIMEOUT_SECONDS, _READ_TIMEOUT_SECONDS = 10.0, 60.0
_WATCH_CHUNK_BYTES = 65536


class Connection:
    """Requests to one API server as one user. Raises ClusterUnreachable and ApiError."""

    def __init__(self, kube_context: KubeContext) -> None:
        self.kube_context = kube_context
        self._clock = ServerClock()
        self.client = pykube.HTTPClient(kube_context.config)
        session = self.client.session
        session.headers["User-Agent"] = "dbranch-cli"
        if kube_context.impersonation:
            session.auth = self._impersonate
        if kube_context.proxy:
            session.proxies = {"http": kube_context.proxy, "https": kube_context.proxy}
            # Neither HTTPS_PROXY nor NO_PROXY is asked, as kubectl does not.
            session.trust_env = False

    @property
    def server(self) -> str:
        return str(self.client.url)

    def server_time(self) -> datetime:
        """Return the time of day by the API server's clock. It is asked for it if nothing was asked before."""
        if not self._clock.is_set:
            self.get("/version")
        return self._clock.now()

    def get(self, path: str, **params: str) -> dict[str, Any]:
        return self.request("GET", path, params)

    def request(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | Sequence[Any] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """Return the response's JSON. `path` begins at the server's root; `body` is sent as JSON (also YAML)."""
        with self._send(method, path, params, body, content_type, _READ_TIMEOUT_SECONDS) as response:
            loaded: dict[str, Any] = response.json()
            return loaded

    def watch(self, path: str, params: Mapping[str, str], seconds: int) -> Iterator[dict[str, Any]]:
        """Yield the events of a watch until the server ends it after `seconds`."""
        query = {**params, "watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
        timeout = seconds + _READ_TIMEOUT_SECONDS
        try:
            with self._send("GET", path, query, None, "", timeout, stream=True) as response:
                for line in response.iter_lines(chunk_size=_WATCH_CHUNK_BYTES):
                    if line:
                        yield json.loads(line)
        except requests.RequestException as error:
            raise self._unreachable(error) from error

    def lines(self, path: str, params: Mapping[str, str], silence_seconds: float) -> Iterator[str]:
        """Yield the lines of a text as they come. Ends with the text, or when nothing came for so many seconds."""
        try:
            with self._send("GET", path, params, None, "", silence_seconds, stream=True) as response:
                partial = b""
                # None: as it comes, not when a chunk is full.
                for chunk in response.iter_content(None):
                    *lines, partial = (partial + chunk).split(b"\n")
                    for line in lines:
                        yield line.decode("utf-8", "replace")
                if partial:
                    yield partial.decode("utf-8", "replace")
        except requests.ConnectionError as error:
            if not _is_timeout(error):
                raise self._unreachable(error) from error
        except requests.RequestException as error:
            raise self._unreachable(error) from error

    def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        body: Mapping[str, Any] | Sequence[Any] | None,
        content_type: str,
        read_timeout_seconds: float,
        stream: bool = False,
    ) -> requests.Response:
        def send() -> requests.Response:
            try:
                response: requests.Response = self.client.session.request(
                    method,
                    self.server.rstrip("/") + path,
                    params=params,
                    data=None if body is None else json.dumps(body),
                    headers={"Content-Type": content_type} if body is not None else None,
                    timeout=(_CONNECT_TIMEOUT_SECONDS, read_timeout_seconds),
                    stream=stream,
                )
            except requests.RequestException as error:
                raise self._unreachable(error) from error
            self._clock.set(response.headers.get("Date"))
            if response.status_code >= 400:
                with response:
                    raise api_error_from(response)
            return response

        renewal = self.kube_context.renewal
        return renewal.call(send) if renewal else send()

    def _impersonate(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the headers of impersonation, one for each group: requests' own headers hold one of a name."""
        headers = HTTPHeaderDict({name: _as_text(value) for name, value in request.headers.items()})
        for name, value in self.kube_context.impersonation:
            headers.add(name, value)
        request.headers = headers  # type: ignore[assignment]
        return request

    def _unreachable(self, error: Exception) -> ClusterUnreachable:
        return ClusterUnreachable(
            f"cannot connect to the API server {self.server}: {root_cause(error)}"
            f" (context {self.kube_context.name} of {self.kube_context.source});"
            " check that the cluster is up and the context is the right one"
        )


def _as_text(value: str | bytes) -> str:
    """Return a header's value as text (RFC 9110: ISO 8859-1)."""
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _is_timeout(error: BaseException) -> bool:
    return isinstance(error, requests.Timeout) or any(
        isinstance(cause, ReadTimeoutError) for cause in error.args
    )


def root_cause(error: BaseException) -> str:
    """Return the message of the innermost cause, `Connection refused`, without the wrappers of urllib3."""
    seen, innermost = {id(error)}, error
    while True:
        reason = getattr(innermost, "reason", None)
        cause = next(
            (
                candidate
                for candidate in (reason, innermost.__cause__, *innermost.args, innermost.__context__)
                if isinstance(candidate, BaseException) and id(candidate) not in seen
            ),
            None,
        )
        if cause is None:
            break
        seen.add(id(cause))
        innermost = cause
    if isinstance(innermost, OSError) and innermost.strerror:
        return innermost.strerror
    return str(innermost) or type(innermost).__name__


def api_error_from(response: requests.Response) -> ApiError:
    """Convert the API server's Status to an ApiError, with reason `NotInstalled` if dbranch's CRDs are missing."""
    try:
        status = response.json()
    except ValueError:
        status = {}
    message = status.get("message") or response.text.strip() or response.reason or "no message"
    kind = (status.get("details") or {}).get("kind")
    if response.status_code == 404 and f"/apis/{names.GROUP}/" in response.url and not kind:
        return ApiError(
            404,
            "NotInstalled",
            f"dbranch is not installed in this cluster: it does not serve {names.GROUP}/{names.VERSION};"
            " install the chart (helm install dbranch helm/dbranch)",
        )
    return ApiError(response.status_code, status.get("reason") or f"HTTP{response.status_code}", message)
