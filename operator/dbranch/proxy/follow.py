"""The proxy's own DBProject: list and watch it for the routing table, and write this pod's entry of its status."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass

from dbranch.api.errors import ClusterUnreachable, InvalidInput
from dbranch.api.project import ProxyEntry
from dbranch.proxy import timing
from dbranch.proxy.project import ProxyProject, read_project
from dbranch.proxy.project_client import Json, ProjectClient, ProjectNotFound, ProxyPod, WatchExpired
from dbranch.proxy.routes import Table
from dbranch.proxy.switchboard import Switchboard

log = logging.getLogger(__name__)

# Called after a table was put in force, with the pods that have an entry in `status.proxies` of its DBProject.
OnApplied = Callable[[frozenset[str]], None]


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
