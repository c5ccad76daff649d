"""What the end-to-end tests do to the cluster, in the tools that users have: kubectl, helm, psql, dbranch."""

from __future__ import annotations

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
    """How a command ended. `text` is its standard output, stripped."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out.strip()

    @property
    def all(self) -> str:
        return f"{self.out}\n{self.err}"


def run(argv: list[str], *, stdin: str | None = None, check: bool = True, **kwargs: Any) -> Outcome:
    """A command with captured output; AssertionError with all that it printed where it fails."""
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
    assert not check or outcome.code == 0, f"{' '.join(argv)}\nexit {outcome.code}\n{outcome.all}"
    return outcome


def eventually(what: str, check: Callable[[], Any], timeout: float = 60) -> Any:
    """The first true value that `check` returns; AssertionError with the last one after `timeout` seconds."""
    end, last = time.monotonic() + timeout, None
    while time.monotonic() < end:
        last = check()
        if last:
            return last
        time.sleep(0.3)
    raise AssertionError(f"not within {timeout:g} s: {what}; at last: {last!r}")


class Cluster:
    """The cluster as a whole: its release of dbranch, its nodes seen through the agents' pods."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def kubectl(self, *args: str, stdin: str | None = None, check: bool = True) -> Outcome:
        return run(["kubectl", *args], stdin=stdin, check=check)

    def helm(self, *args: str, check: bool = True) -> Outcome:
        return run(["helm", *args], check=check)

    def install(self, *more: str) -> Outcome:
        """`helm upgrade --install --wait` of this checkout's chart with the image that was built from it."""
        repository, tag = SERVER_IMAGE.rsplit(":", 1)
        return self.helm(
            *("upgrade", "--install", RELEASE, str(self.root / "helm" / "dbranch")),
            *("--namespace", SYSTEM, "--create-namespace", "--wait", "--timeout", "3m"),
            *("--set", f"image.repository={repository}", "--set", f"image.tag={tag}"),
            *more,
        )

    def nodes(self) -> list[str]:
        """The nodes' names, by name."""
        return sorted(self.kubectl("get", "nodes", "-o", "jsonpath={.items[*].metadata.name}").text.split())

    def on_node(self, script: str, node: str | None = None, check: bool = True) -> str:
        """What a shell script prints on a node (the first where None): kind's nodes are containers."""
        return run(["docker", "exec", node or self.nodes()[0], "sh", "-c", script], check=check).text

    def footprint(self) -> dict[str, list[str]]:
        """What dbranch holds on the (first) node: files and mounts below its base directory, loop devices
        on them; and its pods and Secrets.

        Without the slots that wait for any branch: they come and go with those that take them.
        """
        free = self.waiting()
        files = self.on_node("cd /var/lib/dbranch && ls -d pools/* mnt/* slots/* 2>/dev/null || true").split()
        return {
            "files": [path for path in files if path not in {f"slots/{slot}" for slot in free}],
            "mounts": self.on_node(
                "awk '$5 ~ /dbranch\\/(mnt|slots)/ {print $5}' /proc/self/mountinfo"
            ).split(),
            # The path of an image is told as the agent's own container sees it.
            "loops": self.on_node("cat /sys/block/loop*/loop/backing_file 2>/dev/null || true").split(),
            "pods": self.kubectl(
                *("get", "pods", "-n", NODES, "-l", "dbranch.io/slot,dbranch.io/branch-uid", "-o", "name"),
            ).text.split(),
            "secrets": self.kubectl("get", "secrets", "-n", NODES, "-o", "name").text.split(),
        }

    def waiting(self) -> dict[str, dict[str, Any]]:
        """The slots that wait for any branch: name -> pod."""
        free = "dbranch.io/slot,!dbranch.io/branch-uid"
        listed = self.kubectl("get", "pods", "-n", NODES, "-l", free, "-o", "json")
        return {pod["metadata"]["name"]: pod for pod in json.loads(listed.out)["items"]}


class Namespace:
    """A users' namespace, with a pod `client` that holds psql (on the node `client_node`, where it is given)."""

    def __init__(self, cluster: Cluster, name: str, client_node: str | None = None) -> None:
        self.cluster, self.name, self.client_node = cluster, name, client_node

    def make(self, **labels: str) -> None:
        self.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name, "labels": labels}}
        )
        # No pod is admitted before the controller manager has made the namespace's service account.
        self.kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=60s")
        self.apply(client_pod(self.client_node))
        self.kubectl("wait", "--for=condition=Ready", "pod/client", "--timeout=120s")

    def remove(self) -> None:
        """Its projects first: the namespace's own controller looks again only every eight seconds or so."""
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

    def condition(self, kind: str, name: str, of: str) -> dict[str, str]:
        """A condition of an object, empty where it has none (yet)."""
        conditions = self.get(kind, name).get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == of), {})

    def wait_reason(self, kind: str, name: str, of: str, reason: str, timeout: float = 60) -> dict[str, str]:
        """The condition once it carries the reason."""
        found: dict[str, str] = {}

        def check() -> bool:
            nonlocal found
            found = self.condition(kind, name, of)
            return found.get("reason") == reason

        try:
            eventually(f"{kind} {name}: {of} {reason}", check, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {found}") from None
        return found

    def wait_ready(self, kind: str, name: str, timeout: int = 120) -> None:
        outcome = self.kubectl(
            "wait", "--for=condition=Ready", f"{kind}/{name}", f"--timeout={timeout}s", check=False
        )
        if outcome.code:
            raise AssertionError(f"{outcome.all}\n{self.kubectl('describe', kind, name, check=False).all}")

    def dbranch(self, *args: str, stdin: str | None = None, check: bool = True, **env: str) -> Outcome:
        return run(
            ["dbranch", "--namespace", self.name, *args],
            stdin=stdin,
            check=check,
            env={**os.environ, "DBRANCH_CONFIG": f"/tmp/dbranch-{self.name}.yaml", **env},
            cwd="/",
        )

    def psql(self, uri: str, query: str, *options: str, check: bool = True) -> Outcome:
        """psql in the client pod: one line a row, columns by `|`."""
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
        import base64

        data = self.get("secret", name)["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}


class Project:
    """A DBProject in a namespace, and its branches."""

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
        self.team.apply(self.manifest(**spec))
        self.team.wait_ready("dbproject", self.name)

    def patch(self, **spec: Any) -> None:
        """A merge patch of the project's spec by `kubectl patch`."""
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
        """A branch by `kubectl apply`, waited for until it is Ready."""
        self.team.apply(self.branch_manifest(branch, source, **spec))
        self.team.wait_ready("dbbranch", f"{self.name}-{branch}")

    def uri(self, branch: str | None = None) -> str:
        """The project's connection string, or that of a branch's own Service."""
        name = self.name if branch is None else f"{self.name}-{branch}"
        return self.team.secret(f"{name}-conn")["uri"]

    def sql(self, query: str, branch: str | None = None) -> str:
        """A query through the project's Service, or through a branch's own."""
        return reached(lambda: self.team.psql(self.uri(branch), query, check=False)).text

    def use(self, branch: str) -> None:
        self.team.dbranch("-p", self.name, "use", branch)


def reached(attempt: Callable[[], Outcome], timeout: float = 30) -> Outcome:
    """The outcome of a psql call once it is no connection failure.

    A Service takes kube-proxy up to two seconds to program (the DNS name its cache as long); a
    connection that was never made may be tried again without asking anything twice.
    """
    outcome = Outcome(2, "", "not tried")

    def check() -> bool:
        nonlocal outcome
        outcome = attempt()
        never_made = outcome.code == 2 and any(
            word in outcome.err
            for word in (
                "Connection refused",
                "could not translate host name",
                "No route to host",
                "timeout expired",
            )
        )
        return not never_made

    eventually("the server is reached", check, timeout)
    assert outcome.code == 0, outcome.all
    return outcome


def client_pod(node: str | None = None) -> dict[str, Any]:
    """A pod that waits with psql at hand, allowed under PSA `restricted`."""
    where = {"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "client"},
        "spec": {
            **where,
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
