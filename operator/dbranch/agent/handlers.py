"""kopf handlers for the projects and branches scheduled to this node. Wiring only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import kopf

from dbranch.agent.dispatch import Dispatcher
from dbranch.agent.timing import KOPF_DELETION_SECONDS
from dbranch.api import names
from dbranch.runtime.heartbeats import Heartbeats
from dbranch.runtime.kopf_settings import configure_kopf, login, requeue_after

_PROJECT: Any = (names.GROUP, names.VERSION, names.PROJECTS)
_BRANCH: Any = (names.GROUP, names.VERSION, names.BRANCHES)
_RESTARTED_AT: Any = ("metadata", "annotations", names.RESTARTED_AT)
_ALTER_SYSTEM_RESET_AT: Any = ("metadata", "annotations", names.ALTER_SYSTEM_RESET_AT)
_REQUESTED_AT: Any = ("metadata", "annotations", names.AGENT_REQUESTED_AT)


def register(
    registry: kopf.OperatorRegistry,
    dispatcher: Dispatcher,
    node: str,
    heartbeats: Heartbeats,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Register the handlers, which put keys into the work queue. kopf calls `started` before the first of them."""
    options: Any = {"registry": registry}
    deletions = Deletions()

    @kopf.on.startup(**options)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        others = [("metadata", "annotations", names.CONTROLLER_REQUESTED_AT)]
        configure_kopf(settings, names.AGENT_FINALIZER, names.AGENT_PREFIX, others)
        for plural in (names.PROJECTS, names.BRANCHES):
            settings.watching.field_selectors[names.GROUP, plural] = f"status.nodeName={node}"
        dispatcher.queue.start()
        started()

    @kopf.on.probe(id="loops", errors=kopf.ErrorsMode.PERMANENT, **options)
    async def probe(**_: Any) -> str:
        # An exception makes the liveness endpoint answer 500.
        trouble = dispatcher.queue.trouble() or heartbeats.trouble()
        if trouble:
            raise kopf.PermanentError(trouble)
        return "running"

    kopf.on.login(**options)(login)

    @kopf.on.resume(*_PROJECT, id="project", **options)
    @kopf.on.create(*_PROJECT, id="project", **options)
    # Not the whole spec: a switch changes spec.activeBranch and must not reconcile every branch.
    @kopf.on.update(*_PROJECT, field="spec.state", id="project", **options)
    @kopf.on.update(*_PROJECT, field="spec.postgres", id="project", **options)
    @kopf.on.update(*_PROJECT, field="spec.storage", id="project", **options)
    @kopf.on.field(*_PROJECT, field=_REQUESTED_AT, id="project", **options)
    @kopf.on.field(*_PROJECT, field="status.passwordVersion", id="project", **options)
    async def project(namespace: Any, name: str, **_: Any) -> None:
        dispatcher.request_project(namespace, name)

    @kopf.on.resume(*_BRANCH, id="branch", **options)
    @kopf.on.create(*_BRANCH, id="branch", **options)
    @kopf.on.update(*_BRANCH, field="spec", id="branch", **options)
    @kopf.on.field(*_BRANCH, field=_REQUESTED_AT, id="branch", **options)
    @kopf.on.field(*_BRANCH, field="status.restore", id="branch", **options)
    @kopf.on.field(*_BRANCH, field=_RESTARTED_AT, id="branch", **options)
    @kopf.on.field(*_BRANCH, field=_ALTER_SYSTEM_RESET_AT, id="branch", **options)
    async def branch(namespace: Any, name: str, **_: Any) -> None:
        dispatcher.request_branch(namespace, name)

    # With a delete handler kopf puts the agent's finalizer on the object, if it is not there yet: on a branch the
    # controller has. The reconcile removes it: kopf would sleep through the events that a deletion waits for (tried),
    # and write for each time that it calls the handler.

    @kopf.on.delete(*_PROJECT, id="project-removal", **options)
    @kopf.on.delete(*_BRANCH, id="branch-removal", **options)
    async def removal(**_: Any) -> None:
        requeue_after(KOPF_DELETION_SECONDS, "it is being removed from its node")

    @kopf.on.event(*_PROJECT, id="project-event", **options)
    async def project_event(event: Any, body: kopf.Body, **_: Any) -> None:
        dispatcher.written.follow_project(event["type"], body)
        if deletions.has_changed(event["type"], body):
            dispatcher.request_project(body["metadata"]["namespace"], body["metadata"]["name"])

    @kopf.on.event(*_BRANCH, id="branch-event", **options)
    async def branch_event(event: Any, body: kopf.Body, **_: Any) -> None:
        dispatcher.written.follow_branch(event["type"], body)
        if deletions.has_changed(event["type"], body):
            dispatcher.request_branch(body["metadata"]["namespace"], body["metadata"]["name"])


class Deletions:
    """The objects that are being deleted, by UID, with what the next step of their removal waits for."""

    def __init__(self) -> None:
        self._versions: dict[str, tuple[object, ...]] = {}

    def has_changed(self, event_type: str | None, body: Mapping[str, Any]) -> bool:
        """Return True if the removal can go on: the controller lets go of it, or somebody requests it.

        The status that the removal itself writes is no such event.
        """
        meta = body["metadata"]
        if event_type == "DELETED":
            self._versions.pop(meta["uid"], None)
            return False
        if not meta.get("deletionTimestamp"):
            return False
        annotations = meta.get("annotations") or {}
        release = (body.get("status") or {}).get("release")
        version = (*(meta.get("finalizers") or ()), release, annotations.get(names.AGENT_REQUESTED_AT))
        changed = self._versions.get(meta["uid"]) != version
        self._versions[meta["uid"]] = version
        return changed
