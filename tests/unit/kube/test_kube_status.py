"""Writes of a status: each names the object that it is meant for."""

from __future__ import annotations

from typing import Any, cast

from dbranch.api.branch import Branch
from dbranch.api.project import Project
from dbranch.kube.client import Cluster
from dbranch.kube.status import patch_status


class FakeCluster:
    """An API server that returns each merge patch with its path."""

    def merge(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return {"path": path, **body}


CLUSTER = cast(Cluster, FakeCluster())
GROUP = "/apis/dbranch.io/v1alpha1/namespaces/team"


def test_a_status_is_written_by_uid() -> None:
    assert patch_status(CLUSTER, Branch("team", "shop-main", "b", "shop"), {"active": True}) == {
        "path": f"{GROUP}/dbbranches/shop-main/status",
        "metadata": {"uid": "b"},
        "status": {"active": True},
    }


def test_a_status_may_be_written_to_the_version_that_was_read() -> None:
    assert patch_status(CLUSTER, Project("team", "shop", "p"), {"host": None}, "17") == {
        "path": f"{GROUP}/dbprojects/shop/status",
        "metadata": {"resourceVersion": "17"},
        "status": {"host": None},
    }
