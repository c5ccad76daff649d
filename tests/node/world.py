"""A node with a fake API server, a kubelet that runs pods as processes, and agents that are started and killed."""

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

import psycopg
from tests.fakes.api import FakeApi, Json
from tests.node.agent_life import BRANCHES, NAMESPACE, NAMESPACES, NODE, PODS, PROJECTS, SNAPSHOTS, WARM
from tests.node.machine import APP, OWNER, PASSWORDS, USER, Node, owner_session

from dbranch.agent.linux.btrfs import is_read_only
from dbranch.agent.linux.loops import loops_of
from dbranch.agent.linux.mounts import read_mounts
from dbranch.agent.linux.quotas import group_of, read_groups, subvolume_id
from dbranch.agent.postgres.session import Endpoint
from dbranch.agent.slot.observe import observe_slots
from dbranch.agent.volume.observe import observe_subvolumes
from dbranch.agent.volume.quotas import POOL_GROUP
from dbranch.api import names
from dbranch.api.expiry import format_time, parse_ttl
from dbranch.api.project import parse_project

ROOT = Path(__file__).parents[2]
# Effects at which an agent is killed in the short form of a test, drawn at random.
SAMPLED_KILLS = 3


class ControlledApi(FakeApi):
    """An API server beside a controller that lets go of each branch at once when it is deleted."""

    def delete(
        self, path: str, uid: str | None = None, grace: int | None = None, version: str | None = None
    ) -> None:
        super().delete(path, uid, grace, version)
        body = self.peek(path) if path.startswith(f"{BRANCHES}/") else None
        if body:
            self.merge(f"{path}/status", {"status": {"release": body["metadata"]["deletionTimestamp"]}})


class Kubelet(threading.Thread):
    """Runs the API's pods as processes, and stops them when they are deleted."""

    def __init__(self, api: FakeApi, node: Node) -> None:
        super().__init__(daemon=True)
        self._api, self._node, self._stopped = api, node, threading.Event()
        # Of the containers that start from now on.
        self.image_id = ""

    def run(self) -> None:
        while not self._stopped.wait(0.02):
            for pod in self._api.find(PODS, names.LABEL_SLOT):
                self._sync(pod)

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def _sync(self, pod: Json) -> None:
        name, path = pod["metadata"]["name"], f"{PODS}/{pod['metadata']['name']}"
        process = self._node.running.get(name)
        deleting = bool(pod["metadata"].get("deletionTimestamp"))
        if process is None and not deleting:
            process = self._run(pod)
            self._write_status(
                path,
                {
                    "phase": "Running",
                    "podIP": self._node.address_of(name),
                    "containerStatuses": [{**_RUNNING, "imageID": self.image_id}],
                },
            )
        elif process is not None and process.poll() is not None:
            if deleting:
                self._node.running.pop(name)
                self._api.remove_pod(path)
            elif pod["spec"]["restartPolicy"] == "Always":
                self._run(pod)
                restarts = pod["status"]["containerStatuses"][0]["restartCount"] + 1
                status = {**_RUNNING, "imageID": self.image_id, "restartCount": restarts}
                if process.returncode:
                    # As terminationMessagePolicy FallbackToLogsOnError has it.
                    message = self._node.stderr_of(name)[-2048:]
                    status["lastState"] = {"terminated": {"message": message}}
                self._write_status(path, {"containerStatuses": [status]})
            elif pod["status"]["phase"] == "Running":
                self._write_status(path, {"phase": "Failed" if process.returncode else "Succeeded"})
        elif process is None:
            self._api.remove_pod(path)
        elif deleting:
            process.send_signal(signal.SIGINT)

    def _run(self, pod: Json) -> subprocess.Popen[bytes]:
        container = pod["spec"]["containers"][0]
        environment = {entry["name"]: entry["value"] for entry in container.get("env", [])}
        _, _, script, *arguments = container["command"]
        return self._node.run_script(pod["metadata"]["name"], script, arguments[1:], environment)

    def _write_status(self, path: str, status: Json) -> None:
        self._api.merge(f"{path}/status", {"status": status})


_RUNNING = {"state": {"running": {}}, "imageID": "", "restartCount": 0}


class AgentProcess(subprocess.Popen[str]):
    """The process of an agent. Its output goes to files: a pipe that nobody reads holds up who writes much.

    `directory`: where they are, on no disk that a test fills.
    """

    def __init__(self, argv: list[str], directory: Path) -> None:
        self._files = tuple(directory / f"agent-{uuid.uuid4()}.{name}" for name in ("out", "err"))
        with self._files[0].open("w") as output, self._files[1].open("w") as errors:
            super().__init__(
                argv,
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": f"{ROOT}:{ROOT / 'operator'}",
                    "PYTHONDONTWRITEBYTECODE": "1",
                },
                stdout=output,
                stderr=errors,
            )

    def wait_for_output(self, seconds: float = 60) -> tuple[str, str]:
        """Wait until the process ends; return what it wrote to standard output and to standard error."""
        self.wait(seconds)
        return self._files[0].read_text(), self._files[1].read_text()


class World:
    """A node with a fake API server, its kubelet, and agents that are started and killed.

    `kills`: how many agents were killed. `effects`: of the last agent that was not. `name`: of the project in use.
    """

    def __init__(self, node: Node, file: Path | None = None) -> None:
        self.node = node
        self._file = file or node.layout.base / "api.json"
        self.api = ControlledApi(self._file)
        for namespace in (NAMESPACE, "kube-system"):
            if self.api.get(f"{NAMESPACES}/{namespace}") is None:
                self.api.put(NAMESPACES, {"metadata": {"name": namespace}})
        self.kubelet = Kubelet(self.api, node)
        self.kubelet.start()
        self.kills = 0
        self.name = "shop"
        self.effects: list[str] = []

    def restart_node(self) -> None:
        """Take away what a restart of the node takes: processes, mounts and loop devices. The pods start anew."""
        self.kubelet.stop()
        self.node.tear_down()
        self.node.running.clear()
        self.kubelet = Kubelet(self.api, self.node)
        self.kubelet.start()

    def for_project(self, name: str) -> World:
        """Return the same node for another project on it."""
        other = copy.copy(self)
        other.name = name
        return other

    def run_rounds(self) -> None:
        """Run an agent for three rounds: it cannot finish."""
        self.run_agent(0, 3)

    def run_agent(self, kill_at: int | str = 0, *rounds: int) -> int | None:
        """Run an agent until it has nothing more to do; return how many effects it had, None if it was killed."""
        process = self.start_agent(kill_at, *rounds)
        output, errors = process.wait_for_output(120)
        if process.returncode == -signal.SIGKILL and kill_at:
            self.kills += 1
            return None
        assert process.returncode == 0, errors
        self.effects = output.splitlines()
        return len(self.effects)

    def start_agent(self, kill_at: int | str = 0, *rounds: int, within: tuple[str, ...] = ()) -> AgentProcess:
        """Start an agent and return its process; `within`: a command that runs it, such as `unshare`."""
        arguments = ("-m", "tests.node.agent_process", self._file, self.node.layout.base, kill_at, *rounds)
        return AgentProcess([*within, sys.executable, *map(str, arguments)], self._file.parent)

    def kill_at_each_effect(self, change: Callable[[int], Callable[[], None]], soak: bool) -> int:
        """Run an agent once to count its effects, then kill one at each of them (without `soak`: at a few).

        `change(effect)` changes a spec before each run and returns a check for after it. After each killed agent
        another one runs to its end. Return the number of effects.
        """
        check = change(0)
        effects = self.run_agent()
        assert effects
        check()
        points = range(1, effects + 1)
        for effect in points if soak else sorted(random.sample(points, min(SAMPLED_KILLS, effects))):
            check = change(effect)
            completed = self.run_agent(effect)
            if completed is not None:
                # How often a run polls differs, so this one had fewer effects: kill the next within what it had.
                check()
                check = change(effects + effect)
                completed = self.run_agent(random.randint(1, max(1, completed // 2)))
            if completed is None:
                self.run_agent()
            check()
        return effects

    def make_project(
        self, storage: Json | None = None, parameters: dict[str, str] | None = None, **spec_fields: object
    ) -> str:
        """Create a project with these fields in its spec, and its root branch; return the project's UID."""
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
            "spec": {
                **spec,
                "storage": {"size": "256Mi", **(storage or {})},
                # What is deleted is gone, unless a test says otherwise.
                "undo": {"keep": "0s"},
                **spec_fields,
            },
            "status": {"nodeName": NODE},
        }
        self.api.put(PROJECTS, body)
        self.make_branch("main", None)
        return project

    def delete_project(self, run: Callable[[], object] | None = None) -> None:
        """Delete the project and run an agent (or `run`) until it is gone."""
        self.request_deletion()
        (run or self.run_agent)()

    def request_deletion(self) -> None:
        """Delete branches, snapshots and project as the controller does, which says until when it is kept."""
        project = parse_project(self.api.get(f"{PROJECTS}/{self.name}") or {})
        keep = parse_ttl(project.undo.keep) if project.undo.keeps and not project.keeps_pool else None
        if keep is not None:
            until = format_time(self.api.server_time() + keep)
            self.api.merge(f"{PROJECTS}/{self.name}/status", {"status": {"keptUntil": until}})
        for body in self.api.find(SNAPSHOTS):
            if body["spec"]["project"] == self.name:
                self.api.delete(f"{SNAPSHOTS}/{body['metadata']['name']}")
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
        created = self.api.put(BRANCHES, {"metadata": meta, "spec": spec, "status": status})
        return str(created["metadata"]["uid"])

    def make_snapshot(self, name: str, branch: str, **spec: object) -> str:
        """Create a DBSnapshot as the controller binds it; return its UID."""
        meta = {"name": f"{self.name}-{name}", "namespace": NAMESPACE, "finalizers": [names.AGENT_FINALIZER]}
        status = {"nodeName": NODE, "branchUID": self.uid(branch)}
        body = {
            "metadata": meta,
            "spec": {"project": self.name, "branch": branch, **spec},
            "status": status,
        }
        return str(self.api.put(SNAPSHOTS, body)["metadata"]["uid"])

    def snapshot(self, name: str) -> Json:
        body = self.api.get(f"{SNAPSHOTS}/{self.name}-{name}")
        assert body is not None
        return body

    def delete_snapshot(self, name: str) -> None:
        """Delete the snapshot and run an agent until it is gone."""
        self.api.delete(f"{SNAPSHOTS}/{self.name}-{name}")
        self.run_agent()

    def make_branch_of_snapshot(self, name: str, snapshot: str) -> str:
        """Create a DBBranch from a snapshot as the controller binds it; return its UID."""
        meta = {"name": f"{self.name}-{name}", "namespace": NAMESPACE, "finalizers": [names.AGENT_FINALIZER]}
        source = self.snapshot(snapshot)["metadata"]
        spec = {"project": self.name, "sourceSnapshot": source["name"]}
        status = {"nodeName": NODE, "sourceUID": source["uid"]}
        created = self.api.put(BRANCHES, {"metadata": meta, "spec": spec, "status": status})
        return str(created["metadata"]["uid"])

    def delete_branch(self, name: str) -> None:
        """Delete the branch and run an agent until it is gone."""
        self.api.delete(f"{BRANCHES}/{self.name}-{name}")
        self.run_agent()

    def keep_at_deletion(self, name: str, **spec: object) -> str:
        """Create the DBSnapshot that gets the data of a branch when it is deleted, as the controller does.

        Return its name as in `snapshot`.
        """
        uid, object_name = self.uid(name), f"{self.name}-{name}"
        kept = names.derived_name(object_name, "deleted", uid).removeprefix(f"{self.name}-")
        origin = {"reason": "Deletion", "branchUID": uid}
        snapshot_uid = self.make_snapshot(kept, name, origin=origin, ttl="24h", **spec)
        copy = {"name": f"{self.name}-{kept}", "uid": snapshot_uid}
        self.api.merge(f"{BRANCHES}/{object_name}/status", {"status": {"copy": copy}})
        return kept

    def undelete(self, name: str, snapshot: str) -> str:
        """Create a DBBranch again from the data of the deleted one, as the controller binds it; return its UID."""
        deleted = self.snapshot(snapshot)["spec"]["origin"]["branchUID"]
        uid = self.make_branch_of_snapshot(name, snapshot)
        self.api.merge(f"{BRANCHES}/{self.name}-{name}/status", {"status": {"undeletes": deleted}})
        return uid

    def branch(self, name: str) -> Json:
        body = self.api.get(f"{BRANCHES}/{self.name}-{name}")
        assert body is not None
        return body

    def uid(self, name: str) -> str:
        return str(self.branch(name)["metadata"]["uid"])

    def pods(self) -> list[Json]:
        """Return the pods of branches and initdb."""
        return self.api.find(PODS, names.LABEL_BRANCH_UID)

    def warm_pods(self) -> list[Json]:
        """Return the pods that no branch has claimed."""
        return self.api.find(PODS, f"{names.LABEL_SLOT},!{names.LABEL_BRANCH_UID}")

    def patch_spec(self, name: str, **spec: object) -> None:
        self.api.merge(f"{BRANCHES}/{self.name}-{name}", {"spec": spec})

    def log_in(self, name: str) -> None:
        """Log in as the application does, by TCP and with its password."""
        node = self.branch(name)["status"]["node"]
        with psycopg.connect(
            host=self.node.address_of(node["pod"]),
            port=node["port"],
            user=APP,
            password=PASSWORDS[APP],
            dbname="dbranch",
        ) as connection:
            assert connection.execute("select current_user").fetchall() == [(APP,)]

    def sql(self, name: str, query: str) -> list[tuple[object, ...]]:
        node = self.branch(name)["status"]["node"]
        major = int(str(node["postgresVersion"]).partition(".")[0])
        endpoint = Endpoint(node["slot"], node["port"], USER, major)
        with owner_session(self.node.layout, endpoint, seconds=30) as connection:
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    def assert_consistent(
        self, project: str, running: int, stored: int, warm_have_run: bool = True, snapshots: int = 0
    ) -> None:
        """Assert that the node has what the project needs, and nothing else.

        That is one loop device, one mount, a `run` in memory for each slot, `running` bind mounts and branches with
        one pod each, `stored` subvolumes and `snapshots` read-only ones, none that is unfinished, WARM warm pods, and
        no slot without a pod. Without `warm_have_run` a warm slot may get its `run` only when it is claimed.
        """
        layout = self.node.layout
        assert len(loops_of(layout.image(project))) == 1
        points = [mount.point for mount in read_mounts() if mount.point.startswith(f"{layout.base}/")]
        assert points.count(str(layout.pool(project))) == 1
        # Each slot has its `run` in memory, warm ones, too.
        runs = {point for point in points if point.endswith("/run")}
        warm_slots = {pod["metadata"]["name"] for pod in self.warm_pods()} if not warm_have_run else set()
        expected = {str(layout.run(name)) for name in observe_slots(layout)}
        assert expected - {str(layout.run(name)) for name in warm_slots} <= runs <= expected
        assert len(points) == 1 + running + len(runs), points
        branch_uids = [pod["metadata"]["labels"][names.LABEL_BRANCH_UID] for pod in self.pods()]
        assert len(branch_uids) == running == len(set(branch_uids))
        assert len(self.warm_pods()) == WARM
        assert set(observe_slots(layout)) == {pod["metadata"]["name"] for pod in self.api.find(PODS)}
        subvolumes = observe_subvolumes(layout, project)
        assert len(subvolumes.branches) == stored and all(subvolumes.branches.values())
        assert len(subvolumes.snapshots) == snapshots
        assert all(is_read_only(layout.branch(project, uid)) for uid in subvolumes.snapshots)
        assert subvolumes.unfinished == ()
        # Each is charged to its own group, and with all others to the pool's.
        pool = layout.pool(project)
        parents = read_groups(pool).parents
        for name in subvolumes.branches:
            number = subvolume_id(layout.branch(project, name))
            assert parents[group_of(0, number)] == (group_of(1, number), POOL_GROUP)
