"""Measure a branch and write its sizes. Measuring takes longer the more files there are, so it comes last."""

from __future__ import annotations

import logging

from dbranch.agent.layout import Layout
from dbranch.agent.node_status import patch_node
from dbranch.agent.status import size_fields
from dbranch.agent.volume.sizes import observe_sizes
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.project import Project
from dbranch.kube.client import Cluster, branch_path

logger = logging.getLogger(__name__)


def patch_sizes(cluster: Cluster, layout: Layout, project: Project, branch: Branch) -> None:
    """Measure the branch and write the sizes that have changed. Call it without the branch's lock."""
    try:
        measured = observe_sizes(layout, project.uid, branch.uid)
    except OSError as error:
        logger.info("branch %s/%s: not measured: %s", branch.namespace, branch.object_name, error)
        return
    body = cluster.get(branch_path(branch.namespace, branch.object_name))
    if measured is None or body is None or body["metadata"]["uid"] != branch.uid:
        return
    sizes = size_fields("logical", measured.logical_bytes) | size_fields("unique", measured.unique_bytes)
    sizes |= size_fields("written", measured.written_bytes)
    patch_node(cluster, parse_branch(body), sizes)
