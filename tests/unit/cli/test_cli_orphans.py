"""`dbranch orphan` against the fake API server; the agent is the test."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.fakes.api import FakeApi
from tests.fakes.http import serve_api

from dbranch.api import names
from dbranch.api.orphans import Orphan, OrphanKind, parse_published, render_published
from dbranch.kube.client import path_of
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.main import cli

PODS = path_of("v1", "pods", "dbranch-nodes")
POOL, BRANCH, OTHER = (f"{n}0000000-0000-4000-8000-000000000000" for n in (1, 2, 3))
ORPHANS = (
    Orphan(OrphanKind.POOL, POOL, POOL, "team", "shop", size="1Gi", why="it was retained"),
    Orphan(OrphanKind.BRANCH, BRANCH, OTHER, "team", "next", "pr-7", "2Mi", "its DBBranch is gone"),
)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    api = FakeApi()
    server = serve_api(api, tmp_path / "kubeconfig")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("DBRANCH_CONFIG", str(tmp_path / "config.yaml"))
    annotations = {names.AGENT_ORPHANS: render_published(ORPHANS, {})}
    labels = names.labels(names.COMPONENT_AGENT, "dbranch")
    for name, extra in (("agent-a", annotations), ("agent-b", {})):
        meta = {"name": name, "namespace": "dbranch-nodes", "labels": labels, "annotations": extra}
        api.put(PODS, {"kind": "Pod", "metadata": meta, "spec": {"nodeName": f"n-{name}"}})
    yield api
    server.shutdown()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["orphan", *arguments])


def serving(api: FakeApi, key: str, refused: dict[str, str]) -> threading.Thread:
    """Return a running agent that serves one request."""

    def serve() -> None:
        deadline = time.monotonic() + 20
        while key not in (api.get(f"{PODS}/agent-a") or {})["metadata"]["annotations"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        left = render_published(ORPHANS, refused)
        api.merge(f"{PODS}/agent-a", {"metadata": {"annotations": {key: None, names.AGENT_ORPHANS: left}}})

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_the_list_says_what_where_and_why(api: FakeApi) -> None:
    lines = run("list").output.splitlines()
    assert lines[0].split() == ["KIND", "UID", "NAMESPACE", "PROJECT", "BRANCH", "SIZE", "NODE", "WHY"]
    assert lines[1].split() == [
        "pool",
        POOL,
        "team",
        "shop",
        "-",
        "1Gi",
        "n-agent-a",
        "it",
        "was",
        "retained",
    ]
    assert lines[2].startswith(f"branch  {BRANCH}  team       next     pr-7    2Mi")
    assert OTHER in run("list", "-o", "wide").output
    items = json.loads(run("list", "-o", "json").output)["items"]
    assert [(item["metadata"]["name"], item["node"]) for item in items] == [
        (POOL, "n-agent-a"),
        (BRANCH, "n-agent-a"),
    ]
    assert run("list", "-o", "name").output.split() == [POOL, BRANCH]
    api.merge(f"{PODS}/agent-a", {"metadata": {"annotations": {names.AGENT_ORPHANS: None}}})
    assert "no orphans" in run("list").output


def test_an_orphan_is_deleted_by_a_request_that_its_agent_serves(api: FakeApi) -> None:
    key = f"{names.ORPHAN_DELETE_PREFIX}{POOL}"
    agent = serving(api, key, {})
    result = run("delete", POOL, "--yes")
    agent.join()
    assert (
        result.exit_code == 0
        and result.output.strip() == f"pool {POOL} of team/shop on node n-agent-a deleted"
    )


def test_what_the_agent_refuses_is_reported(api: FakeApi) -> None:
    agent = serving(api, f"{names.ORPHAN_ALLOW_PREFIX}{POOL}", {POOL: "namespace x does not exist"})
    result = run("allow", POOL, "x")
    agent.join()
    assert isinstance(result.exception, Failure) and result.exception.code == ExitCode.REFUSED
    assert str(result.exception) == "namespace x does not exist"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("delete", POOL), ExitCode.USAGE),
        (("delete", OTHER, "--yes"), ExitCode.NOT_FOUND),
        (("delete", POOL, "--yes", "--timeout", "0s"), ExitCode.TIMED_OUT),
    ],
    ids=["unconfirmed", "unknown", "unserved"],
)
def test_failures(api: FakeApi, arguments: tuple[str, ...], code: ExitCode) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, Failure) and result.exception.code == code
    asked = bool(code == ExitCode.TIMED_OUT)
    annotations = (api.get(f"{PODS}/agent-a") or {})["metadata"]["annotations"]
    assert any(key.startswith(names.ORPHAN_DELETE_PREFIX) for key in annotations) is asked


def test_the_annotation_is_bounded_and_tolerates_other_releases() -> None:
    many = [Orphan(OrphanKind.POOL, f"{n}", f"{n}") for n in range(250)]
    published = parse_published(render_published(many, {}))
    assert len(published.orphans) == 200 and published.omitted == 50
    of_newer_release = json.dumps(
        {"items": [{"kind": "archive", "uid": "a", "pool": "b"}, {"kind": "pool", "uid": "c", "pool": "c"}]}
    )
    assert [orphan.uid for orphan in parse_published(of_newer_release).orphans] == ["c"]
    check: Callable[[str | None], object] = parse_published
    assert all(check(text) == parse_published("") for text in (None, "[]", "{", "null"))
