"""Requests for another reconcile of an object, by an annotation of the role that is asked."""

from __future__ import annotations

import time

from dbranch.api.errors import ApiError
from dbranch.kube.client import Cluster, branch_path


def request_reconcile(cluster: Cluster, annotation: str, namespace: str, name: str) -> None:
    """Request a reconcile of a DBBranch by its object's name; do nothing where it is gone.

    `annotation`: names.CONTROLLER_REQUESTED_AT or names.AGENT_REQUESTED_AT, after who is asked.
    """
    body = {"metadata": {"annotations": {annotation: str(time.time_ns())}}}
    try:
        cluster.merge(branch_path(namespace, name), body)
    except ApiError as error:
        if error.status != 404:
            raise
