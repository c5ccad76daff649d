"""Who looks for what was deleted reads how to have it back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.factories import Json, snapshot
from tests.unit.cli.store import FakeStore
from tests.unit.cli.test_cli_undelete_project import deleted, record

from dbranch.api import names
from dbranch.api.conditions import Reason
from dbranch.api.errors import ApiError
from dbranch_cli.failure import Failure

DELETION = {"reason": "Deletion", "branchUID": "x-uid"}


def message_of(search: Callable[[], object]) -> str:
    with pytest.raises(Failure) as caught:
        search()
    return str(caught.value)


def test_who_looks_for_a_deleted_project_reads_how_to_have_it_back() -> None:
    store = deleted(record())
    for search in (lambda: store.project("shop"), lambda: store.branch("shop", "x")):
        message = message_of(search)
        assert message.startswith("project shop not found in namespace team; it was deleted ")
        assert message.endswith(" ago; 'dbranch undelete-project shop' brings it back")
    for other in (deleted(), deleted(record(Reason.SNAPSHOT_LOST))):
        assert "undelete" not in message_of(lambda store=other: store.project("shop"))  # type: ignore[misc]


def test_who_may_not_see_records_reads_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    store = deleted(record())
    lists = store._list

    def refuse(plural: str, **params: str) -> list[Json]:
        if plural == names.SNAPSHOTS:
            raise ApiError(403, "Forbidden", "may not list dbsnapshots")
        return lists(plural, **params)

    monkeypatch.setattr(store, "_list", refuse)
    expected = "project shop not found in namespace team; create it with 'dbranch init shop'"
    assert message_of(lambda: store.project("shop")) == expected


def test_who_looks_for_a_deleted_branch_reads_how_to_have_it_back() -> None:
    store = FakeStore(snapshot("x-deleted-k3v7q", "x", origin=DELETION), snapshot("of-y", "y"))
    message = message_of(lambda: store.branch("shop", "x"))
    assert message.startswith("branch x not found in project shop; it was deleted ")
    assert message.endswith(" ago; 'dbranch undelete x' brings it back")
    assert (
        message_of(lambda: store.branch("shop", "y")) == "branch y not found in project shop; available: main"
    )
