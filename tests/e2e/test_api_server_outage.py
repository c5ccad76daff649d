"""While the API server is down, databases, sessions and routes keep working; afterwards the state converges."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.cluster import Cluster, Project, eventually
from tests.e2e.test_survival import assert_all_data_present, kept, pods_of  # noqa: F401

pytestmark = pytest.mark.calm

# Open one session after another, each with a write of its own; log the outcome of each to /tmp/ticks.
_TICKS = """
rm -f /tmp/stop; n=0
while [ ! -e /tmp/stop ]; do
  n=$((n + 1))
  if psql "$1" -XAtq -c "insert into tick values ($n)"; then echo "ok $n"; else echo "failed $n"; fi
  sleep 0.2
done >/tmp/ticks 2>&1
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
        eventually("the API server is down", lambda: not answers(cluster), 90)
        yield
    finally:
        cluster.on_node(f"mv {aside} {manifests}", node)
        eventually("the API server is up again", lambda: answers(cluster), 180)


def answers(cluster: Cluster) -> bool:
    """True if the API server reports that it is ready."""
    return cluster.kubectl("get", "--raw=/readyz", "--request-timeout=2s", check=False).code == 0


def in_background(project: Project, script: str) -> None:
    """Start a script in the client pod, with the project's connection string as its argument."""
    start = f"nohup sh -c '{script}' sh \"$1\" >/dev/null 2>&1 &"
    project.team.kubectl("exec", "client", "--", "sh", "-c", start, "sh", project.uri())


def test_databases_and_routes_survive_an_outage_of_the_api_server(
    kept: Project,  # noqa: F811
    request: pytest.FixtureRequest,
) -> None:
    team, cluster = kept.team, kept.team.cluster
    kept.sql("create table tick (n int)")
    before = pods_of(kept)
    in_background(kept, _HELD)
    in_background(kept, _TICKS)
    team.apply(kept.branch_manifest("cut-off"))
    with api_server_down(cluster):
        time.sleep(120 if request.config.getoption("--soak") else 20)
    eventually("the API server lists nodes", lambda: cluster.kubectl("get", "nodes", check=False).code == 0)
    team.kubectl("exec", "client", "--", "touch", "/tmp/stop")
    held = eventually(
        "the held session has answered",
        lambda: team.kubectl("exec", "client", "--", "cat", "/tmp/held", check=False).text,
    )
    ticks = team.kubectl("exec", "client", "--", "cat", "/tmp/ticks").text.splitlines()
    assert held == "7"
    assert len(ticks) > 50 and all(line.startswith("ok ") for line in ticks), ticks
    assert kept.sql("select count(*) from tick") == str(len(ticks))
    assert_all_data_present(kept)
    team.wait_ready("dbbranch", "shop-cut-off")
    after = pods_of(kept)
    assert {branch: after[branch] for branch in before} == before
    kept.branch("afterwards")
    kept.use("afterwards")
    assert kept.sql("select count(*) from tick") == str(len(ticks))
    kept.use("main")
