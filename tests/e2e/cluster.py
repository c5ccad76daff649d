"""Helpers of the end-to-end tests. They act only with the tools that users have: kubectl, helm, psql, dbranch."""

from __future__ import annotations

import base64
import json
import os
import queue
import re
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

RELEASE = "dbranch"
SYSTEM = "dbranch-system"
NODES = "dbranch-nodes"
POSTGRES_IMAGE = os.environ["DBRANCH_POSTGRES_IMAGE"]
SERVER_IMAGE = os.environ["DBRANCH_SERVER_IMAGE"]

# Each limit only ends a test that hangs: none is near what a machine with busy processors needs. pytest's own limit
# for a test is ten minutes.
TIMEOUT_SECONDS = 180.0
KUBECTL_TIMEOUT = f"--timeout={TIMEOUT_SECONDS:g}s"
# The window in which something must not happen.
_HOLDS_SECONDS = 5.0

# What the API server says of a deletion that it accepts a moment later.
_REFUSED_FOR_A_MOMENT = ("is the active branch", "failed to find resource referenced by paramKind")
# Commands of `dbranch` that wait for less long.
_WAITING_COMMANDS = {"create", "delete", "undelete", "use", "stop", "resume", "restart"}

# libpq's errors of a connection that was not made: nothing was sent through it, so the query can be repeated.
_NOT_CONNECTED = re.compile(r"could not translate host name|connection to server at .* failed: ", re.DOTALL)
# Of those, what passes: DNS and kube-proxy follow a new Service or pod, a Postgres or a proxy starts or ends.
_PASSING_ERRORS = (
    "could not translate host name",
    "Connection refused",
    "Connection reset by peer",
    "Connection timed out",
    "No route to host",
    "Network is unreachable",
    "timeout expired",
    "server closed the connection unexpectedly",
    "the database system is starting up",
    "the database system is not yet accepting connections",
    "the database system is shutting down",
    "the proxy is stopping",
    "FATAL:  waited ",
)


@dataclass(frozen=True)
class Outcome:
    """A finished command: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Return standard output without surrounding white space."""
        return self.out.strip()

    @property
    def output(self) -> str:
        """Return standard output and standard error."""
        return f"{self.out}\n{self.err}"


def run(argv: list[str], *, stdin: str | None = None, check: bool = True, **kwargs: Any) -> Outcome:
    """Run a command and capture its output; raise AssertionError with all of it if `check` and it fails."""
    done = subprocess.run(
        argv,
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        timeout=kwargs.pop("timeout", 2 * TIMEOUT_SECONDS),
        check=False,
        **kwargs,
    )
    outcome = Outcome(done.returncode, done.stdout, done.stderr)
    assert not check or outcome.code == 0, f"{' '.join(argv)}\nexit {outcome.code}\n{outcome.output}"
    return outcome


def eventually(expectation: str, check: Callable[[], Any], timeout: float = TIMEOUT_SECONDS) -> Any:
    """Poll `check`; return its first true value. Raise AssertionError with the last one after `timeout` seconds."""
    deadline, last = time.monotonic() + timeout, None
    while time.monotonic() < deadline:
        last = check()
        if last:
            return last
        time.sleep(0.3)
    raise AssertionError(f"not within {timeout:g} s: {expectation}; last value: {last!r}")


def holds(expectation: str, check: Callable[[], Any], seconds: float = _HOLDS_SECONDS) -> None:
    """Poll `check` for `seconds`; raise AssertionError as soon as it is not true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert check(), f"does not hold: {expectation}"
        time.sleep(0.3)


def read_line(stream: IO[str]) -> str:
    """Return the next line of a process's output, without its end. Raise queue.Empty if none comes."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=lambda: lines.put(stream.readline()), daemon=True).start()
    return lines.get(timeout=TIMEOUT_SECONDS).rstrip("\n")


def connection_may_be_repeated(outcome: Outcome) -> bool:
    """Return whether psql made no connection, for a reason that passes."""
    return (
        outcome.code == 2
        and _NOT_CONNECTED.search(outcome.err) is not None
        and any(error in outcome.err for error in _PASSING_ERRORS)
    )


class Cluster:
    """The cluster: dbranch's Helm release, and its nodes, which are containers of kind.

    In `with undisturbed():` nobody deletes dbranch's pods, also while the tests of chaos run.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.undisturbed: Callable[[], AbstractContextManager[None]] = nullcontext

    def kubectl(self, *args: str, stdin: str | None = None, check: bool = True) -> Outcome:
        return run(["kubectl", *args], stdin=stdin, check=check)

    def helm(self, *args: str, check: bool = True) -> Outcome:
        return run(["helm", *args], check=check)

    def install(self, *extra_args: str) -> Outcome:
        """Run `helm upgrade --install --wait` with this checkout's chart and the image built from it."""
        repository, tag = SERVER_IMAGE.rsplit(":", 1)
        return self.helm(
            *("upgrade", "--install", RELEASE, str(self.root / "helm" / "dbranch")),
            *("--namespace", SYSTEM, "--create-namespace", "--wait", "--timeout", "5m"),
            *("--set", f"image.repository={repository}", "--set", f"image.tag={tag}"),
            *extra_args,
        )

    def nodes(self) -> list[str]:
        """Return the names of the nodes, sorted."""
        return sorted(self.kubectl("get", "nodes", "-o", "jsonpath={.items[*].metadata.name}").text.split())

    def on_node(self, script: str, node: str | None = None, check: bool = True) -> str:
        """Run a shell script on a node (the first one if None) and return its standard output."""
        return run(["docker", "exec", node or self.nodes()[0], "sh", "-c", script], check=check).text

    def processes_of(self, variable: str, node: str | None = None) -> list[int]:
        """Return the processes on a node that have `variable` (NAME=VALUE) in their environment."""
        find = f"grep -lzx '{variable}' /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3"
        return [int(pid) for pid in self.on_node(find, node).split()]

    def agent_pods(self) -> dict[str, str]:
        """Return the nodes of the agents' pods that are not being deleted, by the pod's name."""
        label = "app.kubernetes.io/component=agent"
        pods = json.loads(self.kubectl("get", "pods", "-n", NODES, "-l", label, "-o", "json").out)["items"]
        return {
            pod["metadata"]["name"]: pod["spec"]["nodeName"]
            for pod in pods
            if "deletionTimestamp" not in pod["metadata"] and "nodeName" in pod["spec"]
        }

    def replace_agents(self, *options: str) -> None:
        """Delete the agents' pods; wait until others are Ready."""
        self.kubectl("delete", "pod", "-n", NODES, "-l", "app.kubernetes.io/component=agent", *options)
        self.kubectl("rollout", "status", "-n", NODES, "daemonset/dbranch-agent", KUBECTL_TIMEOUT)

    def footprint_at_rest(self) -> dict[str, list[str]]:
        """Wait until no DBProject and no DBBranch is being deleted; return the footprint once it does not change.

        Loop devices belong to the machine, on which others may attach and detach their own.
        """
        eventually("nothing is being deleted", lambda: not self._being_deleted())
        last = self.footprint()

        def unchanged() -> bool:
            nonlocal last
            previous, last = last, self.footprint()
            return all(previous[category] == last[category] for category in last if category != "loops")

        eventually("the footprint does not change", unchanged)
        return last

    def _being_deleted(self) -> list[str]:
        listed = json.loads(self.kubectl("get", "dbprojects,dbbranches", "-A", "-o", "json").out)
        return [
            f"{item['metadata']['namespace']}/{item['metadata']['name']}"
            for item in listed["items"]
            if "deletionTimestamp" in item["metadata"]
        ]

    def project_uids(self) -> list[str]:
        """Return the UIDs of all DBProjects."""
        uids = "-o=jsonpath={.items[*].metadata.uid}"
        return self.kubectl("get", "dbprojects", "-A", uids).text.split()

    def branch_slots(self) -> list[str]:
        """Return the slots of all DBBranches."""
        slots = "-o=jsonpath={.items[*].status.node.slot}"
        return self.kubectl("get", "dbbranches", "-A", slots).text.split()

    def names_in(self, directories: str, node: str | None = None) -> list[str]:
        """Return the names in directories below dbranch's base directory, given as a pattern of the shell.

        They may come and go meanwhile.
        """
        listed = self.on_node(f"cd /var/lib/dbranch && ls -d {directories} 2>/dev/null || true", node)
        return listed.split()

    def footprint(self) -> dict[str, list[str]]:
        """Return what dbranch holds on the first node: files and mounts below its base directory, loop devices,
        its pods and Secrets, and what lets a node read these.

        The directories of warm slots and their pods are left out: they change with every claim.
        """
        warm = self.warm_slots()
        files = self.names_in("pools/* mnt/* slots/*")
        mounts = self.on_node("awk '$5 ~ /dbranch\\/(mnt|slots)/ {print $5}' /proc/self/mountinfo").split()
        return {
            "files": [path for path in files if path not in {f"slots/{slot}" for slot in warm}],
            "mounts": [point for point in mounts if not any(f"/slots/{slot}/" in point for slot in warm)],
            # The kernel reports the path of an image as the agent's container sees it.
            "loops": self.on_node("cat /sys/block/loop*/loop/backing_file 2>/dev/null || true").split(),
            "pods": self.kubectl(
                *("get", "pods", "-n", NODES, "-l", "dbranch.io/slot,dbranch.io/branch-uid", "-o", "name"),
            ).text.split(),
            "secrets": self.kubectl("get", "secrets", "-n", NODES, "-o", "name").text.split(),
            "access": self.kubectl(
                *("get", "roles,rolebindings", "-n", NODES, "-l", "dbranch.io/project-uid", "-o", "name")
            ).text.split(),
        }

    def warm_slots(self) -> dict[str, dict[str, Any]]:
        """Return the pods of the slots that no branch has claimed, by name."""
        free = "dbranch.io/slot,!dbranch.io/branch-uid"
        listed = self.kubectl("get", "pods", "-n", NODES, "-l", free, "-o", "json")
        return {pod["metadata"]["name"]: pod for pod in json.loads(listed.out)["items"]}


class Namespace:
    """A user namespace with a pod `client` that has psql (on the node `client_node` if given)."""

    def __init__(self, cluster: Cluster, name: str, client_node: str | None = None) -> None:
        self.cluster, self.name, self.client_node = cluster, name, client_node

    def make(self, **labels: str) -> None:
        """Create the namespace and wait until its client pod is Ready."""
        self.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name, "labels": labels}}
        )
        # No pod is admitted before the controller manager has made the namespace's service account.
        self.kubectl("wait", "--for=create", "serviceaccount/default", KUBECTL_TIMEOUT)
        self.apply(client_pod(self.name, self.client_node))
        self.kubectl("wait", "--for=condition=Ready", "pod/client", KUBECTL_TIMEOUT)

    def client_started_at(self) -> str:
        """Return when the client pod's container started (RFC 3339), or an empty string if it does not run."""
        containers = self.get("pod", "client").get("status", {}).get("containerStatuses", [{}])
        return str(containers[0].get("state", {}).get("running", {}).get("startedAt", ""))

    def remove(self) -> None:
        """Begin to delete the projects and the namespace; nothing waits for the end of that."""
        names_of_all = self.kubectl(
            "get", "dbprojects", "-o", "jsonpath={.items[*].metadata.name}", check=False
        )
        self.keep_nothing(*names_of_all.out.split())
        self.kubectl("delete", "dbprojects", "--all", "--wait=false", check=False)
        self.cluster.kubectl("delete", "namespace", self.name, "--ignore-not-found", "--wait=false")

    def keep_nothing(self, *projects: str) -> None:
        """Let nothing be kept of these projects when they are deleted; one that does not exist is left out."""
        for project in projects:
            spec = json.dumps({"spec": {"undo": {"keep": "0s"}}})
            self.kubectl("patch", "dbproject", project, "--type=merge", "-p", spec, check=False)

    def kubectl(self, *args: str, stdin: str | None = None, check: bool = True) -> Outcome:
        return self.cluster.kubectl("--namespace", self.name, *args, stdin=stdin, check=check)

    def apply(self, *objects: dict[str, Any], check: bool = True) -> Outcome:
        return self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects), check=check)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-o", "json").out)
        return loaded

    def exists(self, kind: str, name: str) -> bool:
        return self.kubectl("get", kind, name, check=False).code == 0

    def await_deleted(self, kind: str, name: str) -> None:
        """Wait until the object does not exist."""
        eventually(f"{kind} {name} is gone", lambda: not self.exists(kind, name))

    def condition(self, kind: str, name: str, condition_type: str) -> dict[str, str]:
        """Return a condition of an object, or `{}` if the object does not have it (yet)."""
        conditions = self.get(kind, name).get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == condition_type), {})

    def wait_reason(
        self, kind: str, name: str, condition_type: str, reason: str, timeout: float = TIMEOUT_SECONDS
    ) -> dict[str, str]:
        """Wait until the object's condition has the reason; return the condition."""
        condition: dict[str, str] = {}

        def check() -> bool:
            nonlocal condition
            condition = self.condition(kind, name, condition_type)
            return condition.get("reason") == reason

        try:
            eventually(f"{kind} {name}: {condition_type} {reason}", check, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; the condition is {condition}") from None
        return condition

    def wait_stalled(self, kind: str, name: str) -> None:
        """Wait until the object's condition Stalled is True."""
        eventually(
            f"{kind} {name} is stalled",
            lambda: self.condition(kind, name, "Stalled").get("status") == "True",
        )

    def wait_ready(self, kind: str, *names: str) -> None:
        """Wait until the objects are Ready; raise AssertionError with `kubectl describe` if one is not.

        After a disturbance the condition may be that from before it: then wait for what has changed, too.
        """
        objects = [f"{kind}/{name}" for name in names]
        outcome = self.kubectl("wait", "--for=condition=Ready", *objects, KUBECTL_TIMEOUT, check=False)
        if outcome.code:
            described = self.kubectl("describe", *objects, check=False).output
            raise AssertionError(f"{outcome.output}\n{described}")

    def dbranch(self, *args: str, stdin: str | None = None, check: bool = True, **env: str) -> Outcome:
        """Run `dbranch`; a command that waits has the time limit of the tests unless `args` has another."""
        waits = _WAITING_COMMANDS & {*args} and "--timeout" not in args
        return run(
            ["dbranch", "--namespace", self.name, *args, *([KUBECTL_TIMEOUT] if waits else [])],
            stdin=stdin,
            check=check,
            env={**os.environ, "DBRANCH_CONFIG": f"/tmp/dbranch-{self.name}.yaml", **env},
            cwd="/",
        )

    def psql(self, uri: str, query: str, *options: str, check: bool = True) -> Outcome:
        """Run a query with psql in the client pod; print one line per row, columns separated by `|`."""
        return self.kubectl(
            "exec",
            "client",
            "--",
            "psql",
            uri,
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
            *options,
            "-c",
            query,
            check=check,
        )

    def connect(self, uri: str, query: str) -> Outcome:
        """Run a query as `psql` does, as soon as `connected`."""
        return connected(lambda: self.psql(uri, query, check=False))

    def sql(self, uri: str, query: str) -> str:
        """Run a query through a connection string, once a connection is made; return what psql prints."""
        outcome = self.connect(uri, query)
        assert outcome.code == 0, outcome.output
        return outcome.text

    def rejection(self, uri: str) -> str:
        """Connect, which must be rejected; return the error."""
        outcome = self.connect(uri, "select 1")
        assert outcome.code == 2, outcome.output
        return outcome.err

    def secret(self, name: str) -> dict[str, str]:
        """Return the decoded data of a Secret."""
        data = self.get("secret", name)["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}


class Project:
    """A DBProject in the namespace `team`, and its branches."""

    def __init__(self, team: Namespace, name: str) -> None:
        self.team, self.name = team, name

    def manifest(self, **spec: Any) -> dict[str, Any]:
        return {
            "apiVersion": "dbranch.io/v1alpha1",
            "kind": "DBProject",
            "metadata": {"name": self.name},
            "spec": {"postgres": {"image": POSTGRES_IMAGE}, "storage": {"size": "1Gi"}, **spec},
        }

    def make(self, **spec: Any) -> None:
        """Apply the project and wait until it is Ready."""
        self.team.apply(self.manifest(**spec))
        self.team.wait_ready("dbproject", self.name)

    def patch(self, **spec: Any) -> None:
        """Merge `spec` into the project's spec with `kubectl patch`."""
        body = json.dumps({"spec": spec})
        self.team.kubectl("patch", "dbproject", self.name, "--type=merge", "-p", body)

    def branch_manifest(self, branch: str, source: str | None = "main", **spec: Any) -> dict[str, Any]:
        return {
            "apiVersion": "dbranch.io/v1alpha1",
            "kind": "DBBranch",
            "metadata": {"name": f"{self.name}-{branch}"},
            "spec": {"project": self.name, **({"source": source} if source else {}), **spec},
        }

    def branch(self, branch: str, source: str = "main", **spec: Any) -> None:
        """Apply a branch and wait until it is Ready."""
        self.team.apply(self.branch_manifest(branch, source, **spec))
        self.wait_ready(branch)

    def branches(self, *branches: str) -> None:
        """Apply several branches of `main` at once and wait until all are Ready."""
        self.team.apply(*(self.branch_manifest(branch) for branch in branches))
        self.wait_ready(*branches)

    def wait_ready(self, *branches: str) -> None:
        """Wait until the branches are Ready."""
        self.team.wait_ready("dbbranch", *(f"{self.name}-{branch}" for branch in branches))

    def discard(self, *branches: str) -> None:
        """Begin to delete the branches, or the project if none is given; nothing waits for the end of that.

        A branch that was active is refused until the API server's cache, from which the policy reads the project,
        has the switch; any branch, until an API server that has just started knows DBProjects. A project is not
        kept: what a test has deleted takes no space.
        """
        if not branches:
            self.team.keep_nothing(self.name)
        objects = [f"dbbranch/{self.name}-{branch}" for branch in branches] or [f"dbproject/{self.name}"]
        delete = ("delete", "--wait=false", "--ignore-not-found", *objects)
        refusal = Outcome(1, "", "not tried")

        def accepted() -> bool:
            nonlocal refusal
            refusal = self.team.kubectl(*delete, check=False)
            assert refusal.code == 0 or any(text in refusal.err for text in _REFUSED_FOR_A_MOMENT), (
                refusal.output
            )
            return refusal.code == 0

        eventually(f"the deletion of {objects} is accepted", accepted)

    def delete(self, *branches: str) -> None:
        """Delete the branches, or the project if none is given, and wait until they do not exist."""
        self.discard(*branches)
        for branch in branches:
            self.team.await_deleted("dbbranch", f"{self.name}-{branch}")
        if not branches:
            self.team.await_deleted("dbproject", self.name)

    def status(self, branch: str | None = None) -> dict[str, Any]:
        """Return the status of the project, or of a branch."""
        kind, name = ("dbproject", self.name) if branch is None else ("dbbranch", f"{self.name}-{branch}")
        status: dict[str, Any] = self.team.get(kind, name).get("status", {})
        return status

    def pod_uids(self) -> dict[str, str]:
        """Return the UIDs of the branches' Postgres pods, by branch name."""
        return {branch: pod["metadata"]["uid"] for branch, pod in self._pods().items()}

    def pod_of(self, branch: str) -> str:
        """Wait until the branch's status names its pod, and that pod exists; return the pod's name."""

        def named() -> str:
            name = str(self.status(branch).get("node", {}).get("pod", ""))
            pod = self._pods().get(branch)
            return name if pod and pod["metadata"]["name"] == name else ""

        return str(eventually(f"branch {branch} has its pod", named))

    def await_new_pod(self, branch: str, old_uid: str) -> None:
        """Wait until Postgres runs in another pod than that of `old_uid`, and the branch is Ready with it."""
        eventually(
            f"branch {branch} has a new pod", lambda: self.pod_uids().get(branch) not in (None, old_uid)
        )
        self.pod_of(branch)
        self.wait_ready(branch)

    def _pods(self) -> dict[str, dict[str, Any]]:
        """Return the branches' Postgres pods, by branch name; one that is being deleted only if there is no other."""
        labels = f"dbranch.io/namespace={self.team.name},dbranch.io/project={self.name},dbranch.io/branch"
        listed = self.team.cluster.kubectl("get", "pods", "-n", NODES, "-l", labels, "-o", "json")
        pods = json.loads(listed.out)["items"]
        pods.sort(key=lambda pod: "deletionTimestamp" not in pod["metadata"])
        return {pod["metadata"]["labels"]["dbranch.io/branch"]: pod for pod in pods}

    def uri(self, branch: str | None = None) -> str:
        """Return the connection string of the project, or of a branch's own Service."""
        name = self.name if branch is None else f"{self.name}-{branch}"
        return self.team.secret(f"{name}-conn")["uri"]

    def sql(self, query: str, branch: str | None = None) -> str:
        """Run a query through the project's Service, or through a branch's own; return what psql prints."""
        return self.team.sql(self.uri(branch), query)

    def use(self, branch: str) -> None:
        self.team.dbranch("-p", self.name, "use", branch)


def connected(attempt: Callable[[], Outcome]) -> Outcome:
    """Run psql until a connection is made, or fails for a reason that does not pass; return psql's outcome.

    kube-proxy and DNS follow a new Service or pod later. A query that was sent is not repeated.
    """
    outcome = Outcome(2, "", "not tried")

    def attempted() -> bool:
        nonlocal outcome
        outcome = attempt()
        return not connection_may_be_repeated(outcome)

    try:
        eventually("psql connects", attempted)
    except AssertionError as error:
        raise AssertionError(f"{error}; {outcome.output}") from None
    return outcome


def client_pod(namespace: str, node: str | None = None) -> dict[str, Any]:
    """Return the manifest of an idle pod that has psql; Pod Security Admission `restricted` admits it.

    Its environment identifies its processes on the node, see `Cluster.processes_of`.
    """
    placement = {"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "client"},
        "spec": {
            **placement,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 999,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "client",
                    "image": POSTGRES_IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", "infinity"],
                    "env": [
                        {"name": "PGCONNECT_TIMEOUT", "value": "10"},
                        {"name": "E2E_NAMESPACE", "value": namespace},
                    ],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }
