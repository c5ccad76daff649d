"""A branch is reconciled as the cache has it: if that is behind, nothing is written by it, and the branch is read."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from tests.factories import NAMESPACE, Json, branch
from tests.unit.controller.rig import BRANCHES, Rig, conditions_of
from tests.unit.controller.test_stale import Follower

from dbranch.api import names

X = f"{BRANCHES}/shop-x"


class Behind(Follower):
    """A project that is Ready. `lag`: reconcile a branch with the cache from before a change."""

    def __init__(self) -> None:
        super().__init__()
        self.ready()
        self.run()
        self.requested()

    def lag(self, change: Callable[[Rig], object]) -> None:
        cache = self.cache()
        change(self)
        self.branches.reconcile(NAMESPACE, "shop-x", cache)


@pytest.fixture
def rig() -> Behind:
    return Behind()


def report(rig: Rig) -> None:
    rig.agent_reports(branch("x").accepting("10.0.0.11"))


def stop(rig: Rig) -> None:
    rig.change_branch("x", state="Stopped")


def delete(rig: Rig) -> None:
    rig.api.delete(X)


def end(rig: Rig) -> None:
    rig.api.merge(X, {"metadata": {"finalizers": []}})
    rig.api.delete(X)


def replace(rig: Rig) -> None:
    end(rig)
    body = branch("x").body()
    rig.api.put(BRANCHES, {**body, "metadata": {**body["metadata"], "uid": "another"}})


def stop_project(rig: Rig) -> None:
    rig.change_project(state="Stopped")


def same(rig: Rig) -> None:
    rig.reconcile_branch("x")


CHANGES = [report, stop, delete, end, replace, stop_project, same]
STATES: dict[str, Callable[[Behind], object]] = {
    "new": lambda rig: rig.put(branch("x")),
    "bound": lambda rig: (rig.put(branch("x")), rig.reconcile_branch("x")),
    "ready": lambda rig: rig.branch_up("x"),
}


def outcome(rig: Behind) -> str:
    """Return what the controller has made of all objects, but for times and versions."""
    bodies: Json = {}
    objects = rig.api._memory.objects
    uids = {body["metadata"]["uid"] for body in objects.values()}
    for path, body in objects.items():
        meta = body["metadata"]
        status = {key: value for key, value in (body.get("status") or {}).items() if key != "release"}
        is_ours = body.get("apiVersion") == names.API_VERSION
        conditions = conditions_of(body) if is_ours else {}
        owners = [owner["uid"] for owner in meta.get("ownerReferences") or ()]
        if owners and not uids & set(owners):
            # The garbage collector's, as it is if a branch goes while it is being reconciled.
            continue
        # The generation says how many states were seen.
        route = {**(status.get("route") or {}), "generation": None, "target": None}
        content = (body.get("spec"), body.get("endpoints"))
        bodies[path] = (
            meta.get("finalizers"),
            owners,
            conditions,
            sorted(status),
            route,
            content,
        )
    # The root's UID is another one in each world.
    return json.dumps(bodies, sort_keys=True).replace(rig.branch()["metadata"]["uid"], "root-uid")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_it_ends_as_with_a_cache_that_is_not_behind(state: str, change: Callable[[Rig], object]) -> None:
    behind, current = Behind(), Behind()
    for rig in (behind, current):
        STATES[state](rig)
        rig.requested() if state == "ready" else None
    behind.lag(change)
    change(current)
    for rig in (behind, current):
        rig.follow()
        rig.follow()
    assert outcome(behind) == outcome(current)


def test_a_branch_that_is_deleted_meanwhile_is_not_bound(rig: Behind) -> None:
    rig.put(branch("x").changed(metadata={"finalizers": [names.AGENT_FINALIZER]}))
    rig.api.take_requests()
    rig.lag(delete)
    # What is true of it was read: its finalizer goes, since no agent knows it.
    assert any(request.verb == "get" and request.path == X for request in rig.api.requests)
    assert not rig.exists(X)


def test_another_branch_of_the_name_gets_nothing_that_was_planned_for_the_first(rig: Behind) -> None:
    rig.branch_up("x")
    rig.lag(replace)
    assert not (rig.branch("x").get("status") or {}).get("route")
    rig.reconcile_branch("x")
    assert rig.branch("x")["status"]["route"]["generation"] == 1
    services = rig.api.get(f"/api/v1/namespaces/{NAMESPACE}/services/shop-x")
    assert services and services["metadata"]["ownerReferences"][0]["uid"] == "another"


def test_what_was_reported_meanwhile_is_not_written_over(rig: Behind) -> None:
    """By a cache that is behind, the next generation of the route would be the present one once more."""
    rig.branch_up("x")
    generation = rig.branch("x")["status"]["route"]["generation"]
    cache = rig.cache()
    rig.agent_reports(branch("x").accepting("10.0.0.20"))
    rig.reconcile_branch("x")
    rig.agent_reports(branch("x").accepting("10.0.0.21"))
    # The cache has the first report, and not what came of it.
    first = rig.cache()
    assert first.branch(NAMESPACE, "shop-x") and cache.branch(NAMESPACE, "shop-x")
    rig.branches.reconcile(NAMESPACE, "shop-x", cache)
    rig.branches.reconcile(NAMESPACE, "shop-x", first)
    route = rig.branch("x")["status"]["route"]
    assert route["address"] == "10.0.0.21" and route["generation"] == generation + 2


def test_a_reconcile_before_the_event_of_the_last_write_costs_nothing(rig: Behind) -> None:
    """An event leads to a second reconcile while the first one runs: by the cache it would write all once more."""
    rig.put(branch("x"))
    for _ in range(2):
        cache = rig.cache()
        rig.branches.reconcile(NAMESPACE, "shop-x", cache)
        rig.api.take_requests()
        rig.branches.reconcile(NAMESPACE, "shop-x", cache)
        assert rig.api.take_requests() == []
        rig.agent_reports(branch("x").accepting("10.0.0.10"))
