"""A loop that restrains who fills the node's disk, and keeps the ballast. What it decides is on disk, not in it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass

from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.machine import observe_disk
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.pool.ballast import (
    ballast_size,
    ensure_ballast,
    ensure_ballast_released,
    observe_ballast,
)
from dbranch.agent.pool.braking import BrakeChange, Writer, plan_brake
from dbranch.agent.pool.effect import ensure_trimmed
from dbranch.agent.pool.space import watermarks_of
from dbranch.agent.slot.observe import observe_bind_mounts
from dbranch.agent.timing import SPACE_POLL_SECONDS, TRIM_INTERVAL_SECONDS
from dbranch.agent.volume.brake import Brake, ensure_brake, observe_brakes
from dbranch.agent.volume.marker import Marker, Role
from dbranch.agent.volume.observe import observe_marker
from dbranch.agent.volume.sizes import observe_sizes
from dbranch.api import names
from dbranch.runtime.logs import log_error

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Sample:
    """The bytes of the disk that only this branch takes, and those of its pool's image, at a time."""

    time: float
    branch_bytes: int
    image_bytes: int


class SpaceWatch:
    """Watches the node's disk. `ballast`: bytes of that file.

    `request(namespace, name)` requests a reconcile of a branch.
    """

    def __init__(
        self,
        layout: Layout,
        context: NodeContext,
        ballast: int,
        metrics: AgentMetrics,
        request: Callable[[str, str], None],
    ) -> None:
        self._layout, self._context, self._ballast = layout, context, ballast
        self._metrics, self._request = metrics, request
        # By the branch's UID. Without an earlier sample nobody is a writer, so a restart only takes one poll longer.
        self._samples: dict[str, _Sample] = {}
        # By time.monotonic().
        self._trim_at = 0.0
        # By pool: the bytes that the last trim left it beyond its use, as copies of metadata.
        self._untrimmed: dict[str, int] = {}

    def run(self, beat: Callable[[], None]) -> None:
        """Check for ever; `beat` is called in each round."""
        while True:
            beat()
            try:
                self.check()
            except Exception as error:  # noqa: BLE001
                log_error(logger, error, "watch of the node's disk")
            time.sleep(SPACE_POLL_SECONDS)

    def check(self) -> BrakeChange | None:
        """Compare the disk with its watermarks once, and do what follows: at most one branch's brake changes."""
        total, free = observe_disk(self._layout)
        watermarks = watermarks_of(total, self._context.eviction.of(total))
        # What the ballast gave back is not there for others: else its release would lift the brakes.
        size = ballast_size(self._ballast, total)
        free -= max(0, size - observe_ballast(self._layout))
        brakes = observe_brakes(self._layout)
        if size and free < watermarks.stop:
            ensure_ballast_released(self._layout)
        elif size and free >= watermarks.refuse:
            ensure_ballast(self._layout, size)
        counts = Counter(brakes.values())
        self._metrics.set_disk(free, asdict(watermarks), {brake: counts[brake] for brake in Brake})
        if free >= watermarks.refuse:
            self._samples = {}
            writers: list[Writer] = []
        else:
            writers = self._sample()
            self._trim()
        change = plan_brake(watermarks, free, writers, brakes)
        if change:
            self._apply(change, free)
        return change

    def _trim(self) -> None:
        """Give back what deletions have freed in the pools."""
        if time.monotonic() >= self._trim_at:
            pools = self._pools()
            self._untrimmed = {
                pool: ensure_trimmed(self._layout, pool, self._untrimmed.get(pool, 0)) for pool in pools
            }
            self._trim_at = time.monotonic() + TRIM_INTERVAL_SECONDS

    def _sample(self) -> list[Writer]:
        """Return the branches that run, with their growth since the last sample."""
        bound = {uid: pool for pool, uid in observe_bind_mounts(self._layout).values() if uid}
        images = {pool: self._layout.image(pool).stat().st_blocks * 512 for pool in set(bound.values())}
        self._samples = {uid: sample for uid, sample in self._samples.items() if uid in bound}
        return [
            Writer(uid, self._is_root(pool, uid), self._growth(pool, uid, images[pool]))
            for uid, pool in bound.items()
        ]

    def _growth(self, pool: str, uid: str, image_bytes: int) -> float:
        """Return the bytes a second by which the branch has grown; 0 at its first sample."""
        previous, now = self._samples.get(uid), time.monotonic()
        if previous and previous.image_bytes == image_bytes:
            # Nothing has reached the disk; the sample stays, and what comes is measured from there.
            return 0.0
        sizes = observe_sizes(self._layout, pool, uid)
        if sizes is None:
            return 0.0
        self._samples[uid] = _Sample(now, sizes.unique_bytes, image_bytes)
        if previous is None:
            return 0.0
        # What others shared with it becomes its own when they are deleted: only what the image has grown by is new.
        grown = min(sizes.unique_bytes - previous.branch_bytes, image_bytes - previous.image_bytes)
        return max(0, grown) / max(now - previous.time, 0.001)

    def _is_root(self, pool: str, uid: str) -> bool:
        marker = observe_marker(self._layout, pool, uid)
        return isinstance(marker, Marker) and marker.role is Role.ROOT

    def _apply(self, change: BrakeChange, free: int) -> None:
        ensure_brake(self._layout, change.uid, change.brake)
        logger.warning(
            "branch %s: %s; the node's disk has %d bytes free",
            change.uid,
            change.brake or "may write again",
            free,
        )
        for pool in self._pools():
            marker = observe_marker(self._layout, pool, change.uid)
            if isinstance(marker, Marker):
                branch = names.branch_object_name(marker.names.project, marker.names.branch)
                self._request(marker.names.namespace, branch)

    def _pools(self) -> tuple[str, ...]:
        return tuple(path.name for path in self._layout.mounts.iterdir())
