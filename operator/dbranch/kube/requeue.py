"""Requests for a reconcile of a DBBranch, by an annotation that the other role watches."""

from __future__ import annotations

import time

from dbranch.api.errors import ApiError
from dbranch.kube.client import Cluster, branch_path


def request_reconcile(cluster: Cluster, annotation: str, namespace: str, name: str) -> None:
    """Request a reconcile of a DBBranch by its object's name; do nothing if it does not exist.

    `annotation`: names.AGENT_REQUESTED_AT; the controller enqueues in its process.
    """
    body = {"metadata": {"annotations": {annotation: str(time.time_ns())}}}
    try:
        cluster.merge(branch_path(namespace, name), body)
    except ApiError as error:
        if error.status != 404:
            raise
