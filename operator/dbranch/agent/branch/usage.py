"""How large a branch is, told out of turn: measuring takes the longer the more files there are."""

from __future__ import annotations

import logging

from dbranch.agent import status as report
from dbranch.agent.layout import Layout
from dbranch.agent.volume.sizes import observe_sizes
from dbranch.api.branch import Branch
from dbranch.api.project import Project
from dbranch.kube.client import Cluster, branch_path
from dbranch.kube.status import patch_status

logger = logging.getLogger(__name__)


def patch_sizes(cluster: Cluster, layout: Layout, project: Project, branch: Branch) -> None:
    """Measures the branch and writes what reads otherwise than what is told. Call it without the branch's lock."""
    try:
        measured = observe_sizes(layout, project.uid, branch.uid)
    except OSError as error:
        logger.info("branch %s/%s not measured: %s", branch.namespace, branch.object_name, error)
        return
    body = cluster.get(branch_path(branch.namespace, branch.object_name))
    if measured is None or body is None or body["metadata"]["uid"] != branch.uid:
        return
    now = (body.get("status") or {}).get("node") or {}
    sizes = report.sizes("logical", measured.logical_bytes) | report.sizes("unique", measured.unique_bytes)
    changed = report.changes(now, report.told(now, sizes))
    if changed:
        patch_status(cluster, branch, {"node": changed})
