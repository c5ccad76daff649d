"""Helpers of the end-to-end tests. They act only with the tools that users have: kubectl, helm, psql, dbranch."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

RELEASE = "dbranch"
SYSTEM = "dbranch-system"
NODES = "dbranch-nodes"
POSTGRES_IMAGE = os.environ["DBRANCH_POSTGRES_IMAGE"]
SERVER_IMAGE = os.environ["DBRANCH_SERVER_IMAGE"]


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
        timeout=kwargs.pop("timeout", 300),
        check=False,
        **kwargs,
    )
    outcome = Outcome(done.returncode, done.stdout, done.stderr)
    assert not check or outcome.code == 0, f"{' '.join(argv)}\nexit {outcome.code}\n{outcome.output}"
    return outcome


def eventually(expectation: str, check: Callable[[], Any], timeout: float = 60) -> Any:
    """Poll `check`; return its first true value. Raise AssertionError with the last one after `timeout` seconds."""
    deadline, last = time.monotonic() + timeout, None
    while time.monotonic() < deadline:
        last = check()
        if last:
            return last
        time.sleep(0.3)
    raise AssertionError(f"not within {timeout:g} s: {expectation}; last value: {last!r}")


class Cluster:
    """The cluster: dbranch's Helm release, and its nodes, which are containers of kind."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def kubectl(self, *args: str, stdin: str | None = None, check: bool = True) -> Outcome:
        return run(["kubectl", *args], stdin=stdin, check=check)

    def helm(self, *args: str, check: bool = True) -> Outcome:
        return run(["helm", *args], check=check)

    def install(self, *extra_args: str) -> Outcome:
        """Run `helm upgrade --install --wait` with this checkout's chart and the image built from it."""
        repository, tag = SERVER_IMAGE.rsplit(":", 1)
        return self.helm(
            *("upgrade", "--install", RELEASE, str(self.root / "helm" / "dbranch")),
            *("--namespace", SYSTEM, "--create-namespace", "--wait", "--timeout", "3m"),
            *("--set", f"image.repository={repository}", "--set", f"image.tag={tag}"),
            *extra_args,
        )

    def nodes(self) -> list[str]:
        """Return the names of the nodes, sorted."""
        return sorted(self.kubectl("get", "nodes", "-o", "jsonpath={.items[*].metadata.name}").text.split())

    def on_node(self, script: str, node: str | None = None, check: bool = True) -> str:
        """Run a shell script on a node (the first one if None) and return its standard output."""
        return run(["docker", "exec", node or self.nodes()[0], "sh", "-c", script], check=check).text

    def footprint(self) -> dict[str, list[str]]:
        """Return what dbranch holds on the first node: files and mounts below its base directory, loop devices,
        and its pods and Secrets.

        The directories of warm slots and their pods are left out: they change with every claim.
        """
        warm = self.warm_slots()
        files = self.on_node("cd /var/lib/dbranch && ls -d pools/* mnt/* slots/* 2>/dev/null || true").split()
        return {
            "files": [path for path in files if path not in {f"slots/{slot}" for slot in warm}],
            "mounts": self.on_node(
                "awk '$5 ~ /dbranch\\/(mnt|slots)/ {print $5}' /proc/self/mountinfo"
            ).split(),
            # The kernel reports the path of an image as the agent's container sees it.
            "loops": self.on_node("cat /sys/block/loop*/loop/backing_file 2>/dev/null || true").split(),
            "pods": self.kubectl(
                *("get", "pods", "-n", NODES, "-l", "dbranch.io/slot,dbranch.io/branch-uid", "-o", "name"),
            ).text.split(),
            "secrets": self.kubectl("get", "secrets", "-n", NODES, "-o", "name").text.split(),
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
        self.kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=60s")
        self.apply(client_pod(self.client_node))
        self.kubectl("wait", "--for=condition=Ready", "pod/client", "--timeout=120s")

    def remove(self) -> None:
        """Delete the projects, then the namespace: its controller retries only every eight seconds or so."""
        self.kubectl("delete", "dbprojects", "--all", "--timeout=180s", check=False)
        self.cluster.kubectl("delete", "namespace", self.name, "--ignore-not-found", "--wait=false")

    def kubectl(self, *args: str, stdin: str | None = None, check: bool = True) -> Outcome:
        return self.cluster.kubectl("--namespace", self.name, *args, stdin=stdin, check=check)

    def apply(self, *objects: dict[str, Any], check: bool = True) -> Outcome:
        return self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects), check=check)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-o", "json").out)
        return loaded

    def exists(self, kind: str, name: str) -> bool:
        return self.kubectl("get", kind, name, check=False).code == 0

    def condition(self, kind: str, name: str, condition_type: str) -> dict[str, str]:
        """Return a condition of an object, or `{}` if the object does not have it (yet)."""
        conditions = self.get(kind, name).get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == condition_type), {})

    def wait_reason(
        self, kind: str, name: str, condition_type: str, reason: str, timeout: float = 60
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

    def wait_ready(self, kind: str, name: str, timeout: int = 120) -> None:
        """Wait until the object is Ready; raise AssertionError with `kubectl describe` after `timeout` seconds."""
        outcome = self.kubectl(
            "wait", "--for=condition=Ready", f"{kind}/{name}", f"--timeout={timeout}s", check=False
        )
        if outcome.code:
            raise AssertionError(
                f"{outcome.output}\n{self.kubectl('describe', kind, name, check=False).output}"
            )

    def dbranch(self, *args: str, stdin: str | None = None, check: bool = True, **env: str) -> Outcome:
        return run(
            ["dbranch", "--namespace", self.name, *args],
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
        self.team.wait_ready("dbbranch", f"{self.name}-{branch}")

    def uri(self, branch: str | None = None) -> str:
        """Return the connection string of the project, or of a branch's own Service."""
        name = self.name if branch is None else f"{self.name}-{branch}"
        return self.team.secret(f"{name}-conn")["uri"]

    def sql(self, query: str, branch: str | None = None) -> str:
        """Run a query through the project's Service, or through a branch's own; return what psql prints."""
        return retry_until_connected(lambda: self.team.psql(self.uri(branch), query, check=False)).text

    def use(self, branch: str) -> None:
        self.team.dbranch("-p", self.name, "use", branch)


def retry_until_connected(attempt: Callable[[], Outcome], timeout: float = 30) -> Outcome:
    """Call psql until it connects; return its outcome. Raise AssertionError if the query then fails.

    kube-proxy needs up to two seconds to program a new Service, and DNS caches expire as late. A connection
    that was never established can be retried: no query was sent.
    """
    outcome = Outcome(2, "", "not tried")

    def check() -> bool:
        nonlocal outcome
        outcome = attempt()
        failed_to_connect = outcome.code == 2 and any(
            error in outcome.err
            for error in (
                "Connection refused",
                "could not translate host name",
                "No route to host",
                "timeout expired",
            )
        )
        return not failed_to_connect

    eventually("psql connects", check, timeout)
    assert outcome.code == 0, outcome.output
    return outcome


def client_pod(node: str | None = None) -> dict[str, Any]:
    """Return the manifest of an idle pod that has psql; Pod Security Admission `restricted` admits it."""
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
                    "env": [{"name": "PGCONNECT_TIMEOUT", "value": "10"}],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }
