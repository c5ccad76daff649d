"""CHECKPOINT on a branch that is about to be copied, so that the copy has little WAL to replay."""

from __future__ import annotations

import logging

from dbranch.agent.layout import Layout
from dbranch.agent.postgres import session
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.slot.observe import observe_branch_slots
from dbranch.agent.timing import CHECKPOINT_TIMEOUT_SECONDS
from dbranch.agent.volume.effect import read_marker
from dbranch.api import names

logger = logging.getLogger(__name__)


def checkpoint_source(layout: Layout, project_uid: str, source_uid: str, database: str) -> None:
    """Run CHECKPOINT on the branch if it runs, best effort. `database`: one that the session can connect to."""
    marker = read_marker(layout.branch(project_uid, source_uid))
    for name in observe_branch_slots(layout, source_uid, None):
        if marker:
            port = names.branch_port(source_uid)
            endpoint = Endpoint(name, port, marker.superuser, marker.major, database)
            if not session.checkpoint(layout, endpoint, CHECKPOINT_TIMEOUT_SECONDS):
                logger.info("source %s: no CHECKPOINT; the copy replays more WAL at its start", source_uid)
