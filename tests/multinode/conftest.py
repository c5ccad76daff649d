"""Fixtures for several nodes: a kind cluster of three that `hack/test nodes` creates and removes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.cluster import KUBECTL_TIMEOUT, NODES, Cluster, Namespace, eventually
from tests.e2e.conftest import cluster, namespace_for_tests

__all__ = ["cluster"]


@pytest.fixture(scope="session")
def workers(cluster: Cluster) -> list[str]:
    """The two nodes with an agent: all but the tainted control plane. The tests only disturb the first one."""
    cluster.kubectl("rollout", "status", "-n", NODES, "daemonset/dbranch-agent", KUBECTL_TIMEOUT)
    eventually("two agents", lambda: len(cluster.agent_pods()) == 2)
    assert len(cluster.nodes()) == 3
    return sorted(cluster.agent_pods().values())


@pytest.fixture(scope="session")
def team(cluster: Cluster, workers: list[str]) -> Iterator[Namespace]:
    """A user namespace whose client pod runs on the node that the tests leave alone."""
    yield from namespace_for_tests(cluster, workers[1])
