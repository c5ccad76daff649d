"""Measure a branch and write its sizes. Measuring takes longer the more files there are, so it comes last."""

from __future__ import annotations

import logging

from dbranch.agent.layout import Layout
from dbranch.agent.node_status import patch_node
from dbranch.agent.status import size_fields
from dbranch.agent.volume.sizes import observe_sizes
from dbranch.api.branch import Branch
from dbranch.api.errors import ApiError
from dbranch.api.project import Project
from dbranch.kube.client import Cluster

logger = logging.getLogger(__name__)


def patch_sizes(cluster: Cluster, layout: Layout, project: Project, branch: Branch) -> None:
    """Measure the branch and write the sizes that have changed. Call it without the branch's lock."""
    try:
        measured = observe_sizes(layout, project.uid, branch.uid)
    except OSError as error:
        logger.info("branch %s/%s: not measured: %s", branch.namespace, branch.object_name, error)
        return
    if measured is None:
        return
    sizes = size_fields("logical", measured.logical_bytes) | size_fields("unique", measured.unique_bytes)
    sizes |= size_fields("written", measured.written_bytes)
    try:
        # Nobody else writes them, so that they are as they were read; what else was written since is left alone.
        patch_node(cluster, branch, sizes)
    except ApiError as error:
        # It is gone, or written all the time.
        logger.info("branch %s/%s: sizes not written: %s", branch.namespace, branch.object_name, error)
