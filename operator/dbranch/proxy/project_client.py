"""A proxy's requests to the API server: list and watch its DBProject and DBBranches, write this pod's entries."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from dbranch.api import names
from dbranch.api.errors import ClusterUnreachable
from dbranch.api.project import ProxyEntry
from dbranch.proxy import timing

# The largest watch event: etcd stores no object larger than 1.5 MiB.
_MAX_EVENT_BYTES: Final = 8 * 2**20

Json = dict[str, Any]


class WatchExpired(Exception):
    """The resourceVersion is too old to watch from (HTTP 410): list again."""


class ObjectNotFound(Exception):
    """The object does not exist (HTTP 404)."""


@dataclass(frozen=True)
class ApiServer:
    """How to reach the API server. The token file is read for each request, since kubelet renews it.

    `tls` replaces the context built from `ca` (for a client certificate, say).
    """

    url: str
    token: Path | None = None
    ca: Path | None = None
    tls: ssl.SSLContext | None = None

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token.read_text().strip()}"} if self.token else {}

    def connector(self) -> aiohttp.TCPConnector:
        context = self.tls or ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
        return aiohttp.TCPConnector(ssl=context, limit=4)


@dataclass(frozen=True)
class ProxyPod:
    """Which pod this proxy is, and whose DBProject it serves."""

    project: str
    namespace: str
    pod: str


class Backoff:
    """Exponential backoff with jitter, from MIN_BACKOFF_SECONDS to MAX_BACKOFF_SECONDS."""

    def __init__(self) -> None:
        self._next_seconds = timing.MIN_BACKOFF_SECONDS

    def reset(self) -> None:
        self._next_seconds = timing.MIN_BACKOFF_SECONDS

    async def sleep(self) -> None:
        await asyncio.sleep(self._next_seconds * random.uniform(0.7, 1.3))
        self._next_seconds = min(self._next_seconds * 2, timing.MAX_BACKOFF_SECONDS)


@dataclass(frozen=True)
class Collection:
    """Objects of one kind in the project's namespace that a field selector selects."""

    kind: str
    plural: str
    selector: str


class ProjectClient:
    """The requests about one DBProject and its branches.

    Methods raise ClusterUnreachable, WatchExpired or ObjectNotFound.
    """

    def __init__(self, api: ApiServer, proxy_pod: ProxyPod) -> None:
        self._api, self._proxy_pod = api, proxy_pod
        self._http: aiohttp.ClientSession | None = None
        self._path = f"/apis/{names.API_VERSION}/namespaces/{proxy_pod.namespace}"
        self.project = Collection(names.PROJECT_KIND, names.PROJECTS, f"metadata.name={proxy_pod.project}")
        self.branches = Collection(names.BRANCH_KIND, names.BRANCHES, f"spec.project={proxy_pod.project}")

    async def close(self) -> None:
        if self._http:
            await self._http.close()

    async def list(self, collection: Collection) -> tuple[list[Json], str]:
        """Return the objects, and the resourceVersion to watch from."""
        path, params = f"{self._path}/{collection.plural}", {"fieldSelector": collection.selector}
        text = await self._request("GET", path, params=params)
        try:
            body = await asyncio.to_thread(json.loads, text)
        except ValueError as error:
            raise ClusterUnreachable(f"GET {path}: {error}") from error
        return body.get("items") or [], body["metadata"]["resourceVersion"]

    async def watch(self, collection: Collection, resource_version: str) -> AsyncGenerator[bytes, None]:
        """Yield the watch events after `resource_version`, as JSON, until the server ends the watch."""
        seconds = timing.WATCH_TIMEOUT_SECONDS + random.randrange(timing.WATCH_JITTER_SECONDS)
        params = {
            "fieldSelector": collection.selector,
            "watch": "1",
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        timeout = aiohttp.ClientTimeout(
            sock_connect=timing.API_REQUEST_TIMEOUT_SECONDS, sock_read=timing.WATCH_SILENCE_SECONDS
        )
        try:
            async with self._session().get(
                f"{self._api.url}{self._path}/{collection.plural}",
                params=params,
                timeout=timeout,
                headers=self._api.headers(),
            ) as response:
                await _raise_for_status(response)
                partial_line = b""
                async for chunk in response.content.iter_any():
                    *lines, partial_line = (partial_line + chunk).split(b"\n")
                    if len(partial_line) > _MAX_EVENT_BYTES:
                        raise ClusterUnreachable(f"a watch event is larger than {_MAX_EVENT_BYTES} bytes")
                    for line in filter(None, lines):
                        yield line
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ClusterUnreachable(f"watch: {error or type(error).__name__}") from error

    async def write_entry(self, uid: str, entry: ProxyEntry | None) -> None:
        """Write this pod's entry of `status.proxies` by server-side apply; None removes it.

        `uid` is the project's. A project that was deleted and made again under the name is not written: the
        server answers HTTP 409.
        """
        entries: list[Json] = (
            [
                {
                    "pod": entry.pod,
                    "generation": entry.generation,
                    "sessions": entry.sessions,
                    "draining": entry.draining,
                    "branches": [asdict(b) for b in entry.branches],
                    "features": list(entry.features),
                }
            ]
            if entry
            else []
        )
        await self._apply_entries(self.project, self._proxy_pod.project, uid, entries)

    async def acknowledge(self, branch: str, uid: str, generation: int | None) -> None:
        """Write this pod's entry of `status.proxies` of a DBBranch by server-side apply; None removes it."""
        entries: list[Json] = []
        if generation is not None:
            entries.append({"pod": self._proxy_pod.pod, "generation": generation})
        await self._apply_entries(self.branches, branch, uid, entries)

    async def _apply_entries(
        self, collection: Collection, name: str, uid: str, entries: Sequence[Json]
    ) -> None:
        meta = {"name": name, "namespace": self._proxy_pod.namespace, "uid": uid}
        await self._request(
            "PATCH",
            f"{self._path}/{collection.plural}/{name}/status",
            params={"fieldManager": names.PROXY_MANAGER_PREFIX + self._proxy_pod.pod, "force": "true"},
            headers={"Content-Type": "application/apply-patch+yaml"},
            data=json.dumps(
                {
                    "apiVersion": names.API_VERSION,
                    "kind": collection.kind,
                    "metadata": meta,
                    "status": {"proxies": entries},
                }
            ),
        )

    def _session(self) -> aiohttp.ClientSession:
        if not self._http:
            self._http = aiohttp.ClientSession(connector=self._api.connector())
        return self._http

    async def _request(
        self, method: str, path: str, headers: dict[str, str] | None = None, **options: Any
    ) -> bytes:
        """Send a request with aiohttp `options` and return its response's body."""
        timeout = aiohttp.ClientTimeout(total=timing.API_REQUEST_TIMEOUT_SECONDS)
        try:
            async with self._session().request(
                method,
                self._api.url + path,
                timeout=timeout,
                headers=self._api.headers() | (headers or {}),
                **options,
            ) as response:
                await _raise_for_status(response)
                return await response.read()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ClusterUnreachable(f"{method} {path}: {error or type(error).__name__}") from error


async def _raise_for_status(response: aiohttp.ClientResponse) -> None:
    """Raise WatchExpired, ObjectNotFound or ClusterUnreachable if the response is an error."""
    if response.status < 400:
        return
    text = (await response.content.read(2000)).decode("utf-8", "replace")
    if response.status == 410:
        raise WatchExpired(text)
    if response.status == 404:
        raise ObjectNotFound(text)
    raise ClusterUnreachable(f"HTTP {response.status}: {text}")
