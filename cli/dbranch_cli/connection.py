"""The API server as the command line sees it: requests, watches, and the errors in the user's words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pykube
import requests

from dbranch.api import names
from dbranch.api.errors import ApiError, ClusterUnreachable
from dbranch_cli.kubeconfig import Login

_CONNECT_SECONDS, _READ_SECONDS = 10.0, 60.0
APPLY = "application/apply-patch+yaml"


class Connection:
    """One login to one API server. Raises ClusterUnreachable and ApiError."""

    def __init__(self, login: Login) -> None:
        self.login = login
        self.client = pykube.HTTPClient(login.config)
        self.client.session.headers["User-Agent"] = "dbranch-cli"

    @property
    def server(self) -> str:
        return str(self.client.url)

    def get(self, path: str, **params: str) -> dict[str, Any]:
        return self.request("GET", path, params)

    def request(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """The answer's JSON. `path` begins at the server's root; `body` is sent as JSON (which is YAML, too)."""
        with self._send(method, path, params, body, content_type, _READ_SECONDS) as response:
            answer: dict[str, Any] = response.json()
            return answer

    def watch(self, path: str, params: Mapping[str, str], seconds: int) -> Iterator[dict[str, Any]]:
        """The events of a watch, until the server ends it after `seconds`."""
        asked = {**params, "watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
        try:
            with self._send("GET", path, asked, None, "", seconds + _READ_SECONDS, stream=True) as response:
                for line in response.iter_lines(chunk_size=65536):
                    if line:
                        yield json.loads(line)
        except requests.RequestException as error:
            raise self._unreachable(error) from error

    def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        content_type: str,
        read_seconds: float,
        stream: bool = False,
    ) -> requests.Response:
        try:
            response: requests.Response = self.client.session.request(
                method,
                self.server.rstrip("/") + path,
                params=params,
                data=None if body is None else json.dumps(body),
                headers={"Content-Type": content_type} if body is not None else None,
                timeout=(_CONNECT_SECONDS, read_seconds),
                stream=stream,
            )
        except requests.RequestException as error:
            raise self._unreachable(error) from error
        if response.status_code >= 400:
            with response:
                raise api_error_of(response)
        return response

    def _unreachable(self, error: Exception) -> ClusterUnreachable:
        return ClusterUnreachable(
            f"the API server {self.server} does not answer: {root_cause(error)}"
            f" (context {self.login.context} of {self.login.source}); is the cluster up, and is this the right one?"
        )


def root_cause(error: BaseException) -> str:
    """The innermost sentence of a connection's failure: `Connection refused`, not urllib3's whole tower."""
    seen, inner = {id(error)}, error
    while True:
        reason = getattr(inner, "reason", None)
        below = next(
            (
                found
                for found in (reason, inner.__cause__, *inner.args, inner.__context__)
                if isinstance(found, BaseException) and id(found) not in seen
            ),
            None,
        )
        if below is None:
            break
        seen.add(id(below))
        inner = below
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return str(inner) or type(inner).__name__


def api_error_of(response: requests.Response) -> ApiError:
    """The API server's Status as an exception; `NotInstalled` where it does not know dbranch's kinds."""
    try:
        said = response.json()
    except ValueError:
        said = {}
    message = said.get("message") or response.text.strip() or response.reason or "no message"
    kind = (said.get("details") or {}).get("kind")
    if response.status_code == 404 and f"/apis/{names.GROUP}/" in response.url and not kind:
        return ApiError(
            404,
            "NotInstalled",
            f"this cluster knows no {names.GROUP}/{names.VERSION}: dbranch is not installed in it;"
            " install the chart (helm install dbranch helm/dbranch)",
        )
    return ApiError(response.status_code, said.get("reason") or f"HTTP{response.status_code}", message)
