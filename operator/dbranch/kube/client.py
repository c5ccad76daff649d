"""The Kubernetes API as JSON: a few verbs over the client library's connection pool.

The library provides configuration, credentials and TLS. Its typed models are not used, since every object here is
a plain dict written by a pure builder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlencode

import urllib3
from kubernetes import client, config

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.errors import ApiError, ClusterUnreachable
from dbranch.api.project import Project
from dbranch.api.restore import Restore
from dbranch.api.server_clock import ServerClock
from dbranch.api.snapshot import Snapshot

logger = logging.getLogger(__name__)

Json = dict[str, Any]
_MERGE: Final = "application/merge-patch+json"
_APPLY: Final = "application/apply-patch+yaml"
_JSON_PATCH: Final = "application/json-patch+json"
_CONNECT_TIMEOUT_SECONDS: Final = 5.0
_REQUEST_TIMEOUT_SECONDS: Final = 20.0
# Of the connection only: what was sent may have been done.
_RETRIES: Final = urllib3.Retry(connect=2, read=0, redirect=0, other=0, backoff_factor=0.1)
# The server ends a watch after this time; a silence that is longer by the margin is a broken connection.
_WATCH_SECONDS: Final = 300
_WATCH_MARGIN_SECONDS: Final = 30.0


def path_of(
    api: str, plural: str, namespace: str | None = None, name: str | None = None, sub: str = ""
) -> str:
    """Return the URL path of a resource. `api` is `v1`, or a group and version as in `apps/v1`.

    >>> path_of("apps/v1", "deployments", "team", "shop-proxy")
    '/apis/apps/v1/namespaces/team/deployments/shop-proxy'
    """
    parts = ["/apis" if "/" in api else "/api", api]
    if namespace is not None:
        parts += ["namespaces", namespace]
    parts += [plural, *([name] if name else []), *([sub] if sub else [])]
    return "/".join(parts)


def project_path(namespace: str, name: str, sub: str = "") -> str:
    """Return the URL path of a DBProject."""
    return path_of(names.API_VERSION, names.PROJECTS, namespace, name, sub)


def branch_path(namespace: str, name: str, sub: str = "") -> str:
    """Return the URL path of a DBBranch, by its object's name."""
    return path_of(names.API_VERSION, names.BRANCHES, namespace, name, sub)


def snapshot_path(namespace: str, name: str, sub: str = "") -> str:
    """Return the URL path of a DBSnapshot, by its object's name."""
    return path_of(names.API_VERSION, names.SNAPSHOTS, namespace, name, sub)


def restore_path(namespace: str, name: str, sub: str = "") -> str:
    """Return the URL path of a DBRestore, by its object's name."""
    return path_of(names.API_VERSION, names.RESTORES, namespace, name, sub)


def object_path(item: Project | Branch | Snapshot | Restore, sub: str = "") -> str:
    """Return the URL path of a DBProject, DBBranch, DBSnapshot or DBRestore."""
    if isinstance(item, Restore):
        return restore_path(item.namespace, item.object_name, sub)
    if isinstance(item, Snapshot):
        return snapshot_path(item.namespace, item.object_name, sub)
    if isinstance(item, Project):
        return project_path(item.namespace, item.name, sub)
    return branch_path(item.namespace, item.object_name, sub)


class Cluster:
    """The API server, as one field manager. Thread-safe.

    Every method raises ClusterUnreachable if no answer came (or HTTP 5xx or 429, but not for an admission webhook's
    want of an answer), and ApiError with the server's
    status, reason and message if it rejected the request.
    """

    def __init__(self, manager: str) -> None:
        self._manager = manager
        try:
            config.load_incluster_config()  # type: ignore[no-untyped-call]
        except config.ConfigException:
            config.load_kube_config()  # type: ignore[no-untyped-call]
        self._settings = client.Configuration.get_default_copy()
        self._settings.connection_pool_maxsize = 32
        # The library computes it anew at each access, from all variables of the environment (a tenth of a request).
        self._host = self._settings.host
        self._clock = ServerClock()
        self._pool: Any = client.ApiClient(self._settings).rest_client.pool_manager

    def server_time(self) -> datetime:
        """Return the time of day by the API server's clock, as its last answer had it (before: by one's own)."""
        return self._clock.now()

    def get(self, path: str, token: str = "") -> Json | None:
        """Return the object, or None if it does not exist. `token`: of another account, in place of the own one."""
        try:
            return self._call("GET", path, token=token)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def request_token(self, account_path: str, seconds: int) -> str:
        """Return a token of a ServiceAccount that is valid for so many seconds."""
        spec = {"expirationSeconds": seconds}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        return str(self._call("POST", f"{account_path}/token", body)["status"]["token"])

    def find(self, path: str, labels: str = "", fields: str = "") -> list[Json]:
        """Return the items of a collection that match the selectors, uncached."""
        items: list[Json] = self._call("GET", path, query=_selectors(labels, fields)).get("items") or []
        return items

    def create(self, path: str, body: Mapping[str, Any]) -> Json:
        """Create an object and return it. Raises ApiError (409) if the name is taken."""
        return self._call("POST", path, body, query={"fieldManager": self._manager})

    def apply(self, path: str, body: Mapping[str, Any], manager: str | None = None) -> Json:
        """Apply an object server-side, taking over fields that others manage, and return it."""
        query = {"fieldManager": manager or self._manager, "force": "true"}
        return self._call("PATCH", path, body, _APPLY, query)

    def merge(self, path: str, body: Mapping[str, Any]) -> Json:
        """Send a merge patch (RFC 7386) and return the object.

        Raises ApiError (409) if the patch's `metadata.uid` or `metadata.resourceVersion` is not the object's.
        """
        return self._call("PATCH", path, body, _MERGE, {"fieldManager": self._manager})

    def json_patch(self, path: str, operations: list[Json]) -> Json:
        """Send a JSON patch (RFC 6902) and return the object.

        Raises ApiError (422), with nothing changed, if a `test` in it fails. A `test` for None passes if the path
        does not exist.
        """
        return self._call("PATCH", path, operations, _JSON_PATCH, {"fieldManager": self._manager})

    def delete(
        self, path: str, uid: str | None = None, grace: int | None = None, version: str | None = None
    ) -> None:
        """Delete an object; do nothing if it does not exist.

        With `uid` (and `version`, its resourceVersion), do nothing if the object is another (or was written since).
        `grace`: seconds that a pod has to terminate.
        """
        options: Json = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid:
            options["preconditions"] = {"uid": uid, **({"resourceVersion": version} if version else {})}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        try:
            self._call("DELETE", path, options)
        except ApiError as error:
            if error.status != 404 and not (uid and error.status == 409):
                raise

    def watch(self, path: str, labels: str = "", fields: str = "") -> Iterator[Json]:
        """Yield the existing objects (type ADDED), an event of type SYNCED, then watch events as they come.

        Ends when the server ends the watch; raises ClusterUnreachable if the connection breaks. Call it again then.
        """
        query = _selectors(labels, fields)
        listed = self._call("GET", path, query=query)
        for item in listed.get("items") or []:
            yield {"type": "ADDED", "object": item}
        yield {"type": "SYNCED", "object": {}}
        query |= {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_SECONDS),
            "resourceVersion": listed["metadata"]["resourceVersion"],
        }
        partial_line = b""
        try:
            answer = self._send(
                "GET", path, None, "application/json", query, _WATCH_SECONDS + _WATCH_MARGIN_SECONDS
            )
            for chunk in answer.stream(amt=65536, decode_content=True):
                *lines, partial_line = (partial_line + chunk).split(b"\n")
                for line in filter(None, lines):
                    event: Json = json.loads(line)
                    if event["type"] == "ERROR":
                        return
                    if event["type"] != "BOOKMARK":
                        yield event
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise ClusterUnreachable(f"watch of {path}: {error}") from error

    def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        content: str = "application/json",
        query: Mapping[str, str] | None = None,
        token: str = "",
    ) -> Json:
        answer = self._send(method, path, body, content, query, _REQUEST_TIMEOUT_SECONDS, token)
        try:
            parsed: Json = json.loads(answer.read())
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise ClusterUnreachable(f"{method} {path}: {error}") from error
        finally:
            answer.release_conn()
        return parsed

    def _send(
        self,
        method: str,
        path: str,
        body: Any,
        content: str,
        query: Mapping[str, str] | None,
        seconds: float,
        token: str = "",
    ) -> Any:
        headers = {"Accept": "application/json", "Content-Type": content, "User-Agent": self._manager}
        own = self._settings.get_api_key_with_prefix("BearerToken", "authorization")
        authorization = f"Bearer {token}" if token else own
        if authorization:
            headers["Authorization"] = authorization
        url = self._host + path + (f"?{urlencode(query)}" if query else "")
        try:
            answer = self._pool.request(
                method,
                url,
                body=None if body is None else json.dumps(body),
                headers=headers,
                timeout=urllib3.Timeout(connect=_CONNECT_TIMEOUT_SECONDS, read=seconds),
                retries=_RETRIES,
                preload_content=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ClusterUnreachable(f"{method} {path}: {error}") from error
        self._clock.set(answer.headers.get("Date"))
        if answer.status >= 400:
            _raise(method, path, answer)
        return answer


def _selectors(labels: str, fields: str) -> dict[str, str]:
    query = {"labelSelector": labels, "fieldSelector": fields}
    return {key: value for key, value in query.items() if value}


def _raise(method: str, path: str, answer: Any) -> None:
    text = answer.read().decode("utf-8", "replace")
    answer.release_conn()
    try:
        status = json.loads(text)
    except ValueError:
        status = {"message": text[:500]}
    message = status.get("message") or f"HTTP {answer.status}"
    # A webhook that does not answer is no API server that does not: all but that one object goes on.
    by_webhook = answer.status == 500 and "failed calling webhook" in message
    if (answer.status >= 500 and not by_webhook) or answer.status == 429:
        raise ClusterUnreachable(f"{method} {path}: HTTP {answer.status}: {message}")
    raise ApiError(answer.status, status.get("reason", ""), message)
