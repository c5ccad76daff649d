"""What a restore costs in requests, and that nothing waits for what is no part of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.factories import NAMESPACE, ago, restore
from tests.unit.controller.restores import Agent, Proxy, finish, shop, switching
from tests.unit.controller.rig import SNAPSHOTS, Rig, conditions_of

from dbranch.api import names
from dbranch.api.errors import ClusterUnreachable
from dbranch.kube.client import branch_path, restore_path, snapshot_path
from dbranch.runtime.result import Key

BRANCH = "dbbranches/shop-feature-x/status"


def requests_of(rig: Rig, call: Callable[[], object]) -> list[str]:
    """Return the reads of single objects and the writes that a call causes, in their order."""
    rig.api.take_requests()
    call()
    return [str(request) for request in rig.api.take_requests() if request.writes or request.verb == "get"]


def restore_requests(rig: Rig) -> list[str]:
    """Return those of one reconcile of restore `again`."""
    cache = rig.cache()
    return requests_of(rig, lambda: rig.restores.reconcile(NAMESPACE, "again", cache))


def prepared() -> tuple[Rig, Agent]:
    """Return a project whose restore `again` is prepared, and its sessions are about to be held."""
    rig = shop()
    agent = Agent(rig)
    rig.put(restore())
    rig.reconcile_restore()
    agent.act()
    return rig, agent


def test_the_order_follows_three_reads_and_one_write() -> None:
    """The binding of the undo snapshot, the labels and the status come while the agent works."""
    rig = shop()
    rig.put(restore())
    requests = restore_requests(rig)
    order = requests.index(f"merge {BRANCH}")
    assert [r.split()[0] for r in requests[:order]] == ["get", "get", "get", "create"], requests
    assert [r for r in requests[order + 1 :] if r.startswith("get")] == [], requests
    undo = rig.api.find(SNAPSHOTS)[0]
    assert undo["status"]["branchUID"] == rig.branch("feature-x")["metadata"]["uid"]
    assert len(requests) == 8, requests


def test_new_sessions_are_held_for_no_write_that_could_come_before_or_behind() -> None:
    rig, agent = prepared()
    # The finalizer while the proxies are asked to hold who comes; what lasts for milliseconds is not reported.
    assert [r for r in restore_requests(rig) if not r.startswith("get")] == ["merge dbrestores/again"]
    rig.reconcile_branch("feature-x")
    assert [r for r in restore_requests(rig) if not r.startswith("get")] == []
    Proxy(rig).act()
    requests = restore_requests(rig)
    assert [r.split()[0] for r in requests[:3]] == ["get", "get", "merge"], requests
    assert requests[2] == f"merge {BRANCH}"
    assert rig.branch("feature-x")["status"]["restore"]["state"] == "Switching"
    agent.act()
    assert [r for r in restore_requests(rig) if not r.startswith("get")] == []
    rig.reconcile_branch("feature-x")
    # Its own reconcile is not left to an event that has to come back first.
    assert rig.branch_requests == [Key(names.RESTORE_KIND, NAMESPACE, "again")]
    requests = restore_requests(rig)
    assert requests[2] == "merge dbrestores/again/status", requests
    assert rig.restore()["status"]["phase"] == "Complete"
    assert rig.events.count(("Normal", "Restored")) == 1


def test_what_new_sessions_are_held_for_is_reported_when_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, agent = prepared()
    rig.reconcile_branch("feature-x")
    rig.reconcile_restore()
    assert conditions_of(rig.restore()) == {"Reconciling": "Snapshotting"}
    assert rig.result.requeue_after == 1.0
    monkeypatch.setattr(rig.restores._observer, "_held_seconds", lambda facts: 1.5)
    rig.reconcile_restore()
    assert conditions_of(rig.restore()) == {"Reconciling": "Switching"}
    Proxy(rig).act()
    rig.reconcile_restore()
    agent.act()
    rig.reconcile_restore()
    assert conditions_of(rig.restore()) == {"Reconciling": "Opening"}


def test_a_restore_deleted_while_its_sessions_are_about_to_be_held_is_taken_back() -> None:
    rig, agent = prepared()
    rig.reconcile_restore()
    assert rig.restore()["metadata"]["finalizers"] == [names.CONTROLLER_FINALIZER]
    rig.api.delete(restore_path(NAMESPACE, "again"))
    finish(rig, agent)
    assert agent.exchanges == [] and rig.reconcile_restore() is None
    status = rig.branch("feature-x")["status"]
    assert "restore" not in status and status["route"]["state"] == "Ready"
    assert rig.api.find(SNAPSHOTS) == []


@pytest.mark.parametrize("at_event", [True, False])
def test_the_event_about_the_end_is_not_lost_with_the_process(at_event: bool) -> None:
    """It comes behind the status, and before the finalizer goes."""
    rig = shop()
    agent = Agent(rig)
    switching(rig, agent)
    agent.act()
    rig.reconcile_branch("feature-x")
    if at_event:
        rig.restores._emit_event = cut_off
    else:
        rig.api.lose_answer("merge", "dbrestores/again/status")
    with pytest.raises(ClusterUnreachable):
        rig.reconcile_restore()
    assert rig.restore()["status"]["phase"] == "Complete" and ("Normal", "Restored") not in rig.events
    rig.start()
    rig.reconcile_restore()
    assert rig.events.count(("Normal", "Restored")) == 1
    assert not rig.restore()["metadata"].get("finalizers")
    rig.reconcile_restore()
    assert rig.events.count(("Normal", "Restored")) == 1


def cut_off(*_: object) -> None:
    raise ClusterUnreachable("cut off")


def test_an_order_that_only_the_cache_still_has_is_admitted_under_the_lock() -> None:
    rig = shop()
    rig.put(restore())
    rig.reconcile_restore()
    stale = rig.cache()
    rig.api.merge(branch_path(NAMESPACE, "shop-feature-x", "status"), {"status": {"restore": None}})
    rig.api.merge(restore_path(NAMESPACE, "again", "status"), {"status": {"phase": None}})
    held: list[str] = []
    original = rig.restores._locks.held

    def spy(namespace: str, name: str) -> object:
        held.append(name)
        return original(namespace, name)

    rig.restores._locks.held = spy  # type: ignore[assignment,method-assign]
    rig.restores.reconcile(NAMESPACE, "again", stale)
    assert "restores-of/shop" in held
    assert rig.branch("feature-x")["status"]["restore"]["state"] == "Preparing"
    assert len(rig.api.find(SNAPSHOTS)) == 1


def test_an_undo_snapshot_that_was_made_and_not_bound_is_bound_before_anything_is_switched() -> None:
    rig, _agent = prepared()
    (undo,) = rig.api.find(SNAPSHOTS)
    path = snapshot_path(NAMESPACE, undo["metadata"]["name"], "status")
    rig.api.merge(path, {"status": {"nodeName": None, "branchUID": None}})
    rig.reconcile_branch("feature-x")
    Proxy(rig).act()
    rig.start()
    requests = [r for r in restore_requests(rig) if not r.startswith("get")]
    assert "dbsnapshots" in requests[0] and requests[1] == "merge dbrestores/again", requests
    assert requests[2] == f"merge {BRANCH}"


def test_a_controller_that_comes_to_a_hold_knows_how_long_it_takes() -> None:
    rig, agent = prepared()
    rig.reconcile_branch("feature-x")
    status = rig.branch("feature-x")["status"]
    conditions = [
        {**c, "lastTransitionTime": ago(3)} if c["type"] == "Ready" else c for c in status["conditions"]
    ]
    path = branch_path(NAMESPACE, "shop-feature-x", "status")
    rig.api.merge(path, {"status": {"conditions": conditions}})
    rig.api.merge(restore_path(NAMESPACE, "again", "status"), {"status": {"startTime": ago(60)}})
    Proxy(rig).act()
    rig.start()
    rig.reconcile_restore()
    agent.act()
    rig.reconcile_branch("feature-x")
    rig.reconcile_restore()
    assert 2 < rig.restore()["status"]["heldSeconds"] < 10
