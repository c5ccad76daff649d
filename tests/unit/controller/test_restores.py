"""A restore from the order to its record, the agent and the proxies played; and what ends or outlives it."""

from __future__ import annotations

import pytest
from tests.factories import NAMESPACE, ago, restore
from tests.unit.controller.restores import Agent, Proxy, finish, shop, switching
from tests.unit.controller.rig import PODS, PROJECTS, SNAPSHOTS, conditions_of, message_of

from dbranch.api import names
from dbranch.api.conditions import Finding, Reason
from dbranch.kube.client import branch_path, path_of, restore_path, snapshot_path


def test_a_restore_from_the_order_to_its_record() -> None:
    rig = shop()
    agent = Agent(rig)
    rig.put(restore())
    rig.reconcile_restore()
    order = rig.branch("feature-x")["status"]["restore"]
    assert order["state"] == "Preparing" and order["source"]["name"] == "main" and order["undo"] == "Keep"
    undo = rig.existing(snapshot_path(NAMESPACE, order["undoSnapshot"]))
    assert undo["metadata"]["uid"] == order["undoUID"] and undo["spec"]["ttl"] == "24h"
    owners = undo["metadata"]["ownerReferences"]
    assert [owner["kind"] for owner in owners] == ["DBProject"] and owners[0]["controller"]
    assert undo["status"]["branchUID"] == rig.branch("feature-x")["metadata"]["uid"]
    body = rig.restore()
    assert conditions_of(body) == {"Reconciling": "Snapshotting"} and body["status"]["phase"] == "Running"
    assert body["metadata"]["labels"][names.LABEL_BRANCH] == "feature-x"
    assert "finalizers" not in body["metadata"]
    # The branch says nothing of it yet, and its route stands.
    before = rig.branch("feature-x")["status"]
    rig.reconcile_branch("feature-x")
    assert rig.branch("feature-x")["status"] == before
    agent.act()
    # Sessions are held before anything is switched.
    rig.reconcile_restore()
    assert rig.branch("feature-x")["status"]["restore"]["state"] == "Preparing"
    rig.reconcile_branch("feature-x")
    status = rig.branch("feature-x")["status"]
    assert status["route"]["state"] == "Starting" and status["route"]["restore"] == "again-uid"
    assert conditions_of({"status": status})["Ready"] == "Restoring"
    rig.reconcile_restore()
    assert rig.branch("feature-x")["status"]["restore"]["state"] == "Preparing"
    Proxy(rig).act()
    rig.reconcile_restore()
    assert rig.branch("feature-x")["status"]["restore"]["state"] == "Switching"
    assert conditions_of(rig.restore()) == {"Reconciling": "Switching"}
    assert rig.restore()["metadata"]["finalizers"] == [names.CONTROLLER_FINALIZER]
    agent.act()
    # Not complete before the branch remembers it, in one write with the route.
    rig.reconcile_restore()
    assert rig.restore()["status"]["phase"] == "Running"
    writes = rig.writes_of(lambda: rig.reconcile_branch("feature-x"))
    assert [w for w in writes if "dbbranches" in w] == ["merge dbbranches/shop-feature-x/status"]
    status = rig.branch("feature-x")["status"]
    assert status["route"]["state"] == "Ready" and "restore" not in status["route"]
    assert status["route"]["address"] == "10.0.1.2"
    assert [record["uid"] for record in status["restores"]] == ["again-uid"]
    assert status["data"]["source"] == "main" and status["data"]["time"] == "2026-01-02T00:00:00Z"
    assert conditions_of({"status": status})["Ready"] == "Available" and "restore" in status
    rig.reconcile_restore()
    body = rig.restore()
    assert body["status"]["phase"] == "Complete" and conditions_of(body) == {"Complete": "Restored"}
    assert body["status"]["undoSnapshot"] == order["undoSnapshot"] and body["status"]["heldSeconds"] >= 0
    assert body["status"]["dataTime"] == "2026-01-02T00:00:00Z" and not body["metadata"].get("finalizers")
    finish(rig, agent)
    assert "restore" not in rig.branch("feature-x")["status"]
    assert agent.exchanges == ["again-uid"] and ("Normal", "Restored") in rig.events
    kept = rig.existing(snapshot_path(NAMESPACE, order["undoSnapshot"]))
    assert conditions_of(kept)["Ready"] == "Available" and kept["status"]["expirationTime"]
    # At rest nobody writes.
    assert rig.writes_of(lambda: finish(rig, agent)) == []


def test_a_branch_that_is_protected_meanwhile_keeps_its_data() -> None:
    rig = shop()
    agent = Agent(rig)
    rig.put(restore())
    rig.reconcile_restore()
    agent.act()
    rig.change_branch("feature-x", protection="Enabled")
    # Neither is the route withdrawn.
    assert "restore" not in rig.reconcile_branch("feature-x")["status"]["route"]
    finish(rig, agent)
    assert rig.restore()["status"]["phase"] == "Failed" and agent.exchanges == []
    assert conditions_of(rig.restore()) == {"Failed": "Protected", "Stalled": "Protected"}
    assert rig.api.find(SNAPSHOTS) == [] and ("Warning", "RestoreFailed") in rig.events


def test_what_fails_on_the_node_leaves_the_old_data_and_says_why() -> None:
    rig = shop()
    agent = Agent(rig, fails="Preparing")
    rig.put(restore())
    finish(rig, agent)
    body = rig.restore()
    assert body["status"]["phase"] == "Failed" and message_of(body, "Failed").startswith(
        "Postgres did not start"
    )
    assert "undoSnapshot" not in body["status"] and rig.api.find(SNAPSHOTS) == []
    status = rig.branch("feature-x")["status"]
    assert "restore" not in status and "restores" not in status and status["route"]["address"] == "10.0.0.2"
    # Another name may be done, and this one is not tried again.
    rig.put(restore("second"))
    agent.fails = ""
    finish(rig, agent, "again", "second")
    assert rig.restore("second")["status"]["phase"] == "Complete" and agent.exchanges == ["second-uid"]


def test_restores_of_a_branch_are_done_one_after_the_other_and_keep_three_copies() -> None:
    rig = shop()
    agent = Agent(rig)
    restores = [f"r{n}" for n in range(5)]
    for n, name in enumerate(restores):
        rig.put(restore(name).changed(metadata={"creationTimestamp": ago(60 - n)}))
    finish(rig, agent, *reversed(restores))
    assert agent.exchanges == [f"{name}-uid" for name in restores]
    kept = {body["spec"]["origin"]["restoreUID"] for body in rig.api.find(SNAPSHOTS)}
    assert kept == {"r2-uid", "r3-uid", "r4-uid"}
    assert ("Normal", "UndoRemoved") in rig.events
    assert rig.branch("feature-x")["status"]["node"]["generation"] == 6


def test_a_stopped_branch_has_no_sessions_to_hold() -> None:
    rig = shop()
    agent = Agent(rig)
    rig.change_branch("feature-x", state="Stopped")
    rig.api.merge(
        branch_path(NAMESPACE, "shop-feature-x", "status"),
        {"status": {"node": {"postgres": Finding(Reason.STOPPED, "it is stopped").as_dict()}}},
    )
    rig.run()
    route = rig.branch("feature-x")["status"]["route"]
    rig.put(restore(undo="Discard"))
    finish(rig, agent)
    assert rig.restore()["status"]["phase"] == "Complete" and agent.exchanges == ["again-uid"]
    assert rig.branch("feature-x")["status"]["route"] == route and rig.api.find(SNAPSHOTS) == []


def test_a_proxy_that_is_silent_or_old_does_not_hold_up_a_restore() -> None:
    rig = shop()
    agent = Agent(rig)
    rig.proxy("old")
    rig.proxy_obeys("old")
    rig.put(restore())
    rig.reconcile_restore()
    agent.act()
    rig.reconcile_branch("feature-x")
    rig.reconcile_restore()
    assert rig.branch("feature-x")["status"]["restore"]["state"] == "Preparing"
    conditions = rig.branch("feature-x")["status"]["conditions"]
    for condition in conditions:
        condition["lastTransitionTime"] = ago(6)
    path = branch_path(NAMESPACE, "shop-feature-x", "status")
    rig.api.merge(path, {"status": {"conditions": conditions}})
    rig.reconcile_restore()
    assert rig.branch("feature-x")["status"]["restore"]["state"] == "Switching"
    # The old one has not acknowledged anything, and nobody waited for it alone.
    body = rig.branch("feature-x")["status"]
    assert not body.get("proxies")


def test_the_branchs_own_service_leads_to_the_proxies_while_they_hold() -> None:
    rig = shop()
    agent = Agent(rig)
    pod = rig.existing(f"{PODS}/p1")
    rig.api.merge(f"{PODS}/p1/status", {"status": {**pod["status"], "podIPs": [{"ip": "10.0.2.1"}]}})
    path = path_of("discovery.k8s.io/v1", "endpointslices", NAMESPACE, "shop-feature-x")

    def addresses() -> list[str]:
        return [address for entry in rig.existing(path)["endpoints"] for address in entry["addresses"]]

    rig.put(restore())
    rig.reconcile_restore()
    agent.act()
    rig.reconcile_branch("feature-x")
    # Not before they hold: until then its Postgres admits everybody.
    assert addresses() == ["10.0.0.2"]
    Proxy(rig).act()
    rig.reconcile_branch("feature-x")
    assert addresses() == ["10.0.2.1"]
    finish(rig, agent)
    assert addresses() == ["10.0.1.2"]


def test_a_restore_goes_when_its_time_has_come_and_not_before() -> None:
    rig = shop()
    agent = Agent(rig)
    rig.put(restore(ttlAfterFinished="1h"))
    finish(rig, agent)
    assert rig.restore()["status"]["phase"] == "Complete"
    rig.reconcile_restore()
    assert rig.result.requeue_after and 3500 < rig.result.requeue_after <= 3602
    rig.api.merge(restore_path(NAMESPACE, "again", "status"), {"status": {"completionTime": ago(3700)}})
    assert rig.reconcile_restore() is None
    assert rig.branch("feature-x")["status"]["restores"]


def test_a_deleted_restore_waits_from_the_order_to_exchange_until_it_is_done() -> None:
    rig = shop()
    agent = Agent(rig)
    switching(rig, agent)
    rig.api.delete(restore_path(NAMESPACE, "again"))
    assert rig.reconcile_restore() and rig.branch("feature-x")["status"]["restore"]["state"] == "Switching"
    finish(rig, agent)
    assert rig.reconcile_restore() is None and agent.exchanges == ["again-uid"]
    assert [r["uid"] for r in rig.branch("feature-x")["status"]["restores"]] == ["again-uid"]
    assert len(rig.api.find(SNAPSHOTS)) == 1


def test_a_project_that_is_deleted_ends_its_restores_first() -> None:
    rig = shop()
    agent = Agent(rig)
    rig.put(restore("waiting").changed(metadata={"creationTimestamp": ago(-5)}))
    switching(rig, agent)
    rig.api.delete(f"{PROJECTS}/shop")
    assert not rig.remove_project()
    assert not rig.exists(restore_path(NAMESPACE, "waiting"))
    assert not rig.branch("feature-x")["metadata"].get("deletionTimestamp")
    # The agents of a project that is being deleted answer nobody.
    assert rig.reconcile_restore() is None
    rig.remove_project()
    assert rig.branch("feature-x")["metadata"]["deletionTimestamp"]


@pytest.mark.parametrize("state", ["Preparing", "Switching"])
def test_a_branch_that_is_deleted_ends_its_restore(state: str) -> None:
    rig = shop()
    agent = Agent(rig)
    if state == "Switching":
        switching(rig, agent)
    else:
        rig.put(restore())
        rig.reconcile_restore()
    path = branch_path(NAMESPACE, "shop-feature-x")
    rig.api.delete(path)
    rig.reconcile_restore()
    if state == "Switching":
        # It may be exchanged in this very moment; the agent says so, and the old data is not thrown away.
        assert rig.restore()["status"]["phase"] == "Running"
        agent.act()
        rig.remove_branch("feature-x")
        rig.reconcile_restore()
        assert conditions_of(rig.restore()) == {"Complete": "Restored"}
        assert len(rig.api.find(SNAPSHOTS)) >= 1
    else:
        assert conditions_of(rig.restore()) == {"Failed": "Canceled", "Stalled": "Canceled"}
        assert all(body["metadata"].get("deletionTimestamp") for body in rig.api.find(SNAPSHOTS))
    assert not rig.restore()["metadata"].get("finalizers")


@pytest.mark.parametrize("says_first", [True, False])
def test_a_restore_that_is_taken_back_with_its_branch_leaves_no_record(says_first: bool) -> None:
    """The branch is deleted behind the order to exchange, and its agent has not exchanged anything."""
    rig = shop()
    switching(rig, Agent(rig))
    (undo,) = rig.api.find(SNAPSHOTS)
    name = undo["metadata"]["name"].removeprefix("shop-")
    path = branch_path(NAMESPACE, "shop-feature-x")
    rig.api.delete(path)
    rig.api.merge(path, {"metadata": {"finalizers": []}})
    lost = Finding(Reason.SNAPSHOT_LOST, "its data is missing").as_dict()

    def say() -> None:
        rig.api.merge(f"{SNAPSHOTS}/shop-{name}/status", {"status": {"node": {"storage": lost}}})

    if says_first:
        say()
        rig.reconcile_snapshot(name)
        assert conditions_of(rig.snapshot(name))["Ready"] == "SnapshotLost"
    rig.reconcile_restore()
    assert rig.restore()["status"]["phase"] == "Failed"
    if not says_first:
        # The old data may still come.
        rig.reconcile_snapshot(name)
        assert not rig.snapshot(name)["metadata"].get("deletionTimestamp")
        say()
        rig.reconcile_snapshot(name)
    assert rig.snapshot(name)["metadata"]["deletionTimestamp"]


def test_a_source_that_is_deleted_waits_for_the_copy_of_it() -> None:
    rig = shop()
    agent = Agent(rig)
    rig.branch_up("seed", "10.0.0.3")
    rig.put(restore(source="seed"))
    rig.reconcile_restore()
    assert rig.branch("feature-x")["status"]["restore"]["source"]["name"] == "seed"
    rig.api.delete(branch_path(NAMESPACE, "shop-seed"))
    rig.remove_branch("seed")
    assert rig.branch("seed")["status"].get("release") != rig.branch("seed")["metadata"]["deletionTimestamp"]
    agent.act()
    rig.remove_branch("seed")
    body = rig.api.peek(branch_path(NAMESPACE, "shop-seed"))
    assert body is None or body["status"]["route"]["state"] == "Deleting"
