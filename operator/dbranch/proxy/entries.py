"""What a proxy writes: its pod's entry of `status.proxies` of the DBProject, and of DBBranches that wait for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from typing import Final

from dbranch.api import names
from dbranch.api.errors import ClusterUnreachable
from dbranch.api.project import ProxyEntry
from dbranch.proxy import timing
from dbranch.proxy.branches import ProxyBranch
from dbranch.proxy.project_client import Backoff, ObjectNotFound, ProjectClient, ProxyPod, WatchExpired
from dbranch.proxy.switchboard import Switchboard

log = logging.getLogger(__name__)

_FEATURES: Final = (names.PROXY_FOLLOWS_BRANCHES, names.PROXY_RESTORES)


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
                except (ClusterUnreachable, ObjectNotFound, WatchExpired) as error:
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
            except (ClusterUnreachable, ObjectNotFound, WatchExpired) as error:
                log.warning("could not remove this pod's entry from status.proxies: %s", error)

    def _current_entry(self) -> ProxyEntry | None:
        if self._switchboard.table is None:
            return None
        branches = self._switchboard.session_counts()
        sessions, draining = sum(b.sessions for b in branches), sum(b.draining for b in branches)
        generation = self._switchboard.table.obeyed_generation
        return ProxyEntry(self._proxy_pod.pod, generation, sessions, draining, branches, _FEATURES)

    def _is_write_due(self) -> bool:
        """Return True if the controller waits for what has not been written: a generation, the end of a drain."""
        table = self._switchboard.table
        if table is None or table.deleted:
            return False
        if self._written is None:
            return True
        uid, entry = self._written
        drained = entry.draining > 0 and not self._switchboard.draining
        return drained or (table.uid, table.obeyed_generation) != (uid, entry.generation)


class Acknowledger:
    """Writer of this pod's entry of `status.proxies` of each branch that is being deleted or restored.

    It is written when the table in force has the branch so, and no new session of this pod reaches it; and removed
    when that state has passed.
    """

    def __init__(self, client: ProjectClient, proxy_pod: ProxyPod) -> None:
        self._client, self._proxy_pod = client, proxy_pod
        self._branches: Mapping[str, ProxyBranch] = {}
        # By the branch's UID what was written last, until the branch's own event has it.
        self._written: dict[str, int | None] = {}
        self._wake = asyncio.Event()

    def on_applied(self, branches: Mapping[str, ProxyBranch]) -> None:
        """Check which of the branches, as they are in force, wait for this pod."""
        self._branches = branches
        for branch in branches.values():
            if branch.acknowledged.get(self._proxy_pod.pod) == self._written.get(branch.uid):
                self._written.pop(branch.uid, None)
        if any(True for _ in self._due()):
            self._wake.set()

    async def run(self) -> None:
        backoff = Backoff()
        while True:
            await self._wake.wait()
            self._wake.clear()
            uids = {branch.uid for branch in self._branches.values()}
            self._written = {uid: written for uid, written in self._written.items() if uid in uids}
            for branch in tuple(self._due()):
                generation = branch.awaited_acknowledgement()
                try:
                    await self._client.acknowledge(branch.object_name, branch.uid, generation)
                except ObjectNotFound:
                    # It is gone.
                    pass
                except (ClusterUnreachable, WatchExpired) as error:
                    log.warning("could not acknowledge the route of %s: %s", branch.object_name, error)
                    self._wake.set()
                    await backoff.sleep()
                    continue
                self._written[branch.uid] = generation
                backoff.reset()

    def _due(self) -> Iterator[ProxyBranch]:
        pod = self._proxy_pod.pod
        for branch in self._branches.values():
            awaited, entry = branch.awaited_acknowledgement(), branch.acknowledged.get(pod)
            if awaited != entry and (branch.uid, awaited) not in self._written.items():
                yield branch
