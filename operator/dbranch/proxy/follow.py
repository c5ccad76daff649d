"""The proxy's own DBProject: list and watch it for the routing table, and write this pod's entry of its status."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import ssl
from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from dbranch.api import names
from dbranch.api.errors import ClusterUnreachable, InvalidInput
from dbranch.api.project import ProxyEntry
from dbranch.proxy import timing
from dbranch.proxy.project import ProxyProject, read_project
from dbranch.proxy.routes import Table
from dbranch.proxy.switchboard import Switchboard

log = logging.getLogger(__name__)

# The largest watch event: etcd stores no object larger than 1.5 MiB.
_MAX_EVENT_BYTES: Final = 8 * 2**20


Json = dict[str, Any]

# Called after a table was put in force, with the pods that have an entry in `status.proxies` of its DBProject.
OnApplied = Callable[[frozenset[str]], None]


class WatchExpired(Exception):
    """The resourceVersion is too old to watch from (HTTP 410): list again."""


class ProjectNotFound(Exception):
    """The DBProject does not exist (HTTP 404)."""


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


class ProjectClient:
    """The requests about one DBProject. Methods raise ClusterUnreachable, WatchExpired or ProjectNotFound."""

    def __init__(self, api: ApiServer, proxy_pod: ProxyPod) -> None:
        self._api, self._proxy_pod = api, proxy_pod
        self._http: aiohttp.ClientSession | None = None
        self._path = f"/apis/{names.API_VERSION}/namespaces/{proxy_pod.namespace}/{names.PROJECTS}"

    async def close(self) -> None:
        if self._http:
            await self._http.close()

    async def list(self) -> tuple[Json | None, str]:
        """Return the DBProject, or None if it does not exist, and the resourceVersion to watch from."""
        text = await self._request("GET", self._path, params=self._field_selector())
        try:
            body = await asyncio.to_thread(json.loads, text)
        except ValueError as error:
            raise ClusterUnreachable(f"GET {self._path}: {error}") from error
        items = body.get("items") or []
        return (items[0] if items else None), body["metadata"]["resourceVersion"]

    async def watch(self, resource_version: str) -> AsyncGenerator[bytes, None]:
        """Yield the watch events after `resource_version`, as JSON, until the server ends the watch."""
        seconds = timing.WATCH_TIMEOUT_SECONDS + random.randrange(timing.WATCH_JITTER_SECONDS)
        params = self._field_selector() | {
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
                self._api.url + self._path, params=params, timeout=timeout, headers=self._api.headers()
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
        entries = (
            [
                {
                    "pod": entry.pod,
                    "generation": entry.generation,
                    "sessions": entry.sessions,
                    "draining": entry.draining,
                    "branches": [asdict(b) for b in entry.branches],
                }
            ]
            if entry
            else []
        )
        project, namespace = self._proxy_pod.project, self._proxy_pod.namespace
        await self._request(
            "PATCH",
            f"{self._path}/{project}/status",
            params={"fieldManager": names.PROXY_MANAGER_PREFIX + self._proxy_pod.pod, "force": "true"},
            headers={"Content-Type": "application/apply-patch+yaml"},
            data=json.dumps(
                {
                    "apiVersion": names.API_VERSION,
                    "kind": names.PROJECT_KIND,
                    "metadata": {"name": project, "namespace": namespace, "uid": uid},
                    "status": {"proxies": entries},
                }
            ),
        )

    def _field_selector(self) -> dict[str, str]:
        return {"fieldSelector": f"metadata.name={self._proxy_pod.project}"}

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
    """Raise WatchExpired, ProjectNotFound or ClusterUnreachable if the response is an error."""
    if response.status < 400:
        return
    text = (await response.content.read(2000)).decode("utf-8", "replace")
    if response.status == 410:
        raise WatchExpired(text)
    if response.status == 404:
        raise ProjectNotFound(text)
    raise ClusterUnreachable(f"HTTP {response.status}: {text}")


class Backoff:
    """Exponential backoff with jitter, from MIN_BACKOFF_SECONDS to MAX_BACKOFF_SECONDS."""

    def __init__(self) -> None:
        self._next_seconds = timing.MIN_BACKOFF_SECONDS

    def reset(self) -> None:
        self._next_seconds = timing.MIN_BACKOFF_SECONDS

    async def sleep(self) -> None:
        await asyncio.sleep(self._next_seconds * random.uniform(0.7, 1.3))
        self._next_seconds = min(self._next_seconds * 2, timing.MAX_BACKOFF_SECONDS)


async def follow(
    client: ProjectClient, proxy_pod: ProxyPod, switchboard: Switchboard, on_applied: OnApplied
) -> None:
    """List and watch the DBProject forever, and put each state of it in force on `switchboard`.

    While the API server is unreachable the table stays as it is.
    """
    loop, backoff = asyncio.get_running_loop(), Backoff()
    applier = _Applier(proxy_pod, switchboard, on_applied)
    # Empty: list before the next watch.
    resource_version = ""
    while True:
        try:
            if not resource_version:
                body, resource_version = await client.list()
                applier.apply(await asyncio.to_thread(_read, body))
                backoff.reset()
            watch_started_at = loop.time()
            async with contextlib.aclosing(client.watch(resource_version)) as events:
                async for line in events:
                    # A project with many branches takes milliseconds to read.
                    event = await asyncio.to_thread(_read_event, line)
                    resource_version = event.resource_version
                    backoff.reset()
                    if event.project:
                        applier.apply(event.project)
            if loop.time() - watch_started_at < timing.MIN_WATCH_SECONDS:
                await backoff.sleep()
        except WatchExpired:
            resource_version = ""
        except (ClusterUnreachable, ProjectNotFound) as error:
            log.warning(
                "project %s/%s: %s; the current routes stay in force",
                proxy_pod.namespace,
                proxy_pod.project,
                error,
            )
            resource_version = ""
            await backoff.sleep()


@dataclass(frozen=True)
class _Deleted:
    """The DBProject does not exist (any more)."""


@dataclass(frozen=True)
class _Invalid:
    """The DBProject cannot be read."""

    reason: str


@dataclass(frozen=True)
class _Event:
    """A watch event. `project` is None for a bookmark."""

    resource_version: str
    project: ProxyProject | _Deleted | _Invalid | None = None


def _read_event(line: bytes) -> _Event:
    """Read a watch event. Raise WatchExpired or ClusterUnreachable if it reports an error, or is none."""
    try:
        event: Json = json.loads(line)
        kind, body = event["type"], event["object"]
        if kind == "ERROR":
            if body.get("code") == 410:
                raise WatchExpired(body.get("message", ""))
            raise ClusterUnreachable(f"watch: {body.get('message', body)}")
        version: str = body["metadata"]["resourceVersion"]
    except (KeyError, TypeError, ValueError) as error:
        raise ClusterUnreachable(f"watch: {error!r}") from error
    if kind == "BOOKMARK":
        return _Event(version)
    return _Event(version, _read(None if kind == "DELETED" else body))


def _read(body: Json | None) -> ProxyProject | _Deleted | _Invalid:
    if body is None:
        return _Deleted()
    try:
        return read_project(body)
    except InvalidInput as error:
        return _Invalid(str(error))


class _Applier:
    """Puts what was read of the DBProject in force; logs and ignores what is invalid or older."""

    def __init__(self, proxy_pod: ProxyPod, switchboard: Switchboard, on_applied: OnApplied) -> None:
        self._proxy_pod, self._switchboard, self._on_applied = proxy_pod, switchboard, on_applied
        self._logged_problems: tuple[str, ...] = ()

    def apply(self, project: ProxyProject | _Deleted | _Invalid) -> None:
        pod = self._proxy_pod
        match project:
            case _Invalid(reason):
                message = "project %s/%s: %s; the current routes stay in force"
                log.error(message, pod.namespace, pod.project, reason)
                return
            case _Deleted():
                table, pods, problems = Table(pod.project, deleted=True), frozenset[str](), tuple[str, ...]()
            case ProxyProject(table, pods, problems):
                pass
        if problems and problems != self._logged_problems:
            log.warning("project %s/%s: %s", pod.namespace, pod.project, "; ".join(problems[:5]))
        self._logged_problems = problems
        previous = self._switchboard.table
        if not self._switchboard.apply(table):
            log.warning("route generation %d is older than the one in force; ignored", table.generation)
            return
        if previous is None or (previous.generation, previous.active) != (table.generation, table.active):
            log.info("route generation %d: branch %s", table.generation, table.active)
        self._on_applied(pods)


class EntryWriter:
    """Writer of this pod's entry of `status.proxies`.

    A new route generation, and the end of a drain, are written at once and retried until accepted; changed
    session counts at most every SESSION_COUNTS_INTERVAL_SECONDS.
    """

    def __init__(self, client: ProjectClient, proxy_pod: ProxyPod, switchboard: Switchboard) -> None:
        self._client, self._proxy_pod, self._switchboard = client, proxy_pod, switchboard
        # The project's UID and the entry that the API server has accepted last.
        self._written: tuple[str, ProxyEntry] | None = None
        self._wake = asyncio.Event()
        switchboard.on_drained = self._wake.set

    def on_applied(self, entry_pods: frozenset[str]) -> None:
        """Check for a new generation, and whether this pod's entry is missing from `status.proxies`."""
        if self._proxy_pod.pod not in entry_pods:
            self._written = None
        self._wake.set()

    async def run(self) -> None:
        backoff = Backoff()
        while True:
            self._wake.clear()
            table = self._switchboard.table
            entry = self._current_entry()
            if table and entry and not table.deleted and (table.uid, entry) != self._written:
                try:
                    await self._client.write_entry(table.uid, entry)
                except (ClusterUnreachable, ProjectNotFound, WatchExpired) as error:
                    log.warning(
                        "could not write status.proxies for route generation %d: %s", entry.generation, error
                    )
                    await backoff.sleep()
                    continue
                self._written = table.uid, entry
                backoff.reset()
            # A deadline instead of a timeout for each wait: wake-ups may follow each other without end.
            deadline = asyncio.get_running_loop().time() + timing.SESSION_COUNTS_INTERVAL_SECONDS
            while not self._is_write_due():
                try:
                    async with asyncio.timeout_at(deadline):
                        await self._wake.wait()
                except TimeoutError:
                    break
                self._wake.clear()

    async def remove_entry(self) -> None:
        """Remove this pod's entry at shutdown, best effort: an error is only logged."""
        if self._written:
            try:
                await self._client.write_entry(self._written[0], None)
            except (ClusterUnreachable, ProjectNotFound, WatchExpired) as error:
                log.warning("could not remove this pod's entry from status.proxies: %s", error)

    def _current_entry(self) -> ProxyEntry | None:
        if self._switchboard.table is None:
            return None
        branches = self._switchboard.session_counts()
        sessions, draining = sum(b.sessions for b in branches), sum(b.draining for b in branches)
        generation = self._switchboard.table.generation
        return ProxyEntry(self._proxy_pod.pod, generation, sessions, draining, branches)

    def _is_write_due(self) -> bool:
        """Return True if the controller waits for what has not been written: a generation, the end of a drain."""
        table = self._switchboard.table
        if table is None or table.deleted:
            return False
        if self._written is None:
            return True
        uid, entry = self._written
        drained = entry.draining > 0 and not self._switchboard.draining
        return drained or (table.uid, table.generation) != (uid, entry.generation)
