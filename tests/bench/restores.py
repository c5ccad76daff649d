"""Measures of a restore in place: until it is Complete, how long new sessions wait, and by the database's size."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

from dbranch.api import names
from dbranch.kube.client import path_of
from tests.bench.figures import Result, Row
from tests.bench.follow import Follower, is_ready, is_true
from tests.bench.release import ClusterProbe
from tests.bench.sizes import create_bulky_project, fill, why_skipped
from tests.bench.stage import CLIENT_CPU, Stage
from tests.bench.starts import BARE_POD, MS, dsn_of, time_bare_pod, wait_idle

PROJECT, BRANCH = "again", "restored"


class Restores:
    """Makes DBRestores and DBSnapshots in a stage, and follows them."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._path = path_of(names.API_VERSION, names.RESTORES, stage.namespace)
        self._snapshot_path = path_of(names.API_VERSION, names.SNAPSHOTS, stage.namespace)
        self._followed = Follower(stage.cluster, self._path).start()
        self._snapshots = Follower(stage.cluster, self._snapshot_path).start()

    def seconds_to_complete(self, project: str, branch: str) -> tuple[float, dict[str, Any]]:
        """Restore a branch from main; return the seconds from the request to Complete, and the DBRestore's status."""
        name = self._stage.unique_name("restore")
        spec = {"project": project, "branch": branch, "source": names.ROOT_BRANCH}
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.RESTORE_KIND,
            "metadata": {"name": name},
            "spec": spec,
        }
        began = time.monotonic()
        self._stage.cluster.create(self._path, body)
        done = self._followed.wait_for(
            name, lambda body: is_true(body, "Complete") or is_true(body, "Failed"), began
        )
        assert is_true(done.body, "Complete"), done.body
        return done.at - began, (done.body or {})["status"]

    def seconds_to_snapshot(self, project: str, branch: str) -> float:
        """Take a snapshot of a branch; return the seconds from the request to Ready."""
        name = self._stage.unique_name(f"{project}-snapshot")
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.SNAPSHOT_KIND,
            "metadata": {"name": name},
            "spec": {"project": project, "branch": branch, "ttl": "1h"},
        }
        began = time.monotonic()
        self._stage.cluster.create(self._snapshot_path, body)
        return self._snapshots.wait_for(name, is_ready, began).at - began

    def wait_put_away(self, project: str, branch: str) -> None:
        """Wait until the node has put the old data away, and has warm slots again."""
        deadline = time.monotonic() + 120
        while self._stage.get_branch(project, branch)["status"].get("restore"):
            assert time.monotonic() < deadline, f"the restore of branch {branch} of {project} does not end"
            time.sleep(0.2)
        wait_idle(self._stage)


def restore(stage: Stage, quick: bool) -> Result:
    """Measure request → Complete and the wait of new sessions, beside a bare pod; then by the database's size."""
    stage.create_project(PROJECT, size="6Gi", resources={"requests": {"cpu": CLIENT_CPU}})
    client, restores = stage.start_client(), Restores(stage)
    main, dsn = dsn_of(stage, PROJECT, option="main"), dsn_of(stage, PROJECT, option=BRANCH)
    fill(client, main, 100)
    client.ask("sql", dsn=main, queries=["create table round as select 0 as number"])
    stage.create_until_ready(PROJECT, BRANCH)
    request = {"dsn": dsn, "query": "select number from round", "pause": 0.005}
    samples: dict[str, list[float]] = {key: [] for key in ("bare", "complete", "held", "gap", "snapshot")}
    for index in range(1, 5 if quick else 17):
        wait_idle(stage)
        samples["bare"].append(time_bare_pod(stage)[0] * MS)
        wait_idle(stage)
        samples["snapshot"].append(restores.seconds_to_snapshot(PROJECT, BRANCH) * MS)
        client.ask("sql", dsn=main, queries=[f"update round set number = {index}"])
        wait_idle(stage)
        answer: dict[str, Any] = {}

        def poll(expected: str = str(index), answer: dict[str, Any] = answer) -> None:
            answer |= client.ask("until_value", **request, expected=expected)

        polling = threading.Thread(target=poll)
        polling.start()
        time.sleep(0.15)
        seconds, status = restores.seconds_to_complete(PROJECT, BRANCH)
        polling.join(60)
        assert answer, "no session has read the restored data"
        samples["complete"].append(seconds * MS)
        samples["gap"].append((answer["at"] - answer["began"]) * MS)
        samples["held"].append(float(status.get("heldSeconds", 0)) * MS)
        restores.wait_put_away(PROJECT, BRANCH)
        stage.say(
            f"restore, round {index}: {seconds * MS:.0f} ms, a new session waits {samples['gap'][-1]:.0f} ms, "
            f"bare {samples['bare'][-1]:.0f} ms"
        )
    bare = samples["bare"]
    note = (
        "sessions are opened one after another, 5 ms apart; the time is that of the first one with the restored "
        f"data, with its login; client and Postgres request {CLIENT_CPU} of CPU"
    )
    rows = [
        Row(
            "restore: request → Complete, warm slot",
            f"{BARE_POD}, created → Ready",
            samples["complete"],
            bare,
            goal=0.6,
        ),
        Row("restore: new sessions held", BARE_POD, samples["gap"], bare, goal=0.5, note=note),
        Row("restore: status.heldSeconds", BARE_POD, samples["held"], bare),
        Row("a snapshot of the same branch: apply → Ready", BARE_POD, samples["snapshot"], bare, goal=0.1),
    ]
    return Result([*rows, *_by_size(stage, restores, quick)])


def _by_size(stage: Stage, restores: Restores, quick: bool) -> list[Row]:
    """Restore a branch of a large database beside one of a small database; none where the disk has no room."""
    megabytes = 1000 if quick else 10_000
    client, node = stage.start_client(), str(stage.get_branch(PROJECT, BRANCH)["status"]["nodeName"])
    sizes = {"small": 100, "large": megabytes}
    times: dict[str, list[float]] = {project: [] for project in sizes}
    row = Row(f"restore at {megabytes / 1000:g} GB", "at 100 MB", times["large"], times["small"], goal=1.05)
    obstacle = why_skipped(megabytes, ClusterProbe(stage.cluster).free_bytes(node), 0.0)
    if obstacle:
        return [replace(row, ours=[0.0], theirs=(), goal=None, note=f"not measured: {obstacle}")]
    for project, size in sizes.items():
        create_bulky_project(stage, client, project, size)
        stage.create_until_ready(project, BRANCH)
    for _ in range(6 if quick else 8):
        for project, samples in times.items():
            wait_idle(stage)
            samples.append(restores.seconds_to_complete(project, BRANCH)[0] * MS)
            restores.wait_put_away(project, BRANCH)
    return [row]
