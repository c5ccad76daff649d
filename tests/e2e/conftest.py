"""Fixtures of the end-to-end tests: Helm installs dbranch once per run; kubectl, psql and `dbranch` use it.

Run by `hack/test e2e`, which creates the cluster, builds and loads the images and sets the
environment (KUBECONFIG, DBRANCH_POSTGRES_IMAGE, DBRANCH_SERVER_IMAGE and pytest-kind's options).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.chaos import Chaos
from tests.e2e.cluster import Cluster, Namespace, Project

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def cluster(kind_cluster: object, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The cluster that pytest-kind found or created, with dbranch installed from this checkout's chart.

    With `--chaos` its controller and its agents are deleted in turn until the tests end.
    """
    cluster = Cluster(ROOT)
    cluster.install()
    interval = request.config.getoption("--chaos")
    if not interval:
        yield cluster
        return
    with Chaos(cluster, float(interval)) as chaos:
        cluster.undisturbed = chaos.paused
        yield cluster
    assert chaos.deleted > 1, "the tests ended before two pods were deleted"


def namespace_for_tests(
    cluster: Cluster, client_node: str | None = None, **labels: str
) -> Iterator[Namespace]:
    """Yield a user namespace with a random name and these labels; delete it after the tests."""
    namespace = Namespace(cluster, f"e2e-{secrets.token_hex(3)}", client_node)
    namespace.make(**labels)
    try:
        yield namespace
    finally:
        namespace.remove()


@pytest.fixture(scope="session")
def team(cluster: Cluster) -> Iterator[Namespace]:
    """The user namespace of most tests, labelled Pod Security `restricted`, with a client pod."""
    yield from namespace_for_tests(cluster, **{"pod-security.kubernetes.io/enforce": "restricted"})


@pytest.fixture(scope="module")
def other_team(cluster: Cluster) -> Iterator[Namespace]:
    """A second user namespace, for the tests of one module."""
    yield from namespace_for_tests(cluster)


@pytest.fixture(scope="session")
def shop(team: Namespace) -> Project:
    """A Ready project `shop` whose root branch holds the table `item` with the row (1, 'first').

    All tests share it. They leave that row, `main` as the active branch and the project's spec as they are; the
    names of their branches differ.
    """
    shop = Project(team, "shop")
    shop.make()
    make_item(shop)
    return shop


@pytest.fixture(scope="session")
def kept(team: Namespace) -> Project:
    """A Ready project `kept` with branches `one` and `two`; the table `proof` of a branch holds its name."""
    kept = Project(team, "kept")
    team.apply(kept.manifest(), kept.branch_manifest("one"), kept.branch_manifest("two"))
    kept.wait_ready("one", "two")
    for branch in ("main", "one", "two"):
        kept.sql(f"create table proof as select '{branch}' as name", branch)
    team.wait_ready("dbproject", "kept")
    return kept


def make_item(project: Project) -> None:
    """Create the table `item` with the row (1, 'first') on the active branch."""
    project.sql("create table item (id int primary key, name text); insert into item values (1, 'first')")
