"""The decision about a branch's schedules: which run is due, what is kept, whatever the clock and the process do."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.factories import Json, branch, snapshot

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.conditions import Condition, Reason
from dbranch.api.expiry import format_time
from dbranch.api.schedule import Kept, SnapshotsStatus, parse_snapshots_status, run_name
from dbranch.controller.schedule.keep import KEEP_GRACE, plan_keep, surplus
from dbranch.controller.schedule.plan import (
    MAX_WAIT,
    WORD_TIME,
    ScheduleFacts,
    SchedulePlan,
    delay_of,
    plan_schedules,
)
from dbranch.controller.snapshot_records import SnapshotRecord, record_of

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
HOURLY: Json = {"name": "hourly", "schedule": "0 * * * *", "keep": 3}
DAILY: Json = {"name": "daily", "schedule": "0 3 * * *", "keep": 2}


def main(*schedules: Json, runs: SnapshotsStatus | None = None, transaction: int = 0) -> Branch:
    """Return the root branch with these schedules, as the cache has it."""
    builder = branch().bound().stored().spec(snapshots=list(schedules)).node(transaction=transaction)
    return replace(builder.parsed(), runs=runs or SnapshotsStatus())


def taken(
    run: datetime, transaction: int = 1, schedules: tuple[str, ...] = ("hourly",), **spec: Any
) -> SnapshotRecord:
    """Return the record of a run's snapshot, which is stored."""
    return record_of(scheduled(run, schedules, **spec).changed(**stored(run, transaction)).body())


def scheduled(run: datetime, schedules: tuple[str, ...] = ("hourly",), **spec: Any) -> Any:
    name = run_name("main", run)
    origin = {"reason": "Schedule", "schedules": list(schedules), "time": format_time(run + delay())}
    builder = snapshot(name, origin=origin, **spec)
    return builder.changed(metadata={"labels": {names.LABEL_BRANCH_UID: "shop-main-uid"}})


def stored(run: datetime, transaction: int) -> Json:
    """Return what the snapshot of a run is changed by once it is stored and Ready."""
    builder = scheduled(run).taken_of("shop-main-uid", format_time(run)).node(transaction=transaction)
    ready = builder.reported(Condition.READY, Reason.AVAILABLE).status(observedGeneration=1).body()
    return {"status": ready["status"]}


def plan(facts: ScheduleFacts, now: datetime) -> SchedulePlan:
    return plan_schedules(facts, now)


def delay() -> timedelta:
    return delay_of(main(HOURLY), main(HOURLY).snapshots)


def test_a_new_schedule_begins_with_its_next_run() -> None:
    facts = ScheduleFacts(main(HOURLY))
    first = plan(facts, NOON + 30 * MINUTE)
    assert first.run is None and first.status.next == NOON + HOUR
    assert first.status.keep == (Kept("hourly", 3),)
    facts = replace(facts, branch=main(HOURLY, runs=first.status))
    assert plan(facts, NOON + HOUR + delay() - timedelta(seconds=1)).run is None
    due = plan(facts, NOON + HOUR + delay())
    assert due.run and due.run.time == NOON + HOUR and due.run.name == "shop-main-202606011300"
    assert due.run.schedules == ("hourly",)
    # Nothing is written before the snapshot is there.
    assert due.status == first.status


def test_runs_are_spread_by_uid_over_a_tenth_of_the_interval() -> None:
    delays = [
        delay_of(replace(main(cron), uid=f"uid-{n}"), main(cron).snapshots)
        for cron in (HOURLY, DAILY)
        for n in range(100)
    ]
    hourly, daily = delays[:100], delays[100:]
    assert max(hourly) <= 6 * MINUTE and len({*hourly}) > 60 and min(hourly) < MINUTE
    # Who says three o'clock does not mean five.
    assert 9 * MINUTE < max(daily) <= 10 * MINUTE


def test_a_run_is_known_by_its_snapshots_name_until_the_status_says_it() -> None:
    """A controller that is cut off behind the creation of the snapshot makes it no second time."""
    before = SnapshotsStatus(next=NOON, keep=(Kept("hourly", 3),))
    now = NOON + delay() + MINUTE
    coming = record_of(scheduled(NOON).body())
    facts = ScheduleFacts(main(HOURLY, runs=before, transaction=9), [coming])
    assert plan(facts, NOON + delay()).run is None and plan(facts, NOON + delay()).status == before
    # Once it is taken, one write says all.
    done = plan(replace(facts, records=[taken(NOON)]), now)
    assert done.run is None
    assert done.status == SnapshotsStatus(NOON, NOON, NOON + HOUR, before.keep)
    # One that is not taken is waited for only so long.
    late = plan(facts, NOON + delay() + 2 * MINUTE)
    assert late.run is None and late.status.next == NOON + HOUR and late.status.succeeded is None


def test_a_run_that_is_due_when_the_one_before_is_reported_is_done() -> None:
    before = SnapshotsStatus(next=NOON, keep=(Kept("hourly", 3),))
    facts = ScheduleFacts(main(HOURLY, runs=before, transaction=9), [taken(NOON, 7)])
    both = plan(facts, NOON + HOUR + delay())
    assert both.status.last == NOON and both.status.next == NOON + HOUR
    assert both.run and both.run.time == NOON + HOUR


def test_one_snapshot_where_several_schedules_fall_together() -> None:
    three = NOON.replace(hour=3)
    facts = ScheduleFacts(main(HOURLY, DAILY, runs=SnapshotsStatus(next=three)))
    run = plan(facts, three + delay()).run
    assert run and run.schedules == ("daily", "hourly") and run.time == three
    # Made up together, too, under the time of the last one.
    run = plan(facts, three + 2 * HOUR + delay()).run
    assert run and run.schedules == ("daily", "hourly") and run.time == three + 2 * HOUR


def test_of_the_runs_that_were_missed_the_last_one_is_made_up() -> None:
    facts = ScheduleFacts(main(HOURLY, runs=SnapshotsStatus(next=NOON), transaction=5))
    now = NOON + 100 * DAY + 30 * MINUTE
    run = plan(facts, now).run
    assert run and run.time == NOON + 100 * DAY
    assert plan(replace(facts, records=[taken(run.time, 7)]), now).run is None


def test_nothing_is_taken_where_nothing_was_written_and_nothing_is_reported_of_that() -> None:
    runs = SnapshotsStatus(NOON, NOON, NOON + HOUR, (Kept("hourly", 3),))
    last = taken(NOON, 7)
    idle = ScheduleFacts(main(HOURLY, runs=runs, transaction=6), [last])
    for hours in range(1, 30):
        at = NOON + hours * HOUR + delay()
        # The agent may be about to report it.
        waiting = plan(idle, at)
        assert (waiting.run, waiting.considered, waiting.status) == (None, None, runs)
        passed = plan(idle, at + WORD_TIME)
        assert (passed.run, passed.considered, passed.status) == (None, NOON + hours * HOUR, runs)
        idle = replace(idle, considered=passed.considered)
    # What is written after that belongs to the next run.
    written = replace(idle, branch=main(HOURLY, runs=runs, transaction=8))
    assert plan(written, NOON + 29 * HOUR + delay() + 5 * MINUTE).run is None
    run = plan(written, NOON + 30 * HOUR + delay()).run
    assert run and run.time == NOON + 30 * HOUR
    # Of a release that does not say it, and where nothing was taken yet.
    assert plan(replace(idle, records=[]), NOON + 30 * HOUR + delay()).run
    older = record_of(scheduled(NOON).taken_of("shop-main-uid").body())
    assert plan(replace(idle, records=[older]), NOON + 30 * HOUR + delay()).run


def test_a_run_waits_behind_creates_and_restores_but_not_for_ever() -> None:
    facts = ScheduleFacts(main(HOURLY, runs=SnapshotsStatus(next=NOON)), node_free=False)
    assert plan(facts, NOON + delay()).waits and plan(facts, NOON + delay()).run is None
    assert plan(facts, NOON + delay() + MAX_WAIT).run


@pytest.mark.parametrize("change", [{"can_take": False}, {"has_room": False}])
def test_a_run_that_cannot_be_done_is_late_and_is_made_up(change: dict[str, Any]) -> None:
    facts = ScheduleFacts(main(HOURLY, runs=SnapshotsStatus(next=NOON)))
    held = plan(replace(facts, **change), NOON + 20 * MINUTE)
    assert held.run is None and held.late == NOON + delay() and held.status.next == NOON
    run = plan(facts, NOON + 30 * MINUTE).run
    assert run and run.time == NOON
    # A project that is stopped writes nothing; that is not late.
    stopped = plan(replace(facts, is_stopped=True), NOON + 20 * MINUTE)
    assert stopped.run is None and stopped.late is None


def test_a_snapshot_that_cannot_be_taken_is_not_followed_by_others() -> None:
    stuck = record_of(scheduled(NOON).body())
    runs = SnapshotsStatus(NOON, None, NOON + HOUR)
    facts = ScheduleFacts(main(HOURLY, runs=runs), [stuck])
    assert plan(facts, NOON + HOUR + delay()).run is None
    missed = scheduled(NOON).reported(Condition.READY, Reason.SNAPSHOT_MISSED).status(observedGeneration=1)
    assert plan(replace(facts, records=[record_of(missed.body())]), NOON + HOUR + delay()).run


def test_paused_and_invalid_schedules_have_no_runs_and_nothing_is_made_up() -> None:
    runs = SnapshotsStatus(NOON, NOON, NOON + HOUR)
    for off in ({**HOURLY, "state": "Paused"}, {**HOURLY, "schedule": "0 25 * * *"}):
        held = plan(ScheduleFacts(main(off, runs=runs)), NOON + 5 * HOUR)
        assert held.run is None and held.status.next is None and held.status.last == NOON
    resumed = plan(ScheduleFacts(main(HOURLY, runs=replace(runs, next=None))), NOON + 5 * HOUR + 10 * MINUTE)
    assert resumed.run is None and resumed.status.next == NOON + 6 * HOUR


def test_other_schedules_move_the_next_run() -> None:
    runs = SnapshotsStatus(NOON, NOON, NOON + HOUR)
    often = {"name": "often", "schedule": "*/5 * * * *"}
    sooner = plan(ScheduleFacts(main(HOURLY, often, runs=runs), [taken(NOON)]), NOON + 12 * MINUTE)
    assert sooner.status.next == NOON + 15 * MINUTE and sooner.run is None
    rarer = plan(ScheduleFacts(main(DAILY, runs=runs), [taken(NOON)]), NOON + 61 * MINUTE)
    assert rarer.status.next == NOON + 15 * HOUR and rarer.run is None


def test_a_clock_that_was_ahead_is_believed_no_longer_than_it_is() -> None:
    year = NOON + 365 * DAY
    runs = SnapshotsStatus(year, year, year + HOUR)
    facts = ScheduleFacts(main(HOURLY, runs=runs, transaction=9), [taken(year, 7)])
    back = plan(facts, NOON + 10 * MINUTE)
    assert back.run is None and back.status.next == NOON + HOUR and back.status.last is None
    facts = replace(facts, branch=replace(facts.branch, runs=back.status))
    run = plan(facts, NOON + HOUR + delay()).run
    assert run and run.time == NOON + HOUR
    # Two API servers whose clocks differ a little: the run is not done twice, nor is anything written.
    runs = SnapshotsStatus(NOON, NOON, NOON + HOUR, (Kept("hourly", 3),))
    behind = ScheduleFacts(main(HOURLY, runs=runs, transaction=9), [taken(NOON, 7)])
    assert plan(behind, NOON + delay() - 3 * MINUTE) == SchedulePlan(runs)


# What is kept.


def kept(count: int, records: list[SnapshotRecord]) -> list[str]:
    """Return the names of the snapshots that stay."""
    gone = {item.uid for item in surplus((Kept("hourly", count),), records)}
    return [r.snapshot.object_name[-4:] for r in records if r.snapshot.uid not in gone]


def test_as_many_snapshots_are_kept_as_keep_says() -> None:
    records = [taken(NOON + n * HOUR, n + 1) for n in range(6)]
    assert kept(3, records) == ["1500", "1600", "1700"]
    # What is protected, or was changed by somebody, neither counts nor goes; nor one that is still to come.
    records[0] = taken(NOON, 1, protection="Enabled")
    changed = scheduled(NOON + HOUR, ttl="1h").changed(metadata={"generation": 2})
    records[1] = record_of(changed.changed(**stored(NOON + HOUR, 2)).body())
    coming = record_of(scheduled(NOON + 6 * HOUR).body())
    assert kept(3, [*records, coming]) == ["1200", "1300", "1500", "1600", "1700", "1800"]
    # Of a schedule that there is no more; and one that another schedule still wants.
    assert kept(1, [taken(NOON, 1, ("gone",)), taken(NOON + HOUR, 2), taken(NOON + 2 * HOUR, 3)]) == [
        "1200",
        "1400",
    ]
    both = taken(NOON, 1, ("daily", "hourly"))
    newer = [taken(NOON + n * HOUR, n + 1) for n in (1, 2)]
    assert surplus((Kept("hourly", 1), Kept("daily", 1)), [both, *newer]) == [newer[0].snapshot]


def test_the_newest_are_kept_by_the_order_on_the_disk_not_by_the_clock() -> None:
    ahead = [taken(NOON + 365 * DAY + n * HOUR, n + 1) for n in range(3)]
    true = [taken(NOON + n * HOUR, n + 10) for n in range(3)]
    assert kept(3, [*ahead, *true]) == ["1200", "1300", "1400"] and kept(4, [*ahead, *true])[0] == "1400"


def test_records_of_runs_that_were_missed_go_but_the_last_one() -> None:
    missed = [
        record_of(
            scheduled(NOON + n * HOUR)
            .reported(Condition.READY, Reason.SNAPSHOT_MISSED)
            .status(observedGeneration=1)
            .body()
        )
        for n in range(3)
    ]
    assert kept(3, missed) == ["1400"]
    assert kept(3, [*missed, taken(NOON + 3 * HOUR, 5)]) == ["1500"]


def test_fewer_are_kept_only_after_a_day() -> None:
    records = [taken(NOON + n * HOUR, n + 1) for n in range(3)]
    one = main({**HOURLY, "keep": 1}).snapshots

    def step(current: tuple[Kept, ...], now: datetime, keep: int = 1) -> tuple[Kept, ...]:
        return plan_keep([replace(one[0], keep=keep)], current, records, now)

    begun = step((Kept("hourly", 3),), NOON)
    assert begun == (Kept("hourly", 3, 1, NOON + KEEP_GRACE),)
    assert step(begun, NOON + HOUR) == begun
    # Smaller still: from now on. Not so small: as was said. As it was: nothing happens.
    assert step((Kept("hourly", 3, 2, NOON + DAY),), NOON + HOUR) == (
        Kept("hourly", 3, 1, NOON + HOUR + DAY),
    )
    assert step(begun, NOON + HOUR, 2) == (Kept("hourly", 3, 2, NOON + DAY),)
    assert step(begun, NOON + HOUR, 3) == (Kept("hourly", 3),) and step(begun, NOON, 9) == (
        Kept("hourly", 9),
    )
    assert step(begun, NOON + DAY) == (Kept("hourly", 1),)
    # A new schedule with the name of one that was there before.
    assert step((), NOON) == (Kept("hourly", 3, 1, NOON + DAY),)
    plan_ = plan(ScheduleFacts(main({**HOURLY, "keep": 1}), records), NOON)
    assert plan_.shrinking == (Kept("hourly", 3, 1, NOON + DAY),) and not plan_.surplus


# Whatever the clock and the process do.

steps = st.lists(
    st.tuples(
        st.sampled_from(["pass", "pass", "pass", "write", "take", "take", "cut", "jump", "restart", "fail"]),
        st.integers(0, 5400),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=150)
@given(steps)
def test_no_run_is_done_twice_and_nothing_goes_that_keep_protects(actions: list[tuple[str, int]]) -> None:
    """The controller is cut off between any two writes, the clock jumps, snapshots fail: played step by step."""
    now, transaction, written = NOON, 10, 0
    runs = SnapshotsStatus()
    bodies: dict[str, Json] = {}
    made: list[str] = []
    considered: datetime | None = None
    jumped_back = False
    for action, seconds in actions:
        if action == "jump":
            jump = timedelta(seconds=(seconds - 2700) * 100)
            jumped_back |= jump < timedelta()
            now += jump
        now += timedelta(seconds=seconds)
        if action == "write":
            transaction += 1
            written = transaction
        if action == "restart":
            considered = None
        for name, body in bodies.items():
            if not (body.get("status") or {}).get("node") and action in ("take", "fail"):
                transaction += 1
                minute = datetime.strptime(name[-12:], "%Y%m%d%H%M").replace(tzinfo=UTC)
                if action == "take":
                    body.update(stored(minute, transaction))
                else:
                    failed = scheduled(minute).reported(Condition.READY, Reason.SNAPSHOT_MISSED)
                    body["status"] = failed.status(observedGeneration=1).body()["status"]
        current = replace(main(HOURLY, {**DAILY, "schedule": "*/20 * * * *"}, transaction=written), runs=runs)
        records = [record_of(body) for body in bodies.values()]
        decided = plan(ScheduleFacts(current, records, considered=considered), now)
        if decided.run:
            name = decided.run.name
            # The API server refuses a name that exists.
            if name not in bodies:
                assert jumped_back or name not in made
                made.append(name)
                bodies[name] = scheduled(decided.run.time, decided.run.schedules).body()
        if action == "cut":
            continue
        considered = decided.considered or considered
        for entry in decided.status.keep:
            members = sorted(
                (b["status"]["node"]["transaction"], n)
                for n, b in bodies.items()
                if entry.name in b["spec"]["origin"]["schedules"] and (b.get("status") or {}).get("node")
            )
            protected = {n for _, n in members[-entry.count :]}
            assert not protected & {item.object_name for item in decided.surplus}
        for item in decided.surplus:
            del bodies[item.object_name]
        # As the API server keeps it.
        runs = parse_snapshots_status(decided.status.as_dict())
        assert runs == decided.status
