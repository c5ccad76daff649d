"""Two hundred branches that expire together: how long that takes, and what it does to creates beside it."""

from __future__ import annotations

import time
from datetime import timedelta

from dbranch.api import names
from dbranch.api.expiry import format_time
from tests.bench.figures import Result, Row
from tests.bench.follow import is_gone
from tests.bench.hundreds import admitted, create_batches
from tests.bench.leftovers import await_leftovers, leftovers
from tests.bench.stage import Stage
from tests.bench.starts import MS, wait_idle

PROJECT = "passing"
# A create begins so often, before and during the expiry, whether the one before it is followed by a warm slot or not.
CREATE_EVERY_SECONDS = 5.0
# Within so much of their time all branches have to be Ready: a time that is set later takes effect after a day.
ALLOWED_SECONDS_EACH = 4.0
# The controller looks every five seconds and lets one branch go while another is created.
GONE_SECONDS_EACH = 12.0


def expiry(stage: Stage, quick: bool) -> Result:
    """Measure 200 branches with one expirationTime (quick: 40), and creates before and while they go."""
    stage.create_project(PROJECT, size="20Gi")
    requested, samples = (40, 5) if quick else (200, 15)
    # Those that are created meanwhile have a place, too.
    count = admitted(stage, PROJECT, requested + samples) - samples
    assert count > samples, f"the node has room for {count} more pods; see maxPods of its kubelet"
    wait_idle(stage, 300)
    present = leftovers(stage)
    by_hand = create_batches(stage, PROJECT, count)
    stage.say(f"deleting {count} branches by hand")
    deleted = stage.delete_branches(PROJECT, *by_hand, timeout=900)
    wait_idle(stage, 300)

    at = stage.cluster.server_time() + timedelta(seconds=60 + count * ALLOWED_SECONDS_EACH)
    expiring = create_batches(stage, PROJECT, count, expirationTime=format_time(at))
    wait_idle(stage, 300)
    before = _creates(stage, samples)
    left = (at - stage.cluster.server_time()).total_seconds()
    assert left > 0, (
        f"the branches were not Ready {-left:.0f} s before their time; raise ALLOWED_SECONDS_EACH"
    )
    stage.say(f"{count} branches expire in {left:.0f} s")
    time.sleep(left)

    began = time.monotonic()
    during = _creates_until_gone(stage, expiring, began)
    objects = [names.branch_object_name(PROJECT, name) for name in expiring]
    gone = max(stage.branches.wait_for(name, is_gone, began).at for name in objects) - began
    stage.say(
        f"{count} branches expired in {gone:.0f} s beside {len(during)} creates; by hand {deleted:.0f} s"
    )
    return Result(rows_of(count, before, during, gone, deleted, await_leftovers(stage, present)))


def rows_of(
    count: int, before: list[float], during: list[float], gone: float, deleted: float, left: int
) -> list[Row]:
    """Return the rows of creates (milliseconds), of the two ends (seconds), and of the number of objects left."""
    beside = f"{len(during)} creates beside it"
    return [
        Row(f"apply → Ready while {count} branches expire", "the same before", during, before, goal=1.5),
        Row(
            f"{count} branches expire → all gone",
            "deleting as many at once by hand",
            [gone],
            [deleted],
            "s",
            note=f"the controller lets five go at a time, and one while a branch is created; {beside}",
        ),
        Row("left by branches that expired", "-", [float(left)], unit="objects", goal=0, part="max"),
    ]


def _create(stage: Stage) -> tuple[str, float]:
    """Create a branch at the beginning of a period; return its name and the milliseconds until it was Ready."""
    name = stage.unique_name("beside")
    began = time.monotonic()
    took = stage.create_until_ready(PROJECT, name)
    time.sleep(max(0.0, began + CREATE_EVERY_SECONDS - time.monotonic()))
    return name, took * MS


def _creates(stage: Stage, count: int) -> list[float]:
    """Create so many branches, one each period, then delete them; return the milliseconds of each until Ready."""
    created = [_create(stage) for _ in range(count)]
    stage.delete_branches(PROJECT, *(name for name, _ in created), timeout=300)
    return [took for _, took in created]


def _creates_until_gone(stage: Stage, expiring: list[str], began: float) -> list[float]:
    """Create a branch each period until all others have expired, then delete these; return their milliseconds."""
    created: list[tuple[str, float]] = []
    deadline = began + len(expiring) * GONE_SECONDS_EACH
    waiting = {names.branch_object_name(PROJECT, name) for name in expiring}
    while waiting:
        assert time.monotonic() < deadline, f"{len(waiting)} of {len(expiring)} branches have not expired"
        created.append(_create(stage))
        waiting = {
            name
            for name in waiting
            if not any(is_gone(seen.body) for seen in stage.branches.history(name, began))
        }
        if len(created) % 10 == 0:
            stage.say(f"{len(waiting)} of {len(expiring)} branches are left")
    # Only now: a deletion is not to be beside a create. They have the places of those that expired.
    stage.delete_branches(PROJECT, *(name for name, _ in created), timeout=900)
    return [took for _, took in created]
