"""Writes of a status: each reaches the object that it is meant for, and no other of the same name."""

from __future__ import annotations

from typing import Any, cast

import pytest
from tests.fakes.api import FakeApi

from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.errors import ApiError
from dbranch.kube.client import Cluster, branch_path, path_of
from dbranch.kube.status import patch_status

BRANCHES = path_of(names.API_VERSION, names.BRANCHES, "team")
PATH = branch_path("team", "shop-main")


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


def create(api: FakeApi) -> Branch:
    meta = {"name": "shop-main", "namespace": "team"}
    return parse_branch(api.create(BRANCHES, {"metadata": meta, "spec": {"project": "shop"}}))


def patch(
    api: FakeApi, branch: Branch, changes: dict[str, Any], version: str | None = None
) -> dict[str, Any]:
    status: dict[str, Any] = patch_status(cast(Cluster, api), branch, changes, version)["status"]
    return status


def test_a_status_is_merged_with_one_request(api: FakeApi) -> None:
    branch = create(api)
    del api.requests[:]
    assert patch(api, branch, {"active": True}) == {"active": True}
    assert [str(request) for request in api.requests] == ["merge dbbranches/shop-main/status"]


def test_what_others_wrote_meanwhile_stays(api: FakeApi) -> None:
    branch = create(api)
    api.merge(f"{PATH}/status", {"status": {"phase": "Pending", "active": False}})
    assert patch(api, branch, {"active": True}) == {"phase": "Pending", "active": True}
    assert patch(api, branch, {"phase": None}) == {"active": True}


def test_an_object_made_again_under_the_name_is_not_written(api: FakeApi) -> None:
    branch = create(api)
    api.delete(PATH)
    create(api)
    with pytest.raises(ApiError) as refused:
        patch(api, branch, {"active": True})
    assert refused.value.status == 409
    body = api.get(PATH)
    assert body and "status" not in body


def test_an_object_that_is_gone_is_not_found(api: FakeApi) -> None:
    branch = create(api)
    api.delete(PATH)
    with pytest.raises(ApiError) as refused:
        patch(api, branch, {"active": True})
    assert refused.value.status == 404


def test_an_object_that_is_written_all_the_time_is_given_up_with_a_conflict(api: FakeApi) -> None:
    branch = create(api)
    counter = iter(range(1000))
    api.before(
        "merge",
        r".*/shop-main/status",
        lambda: api.merge(PATH, {"metadata": {"annotations": {"n": str(next(counter))}}}),
        times=100,
    )
    with pytest.raises(ApiError) as refused:
        patch(api, branch, {"active": True})
    assert refused.value.status == 409


def test_a_status_may_be_written_to_the_version_that_was_read(api: FakeApi) -> None:
    branch = create(api)
    api.merge(f"{PATH}/status", {"status": {"phase": "Pending"}})
    with pytest.raises(ApiError) as refused:
        patch(api, branch, {"active": True}, branch.resource_version)
    assert refused.value.status == 409
