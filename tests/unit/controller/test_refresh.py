"""A branch's refresh: which run makes a DBRestore, and what the branch says of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.factories import Json, RestoreBuilder, branch, project, restore
from tests.unit.controller.rig import BRANCHES, conditions_of, message_of
from tests.unit.controller.test_schedule_loop import Play

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.conditions import Condition, Finding, Reason
from dbranch.api.enums import RestorePhase
from dbranch.api.errors import ApiError
from dbranch.api.restore import Restore
from dbranch.api.schedule import SnapshotsStatus, parse_snapshots_status, run_name
from dbranch.controller.branch.refreshed import refreshed_finding
from dbranch.controller.restore.admission import Rejected, admit
from dbranch.controller.restore.facts import RestoreFacts
from dbranch.controller.schedule import loop as schedule_loop
from dbranch.controller.schedule.refresh import RefreshFacts, is_in_use, plan_refresh
from dbranch.kube.client import path_of

THREE = datetime(2030, 6, 1, 3, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NIGHTLY: Json = {"schedule": "0 3 * * *"}
RESTORES = path_of(names.API_VERSION, names.RESTORES, "team")


def copy_of_main(runs: SnapshotsStatus | None = None, **refresh: Any) -> Branch:
    parsed = branch("x").bound().stored().spec(refresh={**NIGHTLY, **refresh}).parsed()
    return replace(parsed, refreshes=runs or SnapshotsStatus())


def made(run: datetime, phase: RestorePhase | None = None, reason: Reason | None = None) -> Restore:
    """Return the restore that a run has made."""
    builder: RestoreBuilder = restore(run_name("shop-x", run, "refresh"), "x").changed(
        metadata={"ownerReferences": [owner("shop-x-uid")]}
    )
    if reason:
        builder = builder.reported(
            Condition.FAILED, reason, "the restore failed; nothing was done; see its log"
        )
    return (builder.status(phase=phase.value) if phase else builder).parsed()


def owner(uid: str, **changes: object) -> Json:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.BRANCH_KIND,
        "name": "shop-x",
        "uid": uid,
        "controller": True,
        **changes,
    }


def test_a_new_refresh_replaces_nothing_before_its_next_time() -> None:
    first = plan_refresh(RefreshFacts(copy_of_main()), THREE + 20 * MINUTE)
    assert first.name is None and first.status.next == THREE + DAY
    due = plan_refresh(RefreshFacts(copy_of_main(first.status)), THREE + DAY)
    assert due.name == "shop-x-refresh-203006020300"
    assert due.status == SnapshotsStatus(THREE + DAY, None, THREE + 2 * DAY)


def test_a_run_is_made_up_within_an_hour_and_not_later() -> None:
    facts = RefreshFacts(copy_of_main(SnapshotsStatus(next=THREE)))
    assert plan_refresh(facts, THREE + HOUR).name
    late = plan_refresh(facts, THREE + HOUR + MINUTE)
    assert late.name is None and late.status.next == THREE + DAY and late.status.last is None
    # It waits for its node so long.
    waiting = plan_refresh(replace(facts, can_run=False), THREE + MINUTE)
    assert waiting.name is None and waiting.status.next == THREE


def test_a_refresh_that_was_cut_off_behind_its_restore_makes_no_second_one() -> None:
    facts = RefreshFacts(copy_of_main(SnapshotsStatus(next=THREE)), [made(THREE)])
    cut_off = plan_refresh(facts, THREE + MINUTE)
    assert cut_off.name is None and cut_off.status == SnapshotsStatus(THREE, None, THREE + DAY)


def test_what_is_in_use_is_left_as_it_is_if_that_is_asked_for() -> None:
    status = SnapshotsStatus(next=THREE)
    skip = RefreshFacts(copy_of_main(status, whenInUse="Skip"), in_use=True)
    assert plan_refresh(skip, THREE).name is None
    assert plan_refresh(skip, THREE).status.next == THREE + DAY
    assert plan_refresh(replace(skip, in_use=False), THREE).name
    assert plan_refresh(RefreshFacts(copy_of_main(status), in_use=True), THREE).name
    shop = project().status(
        proxies=[{"pod": "p", "generation": 1, "branches": [{"branch": "x", "sessions": 1, "draining": 0}]}]
    )
    assert is_in_use(shop.parsed(), copy_of_main()) and not is_in_use(project().parsed(), copy_of_main())


def test_a_paused_and_an_invalid_refresh_do_nothing() -> None:
    changes: list[dict[str, Any]] = [{"state": "Paused"}, {"schedule": "0 25 * * *"}]
    for refresh in changes:
        plan = plan_refresh(RefreshFacts(copy_of_main(SnapshotsStatus(next=THREE), **refresh)), THREE)
        assert plan.name is None and plan.status.next is None
    none = replace(copy_of_main(SnapshotsStatus(next=THREE)), refresh=None)
    assert plan_refresh(RefreshFacts(none), THREE).status == SnapshotsStatus()


moves = st.lists(
    st.tuples(st.sampled_from(["pass", "cut", "jump", "restore"]), st.integers(0, 86400)), max_size=40
)


@settings(deadline=None, max_examples=100)
@given(moves)
def test_no_run_replaces_the_data_twice(actions: list[tuple[str, int]]) -> None:
    now, status, runs = THREE, SnapshotsStatus(), list[str]()
    jumped_back = False
    for action, seconds in actions:
        if action == "jump":
            jumped_back |= seconds < 43200
            now += timedelta(seconds=(seconds - 43200) * 20)
        now += timedelta(seconds=seconds)
        plan = plan_refresh(RefreshFacts(copy_of_main(status), [restored(name) for name in runs]), now)
        if plan.name and plan.name not in runs:
            run = restored(plan.name)
            assert jumped_back or not [other for other in runs if other >= run.object_name]
            assert timedelta() <= now - run_time(plan.name) <= HOUR
            runs.append(plan.name)
        if action != "cut":
            status = parse_snapshots_status(plan.status.as_dict())


def run_time(name: str) -> datetime:
    return datetime.strptime(name[-12:], "%Y%m%d%H%M").replace(tzinfo=UTC)


def restored(name: str) -> Restore:
    return made(run_time(name), RestorePhase.COMPLETE)


def test_what_a_branch_says_of_its_refresh() -> None:
    def said(*restores: Restore, reported: Reason | None = None, **refresh: Any) -> Finding | None:
        item = copy_of_main(**refresh)
        if reported:
            status = branch("x").reported(Condition.REFRESHED, reported, "as it was").body()["status"]
            item = replace(item, status=status)
        return refreshed_finding(item, restores)

    complete = made(THREE, RestorePhase.COMPLETE)
    failed = made(THREE + DAY, RestorePhase.FAILED, Reason.POOL_FULL)
    assert said() == said(complete) and said(complete).reason == Reason.ON_SCHEDULE  # type: ignore[union-attr]
    for restores in ((failed,), (complete, failed), (complete, failed, made(THREE + 2 * DAY))):
        finding = said(*restores)
        assert finding and finding.reason == Reason.POOL_FULL and not finding.done
    # Its DBRestore is gone after a day, and the next one is still to come.
    finding = said(reported=Reason.POOL_FULL)
    assert finding and finding.reason == Reason.POOL_FULL
    finding = said(made(THREE + 2 * DAY, RestorePhase.COMPLETE), failed, reported=Reason.POOL_FULL)
    assert finding and finding.done
    invalid = said(schedule="0 25 * * *")
    assert invalid and invalid.reason == Reason.INVALID_SCHEDULE
    assert said(state="Paused") is None


@pytest.mark.parametrize(
    ("reference", "is_rejected"),
    [
        (owner("shop-x-uid"), False),
        (owner("other"), True),
        (owner("shop-x-uid", controller=False), True),
        (owner("shop-x-uid", kind="DBProject"), True),
        (owner("shop-x-uid", apiVersion="apps/v1"), True),
    ],
)
def test_protection_holds_back_all_but_the_branchs_own_schedule(reference: Json, is_rejected: bool) -> None:
    protected = branch("x").bound().stored().spec(protection="Enabled").parsed()
    item = restore("r", "x").changed(metadata={"ownerReferences": [reference]}).parsed()
    decision = admit(RestoreFacts(item, project().bound().up().parsed(), protected), THREE)
    finding = decision.finding if isinstance(decision, Rejected) else None
    assert (finding is not None and finding.reason == Reason.PROTECTED) == is_rejected


def test_a_refresh_that_the_api_server_refuses_says_so_until_one_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    play, seconds = Play(), [0.0]
    monkeypatch.setattr(schedule_loop, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    play.rig.branch_up("x")
    play.rig.change_branch("x", refresh=NIGHTLY)
    play.step(THREE - HOUR)
    play.rig.api.refuse("create", "dbrestores", ApiError(403, "Forbidden", "exceeded quota: restores"))
    assert play.step(THREE) == ["create dbrestores/shop-x-refresh-203006010300"]
    body = play.rig.reconcile_branch("x")
    assert conditions_of(body)["Refreshed"] == "ObjectRefused" and conditions_of(body)["Ready"] == "Available"
    assert message_of(body, "Refreshed") == (
        "the refresh of branch x cannot begin: exceeded quota: restores; it has its old data; it is tried again"
    )
    play.rig.api.answer_again()
    seconds[0] += 61
    assert "create dbrestores/shop-x-refresh-203006010300" in play.step(play.now + MINUTE)
    assert conditions_of(play.rig.reconcile_branch("x"))["Refreshed"] == "OnSchedule"


def test_a_refresh_makes_a_restore_and_says_how_it_ended() -> None:
    play = Play()
    play.rig.branch_up("x")
    play.rig.change_branch("x", refresh=NIGHTLY)
    play.now = THREE - HOUR
    assert play.step() == ["merge dbbranches/shop-x/status"]
    play.rig.reconcile_branch("x")
    assert conditions_of(play.rig.branch("x"))["Refreshed"] == "OnSchedule" and play.step() == []
    assert play.step(THREE) == [
        "create dbrestores/shop-x-refresh-203006010300",
        "merge dbbranches/shop-x/status",
    ]
    body = play.rig.existing(f"{RESTORES}/shop-x-refresh-203006010300")
    assert body["spec"] == {"project": "shop", "branch": "x", "ttlAfterFinished": "24h"}
    assert [o["kind"] for o in body["metadata"]["ownerReferences"]] == [names.BRANCH_KIND]
    assert play.rig.branch("x")["status"]["refresh"] == {
        "lastScheduleTime": "2030-06-01T03:00:00Z",
        "nextScheduleTime": "2030-06-02T03:00:00Z",
    }
    assert play.step() == []
    failed = {
        "type": "Failed",
        "status": "True",
        "reason": "PoolFull",
        "message": "it failed; no; more space",
    }
    status = {"phase": "Failed", "conditions": [{**failed, "lastTransitionTime": "2030-06-01T03:01:00Z"}]}
    play.rig.api.merge(f"{RESTORES}/shop-x-refresh-203006010300/status", {"status": status})
    for _ in range(2):
        play.step(play.now + MINUTE)
    body = play.rig.reconcile_branch("x")
    assert conditions_of(body)["Refreshed"] == "PoolFull" and conditions_of(body)["Ready"] == "Available"
    assert "no" in message_of(body, "Refreshed")
    (event,) = play.rig.api.find("/api/v1/namespaces/team/events")
    assert event["reason"] == "RefreshFailed" and event["type"] == "Warning"
    play.start()
    assert play.step(play.now + MINUTE) == []
    assert path_of(names.API_VERSION, names.BRANCHES, "team") == BRANCHES
