"""What the measures stand on: a namespace in the cluster, projects and branches, bare Postgres pods, a client
inside the cluster. Everything is made by the API; what is made here is taken away by `Stage.clear`."""

from __future__ import annotations

import base64
import itertools
import json
import os
import secrets
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from dbranch.api import names
from dbranch.kube.client import Cluster, branch_path, path_of, project_path
from tests.bench.follow import Follower, Json, is_gone, is_ready

POSTGRES_IMAGE = os.environ.get("DBRANCH_POSTGRES_IMAGE", "postgres:17")
SERVER_IMAGE = os.environ.get("DBRANCH_SERVER_IMAGE", "")
NODES = "dbranch-nodes"
# On the node, beside dbranch's own directory and on the same disk: the bare pods' data directories.
BARE = "/var/lib/dbranch-bench"
INSIDE = Path(__file__).with_name("inside.py")
CLIENT_CPU = "100m"


@dataclass
class Client:
    """A Python in a pod of the cluster that is spoken to line by line; its clock is this machine's."""

    process: subprocess.Popen[str]

    def ask(self, verb: str, **more: Any) -> Json:
        """What `inside.py` answers; AssertionError with its words where it failed."""
        stdin, stdout = cast(IO[str], self.process.stdin), cast(IO[str], self.process.stdout)
        stdin.write(json.dumps({"verb": verb, **more}) + "\n")
        stdin.flush()
        answer: Json = json.loads(stdout.readline() or '{"error": "the client is gone"}')
        assert "error" not in answer, answer
        return answer

    def end(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


@dataclass
class Stage:
    """One namespace of a run. Times are seconds of time.monotonic()."""

    cluster: Cluster
    namespace: str = field(default_factory=lambda: f"bench-{secrets.token_hex(3)}")
    _clients: list[Client] = field(default_factory=list)
    _counter: itertools.count[int] = field(default_factory=itertools.count)

    def make(self) -> Stage:
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        self.cluster.create(path_of("v1", "namespaces"), body)
        # No pod is admitted before the controller manager has made the namespace's service account.
        accounts = Follower(self.cluster, path_of("v1", "serviceaccounts", self.namespace)).start()
        accounts.when("default", lambda account: account is not None, 0)
        self.branches = Follower(
            self.cluster, path_of(names.API_VERSION, names.BRANCHES, self.namespace)
        ).start()
        self.projects = Follower(
            self.cluster, path_of(names.API_VERSION, names.PROJECTS, self.namespace)
        ).start()
        self.pods = Follower(self.cluster, path_of("v1", "pods", self.namespace)).start()
        self.slots = Follower(self.cluster, path_of("v1", "pods", NODES), names.LABEL_SLOT).start()
        self._prepare()
        return self

    def say(self, text: str) -> None:
        """Progress, for who waits."""
        print(f"[{time.strftime('%H:%M:%S')}]   {text}", file=sys.stderr, flush=True)

    def _prepare(self) -> None:
        """The bare pods' data directories on the node: initdb ran, nothing else."""
        script = (
            "set -e; cd /bare; rm -rf copier; mkdir -p one copier;"
            " [ -e one/pgdata/PG_VERSION ] || { chown 999:999 one;"
            " setpriv --reuid 999 --regid 999 --clear-groups initdb -D one/pgdata -A trust; };"
            " for n in $(seq 0 19); do [ -e many-$n/pgdata/PG_VERSION ] || cp -a one many-$n; done;"
            " chown 999:999 copier"
        )
        self.helper("prepare", POSTGRES_IMAGE, ["sleep", "infinity"], 0, bare=BARE)
        self.run_in("prepare", "bash", "-c", script)
        self.drop_pod("prepare")

    def clear(self) -> None:
        for client in self._clients:
            client.end()
        self._clients.clear()
        for body in self.cluster.find(path_of(names.API_VERSION, names.PROJECTS, self.namespace)):
            self.drop_project(body["metadata"]["name"], 900)
        self.cluster.delete(path_of("v1", "namespaces", None, self.namespace))

    def drop_project(self, name: str, timeout: float = 120) -> None:
        """Deletes a project with its branches, and waits until it is gone."""
        began = time.monotonic()
        self.cluster.delete(project_path(self.namespace, name))
        self.projects.when(name, is_gone, began, timeout)

    def fresh(self, stem: str) -> str:
        """A name that was not used in this run."""
        return f"{stem}{next(self._counter)}"

    # Projects and branches

    def project(self, name: str, size: str = "2Gi", **postgres: Any) -> str:
        """A Ready project, with a slot that waits for its next branch where the release keeps them. Its name."""
        spec = {"postgres": {"image": POSTGRES_IMAGE, **postgres}, "storage": {"size": size}}
        body = {"apiVersion": names.API_VERSION, "kind": names.PROJECT_KIND, "metadata": {"name": name}}
        began = time.monotonic()
        self.cluster.create(
            path_of(names.API_VERSION, names.PROJECTS, self.namespace), {**body, "spec": spec}
        )
        self.projects.when(name, is_ready, began)
        return name

    def branch(self, project: str, name: str, source: str | None = "main", **spec: Any) -> float:
        """Asks for a branch; when it was asked for."""
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.BRANCH_KIND,
            "metadata": {"name": names.branch_object_name(project, name)},
            "spec": {"project": project, "source": source, **spec},
        }
        began = time.monotonic()
        self.cluster.create(path_of(names.API_VERSION, names.BRANCHES, self.namespace), body)
        return began

    def ready(self, project: str, name: str, began: float, timeout: float = 120) -> float:
        """Seconds from `began` to Ready."""
        return self.branches.when(names.branch_object_name(project, name), is_ready, began, timeout).at - began

    def set_branch(self, project: str, name: str, **spec: Any) -> float:
        began = time.monotonic()
        self.cluster.merge(branch_path(self.namespace, names.branch_object_name(project, name)), {"spec": spec})
        return began

    def drop_branch(self, project: str, *branches: str) -> float:
        """Deletes branches at once; seconds until all are gone."""
        began, objects = time.monotonic(), [names.branch_object_name(project, branch) for branch in branches]
        for of in objects:
            self.cluster.delete(branch_path(self.namespace, of))
        return max(self.branches.when(of, is_gone, began).at for of in objects) - began

    def use(self, project: str, branch: str) -> float:
        """Asks for the switch; when."""
        began = time.monotonic()
        self.cluster.merge(project_path(self.namespace, project), {"spec": {"activeBranch": branch}})
        return began

    def unique(self, project: str, name: str) -> int:
        """The branch's unique bytes, measured by the agent now: it is poked, and what it says twice alike holds."""
        path = branch_path(self.namespace, names.branch_object_name(project, name))
        last = -1
        for _ in range(20):
            mark = {"metadata": {"annotations": {names.AGENT_REQUESTED_AT: str(time.time_ns())}}}
            self.cluster.merge(path, mark)
            time.sleep(2)
            now = int(self.told(project, name)["status"]["node"]["uniqueBytes"])
            if now == last:
                return now
            last = now
        return last

    def told(self, project: str, name: str) -> Json:
        """The branch as the API server has it."""
        body = self.cluster.get(branch_path(self.namespace, names.branch_object_name(project, name)))
        assert body
        return body

    def uri(self, project: str, branch: str | None = None) -> Json:
        """The connection Secret of a project or branch, decoded."""
        name = names.branch_object_name(project, branch) if branch else project
        body = self.cluster.get(path_of("v1", "secrets", self.namespace, names.conn_secret_name(name)))
        assert body
        return {key: base64.b64decode(text).decode() for key, text in body["data"].items()}

    def free_slots(self) -> list[Json]:
        return self.cluster.find(
            path_of("v1", "pods", NODES), f"{names.LABEL_SLOT},!{names.LABEL_BRANCH_UID}"
        )

    def await_slot(self, count: int = 1, timeout: float = 60) -> None:
        """Waits until exactly `count` slots run and wait: the measure then finds them."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            pods = self.free_slots()
            running = [p for p in pods if (p.get("status") or {}).get("phase") == "Running"]
            if len(pods) == len(running) == count:
                return
            time.sleep(0.2)
        raise AssertionError(f"{len(self.free_slots())} slots wait, not {count}")

    # Bare pods

    def bare_pod(self, name: str, directory: str) -> Json:
        """A Postgres pod as one would write it: PGDATA there, only a readiness probe."""
        script = "exec postgres -D /data/pgdata -k /tmp -c listen_addresses='*'"
        probe = {"exec": {"command": ["pg_isready", "-q", "-h", "/tmp"]}, "periodSeconds": 1}
        container = {
            "name": "postgres",
            "image": POSTGRES_IMAGE,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", script],
            "readinessProbe": probe,
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        }
        spec = {
            "securityContext": {"runAsUser": 999, "runAsGroup": 999},
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "containers": [container],
            "volumes": [{"name": "data", "hostPath": {"path": f"{BARE}/{directory}"}}],
        }
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}

    def start_bare(self, name: str, directory: str) -> float:
        began = time.monotonic()
        self.cluster.create(path_of("v1", "pods", self.namespace), self.bare_pod(name, directory))
        return began

    def bare_ready(self, name: str, began: float, timeout: float = 120) -> float:
        return self.pods.when(name, is_ready, began, timeout).at - began

    def drop_pod(self, *pods: str) -> float:
        """Deletes pods at once; seconds until all are gone."""
        began = time.monotonic()
        for name in pods:
            self.cluster.delete(path_of("v1", "pods", self.namespace, name))
        return max(self.pods.when(name, is_gone, began).at for name in pods) - began

    def helper(
        self, name: str, image: str, command: list[str], user: int = 999, cpu: str = "", **volume: str
    ) -> None:
        """A pod that stays, with host directories mounted: path in the pod by name -> directory on the node."""
        container = {
            "name": "main",
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "command": command,
            "resources": {"requests": {"cpu": cpu}} if cpu else {},
            "volumeMounts": [{"name": key, "mountPath": f"/{key}"} for key in volume],
        }
        spec = {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {"runAsUser": user, "runAsGroup": user},
            "containers": [container],
            "volumes": [
                {"name": key, "hostPath": {"path": path, "type": "DirectoryOrCreate"}}
                for key, path in volume.items()
            ],
        }
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        began = time.monotonic()
        self.cluster.create(path_of("v1", "pods", self.namespace), body)
        self.pods.when(name, is_ready, began)

    def address(self, pod: str) -> str:
        """A running pod's own address."""
        body = self.cluster.get(path_of("v1", "pods", self.namespace, pod))
        assert body
        return str(body["status"]["podIP"])

    def run_in(self, pod: str, *argv: str, timeout: float = 1800) -> str:
        """What a command in a pod of the namespace prints."""
        done = subprocess.run(
            ["kubectl", "-n", self.namespace, "exec", pod, "--", *argv],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def agent_log(self) -> str:
        """What the agent said last."""
        argv = ["kubectl", "-n", NODES, "logs", "daemonset/dbranch-agent", "--tail=300"]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout

    def client(self) -> Client:
        """A client inside the cluster, once it runs. With a request: a pod without one stands still while others want
        all processors, and so would the clock."""
        self.helper("client", SERVER_IMAGE, ["sleep", "infinity"], 65532, cpu=CLIENT_CPU)
        argv = ["kubectl", "-n", self.namespace, "exec", "-i", "client", "--"]
        process = subprocess.Popen(
            [*argv, "python3", "-u", "-c", INSIDE.read_text()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        client = Client(process)
        client.ask("clock")
        self._clients.append(client)
        return client
