"""A node with a paper API, a kubelet that runs its pods as processes, and agents that come and are killed."""

from __future__ import annotations

import copy
import os
import random
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from tests.node.agent_life import BRANCHES, NAMESPACE, NODE, PODS, PROJECTS, WARM
from tests.node.fake_api import FakeApi, Json
from tests.node.machine import OWNER, Node

from dbranch.agent.linux.loops import loops_of
from dbranch.agent.linux.mounts import read_mounts
from dbranch.agent.postgres import session
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.slot.observe import observe_slots
from dbranch.agent.volume.observe import observe_subvolumes
from dbranch.api import names

ROOT = Path(__file__).parents[2]
# Kills of each kind in the short form.
DRAWN = 3


class Kubelet(threading.Thread):
    """Runs the pods on the paper as processes, ends them when their end is asked for."""

    def __init__(self, api: FakeApi, node: Node) -> None:
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
            elif pod["spec"]["restartPolicy"] == "Always":
                self._node.script(name, pod["spec"]["containers"][0]["command"][2])
                again = pod["status"]["containerStatuses"][0]["restartCount"] + 1
                self._says(path, {"containerStatuses": [{**_RUNNING, "restartCount": again}]})
            elif pod["status"]["phase"] == "Running":
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

    def __init__(self, node: Node, paper: Path | None = None) -> None:
        self.node = node
        self._file = paper or node.layout.base / "api.json"
        self.api = FakeApi(self._file)
        self.kubelet = Kubelet(self.api, node)
        self.kubelet.start()
        self.kills = 0
        self.name = "shop"
        # Of the last life that was not killed.
        self.effects: list[str] = []

    def for_project(self, name: str) -> World:
        """The same node, seen from another project of it."""
        other = copy.copy(self)
        other.name = name
        return other

    def run_rounds(self) -> None:
        """A few rounds of an agent that cannot come to an end."""
        self.run_agent(0, 3)

    def run_agent(self, kill_at: int | str = 0, *rounds: int) -> int | None:
        """One agent's life; its effects, None where it was killed."""
        process = self.start_agent(kill_at, *rounds)
        said, failed = process.communicate(timeout=120)
        if process.returncode == -signal.SIGKILL and kill_at:
            self.kills += 1
            return None
        assert process.returncode == 0, failed
        self.effects = said.splitlines()
        return len(self.effects)

    def start_agent(
        self, kill_at: int | str = 0, *rounds: int, within: tuple[str, ...] = ()
    ) -> subprocess.Popen[str]:
        """An agent that lives on beside this; `within` are commands that run it, as `unshare`."""
        life = ("-m", "tests.node.agent_process", self._file, self.node.layout.base, kill_at, *rounds)
        return subprocess.Popen(
            [*within, sys.executable, *map(str, life)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'operator'}", "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def kill_at_each_effect(self, ask: Callable[[int], Callable[[], None]], soak: bool) -> int:
        """What `ask` asks for, once without a kill to find its effects, then killed at each of them (at a
        few drawn ones without `soak`): a killed agent, another, the check that `ask` returned."""
        check = ask(0)
        effects = self.run_agent()
        assert effects
        check()
        points = range(1, effects + 1)
        for at in points if soak else sorted(random.sample(points, min(DRAWN, effects))):
            check = ask(at)
            if self.run_agent(at) is None:
                self.run_agent()
            check()
        return effects

    def make_project(
        self, storage: Json | None = None, parameters: dict[str, str] | None = None, **more: object
    ) -> str:
        """A project with its root branch; `storage`, `parameters` and `more` go into its spec. Its UID."""
        project, name = str(uuid.uuid4()), self.name
        spec = {
            "postgres": {
                "image": "postgres:17",
                "runAsUser": OWNER,
                "parameters": {"shared_buffers": "16MB", **(parameters or {})},
            }
        }
        meta = {"name": name, "namespace": NAMESPACE, "uid": project, "finalizers": [names.AGENT_FINALIZER]}
        body = {
            "metadata": meta,
            "spec": {**spec, "storage": {"size": "256Mi", **(storage or {})}, **more},
            "status": {"nodeName": NODE},
        }
        self.api.create(PROJECTS, body)
        self.make_branch("main", None)
        return project

    def delete_project(self, live: Callable[[], object] | None = None) -> None:
        """Deleted, until it is gone; `live`: who acts, else one agent."""
        self.request_deletion()
        (live or self.run_agent)()

    def request_deletion(self) -> None:
        """As the controller does: the branches first, then the project."""
        for body in self.api.find(BRANCHES):
            if body["spec"]["project"] == self.name:
                self.api.delete(f"{BRANCHES}/{body['metadata']['name']}")
        self.api.delete(f"{PROJECTS}/{self.name}")

    def make_branch(self, name: str, source: str | None) -> str:
        status: Json = {"nodeName": NODE}
        spec: Json = {"project": self.name}
        if source is not None:
            spec["source"] = source
            status["sourceUID"] = self.uid(source)
        meta = {"name": f"{self.name}-{name}", "namespace": NAMESPACE, "finalizers": [names.AGENT_FINALIZER]}
        made = self.api.create(BRANCHES, {"metadata": meta, "spec": spec, "status": status})
        return str(made["metadata"]["uid"])

    def delete_branch(self, name: str) -> None:
        """Deleted, until it is gone."""
        self.api.delete(f"{BRANCHES}/{self.name}-{name}")
        self.run_agent()

    def branch(self, name: str) -> Json:
        body = self.api.get(f"{BRANCHES}/{self.name}-{name}")
        assert body is not None
        return body

    def uid(self, name: str) -> str:
        return str(self.branch(name)["metadata"]["uid"])

    def pods(self) -> list[Json]:
        """The branches' pods."""
        return self.api.find(PODS, names.LABEL_BRANCH_UID)

    def warm_pods(self) -> list[Json]:
        """The pods that wait for a branch."""
        return self.api.find(PODS, f"{names.LABEL_SLOT},!{names.LABEL_BRANCH_UID}")

    def patch_spec(self, name: str, **spec: object) -> None:
        self.api.merge(f"{BRANCHES}/{self.name}-{name}", {"spec": spec})

    def sql(self, name: str, query: str) -> list[tuple[object, ...]]:
        node = self.branch(name)["status"]["node"]
        major = int(str(node["postgresVersion"]).partition(".")[0])
        endpoint = Endpoint(node["slot"], node["port"], "postgres", major)
        with session.connect(self.node.layout, endpoint, seconds=30) as connection:
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    def assert_consistent(self, project: str, running: int, stored: int) -> None:
        """One device, one mount, `running` binds and branches with a pod each, `stored` subvolumes, nothing
        temporary; as many slots wait as shall, and no directory is without a pod."""
        layout = self.node.layout
        assert len(loops_of(layout.image(project))) == 1
        points = [m.point for m in read_mounts() if m.point.startswith(f"{layout.base}/")]
        assert points.count(str(layout.pool(project))) == 1
        assert len(points) == 1 + running, points
        of_branches = [pod["metadata"]["labels"][names.LABEL_BRANCH_UID] for pod in self.pods()]
        assert len(of_branches) == running == len(set(of_branches))
        assert len(self.warm_pods()) == WARM
        assert set(observe_slots(layout)) == {pod["metadata"]["name"] for pod in self.api.find(PODS)}
        found = observe_subvolumes(layout, project)
        assert len(found.branches) == stored and all(found.branches.values())
        assert found.unfinished == ()
