"""kopf handlers over the objects bound to this node. Wiring only."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import kopf

from dbranch.agent.branch.reconciler import BranchReconciler
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.project.reconciler import ProjectReconciler
from dbranch.agent.warm.reconciler import WarmReconciler
from dbranch.api import names
from dbranch.api.errors import Busy, DbranchError
from dbranch.runtime.kopf_settings import configure_kopf, login, requeue_after

logger = logging.getLogger(__name__)


_PROJECT: Any = (names.GROUP, names.VERSION, names.PROJECTS)


_BRANCH: Any = (names.GROUP, names.VERSION, names.BRANCHES)


_RESTARTED: Any = ("metadata", "annotations", names.RESTARTED_AT)


_REQUESTED: Any = ("metadata", "annotations", names.AGENT_REQUESTED_AT)


@dataclass(frozen=True)
class Work:
    projects: ProjectReconciler
    branches: BranchReconciler
    warm: WarmReconciler
    metrics: AgentMetrics


def register(
    registry: kopf.OperatorRegistry, work: Work, node: str, started: Callable[[], None] = lambda: None
) -> None:
    """The handlers, each of which only asks for one visit. `started` is called when they are about to run."""
    more: Any = {"registry": registry}

    @kopf.on.startup(**more)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        others = [("metadata", "annotations", names.CONTROLLER_REQUESTED_AT)]
        configure_kopf(settings, names.AGENT_FINALIZER, names.AGENT_PREFIX, others)
        for plural in (names.PROJECTS, names.BRANCHES):
            settings.watching.field_selectors[names.GROUP, plural] = f"status.nodeName={node}"
        started()

    kopf.on.login(**more)(login)

    @kopf.on.resume(*_PROJECT, id="project", **more)
    @kopf.on.create(*_PROJECT, id="project", **more)
    # Not all of the spec: a switch must not wake every branch.
    @kopf.on.update(*_PROJECT, field="spec.state", id="project", **more)
    @kopf.on.update(*_PROJECT, field="spec.postgres", id="project", **more)
    @kopf.on.update(*_PROJECT, field="spec.storage", id="project", **more)
    @kopf.on.field(*_PROJECT, field=_REQUESTED, id="project", **more)
    @kopf.on.field(*_PROJECT, field="status.passwordVersion", id="project", **more)
    def project(namespace: Any, name: str, **_: Any) -> None:
        visit(work.projects.reconcile, namespace, name)

    @kopf.on.resume(*_BRANCH, id="branch", **more)
    @kopf.on.create(*_BRANCH, id="branch", **more)
    @kopf.on.update(*_BRANCH, field="spec", id="branch", **more)
    @kopf.on.field(*_BRANCH, field=_REQUESTED, id="branch", **more)
    @kopf.on.field(*_BRANCH, field=_RESTARTED, id="branch", **more)
    def branch(namespace: Any, name: str, **_: Any) -> None:
        visit(work.branches.reconcile, namespace, name)

    @kopf.on.delete(*_PROJECT, id="project-removal", **more)
    def project_removal(body: kopf.Body, **_: Any) -> None:
        visit(work.projects.remove, dict(body))

    @kopf.on.delete(*_BRANCH, id="branch-removal", **more)
    def branch_removal(body: kopf.Body, **_: Any) -> None:
        visit(work.branches.remove, dict(body))

    @kopf.timer(*_PROJECT, interval=60.0, initial_delay=60.0, id="project-usage", **more)
    def project_usage(namespace: Any, name: str, **_: Any) -> None:
        visit(work.projects.tidy, namespace, name)

    @kopf.timer(*_BRANCH, interval=300.0, initial_delay=300.0, id="branch-usage", **more)
    def branch_usage(namespace: Any, name: str, **_: Any) -> None:
        visit(work.branches.reconcile, namespace, name)


def visit(call: Any, *args: Any) -> None:
    """One visit; what failed for now is tried again."""
    try:
        wait = call(*args)
    except Busy as error:
        raise kopf.TemporaryError(str(error), delay=0.5) from error
    except (DbranchError, OSError) as error:
        logger.warning("%s: %s", args[-1] if isinstance(args[-1], str) else call.__name__, error)
        raise kopf.TemporaryError(str(error), delay=3.0) from error
    requeue_after(wait, "there is more to do")
