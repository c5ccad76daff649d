"""Fixtures with real btrfs on real loop devices, and a real Postgres, as root. The tests fail without them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.node.machine import Node
from tests.node.proxy_backend import Backend, MakeProxy, Proxy, make_certificate, running_backend
from tests.node.restore_pool import Pool
from tests.node.restores import Restores
from tests.node.world import World

from dbranch.agent.layout import Layout
from dbranch.agent.pool import effect as pool
from dbranch.proxy.routes import Table


@pytest.fixture
def node() -> Iterator[Node]:
    assert os.geteuid() == 0, "the node tests need root"
    with tempfile.TemporaryDirectory(prefix="dbranch-node-", dir="/var/tmp") as base:
        Path(base).chmod(0o711)
        layout = Layout(Path(base).resolve())
        node = Node(layout)
        pool.ensure_base(layout)
        try:
            yield node
        finally:
            node.tear_down()


@pytest.fixture
def up(node: Node) -> Node:
    """A node whose project has its pool."""
    node.ensure_pool()
    return node


@pytest.fixture(name="pool")
def restore_pool(up: Node) -> Pool:
    """A pool whose root branch and copy `x` have data that says whose it is."""
    made = Pool.make(up)
    made.write(made.root, "main")
    made.write(made.x, "x")
    return made


@pytest.fixture
def world(node: Node) -> Iterator[World]:
    world = World(node)
    yield world
    world.kubelet.stop()


@pytest.fixture
def restores(world: World) -> Iterator[Restores]:
    with Restores(world) as restores:
        yield restores


# For the proxy.


@pytest.fixture(scope="session")
def main() -> Iterator[Backend]:
    with running_backend("main", max_connections=200) as backend:
        yield backend


@pytest.fixture(scope="session")
def feature() -> Iterator[Backend]:
    with running_backend("feature-x") as backend:
        yield backend


@pytest.fixture
def make_proxy(main: Backend, feature: Backend) -> Iterator[MakeProxy]:
    proxies: list[Proxy] = []

    def make(tls: Path | None = None, **fields: Any) -> Proxy:
        table = Table(
            "shop",
            uid="u",
            generation=1,
            active="main",
            targets={b.branch: b.target() for b in (main, feature)},
            start_timeout=10,
        )
        proxies.append(Proxy(table.__class__(**{**table.__dict__, **fields}), tls))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()
    assert [p.trouble for p in proxies] == [[] for _ in proxies]


@pytest.fixture
def proxy(make_proxy: MakeProxy) -> Proxy:
    return make_proxy()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


@pytest.fixture
def tls(tmp_path: Path) -> Path:
    make_certificate(tmp_path)
    return tmp_path
