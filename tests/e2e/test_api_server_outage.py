"""While the API server is down, databases, sessions and routes keep working; afterwards the state converges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.cluster import Cluster, Project, eventually
from tests.e2e.test_survival import BRANCHES, assert_all_data_present

pytestmark = pytest.mark.calm

# Open one session after another, each with a write of its own; log the outcome of each to /tmp/ticks.
_TICKS = """
n=0; export PGCONNECT_TIMEOUT=60
while [ ! -e /tmp/stop ]; do
  n=$((n + 1))
  if psql "$1" -XAtq -c "insert into tick values ($n)"; then echo "ok $n"; else echo "failed $n"; fi
  sleep 0.2
done >/tmp/ticks 2>&1
touch /tmp/ticks-done
"""
# Hold one session open from before the outage until after it.
_HELD = """
{ echo "create temp table held as select 7 as n;"
  while [ ! -e /tmp/stop ]; do sleep 0.5; done
  echo "select n from held;"; } | psql "$1" -XAtq >/tmp/held 2>&1
"""


@contextmanager
def api_server_down(cluster: Cluster) -> Iterator[None]:
    """Stop the API server by moving its static pod's manifest aside; move it back at the end."""
    manifests, aside = "/etc/kubernetes/manifests/kube-apiserver.yaml", "/kind/kube-apiserver.yaml"
    node = cluster.nodes()[0]
    cluster.on_node(f"mv {manifests} {aside}", node)
    try:
        eventually("the API server is down", lambda: not answers(cluster))
        yield
    finally:
        cluster.on_node(f"mv {aside} {manifests}", node)
        eventually("the API server is up again", lambda: answers(cluster))


def answers(cluster: Cluster) -> bool:
    """True if the API server reports that it is ready."""
    return cluster.kubectl("get", "--raw=/readyz", "--request-timeout=10s", check=False).code == 0


def in_background(project: Project, script: str) -> None:
    """Start a script in the client pod, with the project's connection string as its argument."""
    start = f"nohup sh -c '{script}' sh \"$1\" >/dev/null 2>&1 &"
    project.team.kubectl("exec", "client", "--", "sh", "-c", start, "sh", project.uri())


def ticks_on_node(cluster: Cluster, node: str, pid: int) -> list[str]:
    """Return the finished lines of the client's log, read on its node: that needs no API server."""
    log = cluster.on_node(f"cat /proc/{pid}/root/tmp/ticks", node)
    return log.split("\n")[:-1]


def test_databases_and_routes_survive_an_outage_of_the_api_server(
    kept: Project, request: pytest.FixtureRequest
) -> None:
    team, cluster = kept.team, kept.team.cluster
    node = str(team.get("pod", "client")["spec"]["nodeName"])
    client_pid = cluster.processes_of(f"E2E_NAMESPACE={team.name}", node)[0]
    sessions = 400 if request.config.getoption("--soak") else 50
    team.kubectl(
        "exec", "client", "--", "rm", "-f", "/tmp/stop", "/tmp/held", "/tmp/ticks", "/tmp/ticks-done"
    )
    kept.sql("drop table if exists tick; create table tick (n int)")
    before = kept.pod_uids()
    in_background(kept, _HELD)
    in_background(kept, _TICKS)
    team.apply(kept.branch_manifest("cut-off"))
    with api_server_down(cluster):
        earlier = len(ticks_on_node(cluster, node, client_pid))
        eventually(
            f"{sessions} sessions during the outage",
            lambda: len(ticks_on_node(cluster, node, client_pid)) >= earlier + sessions,
        )
    eventually("the API server lists nodes", lambda: cluster.kubectl("get", "nodes", check=False).code == 0)
    client = ("exec", "client", "--")
    team.kubectl(*client, "touch", "/tmp/stop")
    held = eventually(
        "the held session has answered",
        lambda: team.kubectl(*client, "cat", "/tmp/held", check=False).text,
    )
    assert held == "7"
    eventually(
        "the last session has ended",
        lambda: team.kubectl(*client, "test", "-e", "/tmp/ticks-done", check=False).code == 0,
    )
    ticks = team.kubectl(*client, "cat", "/tmp/ticks").text.splitlines()
    assert len(ticks) >= sessions and all(line.startswith("ok ") for line in ticks), ticks
    assert kept.sql("select count(*) from tick") == str(len(ticks))
    assert_all_data_present(kept)
    kept.wait_ready("cut-off")
    after = kept.pod_uids()
    assert {branch: after[branch] for branch in BRANCHES} == {branch: before[branch] for branch in BRANCHES}
    # An API server that has just started may not have read its policies yet.
    eventually(
        "a branch is accepted",
        lambda: team.apply(kept.branch_manifest("afterwards"), check=False).code == 0,
    )
    kept.wait_ready("afterwards")
    kept.use("afterwards")
    assert kept.sql("select count(*) from tick") == str(len(ticks))
    kept.use("main")
    kept.discard("cut-off", "afterwards")
