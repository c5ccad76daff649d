"""What an agent does for its node, not for one branch: its disk's room told, slots that nobody owns swept."""

from __future__ import annotations

import logging
import time

from dbranch import names
from dbranch.cluster import Cluster, path_of
from dbranch.effect.slot import ensure_slot_removed
from dbranch.errors import DbranchError
from dbranch.observe.machine import observe_machine
from dbranch.observe.slots import observe_slots
from dbranch.plan.layout import Layout
from dbranch.plan.slot_pod import Home

logger = logging.getLogger(__name__)

_EVERY = 60.0
# A slot's directory is made before its pod, so a young one may still get it.
_YOUNG = 300.0
# The room is told anew when it has changed by this part.
_MUCH = 0.05


def keep_house(cluster: Cluster, layout: Layout, home: Home, pod: str) -> None:
    """For ever, at a slow pace."""
    told: int | None = None
    while True:
        try:
            told = tell_room(cluster, layout, home, pod, told)
            sweep_slots(cluster, layout, home)
        except (DbranchError, OSError) as error:
            logger.warning("housekeeping: %s", error)
        time.sleep(_EVERY)


def tell_room(cluster: Cluster, layout: Layout, home: Home, pod: str, told: int | None) -> int:
    """The free bytes of the node's disk on the agent's own pod; the number that stands there now."""
    free = observe_machine(layout).host_free_bytes
    if told is not None and abs(free - told) <= told * _MUCH:
        return told
    mark = {"metadata": {"annotations": {names.AGENT_HOST_FREE: str(free)}}}
    cluster.merge(path_of("v1", "pods", home.namespace, pod), mark)
    return free


def sweep_slots(cluster: Cluster, layout: Layout, home: Home, young: float = _YOUNG) -> None:
    """Removes the directories of slots, older than `young` seconds, whose pod does not exist (any more)."""
    old = [slot for slot in observe_slots(layout) if _age(layout, slot) > young]
    if not old:
        return
    path = path_of("v1", "pods", home.namespace)
    there = {pod["metadata"]["name"] for pod in cluster.find(path, labels=names.LABEL_SLOT)}
    for slot in old:
        if slot not in there:
            ensure_slot_removed(layout, slot)


def _age(layout: Layout, slot: str) -> float:
    try:
        return time.time() - layout.slot(slot).stat().st_mtime
    except FileNotFoundError:
        return 0.0
