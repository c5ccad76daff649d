"""The objects that the measures use: a namespace with projects and branches, bare Postgres pods, and a client
inside the cluster. All are created through the API server; `Stage.clear` deletes them."""

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
# The bare pods' data directories on the node, on the same disk as dbranch's own directory.
BARE_DIRECTORY = "/var/lib/dbranch-bench"
CLIENT_PROGRAM = Path(__file__).with_name("in_cluster.py")
CLIENT_CPU = "100m"


@dataclass
class Client:
    """`in_cluster.py` in a pod: one JSON request and one JSON answer per line. Its clock is this machine's."""

    process: subprocess.Popen[str]

    def ask(self, verb: str, **arguments: Any) -> Json:
        """Send a request and return the answer; raise AssertionError with the error if it failed."""
        stdin, stdout = cast(IO[str], self.process.stdin), cast(IO[str], self.process.stdout)
        stdin.write(json.dumps({"verb": verb, **arguments}) + "\n")
        stdin.flush()
        answer: Json = json.loads(stdout.readline() or '{"error": "the client has exited"}')
        assert "error" not in answer, answer
        return answer

    def close(self) -> None:
        """Close standard input, which ends the client; kill it after ten seconds."""
        if self.process.stdin:
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


@dataclass
class Stage:
    """The namespace of one measure. Times are seconds of time.monotonic()."""

    cluster: Cluster
    namespace: str = field(default_factory=lambda: f"bench-{secrets.token_hex(3)}")
    _clients: list[Client] = field(default_factory=list)
    _counter: itertools.count[int] = field(default_factory=itertools.count)

    def make(self) -> Stage:
        """Create the namespace, start the watches and prepare the node; return self."""
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        self.cluster.create(path_of("v1", "namespaces"), body)
        # No pod is admitted before the controller manager has made the namespace's service account.
        accounts = Follower(self.cluster, path_of("v1", "serviceaccounts", self.namespace)).start()
        accounts.wait_for("default", lambda account: account is not None, 0)
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
        """Print progress to standard error, with the time of day."""
        print(f"[{time.strftime('%H:%M:%S')}]   {text}", file=sys.stderr, flush=True)

    def _prepare(self) -> None:
        """Create the bare pods' data directories on the node with initdb."""
        script = (
            "set -e; cd /bare; rm -rf copier; mkdir -p one copier;"
            " [ -e one/pgdata/PG_VERSION ] || { chown 999:999 one;"
            " setpriv --reuid 999 --regid 999 --clear-groups initdb -D one/pgdata -A trust; };"
            " grep -q '^host all all all' one/pgdata/pg_hba.conf ||"
            " { echo 'host all all all trust' >> one/pgdata/pg_hba.conf; rm -f many-*/complete; };"
            " chown 999:999 copier"
        )
        self._exec_as_root(script)
        self.prepare_bare_directories(20)

    def prepare_bare_directories(self, count: int) -> None:
        """Create the data directories `many-0` … of so many bare pods that run at once, as copies of `one`."""
        self._exec_as_root(
            f"set -e; cd /bare; for n in $(seq 0 {count - 1});"
            " do [ -e many-$n/complete ] || { rm -rf many-$n; cp -a one many-$n; touch many-$n/complete; }; done"
        )

    def _exec_as_root(self, script: str) -> None:
        self.create_helper_pod("prepare", POSTGRES_IMAGE, ["sleep", "infinity"], 0, bare=BARE_DIRECTORY)
        self.exec_in("prepare", "bash", "-c", script)
        self.delete_pods("prepare")

    def clear(self) -> None:
        """Delete the projects and the namespace, and end the clients."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        for body in self.cluster.find(path_of(names.API_VERSION, names.PROJECTS, self.namespace)):
            self.delete_project(body["metadata"]["name"], 900)
        self.cluster.delete(path_of("v1", "namespaces", None, self.namespace))

    def delete_project(self, name: str, timeout: float = 120) -> None:
        """Delete a project with its branches; wait until it is gone."""
        began = time.monotonic()
        self.cluster.delete(project_path(self.namespace, name))
        self.projects.wait_for(name, is_gone, began, timeout)

    def unique_name(self, stem: str) -> str:
        """Return a name that was not used in this run."""
        return f"{stem}{next(self._counter)}"

    # Projects and branches

    def create_project(self, name: str, size: str = "2Gi", **postgres: Any) -> str:
        """Create a project and wait until it is Ready; return its name."""
        spec = {
            "postgres": {"image": POSTGRES_IMAGE, "user": "postgres", **postgres},
            "storage": {"size": size},
            # As for a pipeline: what it deletes is gone.
            "undo": {"keep": "0s"},
        }
        body = {"apiVersion": names.API_VERSION, "kind": names.PROJECT_KIND, "metadata": {"name": name}}
        began = time.monotonic()
        self.cluster.create(
            path_of(names.API_VERSION, names.PROJECTS, self.namespace), {**body, "spec": spec}
        )
        self.projects.wait_for(name, is_ready, began, 600)
        return name

    def create_branch(self, project: str, name: str, source: str | None = "main", **spec: Any) -> float:
        """Create a branch object without waiting; return the time of the request."""
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.BRANCH_KIND,
            "metadata": {"name": names.branch_object_name(project, name)},
            "spec": {"project": project, **({"source": source} if source else {}), **spec},
        }
        began = time.monotonic()
        self.cluster.create(path_of(names.API_VERSION, names.BRANCHES, self.namespace), body)
        return began

    def seconds_to_ready(self, project: str, name: str, began: float, timeout: float = 120) -> float:
        """Wait until the branch is Ready; return the seconds from `began` to that."""
        return (
            self.branches.wait_for(names.branch_object_name(project, name), is_ready, began, timeout).at
            - began
        )

    def create_until_ready(self, project: str, name: str, source: str = "main", **spec: Any) -> float:
        """Create a branch and wait until it is Ready; return the seconds that took."""
        return self.seconds_to_ready(project, name, self.create_branch(project, name, source, **spec))

    def patch_branch(self, project: str, name: str, **spec: Any) -> float:
        """Merge `spec` into a branch's spec; return the time of the request."""
        began = time.monotonic()
        self.cluster.merge(
            branch_path(self.namespace, names.branch_object_name(project, name)), {"spec": spec}
        )
        return began

    def delete_branches(self, project: str, *branches: str, timeout: float = 120) -> float:
        """Delete branches at once; return the seconds until all are gone."""
        began, objects = time.monotonic(), [names.branch_object_name(project, branch) for branch in branches]
        for object_name in objects:
            self.cluster.delete(branch_path(self.namespace, object_name))
        return (
            max(self.branches.wait_for(object_name, is_gone, began, timeout).at for object_name in objects)
            - began
        )

    def switch(self, project: str, branch: str) -> float:
        """Patch the project's `activeBranch`; return the time of the request."""
        began = time.monotonic()
        self.cluster.merge(project_path(self.namespace, project), {"spec": {"activeBranch": branch}})
        return began

    def unique_bytes(self, project: str, name: str) -> int:
        """Return the branch's unique bytes: request reconciles, which measure them, until two values are equal."""
        path = branch_path(self.namespace, names.branch_object_name(project, name))
        last = -1
        for _ in range(20):
            request = {"metadata": {"annotations": {names.AGENT_REQUESTED_AT: str(time.time_ns())}}}
            self.cluster.merge(path, request)
            time.sleep(2)
            now = int(self.get_branch(project, name)["status"]["node"]["uniqueBytes"])
            if now == last:
                return now
            last = now
        return last

    def get_branch(self, project: str, name: str) -> Json:
        """Return the branch object."""
        body = self.cluster.get(branch_path(self.namespace, names.branch_object_name(project, name)))
        assert body
        return body

    def connection_secret(self, project: str, branch: str | None = None) -> Json:
        """Return the decoded connection Secret of a project or branch."""
        name = names.branch_object_name(project, branch) if branch else project
        body = self.cluster.get(path_of("v1", "secrets", self.namespace, names.conn_secret_name(name)))
        assert body
        return {key: base64.b64decode(text).decode() for key, text in body["data"].items()}

    def warm_slots(self) -> list[Json]:
        """Return the pods of the slots that no branch has claimed."""
        return self.cluster.find(
            path_of("v1", "pods", NODES), f"{names.LABEL_SLOT},!{names.LABEL_BRANCH_UID}"
        )

    def await_warm_slots(self, count: int = 1, timeout: float = 60) -> None:
        """Wait until at least `count` warm slots exist and all run for a second; else raise AssertionError."""
        deadline = time.monotonic() + timeout
        before, since = None, 0.0
        while time.monotonic() < deadline:
            pods = self.warm_slots()
            running = {
                pod["metadata"]["name"]
                for pod in pods
                if (pod.get("status") or {}).get("phase") == "Running"
                and not pod["metadata"].get("deletionTimestamp")
            }
            if running != before:
                before, since = running, time.monotonic()
            if len(pods) == len(running) >= count and time.monotonic() - since >= 1.0:
                return
            time.sleep(0.2)
        raise AssertionError(f"{len(self.warm_slots())} warm slots, expected {count}")

    # Bare pods

    def _bare_pod_manifest(self, name: str, directory: str, probe_seconds: int) -> Json:
        """Return the manifest of a plain Postgres pod: PGDATA on the node, no probe but readiness."""
        script = "exec postgres -D /data/pgdata -k /tmp -c listen_addresses='*'"
        probe = {"exec": {"command": ["pg_isready", "-q", "-h", "/tmp"]}, "periodSeconds": probe_seconds}
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
            "volumes": [{"name": "data", "hostPath": {"path": f"{BARE_DIRECTORY}/{directory}"}}],
        }
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}

    def create_bare_pod(self, name: str, directory: str, probe_seconds: int = 1) -> float:
        """Create a bare pod without waiting; return the time of the request.

        `probe_seconds`: between two readiness probes; with the shortest time possible it is Ready soonest.
        """
        began = time.monotonic()
        body = self._bare_pod_manifest(name, directory, probe_seconds)
        self.cluster.create(path_of("v1", "pods", self.namespace), body)
        return began

    def seconds_to_bare_ready(self, name: str, began: float, timeout: float = 120) -> float:
        """Wait until a bare pod is Ready; return the seconds from `began` to that."""
        return self.pods.wait_for(name, is_ready, began, timeout).at - began

    def delete_pods(self, *pods: str, timeout: float = 120) -> float:
        """Delete pods at once; return the seconds until all are gone."""
        began = time.monotonic()
        for name in pods:
            self.cluster.delete(path_of("v1", "pods", self.namespace, name))
        return max(self.pods.wait_for(name, is_gone, began, timeout).at for name in pods) - began

    def create_helper_pod(
        self, name: str, image: str, command: list[str], user: int = 999, cpu: str = "", **volume: str
    ) -> None:
        """Create a pod and wait until it is Ready. `volume`: NAME, mounted at /NAME -> directory on the node."""
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
        self.pods.wait_for(name, is_ready, began)

    def pod_address(self, pod: str) -> str:
        """Return the IP address of a running pod."""
        body = self.cluster.get(path_of("v1", "pods", self.namespace, pod))
        assert body
        return str(body["status"]["podIP"])

    def exec_in(self, pod: str, *argv: str, timeout: float = 1800) -> str:
        """Run a command in a pod of the namespace; return its standard output. Raise AssertionError if it fails."""
        done = subprocess.run(
            ["kubectl", "-n", self.namespace, "exec", pod, "--", *argv],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def agent_exec(self, *argv: str) -> str:
        """Run a command in the agent's container; return its standard output."""
        command = ["kubectl", "-n", NODES, "exec", "daemonset/dbranch-agent", "--", *argv]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    def list_core(self, plural: str, namespace: str, labels: str = "") -> list[Json]:
        """Return the objects of a core resource in a namespace."""
        return self.cluster.find(path_of("v1", plural, namespace), labels)

    def agent_log(self) -> str:
        """Return the last 300 lines of the agent's log."""
        argv = ["kubectl", "-n", NODES, "logs", "daemonset/dbranch-agent", "--tail=300"]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout

    def start_client(self) -> Client:
        """Start a client inside the cluster and wait until it answers; all clients of a stage share a pod.

        It has a CPU request: while other pods use all processors, a pod without one gets no time, and its
        measurements would include that."""
        if not self._clients:
            self.create_helper_pod("client", SERVER_IMAGE, ["sleep", "infinity"], 65532, cpu=CLIENT_CPU)
        argv = ["kubectl", "-n", self.namespace, "exec", "-i", "client", "--"]
        process = subprocess.Popen(
            [*argv, "python3", "-u", "-c", CLIENT_PROGRAM.read_text()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        client = Client(process)
        client.ask("clock")
        self._clients.append(client)
        return client
