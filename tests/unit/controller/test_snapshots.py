"""The controller's part of a snapshot: what it is bound to, when it expires, who waits for what."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.factories import NODE, SNAPSHOT_TIME, branch, project, snapshot
from tests.unit.controller.rig import BRANCHES, PROJECTS, SNAPSHOTS, Rig, conditions_of, message_of

from dbranch.api import names
from dbranch.api.conditions import Condition, Finding, Reason
from dbranch.api.project import Project
from dbranch.api.snapshot import Snapshot
from dbranch.controller.cache import Cache
from dbranch.controller.limits import NamespaceLimits
from dbranch.controller.scheduling import NodeFacts
from dbranch.controller.snapshot.plan import SnapshotFacts, expiration_of, is_expired, plan_snapshot
from dbranch.controller.snapshot.watch import SnapshotWatch, concerned_by, needs_reconcile
from dbranch.controller.snapshot_records import STATES, SnapshotRecords, record_of
from dbranch.controller.stale import NodeChange, stale
from dbranch.kube.client import Cluster, snapshot_path
from dbranch.runtime.result import AT_REST, Key

NOW = datetime(2026, 1, 2, tzinfo=UTC)
UP = NodeFacts(NODE, has_agent=True, agent_ready=True, features=frozenset({names.FEATURE_SNAPSHOTS}))
MAIN = branch().bound().stored().parsed()
SHOP = project().bound().up().parsed()
DAY = timedelta(days=1)
PATH = snapshot_path("team", "shop-before")


def facts(**changes: Any) -> SnapshotFacts:
    return replace(SnapshotFacts(snapshot().parsed(), SHOP, MAIN, UP), **changes)


def test_a_snapshot_is_bound_to_the_node_of_its_project_and_to_one_very_branch() -> None:
    plan = plan_snapshot(facts(), NOW)
    assert plan.status["nodeName"] == NODE and plan.status["branchUID"] == MAIN.uid
    assert plan.ready.reason == Reason.SNAPSHOTTING
    stored = snapshot().taken_of(MAIN.uid).parsed()
    plan = plan_snapshot(facts(snapshot=stored), NOW)
    assert plan.binding is None and plan.ready.reason == Reason.AVAILABLE
    # Made again under the same name, the branch is another one.
    other = replace(MAIN, uid="other")
    assert plan_snapshot(facts(snapshot=stored, branch=other), NOW).status == plan.status
    # Nothing of what it waited for concerns one that is stored, but the end of its node.
    for change in ({"project": None}, {"branch": None}, {"node": replace(UP, ready=False)}):
        assert plan_snapshot(facts(snapshot=stored, **change), NOW).ready.reason == Reason.AVAILABLE
    gone = NodeFacts(NODE, exists=False)
    assert plan_snapshot(facts(snapshot=stored, node=gone), NOW).ready.reason == Reason.NODE_GONE


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"project": None}, Reason.PROJECT_NOT_FOUND),
        ({"project": project().deleting().parsed()}, Reason.PROJECT_NOT_FOUND),
        ({"project": project().parsed()}, Reason.BRANCH_NOT_READY),
        ({"project": replace(SHOP, state="Stopped")}, Reason.BRANCH_NOT_READY),
        ({"branch": None}, Reason.BRANCH_NOT_FOUND),
        ({"branch": branch().bound().stored().deleting().parsed()}, Reason.BRANCH_NOT_FOUND),
        ({"branch": branch().bound().parsed()}, Reason.BRANCH_NOT_READY),
        ({"node": replace(UP, ready=False)}, Reason.NODE_NOT_READY),
        ({"node": replace(UP, agent_ready=False)}, Reason.NODE_NOT_READY),
        ({"node": NodeFacts(NODE, exists=False)}, Reason.NODE_GONE),
        ({"node": replace(UP, features=frozenset())}, Reason.AGENT_TOO_OLD),
        ({"snapshot": snapshot(origin={"reason": "Schedule"}).parsed()}, Reason.SNAPSHOT_MISSED),
        ({"snapshot": snapshot(origin={"reason": "Restore"}).parsed()}, Reason.SNAPSHOT_LOST),
        ({"snapshot": snapshot(origin={"reason": "Deletion"}).parsed()}, Reason.SNAPSHOT_LOST),
        # Of a newer release.
        ({"snapshot": snapshot(origin={"reason": "Archive"}).parsed()}, Reason.SNAPSHOT_LOST),
    ],
)
def test_what_a_snapshot_waits_for(change: dict[str, Any], reason: Reason) -> None:
    plan = plan_snapshot(facts(**change), NOW)
    assert plan.binding is None and plan.ready.reason == reason
    assert len(plan.ready.message) <= 256 and plan.ready.message.count(";") >= 1
    assert "nodeName" not in plan.status


def test_a_snapshot_of_an_adopted_pool_is_bound_without_a_branch_and_gets_one_later() -> None:
    adopting: Project = replace(SHOP, adopt="old")
    plan = plan_snapshot(facts(project=adopting, branch=None), NOW)
    assert plan.status["nodeName"] == NODE and "branchUID" not in plan.status
    bound = snapshot().bound().parsed()
    not_found = Finding(Reason.BRANCH_NOT_FOUND, "no").as_dict()
    waits = snapshot().bound().node(storage=not_found).parsed()
    assert plan_snapshot(facts(project=adopting, branch=None, snapshot=waits), NOW).binding is None
    plan = plan_snapshot(facts(project=adopting, snapshot=bound), NOW)
    assert plan.status["branchUID"] == MAIN.uid


def test_the_limits_count_those_that_are_bound() -> None:
    others = [snapshot(f"s{n}").taken_of(MAIN.uid).parsed() for n in range(2)]
    others.append(snapshot("unbound").parsed())
    others.append(snapshot("elsewhere", "gone").taken_of("gone").parsed())
    for data, is_allowed in (
        ({"snapshotsPerBranch": "3"}, True),
        ({"snapshotsPerBranch": "2"}, False),
        ({"snapshotsPerProject": "4"}, True),
        ({"snapshotsPerProject": "3"}, False),
        ({"snapshotsPerBranch": "1", "team.snapshotsPerBranch": ""}, True),
        ({"snapshotsPerBranch": "", "snapshotsPerProject": ""}, True),
    ):
        plan = plan_snapshot(facts(siblings=others, limits=NamespaceLimits("team", data)), NOW)
        assert (plan.binding is not None) == is_allowed, data
        if not is_allowed:
            assert (
                plan.ready.reason == Reason.LIMIT_EXCEEDED
                and "of the dbranch chart allows" in plan.ready.message
            )


# When it expires.


def taken(generation: int = 1, expiration: datetime | None = None, **spec: Any) -> Snapshot:
    """Return a snapshot that was taken on the first of January."""
    body = snapshot(**spec).taken_of(MAIN.uid, SNAPSHOT_TIME)
    body = body.changed(metadata={"generation": generation})
    if expiration:
        body = body.status(
            observedGeneration=generation, expirationTime=expiration.strftime("%Y-%m-%dT%H:%M:%SZ")
        )
    return body.parsed()


TAKEN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("item", "expected", "is_sooner"),
    [
        # As it stood in the manifest at its creation, also if that is over already.
        (taken(ttl="168h"), TAKEN + 7 * DAY, False),
        (taken(ttl="1h"), TAKEN + timedelta(hours=1), False),
        (taken(), None, False),
        (taken(ttl="1h", protection="Enabled"), None, False),
        # New: after a day, or after itself.
        (taken(2, ttl="1h"), NOW + timedelta(hours=1), True),
        (taken(2, ttl="36h"), NOW + DAY, True),
        (taken(2, ttl="168h"), TAKEN + 7 * DAY, True),
        # Shorter.
        (taken(2, TAKEN + 7 * DAY, ttl="25h"), NOW + DAY, True),
        (taken(2, TAKEN + 7 * DAY, ttl="1h"), NOW + timedelta(hours=1), True),
        # The grace that was given once does not move on.
        (taken(2, NOW + timedelta(minutes=5), ttl="1h"), NOW + timedelta(minutes=5), False),
        # Longer, at once; the same.
        (taken(3, TAKEN + DAY, ttl="168h"), TAKEN + 7 * DAY, False),
        (taken(5, TAKEN + 7 * DAY, ttl="168h"), TAKEN + 7 * DAY, False),
        # Never.
        (taken(3, TAKEN + DAY), None, False),
        (taken(3, TAKEN + DAY, ttl="1h", protection="Enabled"), None, False),
    ],
)
def test_when_a_snapshot_expires(item: Snapshot, expected: datetime | None, is_sooner: bool) -> None:
    text, sooner = expiration_of(item, NOW)
    assert (text and datetime.fromisoformat(text), sooner) == (expected, is_sooner)


def test_no_change_makes_a_snapshot_go_sooner_than_after_its_grace() -> None:
    """Whatever is written, in whichever order: nothing goes within min(24 h, ttl) of a change that brings it on."""
    specs: list[dict[str, Any]] = [
        {},
        {"ttl": "1h"},
        {"ttl": "30h"},
        {"ttl": "168h"},
        {"ttl": "1h", "protection": "Enabled"},
    ]
    for first, second in itertools.permutations(specs, 2):
        before = taken(1, **first)
        text, _ = expiration_of(before, TAKEN)
        changed_at = TAKEN + timedelta(minutes=30)
        moment = datetime.fromisoformat(text) if text else None
        after = taken(2, moment, **second)
        new_text, _ = expiration_of(after, changed_at)
        if new_text is None:
            continue
        new, ttl = datetime.fromisoformat(new_text), after.lifetime
        assert ttl is not None
        if moment is None or new < moment:
            assert new - changed_at >= min(DAY, ttl), (first, second)
        # Looked at again later, it is the same.
        assert expiration_of(taken(2, new, **second), changed_at + timedelta(minutes=10)) == (new_text, False)


def test_what_has_expired_and_what_has_not() -> None:
    assert is_expired(taken(1, NOW, ttl="24h"), NOW)
    assert not is_expired(taken(1, NOW + timedelta(seconds=1), ttl="24h"), NOW)
    # The status is behind the spec: it was prolonged, protected, or is to be kept for ever, a moment ago.
    for spec in ({"ttl": "168h"}, {}, {"ttl": "24h", "protection": "Enabled"}):
        assert not is_expired(replace(taken(2, NOW, **spec), observed_generation=1), NOW)


# The reconciler.


def ready_rig(**limits: str) -> Rig:
    rig = Rig(**limits)
    return rig.ready()


def report_taken(rig: Rig, name: str = "before", at: str = SNAPSHOT_TIME) -> None:
    node = {"snapshotTime": at, "uniqueBytes": 0, "storage": Finding(Reason.STORED, "stored").as_dict()}
    rig.api.merge(f"{SNAPSHOTS}/shop-{name}/status", {"status": {"node": node}})


def test_the_life_of_a_snapshot_is_three_writes_of_the_controller() -> None:
    rig = ready_rig()
    rig.put(snapshot())
    writes = rig.writes_of(rig.reconcile_snapshot)
    # The finalizer is there before the agent sees it.
    assert writes == ["merge dbsnapshots/shop-before", "merge dbsnapshots/shop-before/status"]
    body = rig.snapshot()
    assert body["metadata"]["finalizers"] == [names.AGENT_FINALIZER]
    assert body["metadata"]["labels"] == {
        names.LABEL_PROJECT: "shop",
        names.LABEL_BRANCH: "main",
        names.LABEL_BRANCH_UID: rig.branch()["metadata"]["uid"],
        names.LABEL_ORIGIN: "Requested",
        names.LABEL_MANAGED_BY: "dbranch",
    }
    assert conditions_of(body) == {"Ready": "Snapshotting", "Reconciling": "Snapshotting"}
    assert rig.writes_of(rig.reconcile_snapshot) == [] and not rig.result.gone
    report_taken(rig)
    assert rig.writes_of(rig.reconcile_snapshot) == ["merge dbsnapshots/shop-before/status"]
    assert conditions_of(rig.snapshot()) == {"Ready": "Available"} and rig.result == AT_REST
    assert rig.writes_of(rig.reconcile_snapshot) == [] and rig.events == []


def test_a_snapshot_that_helm_manages_stays_so() -> None:
    rig = ready_rig()
    labels = {names.LABEL_MANAGED_BY: "Helm", "team": "x"}
    rig.put(snapshot().changed(metadata={"labels": labels}))
    rig.reconcile_snapshot()
    assert rig.snapshot()["metadata"]["labels"] | labels == rig.snapshot()["metadata"]["labels"]


def test_an_expired_snapshot_is_deleted_as_it_was_read() -> None:
    rig = ready_rig()
    rig.put(snapshot(ttl="1h"))
    rig.reconcile_snapshot()
    report_taken(rig)
    rig.reconcile_snapshot()
    # Somebody protects it in the same second: the version is another one.
    rig.api.before("delete", "shop-before", lambda: rig.api.merge(PATH, {"spec": {"protection": "Enabled"}}))
    body = rig.reconcile_snapshot()
    assert body is not None and "deletionTimestamp" not in body["metadata"] and rig.events == []
    body = rig.reconcile_snapshot()
    assert body is not None and "expirationTime" not in body["status"]
    rig.api.merge(PATH, {"spec": {"protection": "Disabled"}})
    body = rig.reconcile_snapshot()
    # No longer blocked: it is said, and not done.
    assert body is not None and rig.events == [("Normal", "Expiring")]
    assert body["status"]["expirationTime"] in rig.event_texts[-1]
    clock = rig.api.clock
    rig.api.clock = lambda: clock() + timedelta(hours=2)
    body = rig.reconcile_snapshot()
    assert body is not None and body["metadata"]["deletionTimestamp"]
    assert rig.events[1:] == [("Normal", "Expired")]


def test_a_deletion_before_the_binding_is_held_up_by_nobody() -> None:
    rig = ready_rig()
    rig.put(snapshot("unbound", "missing").finalizers(names.AGENT_FINALIZER))
    rig.api.delete(f"{SNAPSHOTS}/shop-unbound")
    assert rig.reconcile_snapshot("unbound") is None


def test_a_deletion_is_the_agents_and_is_reported_if_it_takes_its_time() -> None:
    rig = ready_rig()
    rig.put(snapshot().taken_of("u").deleting(1))
    assert rig.writes_of(rig.reconcile_snapshot) == [] and rig.result.requeue_after
    rig.put(snapshot("slow").taken_of("u").deleting(60))
    rig.reconcile_snapshot("slow")
    assert conditions_of(rig.snapshot("slow")) == {"Ready": "Deleting"}
    held = Finding(Reason.WAITING_FOR_AGENT, "held").as_dict()
    rig.api.merge(f"{SNAPSHOTS}/shop-slow/status", {"status": {"node": {"deletion": held}}})
    rig.reconcile_snapshot("slow")
    assert conditions_of(rig.snapshot("slow"))["DeletionBlocked"] == "WaitingForAgent"
    rig.api.remove_pod(f"/api/v1/namespaces/dbranch-nodes/pods/agent-{NODE}")
    rig.api.delete(f"/api/v1/nodes/{NODE}")
    assert rig.reconcile_snapshot("slow") is None


def test_no_more_are_bound_than_the_limit_allows_though_the_watch_is_behind() -> None:
    rig = ready_rig(snapshotsPerBranch="1")
    rig.put(snapshot("one"), snapshot("two"))
    empty = replace(rig.cache(), snapshots=rig.snapshots._records)
    for name in ("one", "two"):
        rig.snapshots.reconcile("team", f"shop-{name}", empty)
    assert conditions_of(rig.snapshot("one"))["Ready"] == "Snapshotting"
    assert conditions_of(rig.snapshot("two"))["Ready"] == "LimitExceeded"
    assert rig.events == [("Warning", "LimitExceeded")]


def test_a_branch_waits_for_its_snapshot_and_is_bound_to_it() -> None:
    rig = ready_rig()
    of_snapshot = branch("again").changed(spec={"sourceSnapshot": "shop-before"}).body()
    del of_snapshot["spec"]["source"]
    rig.api.put(BRANCHES, of_snapshot)
    body = rig.reconcile_branch("again")
    assert conditions_of(body)["Scheduled"] == "SnapshotNotFound"
    assert body["status"]["source"] == "snapshot/shop-before"
    rig.put(snapshot())
    rig.reconcile_snapshot()
    assert conditions_of(rig.reconcile_branch("again"))["Scheduled"] == "SnapshotNotReady"
    report_taken(rig)
    rig.reconcile_snapshot()
    rig.agent_of(features="")
    assert conditions_of(rig.reconcile_branch("again"))["Scheduled"] == "AgentTooOld"
    key = Key(names.BRANCH_KIND, "team", "shop-again")
    assert key not in stale([NodeChange(NODE)], rig.cache())
    rig.agent_of()
    assert key in stale([NodeChange(NODE)], rig.cache())
    body = rig.reconcile_branch("again")
    assert conditions_of(body)["Scheduled"] == "Bound" and body["status"]["nodeName"] == NODE
    assert body["status"]["sourceUID"] == rig.snapshot()["metadata"]["uid"]


def test_a_snapshot_of_another_project_is_no_source() -> None:
    rig = ready_rig()
    rig.put(snapshot().taken_of("u").changed(spec={"project": "other"}))
    of_snapshot = branch("again").changed(spec={"sourceSnapshot": "shop-before"}).body()
    del of_snapshot["spec"]["source"]
    rig.api.put(BRANCHES, of_snapshot)
    assert conditions_of(rig.reconcile_branch("again"))["Scheduled"] == "SnapshotNotFound"


def test_a_branch_is_not_let_go_of_while_its_snapshot_is_being_taken() -> None:
    rig = ready_rig()
    rig.branch_up("b")
    rig.put(snapshot(of="b"))
    rig.reconcile_snapshot()
    rig.api.delete(f"{BRANCHES}/shop-b")
    rig.run()
    assert not rig.remove_branch("b")
    report_taken(rig)
    rig.reconcile_snapshot()
    rig.proxies_obey()
    rig.run()
    assert rig.remove_branch("b")
    # And none is bound to a branch that was let go of, though the cache may still have it.
    rig.put(snapshot("late", "b"))
    rig.reconcile_snapshot("late")
    assert "nodeName" not in (rig.snapshot("late").get("status") or {})


def test_a_project_that_is_deleted_waits_for_no_snapshot_that_nobody_takes_any_more() -> None:
    rig = ready_rig()
    rig.branch_up("b")
    rig.put(snapshot(of="b"))
    rig.reconcile_snapshot()
    rig.api.delete(f"{PROJECTS}/shop")
    rig.remove_project()
    assert rig.remove_branch("b")


def test_a_project_takes_its_branches_then_its_snapshots_along() -> None:
    rig = ready_rig()
    rig.put(snapshot().taken_of("u"), snapshot("of-other").taken_of("u").changed(spec={"project": "other"}))
    rig.api.delete(f"{PROJECTS}/shop")
    assert not rig.remove_project()
    assert "deletionTimestamp" not in rig.snapshot()["metadata"]
    rig.api.merge(f"{BRANCHES}/shop-main", {"metadata": {"finalizers": None}})
    assert not rig.remove_project()
    assert rig.snapshot()["metadata"]["deletionTimestamp"]
    assert "deletionTimestamp" not in rig.snapshot("of-other")["metadata"]
    rig.api.merge(PATH, {"metadata": {"finalizers": None}})
    assert rig.remove_project()


# The watch.


def test_at_a_start_only_those_are_reconciled_that_are_not_at_rest() -> None:
    rig, added = ready_rig(), list[Key]()
    rig.put(snapshot("new"), snapshot("waits", "missing"))
    for number in range(3):
        rig.put(snapshot(f"stored{number}"))
        rig.reconcile_snapshot(f"stored{number}")
        report_taken(rig, f"stored{number}")
        rig.reconcile_snapshot(f"stored{number}")
    rig.reconcile_snapshot("waits")
    records = SnapshotRecords()
    watch = SnapshotWatch(_closing(rig), records, added.append, lambda: None)
    watch.follow()
    assert {key.name for key in added} == {"shop-new", "shop-waits"}
    assert {state: records.count(state) for state in STATES} == {
        "ready": 3,
        "pending": 2,
        "stalled": 0,
        "deleting": 0,
    }
    added.clear()
    # Who waits for a place gets that of one that went.
    rig.api.merge(f"{SNAPSHOTS}/shop-waits/status", {"status": {"conditions": [limit_exceeded()]}})
    watch.follow()
    assert added == []
    # One that went while nobody watched is forgotten, and nothing is reconciled twice for a list.
    rig.api.merge(f"{SNAPSHOTS}/shop-stored0", {"metadata": {"finalizers": None}})
    rig.api.delete(f"{SNAPSHOTS}/shop-stored0")
    watch.follow()
    assert [key.name for key in added] == ["shop-waits"] and records.get("team", "shop-stored0") is None


def limit_exceeded() -> dict[str, Any]:
    """Return the condition Ready of a snapshot that waits for a place."""
    body = snapshot().reported(Condition.READY, Reason.LIMIT_EXCEEDED).body()
    condition: dict[str, Any] = body["status"]["conditions"][0]
    return condition


def _closing(rig: Rig) -> Cluster:
    """Return the rig's API server, whose watches end at once."""

    class Closing:
        def watch(self, path: str, labels: str = "", fields: str = "") -> Any:
            yield from ({"type": "ADDED", "object": body} for body in rig.api.find(path, labels, fields))
            yield {"type": "SYNCED", "object": {}}

        def server_time(self) -> datetime:
            return rig.api.server_time()

    return Closing()  # type: ignore[return-value]


def test_who_waits_for_a_snapshot_is_reconciled_when_it_changes() -> None:
    rig, added = ready_rig(), list[Key]()
    of_snapshot = branch("again").changed(spec={"sourceSnapshot": "shop-before"}).body()
    del of_snapshot["spec"]["source"]
    rig.api.put(BRANCHES, of_snapshot)
    rig.put(snapshot().taken_of("u"))
    records = SnapshotRecords()
    watch = SnapshotWatch(_closing(rig), records, added.append, rig.cache)
    watch.follow()
    assert Key(names.BRANCH_KIND, "team", "shop-again") in added
    # The last of a project that is being deleted.
    rig.api.delete(f"{PROJECTS}/shop")
    rig.api.merge(PATH, {"metadata": {"finalizers": None}})
    rig.api.delete(PATH)
    added.clear()
    watch.follow()
    assert Key(names.PROJECT_KIND, "team", "shop") in added


def test_a_version_that_comes_late_does_not_undo_what_was_written() -> None:
    records = SnapshotRecords()
    old = record_of(snapshot().changed(metadata={"resourceVersion": "7"}).body())
    new = record_of(snapshot().taken_of("u").changed(metadata={"resourceVersion": "8"}).body())
    records.put(new)
    records.put(old)
    assert records.get("team", "shop-before") == new.snapshot
    # Another object under the name is none of that.
    other = record_of(snapshot().changed(metadata={"resourceVersion": "1", "uid": "other"}).body())
    records.put(other)
    assert records.get("team", "shop-before") == other.snapshot
    assert needs_reconcile(new, other) and not needs_reconcile(old, old)


def test_who_is_concerned_by_a_change_of_others() -> None:
    rig = ready_rig()
    cache: Cache = rig.cache()
    waits = record_of(snapshot("waits").body())
    of_other = record_of(snapshot("other", "b").body())
    stored = record_of(
        snapshot("stored")
        .taken_of("u")
        .reported(Condition.READY, Reason.AVAILABLE)
        .status(observedGeneration=1)
        .body()
    )
    lost = record_of(
        snapshot("lost")
        .taken_of("u")
        .reported(Condition.READY, Reason.NODE_GONE)
        .status(observedGeneration=1)
        .body()
    )
    assert stored.at_rest and not lost.at_rest and lost.state == "stalled"
    records = [waits, of_other, stored, lost]

    def concerned(change: Any) -> set[str]:
        return {key.name for key in concerned_by(change, records, cache)}

    assert concerned(SHOP) == {"shop-waits", "shop-other", "shop-lost"}
    assert concerned(MAIN) == {"shop-waits", "shop-lost"}
    assert concerned(NODE) == {"shop-waits", "shop-other", "shop-lost"}
    assert concerned("n2") == set()
    gone = replace(cache, nodes={}, agents={})
    assert {key.name for key in concerned_by(NODE, [stored], gone)} == {"shop-stored"}


def test_what_has_expired_is_reconciled_a_few_at_a_time() -> None:
    rig, added = ready_rig(), list[Key]()
    records = SnapshotRecords()
    for number in range(15):
        expiring = snapshot(f"s{number:02}", ttl="1h").taken_of("u")
        records.put(
            record_of(
                expiring.status(expirationTime=f"2026-01-01T00:00:{number:02}Z", observedGeneration=1).body()
            )
        )
    distant = snapshot("later", ttl="1h").taken_of("u").status(observedGeneration=1)
    records.put(record_of(distant.status(expirationTime="2999-01-01T00:00:00Z").body()))
    SnapshotWatch(_closing(rig), records, added.append, lambda: None).request_expired()
    assert [key.name for key in added] == [f"shop-s{number:02}" for number in range(10)]


def test_a_reconcile_that_fails_is_said_of_the_snapshot() -> None:
    rig = ready_rig()
    rig.put(snapshot())
    rig.snapshots.report_failure("team", "shop-before", RuntimeError("no"))
    assert conditions_of(rig.snapshot())["Ready"] == "ReconcileFailed"
    assert "unexpected RuntimeError" in message_of(rig.snapshot(), "Ready")
