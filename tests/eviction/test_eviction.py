"""A node whose kubelet and base directory are on one disk of 4 GiB, with kubelet's own thresholds of eviction."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.cluster import (
    KUBECTL_TIMEOUT,
    NODES,
    SYSTEM,
    TIMEOUT_SECONDS,
    Cluster,
    Namespace,
    Project,
    client_pod,
    eventually,
)
from tests.e2e.conftest import make_item

MIB = 2**20


def free_bytes(cluster: Cluster) -> int:
    return int(cluster.on_node("df --output=avail -B1 /var/lib/dbranch | tail -n 1"))


def disk_pressure(cluster: Cluster) -> bool:
    path = "jsonpath={.items[0].status.conditions[?(@.type=='DiskPressure')].status}"
    return cluster.kubectl("get", "nodes", "-o", path).text == "True"


def own_pods(cluster: Cluster) -> set[str]:
    """Return the UIDs of the pods of controller and agent that are not terminating or terminated."""
    uids = set()
    for namespace, component in ((SYSTEM, "controller"), (NODES, "agent")):
        label = f"app.kubernetes.io/component={component}"
        listed = cluster.kubectl("get", "pods", "-n", namespace, "-l", label, "-o", "json")
        for pod in json.loads(listed.out)["items"]:
            if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]:
                uids.add(pod["metadata"]["uid"])
    return uids


@pytest.fixture
def pressing_file(cluster: Cluster) -> Iterator[str]:
    """A file of somebody else's on the disk."""
    file = "/var/lib/kubelet/pressing"
    yield file
    cluster.on_node(f"rm -f {file}")


def test_a_tenant_who_fills_the_disk_harms_only_himself(
    cluster: Cluster, team: Namespace, pressing_file: str
) -> None:
    quiet, noisy = Project(team, "quiet"), Project(team, "noisy")
    quiet.make()
    make_item(quiet)
    noisy.make(storage={"size": "8Gi"})
    noisy.branch("hungry")
    others = (quiet.pod_uids(), noisy.pod_uids()["main"], own_pods(cluster))
    assert len(others[2]) == 2
    logs = cluster.kubectl("logs", "-n", NODES, "-l", "app.kubernetes.io/component=agent", "--tail=-1").out
    assert "kubelet evicts below 10.0 % or 0 bytes free" in logs

    # What writes already goes on when transactions become read-only: it is braked first, then stopped.
    write = "dd if=/dev/urandom of=fill-$n bs=1M count=20 conv=fsync status=none"
    program = f"for n in $(seq 400); do {write}; sleep 0.2; done"
    uri = noisy.uri("hungry")
    writer = subprocess.Popen(
        [
            *("kubectl", "-n", team.name, "exec", "client", "--"),
            *("psql", uri, "-Xc", f"copy (select 1) to program '{program}'"),
        ],
        stdin=subprocess.DEVNULL,
    )
    team.wait_reason("dbbranch", "noisy-hungry", "PostgresReady", "WriterStopped", 480)
    assert writer.wait(TIMEOUT_SECONDS) != 0
    assert "WritesBraked" in team.kubectl("get", "events").out
    eventually("its pod is gone", lambda: "hungry" not in noisy.pod_uids())
    assert not disk_pressure(cluster)
    assert (quiet.pod_uids(), noisy.pod_uids()["main"], own_pods(cluster)) == others
    assert quiet.sql("select name from item where id = 1") == "first"
    team.apply(quiet.branch_manifest("refused"))
    team.wait_reason("dbbranch", "quiet-refused", "StorageReady", "NodeDiskLow")

    # Something else takes what is left above kubelet's threshold, and more: kubelet evicts pods, one after the other.
    cluster.on_node(f"fallocate -l {free_bytes(cluster) - 200 * MIB} {pressing_file}")
    eventually("kubelet reports the pressure", lambda: disk_pressure(cluster))
    # The branch that took the room is deleted, as a user would, and nothing else is done.
    noisy.discard("hungry")
    team.await_deleted("dbbranch", "noisy-hungry")
    eventually("the deletion has made room", lambda: free_bytes(cluster) > 1024 * MIB)
    eventually("kubelet reports no pressure", lambda: not disk_pressure(cluster))
    assert own_pods(cluster) == others[2]
    team.wait_ready("dbproject", "quiet", "noisy")
    quiet.wait_ready("refused")
    team.kubectl("delete", "pod", "client", "--ignore-not-found")
    team.apply(client_pod(team.name))
    team.kubectl("wait", "--for=condition=Ready", "pod/client", KUBECTL_TIMEOUT)
    assert quiet.sql("select name from item where id = 1") == "first"
    assert quiet.sql("select name from item where id = 1", "refused") == "first"
