"""Two hundred branches (fewer without --soak): the time of a snapshot, of an agent's round and of a deletion."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from tests.node.machine import OWNER, Node, new_uid, owner_session

from dbranch.agent.branch.facts import Desired
from dbranch.agent.branch.observe import observe_branch
from dbranch.agent.context import NodeContext
from dbranch.agent.pool import effect as pool
from dbranch.agent.slot import effect as slot
from dbranch.agent.volume import effect as subvolume
from dbranch.agent.volume.sizes import observe_sizes
from dbranch.agent.warm.watched import WatchedWarmPods
from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.project import Project, ProjectNode
from dbranch.kube.client import Cluster

MIB = 2**20


class NoPods:
    """A cluster without pods."""

    def find(self, path: str, labels: str = "", fields: str = "") -> list[Any]:
        return []


def measure(call: Callable[[], object]) -> float:
    """Return the milliseconds that the call takes."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def summarize(times: list[float]) -> str:
    first_and_last = (
        f"first ten {statistics.median(times[:10]):.1f}, last ten {statistics.median(times[-10:]):.1f}"
    )
    return f"median {statistics.median(times):.1f} ms, worst {max(times):.1f} ms ({first_and_last})"


def overwrite(pgdata: Path, count: int) -> None:
    """Overwrite `count` blocks of 8 KiB in the largest file, as a branch that is in use does."""
    largest = max((p for p in (pgdata / "base").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    with largest.open("r+b") as file:
        for block in range(count):
            file.seek((block * 37 % (largest.stat().st_size // 8192)) * 8192)
            file.write(os.urandom(8192))
        os.fsync(file.fileno())


def delete_branch(node: Node, branch: str) -> None:
    slot.ensure_slot_removed(node.layout, names.slot_name(branch, ""))
    subvolume.ensure_trashed(node.layout, node.project, branch)
    subvolume.ensure_trash_emptied(node.layout, node.project)


def test_many_branches(node: Node, soak: bool) -> None:
    count, layout, project = (200 if soak else 12), node.layout, node.project
    node.pool_uuid = pool.ensure_pool(layout, project, 4 * 2**30, None, None)
    root = node.create_root()
    endpoint = node.start_postgres(root)
    with owner_session(layout, endpoint, "dbranch") as connection:
        connection.execute(
            "create table item as select id, repeat('x', 500) as text from generate_series(1, 120000) id"
        )
        connection.execute("checkpoint")
    branches = [new_uid() for _ in range(count)]
    snapshots = []
    for branch in branches:
        snapshots.append(measure(partial(node.take_snapshot, root, branch)))
        overwrite(layout.branch(project, branch) / "pgdata", 40)
        # As a running branch: bound in a slot of its own.
        slot.ensure_slot(layout, names.slot_name(branch, ""), OWNER)
        slot.ensure_bound(layout, names.slot_name(branch, ""), project, branch)
    project_object = Project(
        "team", "shop", project, node=ProjectNode(pool_uuid=node.pool_uuid, initialized=True)
    )
    cluster, context = cast(Cluster, NoPods()), NodeContext("here", "node-uid", "nodes", "dbranch")
    facts: list[float] = []
    sizes: list[float] = []
    started = time.process_time()
    for branch in branches:
        branch_object = Branch("team", "shop-b", branch, "shop", "main", source_uid=root)
        facts.append(
            measure(
                partial(
                    observe_branch,
                    cluster,
                    layout,
                    context,
                    "",
                    Desired(project_object, branch_object),
                    WatchedWarmPods(),
                )
            )
        )
        sizes.append(measure(partial(observe_sizes, layout, project, branch)))
    processor = time.process_time() - started
    root_sizes, copy_sizes = (
        observe_sizes(layout, project, root),
        observe_sizes(layout, project, branches[-1]),
    )
    assert root_sizes and copy_sizes and root_sizes.logical_bytes > 90 * MIB
    # Its own forty blocks, not the hundred megabytes that it shares.
    assert 40 * 8192 <= copy_sizes.unique_bytes < 10 * MIB
    deletions = []
    for branch in branches:
        deletions.append(measure(partial(delete_branch, node, branch)))
    assert not layout.branch(project, branches[0]).exists()
    round_milliseconds = sum(facts) + sum(sizes)
    logical, unique = root_sizes.logical_bytes / MIB, copy_sizes.unique_bytes / MIB
    print(f"\n{count} branches of {logical:.0f} MiB, {unique:.1f} MiB unique each")
    print(f"snapshot: {summarize(snapshots)}")
    print(f"a round: {round_milliseconds / 1000:.2f} s, {processor:.2f} s of a processor")
    print(f"its facts: {summarize(facts)}\nits sizes: {summarize(sizes)}")
    print(f"deletion: {summarize(deletions)}")
    assert processor / count < 0.1, "a round takes too much processor time for two hundred branches"
