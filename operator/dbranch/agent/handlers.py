"""kopf handlers for the projects and branches scheduled to this node. Wiring only."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import kopf

from dbranch.agent.dispatch import Dispatcher
from dbranch.agent.timing import BUSY_RETRY_SECONDS, FAILED_RETRY_SECONDS, LONGEST_REMOVAL_RETRY_SECONDS
from dbranch.api import names
from dbranch.api.errors import Busy
from dbranch.runtime.backoff import Backoff
from dbranch.runtime.heartbeats import Heartbeats
from dbranch.runtime.kopf_settings import configure_kopf, login, requeue_after
from dbranch.runtime.logs import log_error
from dbranch.runtime.result import Result

logger = logging.getLogger(__name__)

_PROJECT: Any = (names.GROUP, names.VERSION, names.PROJECTS)
_BRANCH: Any = (names.GROUP, names.VERSION, names.BRANCHES)
_RESTARTED_AT: Any = ("metadata", "annotations", names.RESTARTED_AT)
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
    removals = Backoff(LONGEST_REMOVAL_RETRY_SECONDS)

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
    @kopf.on.field(*_BRANCH, field=_RESTARTED_AT, id="branch", **options)
    async def branch(namespace: Any, name: str, **_: Any) -> None:
        dispatcher.request_branch(namespace, name)

    @kopf.on.delete(*_PROJECT, id="project-removal", **options)
    def project_removal(body: kopf.Body, **_: Any) -> None:
        run_removal(dispatcher.projects.remove, body, removals)

    @kopf.on.delete(*_BRANCH, id="branch-removal", **options)
    def branch_removal(body: kopf.Body, **_: Any) -> None:
        run_removal(dispatcher.branches.remove, body, removals)


def run_removal(remove: Callable[[dict[str, Any]], Result], body: kopf.Body, backoff: Backoff) -> None:
    """Call a reconciler's `remove`. Raises kopf.TemporaryError until nothing is left: kopf keeps the finalizer."""
    meta = body["metadata"]
    try:
        result = remove(dict(body))
    except Busy as error:
        raise kopf.TemporaryError(str(error), delay=BUSY_RETRY_SECONDS) from error
    except Exception as error:
        log_error(logger, error, f"removal of {meta['namespace']}/{meta['name']}")
        delay = backoff.fail(meta["uid"], FAILED_RETRY_SECONDS, None, time.monotonic())
        raise kopf.TemporaryError(str(error), delay=delay) from error
    backoff.succeed(meta["uid"])
    requeue_after(result.requeue_after, "not finished yet")
