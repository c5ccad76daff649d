"""`dbranch-server controller`: the controller's process."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import kopf

from dbranch.api import names
from dbranch.api.errors import DbranchError, InvalidInput
from dbranch.api.proxy_spec import ProxyPods
from dbranch.api.quantity import parse_seconds
from dbranch.controller.handlers import register
from dbranch.controller.limits import Limits
from dbranch.controller.manifests import Release
from dbranch.controller.metrics import ControllerMetrics
from dbranch.kube.client import Cluster
from dbranch.runtime.http import serve_http
from dbranch.runtime.kopf_settings import serve
from dbranch.runtime.logs import start_logging

logger = logging.getLogger(__name__)

_METRICS_PORT = 8081


def release_of(environment: Mapping[str, str]) -> Release:
    """Read the Helm release from the environment. Raises InvalidInput that names what is missing or wrong."""
    missing = [k for k in ("DBRANCH_NODES_NAMESPACE", "DBRANCH_SERVER_IMAGE") if not environment.get(k)]
    if missing:
        raise InvalidInput(
            f"environment: {', '.join(missing)} not set; the controller's Deployment sets them"
        )
    return Release(
        name=environment.get("DBRANCH_RELEASE", "dbranch"),
        nodes_namespace=environment["DBRANCH_NODES_NAMESPACE"],
        server_image=environment["DBRANCH_SERVER_IMAGE"],
        pull_policy=environment.get("DBRANCH_IMAGE_PULL_POLICY", "IfNotPresent"),
        log_format=environment.get("DBRANCH_LOG_FORMAT", "plain"),
        proxy_pods=ProxyPods.parse(environment.get("DBRANCH_PROXY_PODS", "")),
    )


def main() -> None:
    """Run the controller until the process is terminated."""
    start_logging(os.environ)
    try:
        release = release_of(os.environ)
        resync_seconds = parse_seconds(os.environ.get("DBRANCH_RESYNC_PERIOD", "5m"))
        limits = Limits.parse(os.environ.get("DBRANCH_LIMITS", ""))
        cluster = Cluster(names.CONTROLLER_MANAGER)
    except DbranchError as error:
        raise SystemExit(f"dbranch-server controller: {error}") from error
    registry = kopf.OperatorRegistry()
    metrics = ControllerMetrics()
    serve_http(_METRICS_PORT, {"/metrics": metrics.response})
    register(registry, cluster, release, resync_seconds, metrics, limits)
    serve(registry, names.CONTROLLER_MANAGER)
