"""The proxy's process reads its project and its branches by two watches, in any order; and beside release 0.1.0."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.node.proxy_backend import Backend, branch_of, wait_until
from tests.node.proxy_process import FakeProject, Json, ProxyProcess, connect, proxy_process, reached
from tests.node.proxy_talk import fatal_message

from dbranch.api import names

# Something that must not happen has this time to happen.
HOLDS_SECONDS = 1.0


@pytest.fixture
def running(main: Backend, feature: Backend, tmp_path: Path) -> Iterator[ProxyProcess]:
    with proxy_process([main, feature], tmp_path / "log") as running:
        yield running


def obeyed(project: FakeProject) -> list[int]:
    """Return the generations in `status.proxies` of the project."""
    return [entry["generation"] for entry in project.entries()]


@contextmanager
def held_session(running: ProxyProcess) -> Iterator[list[str]]:
    """Open a session that has to wait after the first switch, and run the block; the list gets what it reached."""
    wait_until(
        lambda: any("generation 2" in line["message"] for line in running.logged("dbranch.proxy.follow"))
    )
    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(reached(running)))
    thread.start()
    time.sleep(HOLDS_SECONDS)
    assert not results, f"it did not wait: {results}"
    yield results
    thread.join(30)
    assert not thread.is_alive()


def test_a_proxy_says_that_it_reads_the_routes_of_branches(running: ProxyProcess) -> None:
    wait_until(lambda: obeyed(running.project) == [1])
    features = [names.PROXY_FOLLOWS_BRANCHES, names.PROXY_RESTORES]
    assert running.project.entries()[0]["features"] == features


@pytest.mark.parametrize("state", ["Ready", "Starting", "Stopped", "Deleting"])
def test_a_switch_that_is_read_before_its_branch_holds_new_sessions(
    running: ProxyProcess, feature: Backend, state: str
) -> None:
    """What the proxy knows of the branch is of before: no client may be rejected or led by it."""
    project = running.project
    wait_until(lambda: obeyed(project) == [1])
    project.route_branch("feature-x", state, feature if state == "Ready" else None)
    wait_until(lambda: reached(running) == "main")
    project.switch("feature-x", target_generation=3)
    with held_session(running) as results:
        # No session reaches main any more, but nor does one reach what the switch is to.
        assert obeyed(project) == [1]
        project.route_branch("feature-x", "Ready", feature)
    assert results == ["feature-x"]
    wait_until(lambda: obeyed(project) == [2])


def test_a_switch_to_a_branch_that_was_made_again_waits_for_that_one(
    running: ProxyProcess, feature: Backend
) -> None:
    project = running.project
    wait_until(lambda: obeyed(project) == [1])
    project.switch("feature-x", target_uid="another")
    with held_session(running) as results:
        project.put_branch(feature, "another")
    assert results == ["feature-x"]
    wait_until(lambda: obeyed(project) == [2])


def test_a_switch_to_a_branch_that_the_proxy_has_never_read_waits_for_it(
    main: Backend, feature: Backend, tmp_path: Path
) -> None:
    with proxy_process([main], tmp_path / "log") as running:
        project = running.project
        project.branches["feature-x"] = {"metadata": {"uid": "new"}, "status": {"route": {"generation": 1}}}
        project.switch("feature-x")
        del project.branches["feature-x"]
        with held_session(running) as results:
            project.put_branch(feature, "new")
        assert results == ["feature-x"]


def test_a_branch_that_is_deleted_is_acknowledged_when_no_session_reaches_it(running: ProxyProcess) -> None:
    project = running.project
    named = {"options": "-c dbranch.branch=feature-x"}
    with connect(running, **named) as session, connect(running) as other:
        assert branch_of(session) == "feature-x" and project.acknowledged("feature-x") == []
        # Else both the begin and the end of the session may be written meanwhile.
        wait_until(lambda: [entry.get("sessions") for entry in project.entries()] == [2], 60)
        writes = project.writes
        project.route_branch("feature-x", "Deleting")
        wait_until(lambda: project.acknowledged("feature-x") == [2])
        assert fatal_message(session).startswith("57P01")
        assert 'branch "feature-x" of project shop is being deleted' in reached(running, **named)
        assert branch_of(other) == "main"
        # The project itself is not written for it, but for the sessions.
        assert project.writes - writes <= 1
        project.drop_branch("feature-x")
        wait_until(lambda: "does not exist" in reached(running, **named))


def test_an_acknowledgement_that_is_refused_is_tried_again(running: ProxyProcess) -> None:
    project = running.project
    wait_until(lambda: obeyed(project) == [1])
    project.route_branch("feature-x", "Deleting")
    wait_until(lambda: project.acknowledged("feature-x") == [2])
    project.branches["main"]["status"]["route"]["generation"] = 6
    project.up = False
    project.route_branch("main", "Deleting")
    time.sleep(HOLDS_SECONDS)
    assert project.acknowledged("main") == []
    project.up = True
    wait_until(lambda: project.acknowledged("main") == [7], 30)


def table_of(*backends: Backend) -> list[Json]:
    return [{"branch": b.branch, "address": "127.0.0.1", "port": b.port, "state": "Ready"} for b in backends]


def of_last_release(*backends: Backend) -> Callable[[FakeProject], None]:
    """Return how a controller of release 0.1.0 leaves its project, and a Role without branches."""

    def prepare(project: FakeProject) -> None:
        project.may_read_branches = False
        project.body["status"]["routes"] = table_of(*backends)
        del project.body["status"]["route"]["target"]

    return prepare


def test_a_controller_of_the_last_release_is_followed_by_its_table(
    main: Backend, feature: Backend, tmp_path: Path
) -> None:
    with proxy_process([main, feature], tmp_path / "log", prepare=of_last_release(main, feature)) as running:
        project = running.project
        assert reached(running) == "main"
        project.switch("feature-x")
        wait_until(lambda: obeyed(project) == [2])
        assert reached(running) == "feature-x"
        # Then one of this release: it gives the right to read branches, and takes the table away in the end.
        project.may_read_branches = True
        project.switch("main")
        wait_until(lambda: obeyed(project) == [3])
        with connect(running) as session:
            project.write_table(None)
            wait_until(lambda: not running.project.body["status"].get("routes"))
            project.route_branch("feature-x", "Stopped")
            named = {"options": "-c dbranch.branch=feature-x"}
            wait_until(lambda: "is stopped" in reached(running, **named), 30)
            assert branch_of(session) == "main"


def test_the_table_of_a_controller_that_was_rolled_back_counts(
    running: ProxyProcess, feature: Backend
) -> None:
    """It does not write the branches' own routes any more, which are of before."""
    project = running.project
    project.route_branch("feature-x", "Stopped")
    named = {"options": "-c dbranch.branch=feature-x"}
    wait_until(lambda: "is stopped" in reached(running, **named))
    project.write_table(table_of(feature))
    wait_until(lambda: reached(running, **named) == "feature-x")
    project.switch("feature-x", target_generation=99)
    wait_until(lambda: obeyed(project) == [2])
    assert reached(running) == "feature-x"
