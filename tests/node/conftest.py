"""Real btrfs on real loop devices, and a real Postgres, on this machine as root. Fails without them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.node.machine import Node
from tests.node.world import World

from dbranch.effect import pool
from dbranch.plan.layout import Layout


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
            node.end()
            with suppress(FileNotFoundError):
                (layout.base / "verifier").unlink()


@pytest.fixture
def up(node: Node) -> Node:
    """A node whose project has its pool."""
    node.up()
    return node


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--soak"))


@pytest.fixture
def world(node: Node) -> Iterator[World]:
    world = World(node)
    yield world
    world.kubelet.end()
