"""Removal of the agent's finalizer where its node will never remove it."""

from __future__ import annotations

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.project import Project
from dbranch.controller.scheduling import NodeFacts, needs_release
from dbranch.kube.client import Cluster, object_path
from dbranch.runtime.finalizers import remove_finalizer


def release_if_abandoned(cluster: Cluster, item: Project | Branch, node: NodeFacts | None) -> None:
    """Remove the agent's finalizer from an object that is being deleted if its node's agent will never do so."""
    if needs_release(item, node):
        remove_finalizer(cluster, object_path(item), item.uid, names.AGENT_FINALIZER)
