"""Removal of the agent's finalizer where its node will never remove it."""

from __future__ import annotations

from typing import Final

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.project import Project
from dbranch.api.snapshot import Snapshot
from dbranch.controller.events import EmitEvent
from dbranch.controller.scheduling import NodeFacts, abandonment_refusal, needs_release
from dbranch.kube.client import Cluster, object_path
from dbranch.runtime.finalizers import remove_finalizer
from dbranch.runtime.limited import LimitedDict

_MAX_REMEMBERED: Final = 1000


class AbandonmentRefusals:
    """Emits an Event, once for each object, if the annotation ABANDON_NODE is not obeyed."""

    def __init__(self, emit_event: EmitEvent) -> None:
        self._emit_event = emit_event
        self._emitted: LimitedDict[str, bool] = LimitedDict(_MAX_REMEMBERED)

    def report(self, item: Project | Branch, node: NodeFacts | None) -> None:
        """Emit the Event if it has to be, and was not yet."""
        refusal = abandonment_refusal(item, node)
        if refusal and item.uid not in self._emitted:
            self._emitted[item.uid] = True
            self._emit_event(item, "Warning", "NodeNotAbandoned", refusal)


def release_if_abandoned(cluster: Cluster, item: Project | Branch | Snapshot, node: NodeFacts | None) -> None:
    """Remove the agent's finalizer from an object that is being deleted if its node's agent will never do so."""
    if needs_release(item, node):
        remove_finalizer(cluster, object_path(item), item.uid, names.AGENT_FINALIZER)
