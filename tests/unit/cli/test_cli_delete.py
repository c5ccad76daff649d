"""`dbranch delete` right after a switch: the deletion policy may still see the project as it was before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from dbranch.api.errors import ApiError
from dbranch_cli import deletion
from dbranch_cli.invocation import Invocation

ACTIVE = (
    "ValidatingAdmissionPolicy 'dbranch-branch-deletion' with binding 'dbranch-branch-deletion' denied request: "
    "branch x is the active branch of project shop; it cannot be deleted"
)
ROOT = "ValidatingAdmissionPolicy 'p' denied request: branch x is the root branch of project shop"


class FakeStore:
    """A project `shop` with the branch `x`, whose deletion is refused `refusals` times."""

    def __init__(self, desired: str, route: str, refusals: int, message: str) -> None:
        self.refusals, self.message, self.attempts = refusals, message, 0
        self.project = {"metadata": {"name": "shop"}, "spec": {"activeBranch": desired}, "status": {"route": {"branch": route}}}

    def find_branch(self, project: str, branch: str) -> dict[str, Any]:
        return {"kind": "DBBranch", "metadata": {"name": f"{project}-{branch}"}, "spec": {"project": project}}

    def find(self, plural: str, name: str) -> dict[str, Any]:
        return self.project

    def delete(self, live: object) -> None:
        self.attempts += 1
        if self.attempts <= self.refusals:
            raise ApiError(422, "Invalid", self.message)


Delete = Callable[[FakeStore], BaseException | None]


@pytest.fixture
def delete(monkeypatch: pytest.MonkeyPatch) -> Delete:
    monkeypatch.setattr(deletion, "_POLICY_LAG_SECONDS", 0.3)
    monkeypatch.setattr(deletion, "_POLICY_RETRY_SECONDS", 0.01)

    def run(store: FakeStore) -> BaseException | None:
        invocation = Invocation(project_option="shop")
        invocation.__dict__["store"] = store
        arguments = ["x", "--yes", "--no-wait"]
        return CliRunner().invoke(deletion.delete, arguments, obj=invocation).exception

    return run


def test_a_refusal_that_is_out_of_date_is_tried_again(delete: Delete) -> None:
    store = FakeStore("main", "main", 3, ACTIVE)
    assert delete(store) is None
    assert store.attempts == 4


@pytest.mark.parametrize(
    ("desired", "route", "message"),
    [("x", "main", ACTIVE), ("main", "x", ACTIVE), ("main", "main", ROOT)],
    ids=["desired", "routed", "root"],
)
def test_any_other_refusal_is_final(delete: Delete, desired: str, route: str, message: str) -> None:
    store = FakeStore(desired, route, 1, message)
    assert isinstance(delete(store), ApiError)
    assert store.attempts == 1


def test_a_refusal_that_stays_is_reported(delete: Delete) -> None:
    store = FakeStore("main", "main", 10**6, ACTIVE)
    assert isinstance(delete(store), ApiError)
    assert store.attempts > 1
