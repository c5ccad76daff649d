"""An agent killed (SIGKILL) at every single effect of its work: the next one ends in the asked-for state.

The points are found by a life that is not killed. Real btrfs, loop devices and Postgres; the API is paper.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.node.agent_life import BRANCHES, NAMESPACE, NODE, PODS, PROJECTS
from tests.node.conftest import OWNER, Node
from tests.node.paper_api import Json, PaperApi

from dbranch import names
from dbranch.effect import session
from dbranch.effect.session import Endpoint
from dbranch.linux.loops import loops_of
from dbranch.linux.mounts import read_mounts
from dbranch.observe.slots import observe_slots
from dbranch.observe.subvolumes import observe_subvolumes

ROOT = Path(__file__).parents[2]
MIB = 2**20
# Kills of each kind in the short form.
_DRAWN = 5


class Kubelet(threading.Thread):
    """Runs the pods on the paper as processes, ends them when their end is asked for."""

    def __init__(self, api: PaperApi, node: Node) -> None:
        super().__init__(daemon=True)
        self._api, self._node, self._over = api, node, threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.02):
            for pod in self._api.find(PODS):
                self._sync(pod)

    def end(self) -> None:
        self._over.set()
        self.join()

    def _sync(self, pod: Json) -> None:
        name, path = pod["metadata"]["name"], f"{PODS}/{pod['metadata']['name']}"
        process = self._node.running.get(name)
        asked = bool(pod["metadata"].get("deletionTimestamp"))
        if process is None and not asked:
            process = self._node.script(name, pod["spec"]["containers"][0]["command"][2])
            self._says(path, {"phase": "Running", "podIP": "127.0.0.1", "containerStatuses": [_RUNNING]})
        elif process is not None and process.poll() is not None:
            if asked:
                self._node.running.pop(name)
                self._api.gone(path)
            elif pod["spec"]["restartPolicy"] == "Never" and pod["status"]["phase"] == "Running":
                self._says(path, {"phase": "Failed" if process.returncode else "Succeeded"})
        elif process is None:
            self._api.gone(path)
        elif asked:
            process.send_signal(signal.SIGINT)

    def _says(self, path: str, status: Json) -> None:
        self._api.merge(path, {"status": status})


_RUNNING = {"state": {"running": {}}, "imageID": "", "restartCount": 0}


class World:
    """A node with a paper API, its kubelet, and agents that come and are killed."""

    def __init__(self, node: Node) -> None:
        self.node = node
        node.layout.base.joinpath("verifier").write_text("")
        self._file = node.layout.base / "api.json"
        self.api = PaperApi(self._file)
        self.kubelet = Kubelet(self.api, node)
        self.kubelet.start()
        self.kills = 0

    def agent(self, kill_at: int = 0) -> int | None:
        """One agent's life; its effects, None where it was killed."""
        done = subprocess.run(
            [sys.executable, "-m", "tests.node.agent_life", self._file, self.node.layout.base, str(kill_at)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'operator'}", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode == -signal.SIGKILL and kill_at:
            self.kills += 1
            return None
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    def killed_at_each(self, ask: Callable[[int], Callable[[], None]], soak: bool) -> int:
        """What `ask` asks for, once without a kill to find its effects, then killed at each of them (at a
        few drawn ones without `soak`): a killed agent, another, the check that `ask` returned."""
        check = ask(0)
        effects = self.agent()
        assert effects
        check()
        points = range(1, effects + 1)
        for at in points if soak else sorted(random.sample(points, min(_DRAWN, effects))):
            check = ask(at)
            if self.agent(at) is None:
                self.agent()
            check()
        return effects

    def make_project(self) -> str:
        project, name = str(uuid.uuid4()), "shop"
        spec = {
            "postgres": {"image": "postgres:17", "runAsUser": OWNER, "parameters": {"shared_buffers": "16MB"}}
        }
        meta = {"name": name, "namespace": NAMESPACE, "uid": project, "finalizers": [names.AGENT_FINALIZER]}
        body = {
            "metadata": meta,
            "spec": {**spec, "storage": {"size": "256Mi"}},
            "status": {"nodeName": NODE},
        }
        self.api.create(PROJECTS, body)
        self.make_branch("main", None)
        return project

    def make_branch(self, name: str, source: str | None) -> str:
        status: Json = {"nodeName": NODE}
        spec: Json = {"project": "shop"}
        if source is not None:
            spec["source"] = source
            status["sourceUID"] = self.uid(source)
        meta = {"name": f"shop-{name}", "namespace": NAMESPACE, "finalizers": [names.AGENT_FINALIZER]}
        made = self.api.create(BRANCHES, {"metadata": meta, "spec": spec, "status": status})
        return str(made["metadata"]["uid"])

    def branch(self, name: str) -> Json:
        body = self.api.get(f"{BRANCHES}/shop-{name}")
        assert body is not None
        return body

    def uid(self, name: str) -> str:
        return str(self.branch(name)["metadata"]["uid"])

    def set(self, name: str, **spec: object) -> None:
        self.api.merge(f"{BRANCHES}/shop-{name}", {"spec": spec})

    def sql(self, name: str, query: str) -> list[tuple[object, ...]]:
        node = self.branch(name)["status"]["node"]
        major = int(str(node["postgresVersion"]).partition(".")[0])
        endpoint = Endpoint(node["slot"], node["port"], "postgres", major)
        with session.connect(self.node.layout, endpoint, seconds=30) as connection:
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    def whole(self, project: str, running: int, stored: int) -> None:
        """One device, one mount, `running` binds and pods, `stored` subvolumes, nothing temporary."""
        layout = self.node.layout
        assert len(loops_of(layout.image(project))) == 1
        points = [m.point for m in read_mounts() if m.point.startswith(f"{layout.base}/")]
        assert points.count(str(layout.pool(project))) == 1
        assert len(points) == 1 + running, points
        assert len(self.api.find(PODS)) == running == len(observe_slots(layout))
        found = observe_subvolumes(layout, project)
        assert len(found.branches) == stored and all(found.branches.values())
        assert not found.temporary and not found.initdb and not found.trash


@pytest.fixture
def world(node: Node) -> Iterator[World]:
    world = World(node)
    yield world
    world.kubelet.end()


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--soak"))


def test_a_projects_making_and_its_end(world: World, soak: bool) -> None:
    def ask_make(at: int) -> Callable[[], None]:
        project = world.make_project()

        def check() -> None:
            world.whole(project, running=1, stored=1)
            assert world.sql("main", "select count(*) from pg_database where datname = 'dbranch'") == [(1,)]
            world.api.delete(f"{BRANCHES}/shop-main")
            world.agent()
            world.api.delete(f"{PROJECTS}/shop")
            # Killed at the same point of its end, too.
            if world.agent(at) is None:
                world.agent()
            left = [m.point for m in read_mounts() if m.point.startswith(f"{world.node.layout.base}/")]
            assert left == [] and world.api.find(PODS) == []
            assert not world.node.layout.image(project).exists()
            assert list(world.node.layout.slots.glob("[!.]*")) == []
            assert list(world.node.layout.mounts.iterdir()) == []

        return check

    effects = world.killed_at_each(ask_make, soak)
    print(f"project: {effects} effects, {world.kills} kills")
    assert effects > 10 and world.kills >= _DRAWN


def test_a_branchs_life(world: World, soak: bool) -> None:
    project = world.make_project()
    world.agent()
    world.sql("main", "create table item as select generate_series(1, 1000) as id")
    counted: dict[str, int] = {}

    def create(at: int) -> Callable[[], None]:
        world.make_branch(f"b{at}", "main")

        def check() -> None:
            world.whole(project, running=2, stored=2)
            assert world.sql(f"b{at}", "select count(*) from item") == [(1000,)]
            world.sql(f"b{at}", "insert into item values (0)")
            world.api.delete(f"{BRANCHES}/shop-b{at}")
            world.agent()

        return check

    counted["create"] = world.killed_at_each(create, soak)
    world.make_branch("kept", "main")
    world.agent()
    world.sql("kept", "insert into item values (0)")

    def stop(at: int) -> Callable[[], None]:
        world.set("kept", state="Running")
        world.agent()
        world.set("kept", state="Stopped")
        return lambda: world.whole(project, running=1, stored=2)

    def resume(at: int) -> Callable[[], None]:
        world.set("kept", state="Stopped")
        world.agent()
        world.set("kept", state="Running")

        def check() -> None:
            world.whole(project, running=2, stored=2)
            assert world.sql("kept", "select count(*) from item") == [(1001,)]

        return check

    def delete(at: int) -> Callable[[], None]:
        world.make_branch(f"d{at}", "kept")
        world.agent()
        world.api.delete(f"{BRANCHES}/shop-d{at}")
        return lambda: world.whole(project, running=2, stored=2)

    sizes = iter(range(300, 10000, 16))

    def grow(at: int) -> Callable[[], None]:
        size = next(sizes)
        world.api.merge(f"{PROJECTS}/shop", {"spec": {"storage": {"size": f"{size}Mi"}}})

        def check() -> None:
            world.whole(project, running=2, stored=2)
            total = (world.api.get(f"{PROJECTS}/shop") or {})["status"]["node"]["totalBytes"]
            assert total == size * MIB == world.node.layout.image(project).stat().st_size

        return check

    for ask in (stop, resume, delete, grow):
        counted[ask.__name__] = world.killed_at_each(ask, soak)
    print(f"{counted} effects, {world.kills} kills")
    assert world.kills >= len(counted) and all(count > 2 for count in counted.values()), counted
    assert world.sql("main", "select count(*) from item") == [(1000,)]
