"""The controller's process as `dbranch-server controller` runs it, without its ports: for `tests.bench.room`."""

from __future__ import annotations

import kopf

from dbranch.api import names
from dbranch.controller.handlers import register
from dbranch.controller.manifests import Release
from dbranch.controller.metrics import ControllerMetrics
from dbranch.kube.client import Cluster
from dbranch.runtime.logs import start_logging

if __name__ == "__main__":
    start_logging({})
    registry = kopf.OperatorRegistry()
    release = Release("dbranch", "dbranch-nodes", "dbranch-server:test")
    register(registry, Cluster(names.CONTROLLER_MANAGER), release, 300, ControllerMetrics())
    kopf.run(registry=registry, lifecycle=kopf.lifecycles.all_at_once, clusterwide=True)
