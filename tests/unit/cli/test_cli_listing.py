"""`dbranch list --watch` and the diagrams of `dbranch tree`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.fakes.api import FakeApi
from tests.fakes.http import serve_api
from tests.unit.cli.test_cli_view import FEATURE, MAIN, PR, PROJECT, branch

from dbranch.api import names
from dbranch.api.errors import ApiError
from dbranch.kube.client import path_of
from dbranch_cli import listing
from dbranch_cli.diagrams import dot_graph, mermaid_graph
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.main import cli
from dbranch_cli.objects import Body, Store
from dbranch_cli.watching import Change, follow

LOST = branch("lost", "gone", "2030-01-13T11:00:00Z")
BRANCHES = path_of(names.API_VERSION, names.BRANCHES, "team-a")


def test_a_mermaid_flowchart() -> None:
    assert mermaid_graph(PROJECT, [MAIN, FEATURE, PR, LOST]).splitlines() == [
        "flowchart LR",
        '  b0["main"]',
        '  b1["feature-x (active)"]',
        '  b2["pr-118 (Pending)"]',
        '  b3["lost"]',
        '  b4["gone (deleted)"]:::deleted',
        "  b0 --> b1",
        "  b0 --> b2",
        "  b4 --> b3",
        "  style b1 stroke-width:3px",
        "  classDef deleted stroke-dasharray:4",
    ]


def test_a_graph_in_dot() -> None:
    assert dot_graph(PROJECT, [MAIN, FEATURE, LOST]).splitlines() == [
        'digraph "shop" {',
        "  rankdir=LR",
        "  node [shape=box]",
        '  "main" [label="main"]',
        '  "feature-x" [label="feature-x (active)", style=bold]',
        '  "lost" [label="lost"]',
        '  "gone" [style=dashed]',
        '  "main" -> "feature-x"',
        '  "gone" -> "lost"',
        "}",
    ]


def versioned(body: Body, version: int, **spec: Any) -> Body:
    meta = {**body["metadata"], "uid": body["metadata"]["name"], "resourceVersion": str(version)}
    return {"apiVersion": names.API_VERSION, **body, "metadata": meta, "spec": {**body["spec"], **spec}}


def watch(monkeypatch: pytest.MonkeyPatch, changes: list[Change], *arguments: str) -> list[str]:
    """Return what `list --watch` prints of main and feature-x and these changes, which the project's end ends."""
    store = Store(None, "team-a")  # type: ignore[arg-type]
    monkeypatch.setattr(listing.Invocation, "store", store)
    monkeypatch.setattr(store, "project", lambda *_: versioned(PROJECT, 1))
    monkeypatch.setattr(store, "branches", lambda _: [versioned(MAIN, 1), versioned(FEATURE, 2)])
    end = Change(versioned(PROJECT, 9), deleted=True)

    def followed(_: Store, plural: str, *__: Any) -> Iterator[Change]:
        # One thread alone, so that the order is known.
        if plural == names.BRANCHES:
            yield from [*changes, end]

    monkeypatch.setattr(listing, "follow", followed)
    done = CliRunner().invoke(cli, ["list", "--watch", "-p", "shop", *arguments])
    assert isinstance(done.exception, Failure) and done.exception.code == ExitCode.NOT_FOUND
    return done.stdout.splitlines()


def test_a_watch_prints_a_line_for_each_change(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = [
        Change(versioned(MAIN, 1)),  # as it was
        Change(versioned(PR, 3)),
        Change(versioned(PROJECT, 4, activeBranch="main") | {"status": {"route": {"branch": "main"}}}),
        Change(versioned(PR, 5), deleted=True),
    ]
    rows = [line.split()[:4] for line in watch(monkeypatch, changes)]
    assert [row for row in rows if "pr-118" in row] == [
        ["pr-118", "main", "Pending", "-"],
        ["pr-118", "main", "Deleted", "-"],
    ]
    assert [row[0] for row in rows] == ["ACTIVE", "main", "*", "pr-118", "*", "feature-x", "pr-118"]


def test_a_watch_for_programs_prints_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(watch(monkeypatch, [Change(versioned(PR, 3))], "-o", "json"))
    listed, position = json.JSONDecoder().raw_decode(text)
    changed = json.loads(text[position:])
    assert [item["metadata"]["name"] for item in listed["items"]] == ["shop-main", "shop-feature-x"]
    assert changed["metadata"]["name"] == "shop-pr-118"


def test_what_a_follower_yields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = FakeApi()
    server = serve_api(api, tmp_path / "kubeconfig")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    try:
        api.put(BRANCHES, {k: v for k, v in MAIN.items() if k != "status"})
        store = listing.Invocation(namespace_option="team-a").store
        gone = {"kind": "DBBranch", "metadata": {"name": "shop-old", "uid": "old"}}
        changes = follow(store, names.BRANCHES, {}, existing=[gone])
        assert next(changes) == Change(gone, deleted=True)
        assert next(changes).body["metadata"]["name"] == "shop-main"
        api.put(BRANCHES, {k: v for k, v in FEATURE.items() if k != "status"})
        assert next(changes).body["metadata"]["name"] == "shop-feature-x"
        api.delete(f"{BRANCHES}/shop-main")
        last = next(changes)
        assert last.deleted and last.body["metadata"]["name"] == "shop-main"
    finally:
        server.shutdown()


def test_a_follower_gives_up_where_it_may_not_read() -> None:
    class Refusing:
        def get(self, *_: Any, **__: Any) -> Any:
            raise ApiError(403, "Forbidden", "no")

    with pytest.raises(ApiError):
        next(follow(Store(Refusing(), "team-a"), names.BRANCHES, {}))  # type: ignore[arg-type]
