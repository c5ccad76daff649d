"""Several nodes: a kind cluster of three that `hack/test nodes` makes and takes away again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.cluster import NODES, Cluster, Namespace, eventually
from tests.e2e.conftest import cluster, namespace_for_tests

__all__ = ["cluster"]


@pytest.fixture(scope="session")
def workers(cluster: Cluster) -> list[str]:
    """The two nodes with an agent: all but the tainted control plane. The tests leave the second one alone."""
    agents = "app.kubernetes.io/component=agent"

    def found() -> list[str]:
        listed = cluster.kubectl(
            *("get", "pods", "-n", NODES, "-l", agents, "-o", "jsonpath={.items[*].spec.nodeName}")
        )
        return sorted(listed.text.split())

    eventually("two agents", lambda: len(found()) == 2)
    assert len(cluster.nodes()) == 3
    return found()


@pytest.fixture(scope="session")
def team(cluster: Cluster, workers: list[str]) -> Iterator[Namespace]:
    """A users' namespace whose client pod is on the node that stays."""
    yield from namespace_for_tests(cluster, workers[1])
