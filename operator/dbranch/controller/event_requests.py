"""Events by requests of one's own: at once, and also where kopf's queue of them cannot be reached."""

from __future__ import annotations

import logging

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.errors import DbranchError
from dbranch.api.project import Project
from dbranch.api.restore import Restore
from dbranch.api.snapshot import Snapshot
from dbranch.controller.keys import reference_of
from dbranch.kube.client import Cluster
from dbranch.runtime.events import create_event

logger = logging.getLogger(__name__)


class EventRequests:
    """Creates Events of the controller's. One that is refused holds up nothing."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __call__(
        self, item: Project | Branch | Snapshot | Restore, event_type: str, reason: str, message: str
    ) -> None:
        """Create an Event about the object. `event_type`: Normal or Warning."""
        reference = reference_of(item)
        about = {"apiVersion": reference["apiVersion"], "kind": reference["kind"], **reference["metadata"]}
        source = {"component": names.CONTROLLER_MANAGER}
        try:
            create_event(self._cluster, about, event_type, reason, message, source)
        except DbranchError as error:
            logger.warning("%s %s/%s: no Event: %s", about["kind"], item.namespace, about["name"], error)
