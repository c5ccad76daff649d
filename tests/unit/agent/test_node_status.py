"""Writes of status.node: one request when it says something else, none otherwise."""

from __future__ import annotations

from typing import Any, cast

from tests.fakes.api import FakeApi

from dbranch.agent.node_status import patch_node
from dbranch.agent.status import size_fields
from dbranch.api import names
from dbranch.api.branch import parse_branch
from dbranch.kube.client import Cluster, branch_path, path_of

BRANCHES = path_of(names.API_VERSION, names.BRANCHES, "team")


def test_status_node_is_written_only_when_it_says_something_else() -> None:
    api = FakeApi()
    api.create(
        BRANCHES, {"metadata": {"name": "shop-main", "namespace": "team"}, "spec": {"project": "shop"}}
    )

    def written(node: dict[str, Any]) -> dict[str, Any] | None:
        """Return status.node behind the write; None if there was none."""
        branch = parse_branch(api.get(branch_path("team", "shop-main")) or {})
        del api.requests[:]
        patch_node(cast(Cluster, api), branch, node)
        if not api.requests:
            return None
        return dict((api.get(branch_path("team", "shop-main")) or {})["status"]["node"])

    sizes = size_fields("unique", 10_000_000)
    assert written({"port": 5432, "blocked": None} | sizes) == {"port": 5432} | sizes
    assert written({"port": 5432, "blocked": None} | size_fields("unique", 10_000_100)) is None
    assert written({"port": None}) == sizes
    assert written({"port": None}) is None
