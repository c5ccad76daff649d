"""Measures of snapshots: the time until one is Ready, beside a bare pod and a create, and the bytes that it takes."""

from __future__ import annotations

import time

from dbranch.api import names
from dbranch.kube.client import path_of, snapshot_path
from tests.bench.figures import Result, Row
from tests.bench.follow import Follower, is_gone, is_ready
from tests.bench.sizes import fill
from tests.bench.stage import Stage
from tests.bench.starts import BARE_POD, MS, dsn_of, time_bare_pod, wait_idle


def snapshots(stage: Stage, quick: bool) -> Result:
    """Measure apply → Ready of a snapshot and of a branch made of it, and the snapshot's unique bytes."""
    stage.create_project("kept", size="6Gi")
    client = stage.start_client()
    fill(client, dsn_of(stage, "kept", option="main"), 100)
    client.ask("sql", dsn=dsn_of(stage, "kept", option="main"), queries=["create table item (id int)"])
    path = path_of(names.API_VERSION, names.SNAPSHOTS, stage.namespace)
    taken = Follower(stage.cluster, path).start()
    samples: dict[str, list[float]] = {
        key: [] for key in ("bare", "create", "taken", "of snapshot", "gone", "MiB")
    }
    for index in range(4 if quick else 16):
        wait_idle(stage)
        samples["bare"].append(time_bare_pod(stage)[0] * MS)
        wait_idle(stage)
        branch = stage.unique_name("branch")
        samples["create"].append(stage.create_until_ready("kept", branch) * MS)
        stage.delete_branches("kept", branch)
        wait_idle(stage)
        # Something to write, so that the CHECKPOINT is none of an idle server.
        insert = ["insert into item select generate_series(1, 100)"]
        client.ask("sql", dsn=dsn_of(stage, "kept", option="main"), queries=insert)
        name = stage.unique_name("kept-snapshot")
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.SNAPSHOT_KIND,
            "metadata": {"name": name},
            "spec": {"project": "kept", "branch": "main"},
        }
        began = time.monotonic()
        stage.cluster.create(path, body)
        ready = taken.wait_for(name, is_ready, began)
        samples["taken"].append((ready.at - began) * MS)
        node = ((ready.body or {}).get("status") or {}).get("node") or {}
        samples["MiB"].append(node["uniqueBytes"] / 2**20)
        wait_idle(stage)
        branch = stage.unique_name("again")
        began = stage.create_branch("kept", branch, None, sourceSnapshot=name)
        samples["of snapshot"].append(stage.seconds_to_ready("kept", branch, began) * MS)
        stage.delete_branches("kept", branch)
        began = time.monotonic()
        stage.cluster.delete(snapshot_path(stage.namespace, name))
        samples["gone"].append((taken.wait_for(name, is_gone, began).at - began) * MS)
        stage.say(
            f"snapshots, round {index + 1}: {samples['taken'][-1]:.0f} ms, bare {samples['bare'][-1]:.0f} ms"
        )
    bare = samples["bare"]
    return Result(
        [
            Row("snapshot: apply → Ready", f"{BARE_POD}, created → Ready", samples["taken"], bare, goal=0.1),
            Row(
                "branch of a snapshot: apply → Ready",
                "branch of a branch",
                samples["of snapshot"],
                samples["create"],
            ),
            Row("snapshot: delete → gone", BARE_POD, samples["gone"], bare),
            Row("snapshot: unique bytes", "-", samples["MiB"], unit="MiB", goal=0.3),
        ]
    )
