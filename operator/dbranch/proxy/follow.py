"""A proxy's DBProject and its DBBranches: list and watch both, and put in force what they say together."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dbranch.api.errors import ClusterUnreachable, InvalidInput
from dbranch.proxy import timing
from dbranch.proxy.branch_ports import BranchPorts
from dbranch.proxy.branches import ProxyBranch, compose, is_older, read_branch, with_last_address
from dbranch.proxy.entries import Acknowledger, EntryWriter
from dbranch.proxy.project import ProxyProject, read_project
from dbranch.proxy.project_client import (
    Backoff,
    Collection,
    Json,
    ObjectNotFound,
    ProjectClient,
    ProxyPod,
    WatchExpired,
)
from dbranch.proxy.routes import Table
from dbranch.proxy.switchboard import Switchboard

log = logging.getLogger(__name__)


async def follow(
    client: ProjectClient,
    proxy_pod: ProxyPod,
    switchboard: Switchboard,
    writer: EntryWriter,
    acknowledger: Acknowledger,
    branch_ports: BranchPorts,
    on_applied: Callable[[], None],
) -> None:
    """List and watch the DBProject and its DBBranches forever, and put each state of them in force on `switchboard`.

    A controller of release 0.1.0 gives no right to the branches, but a table in the DBProject: that counts then.
    While the API server is unreachable the table stays as it is.
    """
    applier = _Applier(proxy_pod, switchboard, writer, acknowledger, branch_ports, on_applied)
    await asyncio.gather(
        _list_and_watch(client, client.project, _ProjectReader(applier), proxy_pod),
        _list_and_watch(client, client.branches, _BranchReader(applier), proxy_pod),
    )


class _Reader(Protocol):
    """Reads the objects of one collection; `parse` runs in a thread, the others in the event loop.

    `parse` raises InvalidInput; the others get an `_Invalid` for such an object.
    """

    def parse(self, body: Json) -> object: ...

    def on_list(self, items: list[object]) -> None: ...

    def on_change(self, item: object) -> None: ...

    def on_deleted(self, item: object) -> None: ...


async def _list_and_watch(
    client: ProjectClient, collection: Collection, reader: _Reader, proxy_pod: ProxyPod
) -> None:
    loop, backoff = asyncio.get_running_loop(), Backoff()
    # Empty: list before the next watch.
    resource_version = ""
    while True:
        try:
            if not resource_version:
                bodies, resource_version = await client.list(collection)
                reader.on_list(await asyncio.to_thread(_read_all, bodies, reader))
                backoff.reset()
            watch_started_at = loop.time()
            async with contextlib.aclosing(client.watch(collection, resource_version)) as events:
                async for line in events:
                    # A project with many sessions takes milliseconds to read.
                    event = await asyncio.to_thread(_read_event, line, reader)
                    resource_version = event.resource_version
                    backoff.reset()
                    if event.is_deletion:
                        reader.on_deleted(event.item)
                    elif event.item is not None:
                        reader.on_change(event.item)
            if loop.time() - watch_started_at < timing.MIN_WATCH_SECONDS:
                await backoff.sleep()
        except WatchExpired:
            resource_version = ""
        except (ClusterUnreachable, ObjectNotFound) as error:
            log.warning(
                "%s of project %s/%s: %s; the current routes stay in force",
                collection.plural,
                proxy_pod.namespace,
                proxy_pod.project,
                error,
            )
            resource_version = ""
            await backoff.sleep()


@dataclass(frozen=True)
class _Event:
    """A watch event. `item` is None for a bookmark."""

    resource_version: str
    item: object | None = None
    is_deletion: bool = False


def _read_event(line: bytes, reader: _Reader) -> _Event:
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
    return _Event(version, _read(body, reader), kind == "DELETED")


@dataclass(frozen=True)
class _Invalid:
    """An object that cannot be read."""

    reason: str


def _read(body: Json, reader: _Reader) -> object:
    try:
        return reader.parse(body)
    except InvalidInput as error:
        return _Invalid(str(error))


def _read_all(bodies: list[Json], reader: _Reader) -> list[object]:
    return [_read(body, reader) for body in bodies]


class _Applier:
    """Puts what was read of project and branches in force together; logs and ignores what is invalid or older."""

    def __init__(
        self,
        proxy_pod: ProxyPod,
        switchboard: Switchboard,
        writer: EntryWriter,
        acknowledger: Acknowledger,
        branch_ports: BranchPorts,
        on_applied: Callable[[], None],
    ) -> None:
        self.proxy_pod, self._switchboard = proxy_pod, switchboard
        self._writer, self._acknowledger, self._on_applied = writer, acknowledger, on_applied
        self._branch_ports = branch_ports
        self.project: ProxyProject | None = None
        # By the names of their objects; None until they were listed.
        self.branches: dict[str, ProxyBranch] | None = None
        # The project's UID, and the highest generation of its route whose branch was seen.
        self._seen: tuple[str, int] = ("", 0)
        self._logged_problems: tuple[str, ...] = ()

    def log_invalid(self, invalid: _Invalid) -> None:
        message = "project %s/%s: %s; the current routes stay in force"
        log.error(message, self.proxy_pod.namespace, self.proxy_pod.project, invalid.reason)

    def apply(self) -> None:
        """Put in force what was read, once that is enough: the project, and its branches if it has no table."""
        project, pod = self.project, self.proxy_pod
        if project is None or (
            self.branches is None and not project.has_targets and not project.table.deleted
        ):
            return
        if project.problems and project.problems != self._logged_problems:
            log.warning("project %s/%s: %s", pod.namespace, pod.project, "; ".join(project.problems[:5]))
        self._logged_problems = project.problems
        uid, seen = self._seen
        table = project.table
        if not table.deleted:
            table = compose(project, self.branches or {}, seen if uid == table.uid else 0)
        previous = self._switchboard.table
        if not self._switchboard.apply(table):
            log.warning("route generation %d is older than the one in force; ignored", table.generation)
            return
        if table.is_active_seen:
            self._seen = table.uid, table.generation
        if previous is None or (previous.generation, previous.active) != (table.generation, table.active):
            log.info("route generation %d: branch %s", table.generation, table.active)
        self._writer.on_applied(project.entry_pods)
        # Before the acknowledgement: behind it the controller sends here what comes to the branch's own Service.
        self._branch_ports.on_applied(self.branches or {})
        self._acknowledger.on_applied(self.branches or {})
        self._on_applied()


class _ProjectReader:
    """The DBProject."""

    def __init__(self, applier: _Applier) -> None:
        self._applier = applier

    def parse(self, body: Json) -> ProxyProject:
        return read_project(body)

    def on_list(self, items: list[object]) -> None:
        if items:
            self.on_change(items[0])
        else:
            self.on_deleted(None)

    def on_change(self, item: object) -> None:
        match item:
            case ProxyProject():
                self._applier.project = item
                self._applier.apply()
            case _Invalid():
                self._applier.log_invalid(item)

    def on_deleted(self, item: object) -> None:
        self._applier.project = ProxyProject(Table(self._applier.proxy_pod.project, deleted=True))
        self._applier.apply()


class _BranchReader:
    """The DBBranches of the project. Events that concern no proxy change nothing here."""

    def __init__(self, applier: _Applier) -> None:
        self._applier = applier

    def parse(self, body: Json) -> ProxyBranch:
        return read_branch(body)

    def on_list(self, items: list[object]) -> None:
        current_branches = self._applier.branches or {}
        branches = {item.object_name: item for item in items if isinstance(item, ProxyBranch)}
        for name, branch in branches.items():
            current = current_branches.get(name)
            if current and is_older(branch, current):
                branches[name] = current
            else:
                branches[name] = with_last_address(branch, current)
        self._replace(branches)

    def on_change(self, item: object) -> None:
        match item:
            case ProxyBranch():
                current_branches = self._applier.branches or {}
                current = current_branches.get(item.object_name)
                item = with_last_address(item, current)
                if item != current and not is_older(item, current):
                    self._replace({**current_branches, item.object_name: item})
            case _Invalid():
                self._applier.log_invalid(item)

    def on_deleted(self, item: object) -> None:
        current_branches = self._applier.branches or {}
        if isinstance(item, ProxyBranch) and item.object_name in current_branches:
            self._replace(
                {name: branch for name, branch in current_branches.items() if name != item.object_name}
            )

    def _replace(self, branches: dict[str, ProxyBranch]) -> None:
        self._applier.branches = branches
        self._applier.apply()
