"""Helm's values, the metrics of the API server and of kubelet, and the controller's pod."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from dbranch.kube.client import Cluster, path_of
from tests.bench.counts import line_time, reads, watch_events, writes
from tests.bench.follow import Json, is_true
from tests.bench.stage import NODES

RELEASE, NAMESPACE = "dbranch", "dbranch-system"
# hack/bench names the chart of the release that it measures.
CHART = os.environ.get("DBRANCH_BENCH_CHART", "helm/dbranch")
_COMPONENT = "app.kubernetes.io/component"


def _run(*argv: str, timeout: float = 300) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def agent_values(**counts: int) -> Iterator[None]:
    """Set values below `agent` of the release; restore the previous ones at the end.

    Values that the release's chart does not have are left out: its schema would refuse them.
    """
    values = _agent_values()
    before = {name: values[name] for name in counts if name in values}
    try:
        _set_agent_values({name: counts[name] for name in before})
        yield
    finally:
        _set_agent_values(before)


def has_agent_value(name: str) -> bool:
    """True if the release's chart has this value below `agent`."""
    return name in _agent_values()


def _agent_values() -> Json:
    values = json.loads(_run("helm", "get", "values", RELEASE, "-n", NAMESPACE, "--all", "-o", "json"))
    found: Json = values["agent"]
    return found


def _set_agent_values(counts: Mapping[str, int]) -> None:
    _run(
        *(
            "helm",
            "upgrade",
            RELEASE,
            CHART,
            "-n",
            NAMESPACE,
            "--reset-then-reuse-values",
            "--wait",
            "--timeout",
            "3m",
        ),
        *(option for name, count in counts.items() for option in ("--set", f"agent.{name}={count}")),
    )
    # While an old agent terminates slowly, `helm --wait` already counts the DaemonSet as up.
    _run("kubectl", "-n", NODES, "rollout", "status", "daemonset/dbranch-agent", "--timeout=180s")


@dataclass(frozen=True)
class Memory:
    """Memory of a pod by kubelet, in megabytes (10^6 bytes): its working set, and its anonymous (resident) memory."""

    working: float
    resident: float


@dataclass(frozen=True)
class ClusterProbe:
    """Access to the cluster's metrics and to dbranch's own pods."""

    cluster: Cluster

    def write_requests(self) -> Counter[str]:
        """Return the counts of write requests that the API server has served so far, by resource."""
        return writes(_run("kubectl", "get", "--raw", "/metrics"))

    def counts(self) -> dict[str, Counter[str]]:
        """Return the counts of writes, reads and watch events so far, each by resource."""
        metrics = _run("kubectl", "get", "--raw", "/metrics")
        return {"writes": writes(metrics), "reads": reads(metrics), "watch events": watch_events(metrics)}

    def pod(self, component: str) -> Json:
        """Return the Ready pod of a role that has one pod in a one-node cluster; raise AssertionError without one."""
        namespace = NODES if component == "agent" else NAMESPACE
        labels = f"app.kubernetes.io/name=dbranch,{_COMPONENT}={component}"
        pods = self.cluster.find(path_of("v1", "pods", namespace), labels)
        ready = [pod for pod in pods if is_true(pod) and not pod["metadata"].get("deletionTimestamp")]
        assert ready, f"no {component} is Ready"
        return ready[0]

    def memory(self, component: str) -> Memory:
        """Return the memory of a role's pod."""
        pod = self.pod(component)
        reference = {"name": pod["metadata"]["name"], "namespace": pod["metadata"]["namespace"]}
        for stats in self._kubelet_summary(pod["spec"]["nodeName"])["pods"]:
            if reference.items() <= stats["podRef"].items():
                memories = [container["memory"] for container in stats["containers"]]
                working = sum(memory["workingSetBytes"] for memory in memories)
                return Memory(working / 1e6, sum(memory["rssBytes"] for memory in memories) / 1e6)
        raise AssertionError(f"kubelet reports no pod {reference}")

    def free_bytes(self, node: str) -> int:
        """Return the free bytes of the disk that holds the node's directories."""
        return int(self._kubelet_summary(node)["node"]["fs"]["availableBytes"])

    def remaining_pod_capacity(self, node: str) -> int:
        """Return how many more pods kubelet would admit."""
        body = self.cluster.get(path_of("v1", "nodes", name=node)) or {}
        pods = self.cluster.find("/api/v1/pods", fields=f"spec.nodeName={node}")
        return int(body["status"]["allocatable"]["pods"]) - len(pods)

    def _kubelet_summary(self, node: str) -> Json:
        answer = self.cluster.get(path_of("v1", "nodes", name=node, sub="proxy/stats/summary"))
        assert answer, f"no node {node}"
        return answer

    def restart_controller(self, text: str, timeout: float = 120) -> tuple[float, str]:
        """Delete the controller's pod and wait for a line with `text` in its replacement's log.

        Return the seconds from the deletion to that line, and the line.
        """
        old = self.pod("controller")["metadata"]
        # The log's times are comparable: the nodes of the cluster share this machine's clock.
        began = time.time()
        self.cluster.delete(path_of("v1", "pods", NAMESPACE, old["name"]))
        while time.time() - began < timeout:
            time.sleep(1)
            try:
                name = self.pod("controller")["metadata"]["name"]
            except AssertionError:
                continue
            logged = line_time(_run("kubectl", "-n", NAMESPACE, "logs", name), text)
            if name != old["name"] and logged:
                return logged[0] - began, logged[1]
        raise AssertionError(f"the controller did not log within {timeout:g} s: {text}")
