"""The release and the node under a stage, seen from outside: Helm's values, kubelet's figures, the controller."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dbranch.kube.client import Cluster, path_of
from tests.bench.counts import line_time, writes
from tests.bench.follow import Json, is_true
from tests.bench.stage import NODES

RELEASE, NAMESPACE, CHART = "dbranch", "dbranch-system", "helm/dbranch"
_COMPONENT = "app.kubernetes.io/component"


def _run(*argv: str, timeout: float = 300) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def warm_slots(count: int) -> Iterator[None]:
    """The release with so many waiting slots for each class; as before at the end."""
    values = json.loads(_run("helm", "get", "values", RELEASE, "-n", NAMESPACE, "--all", "-o", "json"))
    before = values["agent"]["warmSlots"]
    try:
        _set_slots(count)
        yield
    finally:
        _set_slots(before)


def _set_slots(count: int) -> None:
    _run(
        *("helm", "upgrade", RELEASE, CHART, "-n", NAMESPACE, "--reuse-values", "--wait", "--timeout", "3m"),
        *("--set", f"agent.warmSlots={count}"),
    )
    # Where an agent ends slowly the old one still counts as there.
    _run("kubectl", "-n", NODES, "rollout", "status", "daemonset/dbranch-agent", "--timeout=180s")


@dataclass(frozen=True)
class Memory:
    """Megabytes (10^6 bytes) of a pod by kubelet: its working set, and what of it is no file's page."""

    working: float
    resident: float


@dataclass(frozen=True)
class House:
    """The cluster as its metrics tell it."""

    cluster: Cluster

    def writes(self) -> Counter[str]:
        """Writing requests that the API server has had so far."""
        return writes(_run("kubectl", "get", "--raw", "/metrics"))

    def pod(self, component: str) -> Json:
        """The pod of a role that is there once in a cluster of one node; AssertionError where it is not Ready."""
        namespace = NODES if component == "agent" else NAMESPACE
        labels = f"app.kubernetes.io/name=dbranch,{_COMPONENT}={component}"
        found = self.cluster.find(path_of("v1", "pods", namespace), labels)
        ready = [pod for pod in found if is_true(pod) and not pod["metadata"].get("deletionTimestamp")]
        assert ready, f"no {component} is Ready"
        return ready[0]

    def memory(self, component: str) -> Memory:
        pod = self.pod(component)
        here = {"name": pod["metadata"]["name"], "namespace": pod["metadata"]["namespace"]}
        for told in self._kubelet(pod["spec"]["nodeName"])["pods"]:
            if here.items() <= told["podRef"].items():
                words = [container["memory"] for container in told["containers"]]
                working = sum(word["workingSetBytes"] for word in words)
                return Memory(working / 1e6, sum(word["rssBytes"] for word in words) / 1e6)
        raise AssertionError(f"kubelet tells nothing of {here}")

    def free_bytes(self, node: str) -> int:
        """Of the disk that the node's directories are on."""
        return int(self._kubelet(node)["node"]["fs"]["availableBytes"])

    def room(self, node: str) -> int:
        """How many more pods kubelet admits."""
        body = self.cluster.get(path_of("v1", "nodes", name=node)) or {}
        pods = self.cluster.find("/api/v1/pods", fields=f"spec.nodeName={node}")
        return int(body["status"]["allocatable"]["pods"]) - len(pods)

    def _kubelet(self, node: str) -> Json:
        answer = self.cluster.get(path_of("v1", "nodes", name=node, sub="proxy/stats/summary"))
        assert answer, f"no node {node}"
        return answer

    def restart_controller(self, line: str, timeout: float = 120) -> tuple[float, str]:
        """Deletes the controller's pod: seconds from there to a `line` in the next one's log, and the line."""
        old = self.pod("controller")["metadata"]
        # Its log has the time of this machine, which all nodes of the cluster share.
        began = time.time()
        self.cluster.delete(path_of("v1", "pods", NAMESPACE, old["name"]))
        while time.time() - began < timeout:
            time.sleep(1)
            try:
                name = self.pod("controller")["metadata"]["name"]
            except AssertionError:
                continue
            found = line_time(_run("kubectl", "-n", NAMESPACE, "logs", name), line)
            if name != old["name"] and found:
                return found[0] - began, found[1]
        raise AssertionError(f"the controller did not say in {timeout:g} s: {line}")
