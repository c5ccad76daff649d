"""Room: memory and start of the controller by the number of branches, over the fake API server.

The objects are synthetic, and the agents and proxies are played: what is measured is the controller's process alone.
Processor time leaves out the fake server, which is slow where the real one is not.

    python -m tests.bench.room 500 5000
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from dbranch.api import names
from dbranch.kube.client import path_of, project_path
from tests.bench.figures import Result, Row
from tests.factories import NODE, NODES_NAMESPACE, agent_pod, branch, node, project, proxy_pod
from tests.fakes.api import FakeApi
from tests.fakes.http import serve_api

_BRANCHES_PER_PROJECT: Final = 50
_PROJECTS_PER_NAMESPACE: Final = 10
_LIMIT_SECONDS: Final = 1800.0
# Nothing is written and next to no processor time used for so long: the controller is at rest.
_REST_SECONDS: Final = 5.0
_RESTING_PROCESSOR_PART: Final = 0.05
_DONE_TEXT: Final = "branches reconciled"


@dataclass(frozen=True)
class Room:
    """What one start of the controller took, over objects that are at rest.

    `resident_mb`: its memory at rest in 10^6 bytes. `start_seconds`: from the start of its process until every branch
    was reconciled; `processor_seconds` of it until then. `writes`: requests that changed something.
    """

    branches: int
    resident_mb: float
    start_seconds: float
    processor_seconds: float
    writes: int


class _Api(FakeApi):
    """The fake API server, which counts the writes instead of logging all requests."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = cast(Any, deque(maxlen=100))
        self.writes, self.written_at = 0, time.monotonic()

    def on_write(self) -> None:
        self.writes, self.written_at = self.writes + 1, time.monotonic()


class _Process:
    """A controller's process."""

    def __init__(self, directory: Path) -> None:
        self._log, self.began = directory / "log", time.monotonic()
        environment = {**os.environ, "KUBECONFIG": str(directory / "config")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.room_controller"], env=environment, stdout=log, stderr=log
            )

    def is_done(self) -> bool:
        """Return True if every branch was reconciled."""
        assert self._process.poll() is None, self._log.read_text()[-2000:]
        return _DONE_TEXT in self._log.read_text()

    def processor_seconds(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mb(self) -> float:
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024 / 1e6

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def measure_room(count: int, say: Any = print) -> Room:
    """Bring `count` branches to rest, then measure a controller that starts over them."""
    api = _Api()
    projects = _populate(api, count)
    with tempfile.TemporaryDirectory(prefix="dbranch-room-") as name:
        directory = Path(name)
        with _serving(api, directory), _running(directory) as first:
            _await_rest(api, first, projects)
            say(f"{count} branches are at rest after {time.monotonic() - first.began:.0f} s")
        with _serving(api, directory):
            before = api.writes
            with _running(directory) as second:
                while not second.is_done():
                    assert time.monotonic() - second.began < _LIMIT_SECONDS, "not reconciled in time"
                    time.sleep(0.1)
                seconds, processor = time.monotonic() - second.began, second.processor_seconds()
                _await_rest(api, second, projects)
                room = Room(count, second.resident_mb(), seconds, processor, api.writes - before)
    say(
        f"{count} branches: {room.resident_mb:.0f} MB, reconciled in {room.start_seconds:.1f} s with "
        f"{room.processor_seconds:.1f} s of processor time, {room.writes} writes"
    )
    return room


@contextmanager
def _serving(api: FakeApi, directory: Path) -> Iterator[None]:
    server = serve_api(api, directory / "config")
    try:
        yield
    finally:
        api.close_watches()
        server.shutdown()
        server.server_close()


@contextmanager
def _running(directory: Path) -> Iterator[_Process]:
    process = _Process(directory)
    try:
        yield process
    finally:
        process.stop()


def _populate(api: FakeApi, count: int) -> list[tuple[str, str]]:
    """Create the node, its agent, and projects with `count` branches as their agents report them; return the keys."""
    api.put(path_of("v1", "nodes"), node())
    api.put(path_of("v1", "pods", NODES_NAMESPACE), agent_pod())
    keys: list[tuple[str, str]] = []
    for first in range(0, count, _BRANCHES_PER_PROJECT):
        number = first // _BRANCHES_PER_PROJECT
        name, namespace = f"p{number}", f"team-{number // _PROJECTS_PER_NAMESPACE}"
        keys.append((namespace, name))
        body = project(name, namespace).bound(NODE).up().body()
        body["spec"] = {"postgres": {"image": "postgres:17"}, "storage": {"size": "10Gi"}}
        api.put(path_of(names.API_VERSION, names.PROJECTS, namespace), body)
        api.put(path_of("v1", "pods", namespace), proxy_pod(f"{name}-proxy", name, namespace=namespace))
        for index in range(min(_BRANCHES_PER_PROJECT, count - first)):
            own = names.ROOT_BRANCH if not index else f"b{index}"
            item = branch(own, of=name, namespace=namespace).bound(NODE).accepting(f"10.0.{number}.{index}")
            if index:
                item = item.of(f"{name}-{names.ROOT_BRANCH}-uid")
            api.put(path_of(names.API_VERSION, names.BRANCHES, namespace), item.body())
    return keys


def _await_rest(api: _Api, process: _Process, projects: list[tuple[str, str]]) -> None:
    """Wait until the controller writes nothing more, and play the proxies, which acknowledge what it writes."""
    deadline = time.monotonic() + _LIMIT_SECONDS
    used, since = process.processor_seconds(), time.monotonic()
    while True:
        assert time.monotonic() < deadline, "the controller does not come to rest"
        time.sleep(1.0)
        for namespace, name in projects:
            _acknowledge(api, namespace, name)
        if not process.is_done() or time.monotonic() - api.written_at < _REST_SECONDS:
            used, since = process.processor_seconds(), time.monotonic()
        elif time.monotonic() - since >= _REST_SECONDS:
            rate = (process.processor_seconds() - used) / (time.monotonic() - since)
            if rate < _RESTING_PROCESSOR_PART:
                return
            used, since = process.processor_seconds(), time.monotonic()


def _acknowledge(api: _Api, namespace: str, name: str) -> None:
    """Write the proxy's entry as it would be, if it is not."""
    path = project_path(namespace, name)
    body = api.peek(path)
    assert body is not None
    status = body.get("status") or {}
    generation = (status.get("route") or {}).get("generation")
    entry = {"pod": f"{name}-proxy", "generation": generation}
    if generation is None or status.get("proxies") == [entry]:
        return
    applied = {key: body[key] for key in ("apiVersion", "kind")}
    applied |= {"metadata": {"name": name, "namespace": namespace}, "status": {"proxies": [entry]}}
    api.apply(f"{path}/status", applied, f"{names.PROXY_MANAGER_PREFIX}{name}-proxy")


def room(stage: Any, quick: bool) -> Result:
    """Measure the controller with 500 and with 5,000 synthetic branches (quick: 100 and 1,000)."""
    few, many = (100, 1000) if quick else (500, 5000)
    empty, small, large = (measure_room(count, stage.say) for count in (1, few, many))
    return Result(rows_of(empty, small, large))


def rows_of(empty: Room, small: Room, large: Room) -> list[Row]:
    """Return the rows of the table: what one branch takes must not grow with their number."""
    few, many = f"{small.branches:,}", f"{large.branches:,}"

    def each_kb(measured: Room) -> float:
        return (measured.resident_mb - empty.resident_mb) * 1000 / (measured.branches - empty.branches)

    def each_ms(measured: Room) -> float:
        return (
            (measured.processor_seconds - empty.processor_seconds)
            * 1000
            / (measured.branches - empty.branches)
        )

    note = (
        f"fake API server; {_BRANCHES_PER_PROJECT} branches a project; without any {empty.resident_mb:.0f} MB"
    )
    start = f"start of the controller → all {many} branches reconciled"
    processor = f"the controller's processor time of that for each branch, at {many}"
    server = "the fake API server's time included"
    return [
        Row(
            f"memory of the controller with {many} branches",
            f"with {few}",
            [large.resident_mb],
            [small.resident_mb],
            "MB",
            note=note,
        ),
        Row(
            f"the same for each branch, at {many}", f"at {few}", [each_kb(large)], [each_kb(small)], "kB", 1.2
        ),
        Row(start, f"{few} branches", [large.start_seconds], [small.start_seconds], "s", note=server),
        Row(processor, f"at {few}", [each_ms(large)], [each_ms(small)], "ms", 1.2),
        Row("writes of such a start", "-", [float(large.writes)], unit="requests", goal=0, part="max"),
    ]


if __name__ == "__main__":
    for word in sys.argv[1:] or ["500", "5000"]:
        measure_room(int(word))
