"""The controller's handlers run by kopf against the fake API server over HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import kopf
import pytest
from tests.factories import Json, branch, project
from tests.unit.controller.rig import BRANCHES, PROJECTS, RELEASE, SECRETS, Rig, conditions_of, message_of
from tests.unit.kopf_thread import running_kopf

from dbranch.api import names
from dbranch.api.branch import parse_branch
from dbranch.api.errors import ApiError
from dbranch.controller.handlers import register
from dbranch.controller.metrics import ControllerMetrics
from dbranch.kube.client import Cluster, path_of

X = f"{BRANCHES}/shop-x"


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time limit"
        time.sleep(0.01)


class Running(Rig):
    """A rig whose controller is kopf with the real handlers."""

    def is_ready(self, path: str) -> bool:
        body = self.api.get(path)
        return body is not None and conditions_of(body).get("Ready") == "Available"

    def has(self, path: str, condition_type: str, reason: str) -> bool:
        body = self.api.get(path)
        return body is not None and conditions_of(body).get(condition_type) == reason

    def bring_up(self) -> None:
        """Bring up project `shop` with its root branch and a proxy, as its agent and its proxy would."""
        self.api.create(PROJECTS, unfinished(project().body()))
        wait_until(lambda: self.has(f"{BRANCHES}/shop-main", "Scheduled", "Bound"))
        self.agent_reports(project().up())
        self.agent_reports(branch().accepting())
        self.proxy()
        wait_until(lambda: (self.project().get("status") or {}).get("route"))
        self.proxy_obeys()
        wait_until(lambda: self.is_ready(f"{PROJECTS}/shop") and self.is_ready(f"{BRANCHES}/shop-main"))

    def bring_up_branch(self) -> None:
        self.api.create(BRANCHES, unfinished(branch("x").body()))
        wait_until(lambda: self.has(X, "Scheduled", "Bound"))
        self.agent_reports(branch("x").accepting("10.0.0.9"))
        wait_until(lambda: self.is_ready(X))


def unfinished(body: Json) -> Json:
    """Return the object as a user creates it: without a finalizer."""
    body["metadata"].pop("finalizers", None)
    return body


@contextmanager
def controller(rig: Rig, directory: Path) -> Iterator[None]:
    """Run the controller's process over the rig's API server."""
    registry = kopf.OperatorRegistry()
    register(registry, cast(Cluster, rig.api), RELEASE, 300, ControllerMetrics())
    with running_kopf(registry, rig.api, directory / "config"):
        yield


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture
def running(directory: Path) -> Iterator[Running]:
    rig = Running()
    with controller(rig, directory):
        yield rig


def test_a_branch_lives_from_its_creation_to_its_deletion(running: Running) -> None:
    running.bring_up()
    running.bring_up_branch()
    running.change_project(activeBranch="x")
    wait_until(lambda: running.project()["status"]["route"]["branch"] == "x")
    running.proxy_obeys()
    wait_until(lambda: running.branch("x")["status"]["active"])
    running.change_project(activeBranch="main")
    wait_until(lambda: running.project()["status"]["route"]["branch"] == "main")
    running.proxy_obeys()
    wait_until(lambda: running.has(f"{PROJECTS}/shop", "Routed", "Routed"))
    wait_until(lambda: not running.branch("x")["status"]["active"])
    running.api.delete(X)
    wait_until(lambda: running.branch("x")["status"]["route"]["state"] == "Deleting")
    assert running.branch("x")["status"]["release"] == "Pending"
    running.api.take_requests()
    running.proxy_acknowledges("x")
    wait_until(lambda: parse_branch(running.branch("x")).is_released)
    # Nothing but what the deletion needs was written, and no annotation that wakes kopf.
    writes = running.api.take_writes()
    assert writes.count("merge dbbranches/shop-x/status") == 1 and "merge dbbranches/shop-x" not in writes
    assert running.branch("x")["metadata"]["finalizers"] == [names.AGENT_FINALIZER]
    assert not running.branch("x")["metadata"].get("annotations")
    running.api.merge(X, {"metadata": {"finalizers": []}})
    wait_until(lambda: running.project()["status"]["branches"] == 1)
    # Events are posted behind the reconciles.
    wait_until(lambda: {"Available", "Deleting"} & reasons_of_events(running, "shop-x") == {"Available"})
    wait_until(lambda: "Available" in reasons_of_events(running, "shop"))


def reasons_of_events(running: Running, name: str) -> set[str]:
    """Return the reasons of the Events about an object, which must name its UID."""
    events = [e for e in running.api.find(path_of("v1", "events")) if e["involvedObject"]["name"] == name]
    assert all(event["involvedObject"]["uid"] for event in events)
    return {event["reason"] for event in events}


def test_a_project_goes_with_its_branches(running: Running) -> None:
    running.bring_up()
    running.bring_up_branch()
    running.api.delete(f"{PROJECTS}/shop")
    for name in ("main", "x"):
        path = f"{BRANCHES}/shop-{name}"
        wait_until(lambda path=path: parse_branch(running.existing(path)).is_released)  # type: ignore[misc]
        running.api.merge(path, {"metadata": {"finalizers": []}})
    wait_until(lambda: running.project()["metadata"]["finalizers"] == [names.AGENT_FINALIZER])


def test_what_is_refused_ends_in_a_condition_and_is_tried_again(running: Running) -> None:
    running.bring_up()
    for verb in ("create", "apply"):
        running.api.refuse(verb, "/services/shop-x", ApiError(403, "Forbidden", "quota exceeded"))
    running.api.create(BRANCHES, unfinished(branch("x").body()))
    wait_until(lambda: running.has(X, "Scheduled", "ObjectRefused"))
    running.api.answer_again()
    wait_until(lambda: running.has(X, "Scheduled", "Bound"))


def test_a_controller_that_starts_writes_nothing_and_goes_on_with_deletions(directory: Path) -> None:
    rig = Running()
    rig.ready()
    rig.branch_up("x")
    rig.api.delete(X)
    rig.run()
    rig.api.take_requests()
    with controller(rig, directory):
        # A branch with which nothing is to be done is as it was listed: only its Secret is read.
        paths = {f"{PROJECTS}/shop", f"{SECRETS}/shop-main-conn", X}
        wait_until(lambda: paths <= {request.path for request in rig.api.requests})
        assert rig.api.take_writes() == []
        rig.proxy_acknowledges("x")
        wait_until(lambda: parse_branch(rig.branch("x")).is_released)
        writes = rig.api.take_writes()
        assert {"delete endpointslices/shop-x", "merge dbbranches/shop-x/status"} <= set(writes)
        assert "merge dbbranches/shop-x" not in writes


def test_kopf_neither_adds_the_controllers_finalizer_to_a_branch_nor_takes_one_off(directory: Path) -> None:
    """One that release 0.1.0 has left, or that an agent of that release needs, goes when the branch is released."""
    rig = Running()
    rig.ready()
    rig.branch_up("x")
    rig.branch_up("old")
    both = [names.CONTROLLER_FINALIZER, names.AGENT_FINALIZER]
    rig.api.merge(f"{BRANCHES}/shop-old", {"metadata": {"finalizers": both}})
    rig.api.take_requests()
    with controller(rig, directory):
        rig.api.create(BRANCHES, unfinished(branch("never", "nowhere").body()))
        wait_until(lambda: rig.has(f"{BRANCHES}/shop-never", "Scheduled", "SourceNotFound"))
        rig.change_branch("old", state="Stopped")
        wait_until(lambda: message_of(rig.branch("old"), "Ready").endswith("is shutting down"))
        assert [
            write for write in rig.api.take_writes() if write.startswith("merge dbbranches/shop-old")
        ] == [
            # The test's, and the controller's.
            "merge dbbranches/shop-old",
            "merge dbbranches/shop-old/status",
        ]
        assert "finalizers" not in rig.branch("never")["metadata"]
        rig.api.delete(f"{BRANCHES}/shop-never")
        assert not rig.exists(f"{BRANCHES}/shop-never")
        rig.api.delete(f"{BRANCHES}/shop-old")
        wait_until(lambda: rig.branch("old")["status"]["route"]["state"] == "Deleting")
        assert rig.branch("old")["metadata"]["finalizers"] == both
        rig.proxy_acknowledges("old")
        wait_until(lambda: rig.branch("old")["metadata"]["finalizers"] == [names.AGENT_FINALIZER])
        assert parse_branch(rig.branch("old")).is_released


def test_the_numbers_of_sessions_wake_nobody(running: Running) -> None:
    running.bring_up()
    running.api.take_requests()
    reads = f"{PROJECTS}/shop"
    for sessions in range(1, 6):
        running.proxy_obeys(sessions=sessions)
    # An event behind them: by then theirs have been handled.
    running.api.create(BRANCHES, unfinished(branch("x").body()))
    wait_until(lambda: running.has(X, "Scheduled", "Bound"))
    wait_until(lambda: running.project()["status"]["branches"] == 2)
    reconciles = [r for r in running.api.take_requests() if r.verb == "find" and "/pods" in r.path]
    # The project lists its proxies at each reconcile: for the new branch, not for each number.
    assert len(reconciles) < 5, reads
