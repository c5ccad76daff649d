"""The proxy's own DBProject: read and watched for its table, written with this pod's entry."""

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
from dbranch.api.project import ProxyEntry, parse_project
from dbranch.proxy.routes import Table, table_of
from dbranch.proxy.switchboard import Switchboard

log = logging.getLogger(__name__)

# Seconds. A watch is ended by the server after _WATCH; its bookmarks come once a minute, so that a
# silence of _SILENCE is a connection that is dead.
_WATCH: Final = 300
_SILENCE: Final = 100.0
_REQUEST: Final = 10.0
_FIRST_BACKOFF: Final = 0.2
_LAST_BACKOFF: Final = 10.0
# At most this often session counts are written when nothing else changed.
COUNTS_EVERY: Final = 10.0
# The largest watch event: etcd takes no object beyond 1.5 MiB.
_MAX_EVENT: Final = 8 * 2**20


# Called after each table that was put in force, with `status.proxies` as it stood in the cluster.
Applied = Callable[[tuple[ProxyEntry, ...]], None]


class Expired(Exception):
    """The resourceVersion is too old to watch from: list again."""


class NotFound(Exception):
    """The project does not exist."""


@dataclass(frozen=True)
class ApiServer:
    """How the API server is reached. The token's file is read for each request, since it is renewed.

    `tls` replaces what `ca` would give (a client certificate, say).
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
class Own:
    """Which project this proxy is of, and which pod it is."""

    project: str
    namespace: str
    pod: str


class ProjectClient:
    """The few requests about one DBProject. Raises ClusterUnreachable, Expired, NotFound."""

    def __init__(self, api: ApiServer, own: Own) -> None:
        self._api, self._own = api, own
        self._http: aiohttp.ClientSession | None = None
        self._path = f"/apis/{names.API_VERSION}/namespaces/{own.namespace}/{names.PROJECTS}"

    async def close(self) -> None:
        if self._http:
            await self._http.close()

    async def list(self) -> tuple[dict[str, Any] | None, str]:
        """The project, None where there is none, and the resourceVersion to watch from."""
        body = await self._json("GET", self._path, params=self._selector())
        items = body.get("items") or []
        return (items[0] if items else None), body["metadata"]["resourceVersion"]

    async def watch(self, since: str) -> AsyncGenerator[dict[str, Any], None]:
        """Events behind resourceVersion `since`, until the server ends the watch."""
        params = self._selector() | {
            "watch": "1",
            "resourceVersion": since,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH + random.randrange(60)),
        }
        timeout = aiohttp.ClientTimeout(sock_connect=_REQUEST, sock_read=_SILENCE)
        try:
            async with self._session().get(
                self._api.url + self._path, params=params, timeout=timeout, headers=self._api.headers()
            ) as response:
                await _check(response)
                rest = b""
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    if len(rest) > _MAX_EVENT:
                        raise ClusterUnreachable("a watch event has no end")
                    for line in filter(None, lines):
                        yield json.loads(line)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ClusterUnreachable(f"watch: {error or type(error).__name__}") from error

    async def write_entry(self, uid: str, entry: ProxyEntry | None) -> None:
        """Server-side apply of this pod's entry of `status.proxies`; None takes it away.

        `uid` is the project's: one made again under the name is refused (HTTP 409), not written.
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
        await self._json(
            "PATCH",
            f"{self._path}/{self._own.project}/status",
            params={"fieldManager": names.PROXY_MANAGER_PREFIX + self._own.pod, "force": "true"},
            headers={"Content-Type": "application/apply-patch+yaml"},
            data=json.dumps(
                {
                    "apiVersion": names.API_VERSION,
                    "kind": names.PROJECT_KIND,
                    "metadata": {"name": self._own.project, "namespace": self._own.namespace, "uid": uid},
                    "status": {"proxies": entries},
                }
            ),
        )

    def _selector(self) -> dict[str, str]:
        return {"fieldSelector": f"metadata.name={self._own.project}"}

    def _session(self) -> aiohttp.ClientSession:
        if not self._http:
            self._http = aiohttp.ClientSession(connector=self._api.connector())
        return self._http

    async def _json(
        self, method: str, path: str, headers: dict[str, str] | None = None, **more: Any
    ) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=_REQUEST)
        try:
            async with self._session().request(
                method,
                self._api.url + path,
                timeout=timeout,
                headers=self._api.headers() | (headers or {}),
                **more,
            ) as response:
                await _check(response)
                body: dict[str, Any] = await response.json()
                return body
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ClusterUnreachable(f"{method} {path}: {error or type(error).__name__}") from error


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    text = (await response.content.read(2000)).decode("utf-8", "replace")
    if response.status == 410:
        raise Expired(text)
    if response.status == 404:
        raise NotFound(text)
    raise ClusterUnreachable(f"HTTP {response.status}: {text}")


class Backoff:
    """Growing pauses with some chance in them, from _FIRST_BACKOFF to _LAST_BACKOFF seconds."""

    def __init__(self) -> None:
        self._next = _FIRST_BACKOFF

    def reset(self) -> None:
        self._next = _FIRST_BACKOFF

    async def pause(self) -> None:
        await asyncio.sleep(self._next * random.uniform(0.7, 1.3))
        self._next = min(self._next * 2, _LAST_BACKOFF)


async def follow(client: ProjectClient, own: Own, board: Switchboard, applied: Applied) -> None:
    """Keeps `board` at what the API server says, for ever.

    While the API server is away the table stays as it is.
    """
    backoff = Backoff()
    since = ""
    while True:
        try:
            if not since:
                body, since = await client.list()
                _apply(board, own, body, applied)
                backoff.reset()
            began = asyncio.get_running_loop().time()
            async with contextlib.aclosing(client.watch(since)) as events:
                async for event in events:
                    body = event["object"]
                    if event["type"] == "ERROR":
                        if body.get("code") == 410:
                            raise Expired(body.get("message", ""))
                        raise ClusterUnreachable(f"watch: {body.get('message', body)}")
                    since = body["metadata"]["resourceVersion"]
                    backoff.reset()
                    if event["type"] != "BOOKMARK":
                        _apply(board, own, None if event["type"] == "DELETED" else body, applied)
            if asyncio.get_running_loop().time() - began < 1.0:
                await backoff.pause()
        except Expired:
            since = ""
        except (ClusterUnreachable, NotFound) as error:
            log.warning("project %s/%s: %s; routes stay as they are", own.namespace, own.project, error)
            since = ""
            await backoff.pause()


def _apply(board: Switchboard, own: Own, body: dict[str, Any] | None, applied: Applied) -> None:
    try:
        project = parse_project(body) if body else None
        table = table_of(project) if project else Table(own.project, gone=True)
    except (InvalidInput, KeyError, TypeError, ValueError) as error:
        log.error(
            "project %s/%s: unreadable (%r); routes stay as they are", own.namespace, own.project, error
        )
        return
    before = board.table
    if not board.apply(table):
        log.warning("route generation %d is older than the one in force; ignored", table.generation)
        return
    if before is None or (before.generation, before.active) != (table.generation, table.active):
        log.info("route generation %d: branch %s", table.generation, table.active)
    applied(project.proxies if project else ())


class EntryWriter:
    """Writes this pod's entry: a new generation, and the end of a drain, at once and until accepted; else
    counts that have changed, at most every COUNTS_EVERY seconds."""

    def __init__(self, client: ProjectClient, own: Own, board: Switchboard) -> None:
        self._client, self._own, self._board = client, own, board
        self._written: tuple[str, ProxyEntry] | None = None
        self._wake = asyncio.Event()
        board.on_settled = self._wake.set

    def notice(self, entries: tuple[ProxyEntry, ...]) -> None:
        """The table may have a new generation, or somebody has taken the entry away."""
        if all(e.pod != self._own.pod for e in entries):
            self._written = None
        self._wake.set()

    async def run(self) -> None:
        backoff = Backoff()
        while True:
            self._wake.clear()
            table = self._board.table
            entry = self._entry()
            if table and entry and not table.gone and (table.uid, entry) != self._written:
                try:
                    await self._client.write_entry(table.uid, entry)
                except (ClusterUnreachable, NotFound, Expired) as error:
                    log.warning("status.proxies of generation %d not written: %s", entry.generation, error)
                    await backoff.pause()
                    continue
                self._written = table.uid, entry
                backoff.reset()
            # A deadline, since what wakes this may come without end.
            until = asyncio.get_running_loop().time() + COUNTS_EVERY
            while not self._is_due():
                try:
                    async with asyncio.timeout_at(until):
                        await self._wake.wait()
                except TimeoutError:
                    break
                self._wake.clear()

    async def retire(self) -> None:
        """The proxy's end: its entry goes, best effort."""
        if self._written:
            try:
                await self._client.write_entry(self._written[0], None)
            except (ClusterUnreachable, NotFound, Expired) as error:
                log.warning("entry of status.proxies not taken away: %s", error)

    def _entry(self) -> ProxyEntry | None:
        if self._board.table is None:
            return None
        branches = self._board.counts()
        sessions, draining = sum(b.sessions for b in branches), sum(b.draining for b in branches)
        return ProxyEntry(self._own.pod, self._board.table.generation, sessions, draining, branches)

    def _is_due(self) -> bool:
        """Whether others wait for what has not been written yet."""
        table = self._board.table
        if table is None or table.gone:
            return False
        if self._written is None:
            return True
        uid, entry = self._written
        drained = entry.draining > 0 and not self._board.leaving
        return drained or (table.uid, table.generation) != (uid, entry.generation)
