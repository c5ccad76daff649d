"""`dbranch undelete-project`, and what `project delete` and `doctor` say of a deleted project."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from tests.factories import Json, branch, project
from tests.unit.cli.store import PATHS, FakeStore

from dbranch.api import names
from dbranch.api.conditions import Reason
from dbranch.api.errors import ApiError
from dbranch.api.orphans import Orphan, OrphanKind
from dbranch_cli import projects, undelete_project
from dbranch_cli.diagnosis import Severity, diagnose_orphans
from dbranch_cli.invocation import Invocation

RECORD = names.deletion_copy_name("shop", "shop-uid")


def record(reason: Reason = Reason.AVAILABLE, message: str = "it is kept", **x_spec: Any) -> Json:
    """Return the record of project shop with the branches main and x, as the controller has it."""
    adopting = project().spec(storage={"adopt": "shop-uid"})
    objects = [
        {
            "apiVersion": body["apiVersion"],
            "kind": body["kind"],
            "metadata": {"name": body["metadata"]["name"]},
        }
        | {"spec": body["spec"]}
        for body in (adopting.body(), branch().body(), branch("x").spec(**x_spec).body())
    ]
    status = "True" if reason == Reason.AVAILABLE else "False"
    ready = {"type": "Ready", "status": status, "reason": reason.value, "message": message}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.SNAPSHOT_KIND,
        "metadata": {"name": RECORD, "namespace": "team", "uid": "r", "generation": 1},
        "spec": {
            "project": "shop",
            "branch": "main",
            "origin": {"reason": "Deletion", "projectUID": "shop-uid", "objects": objects},
        },
        "status": {"conditions": [ready], "nodeName": "n1", "observedGeneration": 1},
    }


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    def wait_for(
        store: FakeStore, live: Json, goal: Callable[[Json], bool], *args: Any, **kwargs: Any
    ) -> Json:
        return live

    monkeypatch.setattr(undelete_project, "wait_for", wait_for)
    monkeypatch.setattr(projects, "wait_deleted", lambda *args, **kwargs: None)

    def call(store: FakeStore, command: click.Command, *arguments: str) -> Result:
        invocation = Invocation(namespace_option="team")
        invocation.__dict__["store"] = store
        invocation.__dict__ |= {
            "namespace": "team",
            "kube_context": SimpleNamespace(name="here", namespace="team"),
        }
        return CliRunner().invoke(command, arguments, obj=invocation)

    return call


def deleted(*bodies: Json) -> FakeStore:
    """Return a namespace of which project shop was deleted, with these objects."""
    store = FakeStore()
    for body in store.api.find(PATHS[names.BRANCH_KIND]):
        store.api.remove_pod(f"{PATHS[names.BRANCH_KIND]}/{body['metadata']['name']}")
    store.api.remove_pod(f"{PATHS[names.PROJECT_KIND]}/shop")
    for body in bodies:
        store.put(body)
    return store


def listed(store: FakeStore) -> list[str]:
    return sorted(body["metadata"]["name"] for kind in PATHS for body in store.api.find(PATHS[kind]))


def test_all_objects_are_made_again_and_the_record_goes(run: Callable[..., Result]) -> None:
    past = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    store = deleted(record(expirationTime=past))
    done = run(store, undelete_project.undelete_project, "shop")
    assert done.exception is None and "is made again with 2 branches; Ready" in done.output
    assert listed(store) == ["shop", "shop-main", "shop-x"]
    made = store.find(names.PROJECTS, "shop")
    assert made is not None and made["spec"]["storage"]["adopt"] == "shop-uid"
    # It would have gone at once.
    x = store.find(names.BRANCHES, "shop-x")
    assert x is not None and "expirationTime" not in x["spec"]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_it_goes_on_wherever_it_was_cut_off(run: Callable[..., Result], number: int) -> None:
    store = deleted(record())
    create, count = store.create, 0

    def cut(body: Any) -> Json:
        nonlocal count
        count += 1
        if count == number:
            raise ApiError(500, "InternalError", "cut off")
        return create(body)

    store.create = cut  # type: ignore[method-assign]
    assert run(store, undelete_project.undelete_project, "shop").exception is not None
    assert RECORD in listed(store)
    # By then the pool may be adopted already, which the record says.
    assert run(store, undelete_project.undelete_project, "shop").exception is None
    assert listed(store) == ["shop", "shop-main", "shop-x"]


def test_nothing_is_made_where_the_pool_is_gone(run: Callable[..., Result]) -> None:
    store = deleted(record(Reason.SNAPSHOT_LOST, "it was removed"))
    done = run(store, undelete_project.undelete_project, "shop")
    assert "it was removed; nothing was made" in str(done.exception)
    assert listed(store) == [RECORD]


def test_a_project_of_the_name_that_git_has_made_is_left_alone(run: Callable[..., Result]) -> None:
    store = deleted(record(), project().body())
    done = run(store, undelete_project.undelete_project, "shop")
    assert "spec.storage.adopt: shop-uid" in str(done.exception)
    assert listed(store) == sorted([RECORD, "shop"])


def test_those_that_are_kept_are_listed_and_are_no_snapshots(run: Callable[..., Result]) -> None:
    store = deleted(record())
    table = run(store, projects.projects, "--deleted").output
    assert table.splitlines()[0].split() == [
        "PROJECT",
        "DELETED",
        "EXPIRES",
        "BRANCHES",
        "STATE",
        "NODE",
        "SNAPSHOT",
    ]
    assert "shop" in table and "n1" in table and RECORD in table
    assert store.snapshots("shop") == []


@pytest.mark.parametrize(
    ("keep", "has_record", "said"),
    [
        ("24h", True, "project shop deleted; it is kept for 24h: dbranch undelete-project shop"),
        # An agent of release 0.1.0, or a project that never had a database.
        ("24h", False, "project shop deleted, with all data"),
        ("0s", False, "project shop deleted, with all data"),
    ],
)
def test_the_deletion_says_what_was_done(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, keep: str, has_record: bool, said: str
) -> None:
    monkeypatch.setattr(projects, "current_project", lambda *args: None)
    store = deleted(project().spec(undo={"keep": keep}).body(), *([record()] if has_record else []))
    done = run(store, projects.delete_project, "shop", "--yes")
    assert said in done.output, done.output


def test_doctor_is_not_alarmed_by_what_is_kept() -> None:
    kept = Orphan(OrphanKind.PROJECT, "u", "u", "team", "shop", size="3Gi")
    none, shown = diagnose_orphans([kept])
    assert none.severity is Severity.OK and shown.severity is Severity.OK
    assert "team/shop (3Gi)" in shown.message
    lost = Orphan(OrphanKind.POOL, "v", "v", "team", "old", size="1Gi")
    assert [finding.severity for finding in diagnose_orphans([kept, lost])] == [Severity.WARNING, Severity.OK]
