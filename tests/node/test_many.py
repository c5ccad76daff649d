"""Two hundred branches (fewer without --soak): what a snapshot, a round of the agent and a deletion take."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from tests.node.machine import OWNER, Node, new_uid

from dbranch.agent.branch.observe import observe_branch
from dbranch.agent.context import NodeContext
from dbranch.agent.pool import effect as pool
from dbranch.agent.postgres import session
from dbranch.agent.slot import effect as slot
from dbranch.agent.volume import effect as subvolume
from dbranch.agent.volume.sizes import observe_sizes
from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.project import Project, ProjectNode
from dbranch.kube.client import Cluster

MIB = 2**20


class NoPods:
    """A cluster in which no pod is found."""

    def find(self, path: str, labels: str = "", fields: str = "") -> list[Any]:
        return []


def timed(call: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def shown(times: list[float]) -> str:
    ends = f"first ten {statistics.median(times[:10]):.1f}, last ten {statistics.median(times[-10:]):.1f}"
    return f"median {statistics.median(times):.1f} ms, worst {max(times):.1f} ms ({ends})"


def overwrite(pgdata: Path, count: int) -> None:
    """Blocks of 8 KiB in the middle of the largest file, as a branch that is worked in writes them."""
    largest = max((p for p in (pgdata / "base").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    with largest.open("r+b") as file:
        for block in range(count):
            file.seek((block * 37 % (largest.stat().st_size // 8192)) * 8192)
            file.write(os.urandom(8192))
        os.fsync(file.fileno())


def end(node: Node, branch: str) -> None:
    slot.ensure_slot_removed(node.layout, names.slot_name(branch, ""))
    subvolume.ensure_trashed(node.layout, node.project, branch)
    subvolume.ensure_trash_emptied(node.layout, node.project)


def test_many_branches(node: Node, soak: bool) -> None:
    count, layout, project = (200 if soak else 12), node.layout, node.project
    node.pool_uuid = pool.ensure_pool(layout, project, 4 * 2**30, None, None)
    root = node.create_root()
    endpoint = node.start_postgres(root)
    with session.connect(layout, endpoint, "dbranch", seconds=60) as there:
        there.execute(
            "create table item as select id, repeat('x', 500) as text from generate_series(1, 120000) id"
        )
        there.execute("checkpoint")
    branches = [new_uid() for _ in range(count)]
    snapshots = []
    for branch in branches:
        snapshots.append(timed(partial(node.take_snapshot, root, branch)))
        overwrite(layout.branch(project, branch) / "pgdata", 40)
        # As one that runs: bound in a slot of its own.
        slot.ensure_slot(layout, names.slot_name(branch, ""), OWNER)
        slot.ensure_bound(layout, names.slot_name(branch, ""), project, branch)
    said = Project("team", "shop", project, node=ProjectNode(pool_uuid=node.pool_uuid, initialized=True))
    cluster, context = cast(Cluster, NoPods()), NodeContext("here", "node-uid", "nodes", "dbranch")
    facts: list[float] = []
    sizes: list[float] = []
    began = time.process_time()
    for branch in branches:
        body = Branch("team", "shop-b", branch, "shop", "main", source_uid=root)
        facts.append(timed(partial(observe_branch, cluster, layout, context, "", said, body)))
        sizes.append(timed(partial(observe_sizes, layout, project, branch)))
    processor = time.process_time() - began
    of_root, of_one = observe_sizes(layout, project, root), observe_sizes(layout, project, branches[-1])
    assert of_root and of_one and of_root.logical_bytes > 90 * MIB
    # Its own forty blocks, and not the hundred megabytes that it shares.
    assert 40 * 8192 <= of_one.unique_bytes < 10 * MIB
    ends = []
    for branch in branches:
        ends.append(timed(partial(end, node, branch)))
    assert not layout.branch(project, branches[0]).exists()
    round_ = sum(facts) + sum(sizes)
    logical, unique = of_root.logical_bytes / MIB, of_one.unique_bytes / MIB
    print(f"\n{count} branches of {logical:.0f} MiB, {unique:.1f} MiB unique each")
    print(f"snapshot: {shown(snapshots)}")
    print(f"a round: {round_ / 1000:.2f} s, {processor:.2f} s of a processor")
    print(f"its facts: {shown(facts)}\nits sizes: {shown(sizes)}")
    print(f"deletion: {shown(ends)}")
    assert processor / count < 0.1, "a round is too dear for two hundred branches"
