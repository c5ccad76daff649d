"""The loop of schedules over a fake API server: what it writes, and when; cut off at every write."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.factories import NODE, Json, branch
from tests.unit.controller.rig import BRANCHES, SNAPSHOTS, Rig, conditions_of, message_of

from dbranch.api import names
from dbranch.api.conditions import Finding, Reason
from dbranch.api.errors import ApiError
from dbranch.api.expiry import format_time
from dbranch.controller.cache import Cache
from dbranch.controller.metrics import ControllerMetrics
from dbranch.controller.schedule import loop as schedule_loop
from dbranch.controller.schedule import plan as schedule_plan
from dbranch.controller.schedule.loop import ScheduleLoop
from dbranch.controller.schedule.plan import MAX_WAIT, WORD_TIME, delay_of
from dbranch.kube.client import Cluster
from dbranch.runtime.result import Key

NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
HOURLY: Json = {"name": "hourly", "schedule": "0 * * * *", "keep": 2}


class Play:
    """A controller with its loop of schedules; the agent is played."""

    def __init__(self, *schedules: Json, **limits: str) -> None:
        self.rig = Rig(**limits).ready()
        self.transaction = 100
        self.added: list[Key] = []
        # Of the loop's requests: verb, pattern of the path, whether only the answer is lost.
        self.interruptions: list[tuple[str, str, bool]] = []
        self.now = NOON - 30 * MINUTE
        self.rig.api.clock = lambda: self.now
        self.rig.change_branch(snapshots=list(schedules))
        # It says that it has schedules.
        self.rig.reconcile_branch()
        self.start()

    def start(self) -> None:
        """Start the controller's process (once more)."""
        self.loop = ScheduleLoop(
            cast(Cluster, self.rig.api),
            self.rig.limits,
            ControllerMetrics(),
            self.added.append,
            self._cache,
            lambda: self.now,
        )

    def _cache(self) -> Cache:
        cache = self.rig.cache()
        cache.snapshots.complete = True
        return cache

    @property
    def delay(self) -> timedelta:
        branch = self._cache().all_branches()[0]
        return delay_of(branch, branch.snapshots)

    def step(self, at: datetime | None = None) -> list[str]:
        """Let the loop look once; return its writes."""
        self.now = at or self.now
        self.rig.api.take_requests()
        self.loop.run_due()
        return self.rig.api.take_writes()

    def written(self) -> None:
        """Write to the branch, which the agent reports."""
        self.transaction += 1
        self._report(f"{BRANCHES}/shop-main", {"transaction": self.transaction})

    def take(self) -> None:
        """Play the controller's and the agent's part of all snapshots."""
        for body in self.rig.api.find(SNAPSHOTS):
            name = body["metadata"]["name"]
            self.rig.snapshots.reconcile("team", name, self._cache())
            bound = self.rig.existing(f"{SNAPSHOTS}/{name}")
            if bound["metadata"].get("deletionTimestamp"):
                self.rig.api.merge(f"{SNAPSHOTS}/{name}", {"metadata": {"finalizers": []}})
            elif "nodeName" in bound["status"] and "node" not in bound["status"]:
                self.transaction += 1
                storage = Finding(Reason.STORED, "stored").as_dict()
                node = {"snapshotTime": format_time(self.now), "uniqueBytes": 0, "storage": storage}
                self._report(f"{SNAPSHOTS}/{name}", node | {"transaction": self.transaction})
                self.rig.snapshots.reconcile("team", name, self._cache())

    def _report(self, path: str, node: Json) -> None:
        self.rig.api.merge(f"{path}/status", {"status": {"node": node}})

    def snapshots(self) -> list[str]:
        """Return the names of the snapshots, but for `shop-main-`."""
        return [body["metadata"]["name"].removeprefix("shop-main-") for body in self.rig.api.find(SNAPSHOTS)]

    def hour(self, hours: int) -> list[str]:
        """Play the run of an hour after noon, with something written before; return the loop's writes."""
        self.rig.api.answer_again()
        self.written()
        for verb, pattern, lost in self.interruptions:
            if lost:
                self.rig.api.lose_answer(verb, pattern)
            else:
                self.rig.api.refuse(verb, pattern, times=1)
        writes = self.step(NOON + hours * HOUR + self.delay)
        self.take()
        return writes + self.step(self.now + timedelta(seconds=5))


def test_the_life_of_a_scheduled_snapshot_is_four_writes_and_one_of_its_branch() -> None:
    play = Play(HOURLY)
    assert play.step() == ["merge dbbranches/shop-main/status"]
    assert play.rig.branch()["status"]["snapshots"] == {
        "nextScheduleTime": "2030-06-01T12:00:00Z",
        "keep": [{"name": "hourly", "count": 2}],
    }
    assert play.step(NOON + play.delay - timedelta(seconds=1)) == []
    assert play.step(NOON + play.delay) == ["create dbsnapshots/shop-main-203006011200"]
    assert play.added == [Key(names.SNAPSHOT_KIND, "team", "shop-main-203006011200")]
    body = play.rig.snapshot("main-203006011200")
    assert body["spec"]["origin"] == {
        "reason": "Schedule",
        "schedules": ["hourly"],
        "time": format_time(play.now),
    }
    assert [o["kind"] for o in body["metadata"]["ownerReferences"]] == [names.PROJECT_KIND]
    assert play.step() == []
    # Binding, the agent, Ready.
    writes = play.rig.writes_of(play.take)
    assert writes == ["merge dbsnapshots/shop-main-203006011200/status"] * 3
    assert play.step(play.now + MINUTE) == ["merge dbbranches/shop-main/status"]
    assert play.rig.branch()["status"]["snapshots"] == {
        "lastScheduleTime": "2030-06-01T12:00:00Z",
        "lastSuccessfulTime": format_time(NOON + play.delay),
        "nextScheduleTime": "2030-06-01T13:00:00Z",
        "keep": [{"name": "hourly", "count": 2}],
    }
    assert play.step() == [] and play.rig.events == []


def test_an_idle_system_with_schedules_writes_nothing_for_days() -> None:
    play = Play(HOURLY, {"name": "daily", "schedule": "0 3 * * *"})
    play.step()
    play.hour(0)
    for minutes in range(1, 3 * 24 * 60, 7):
        assert play.step(NOON + play.delay + WORD_TIME + minutes * MINUTE) == []
    # A controller that starts knows it, too.
    play.start()
    for _ in range(3):
        assert play.step(play.now + WORD_TIME) == []
    assert play.snapshots() == ["203006011200"]


def test_the_oldest_goes_when_a_new_one_is_there() -> None:
    play = Play(HOURLY)
    play.step()
    for hours in range(4):
        writes = play.hour(hours)
        assert writes.count("merge dbbranches/shop-main/status") == 1
        # Three while the new one is taken.
        assert len([w for w in writes if w.startswith("delete")]) == (hours >= 2)
        play.take()
        play.take()
    assert play.snapshots() == ["203006011400", "203006011500"] and play.rig.events == []


def test_what_was_cut_off_at_any_write_is_done_once_and_only_once() -> None:
    writes = [
        r"dbsnapshots/shop-main-20",
        r"dbbranches/shop-main/status",
        r"dbsnapshots/shop-main-203006011200",
    ]
    for verb, pattern in (("create", writes[0]), ("merge", writes[1]), ("delete", writes[2])):
        for lost in (False, True):
            play = Play(HOURLY)
            play.step()
            play.interruptions = [(verb, pattern, lost)]
            for hours in range(4):
                play.hour(hours)
                # What the process knew is gone.
                play.start()
                for _ in range(3):
                    play.step(play.now + timedelta(seconds=10))
                    play.take()
                play.rig.api.answer_again()
            assert play.snapshots() == ["203006011400", "203006011500"], (verb, lost)


def test_a_controller_that_was_away_makes_up_the_last_run() -> None:
    play = Play(HOURLY)
    play.step()
    play.hour(0)
    play.written()
    play.start()
    assert play.step(NOON + 50 * HOUR + 20 * MINUTE) == ["create dbsnapshots/shop-main-203006031400"]
    body = play.rig.snapshot("main-203006031400")
    # Now it is to be taken: the agent takes none that is ten minutes late.
    assert body["spec"]["origin"]["time"] == format_time(play.now)
    play.take()
    assert play.step() == ["merge dbbranches/shop-main/status"]


def test_a_name_that_somebody_has_is_left_alone() -> None:
    play = Play(HOURLY)
    play.step()
    play.rig.api.put(
        SNAPSHOTS,
        {
            "apiVersion": names.API_VERSION,
            "kind": names.SNAPSHOT_KIND,
            "metadata": {"name": "shop-main-203006011200"},
            "spec": {"project": "shop", "branch": "main"},
        },
    )
    assert play.step(NOON + play.delay) == ["create dbsnapshots/shop-main-203006011200"]
    assert play.step(play.now + MINUTE) == []
    assert "origin" not in play.rig.snapshot("main-203006011200")["spec"]


def test_two_at_a_time_on_a_node_behind_creates_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule_plan, "delay_of", lambda branch, schedules: MINUTE)
    play = Play(HOURLY)
    for name in ("a", "b", "c"):
        play.rig.branch_up(name)
        play.rig.change_branch(name, snapshots=[HOURLY])
    play.step()
    # All are due.
    assert len(play.step(NOON + 2 * MINUTE)) == 2 and play.loop.run_due()
    assert play.step() == []
    play.take()
    writes = play.step()
    assert len([w for w in writes if w.startswith("create")]) == 2
    play.take()
    play.step()
    play.rig.put(branch("new"))
    play.rig.api.merge(f"{BRANCHES}/shop-new/status", {"status": {"nodeName": NODE}})
    play.rig.api.merge(
        f"{BRANCHES}/shop-new", {"metadata": {"creationTimestamp": format_time(datetime.now(UTC))}}
    )
    play.written()
    assert not [w for w in play.step(NOON + HOUR + 2 * MINUTE) if w.startswith("create")]
    assert [w for w in play.step(NOON + HOUR + MINUTE + MAX_WAIT) if "shop-main" in w]


def test_limits_are_said_before_and_nothing_is_made() -> None:
    play = Play({**HOURLY, "keep": 9}, snapshotsPerBranch="2")
    play.step()
    for hours in range(2):
        play.hour(hours)
    play.written()
    assert play.step(NOON + 2 * HOUR + play.delay) == []
    assert Key(names.BRANCH_KIND, "team", "shop-main") in play.added
    body = play.rig.reconcile_branch()
    assert (
        conditions_of(body)["Snapshotted"] == "LimitExceeded" and conditions_of(body)["Ready"] == "Available"
    )
    assert "limits.snapshotsPerBranch" in message_of(body, "Snapshotted")
    assert "Stalled" not in conditions_of(body)
    play.added.clear()
    assert play.step() == [] and play.added == []
    # A place: the run that is due is made up.
    play.rig.api.delete(f"{SNAPSHOTS}/shop-main-203006011200")
    play.take()
    assert play.step() == ["create dbsnapshots/shop-main-203006011400"]


@pytest.mark.parametrize(
    ("schedules", "reason", "part"),
    [
        ([HOURLY], "OnSchedule", "snapshots of branch main are taken"),
        ([{**HOURLY, "schedule": "0 25 * * *"}], "InvalidSchedule", "bad hour"),
        ([{**HOURLY, "timeZone": "Mars/Olympus"}], "InvalidSchedule", "no time zone Mars/Olympus"),
        ([{**HOURLY, "state": "Paused"}], None, ""),
        ([], None, ""),
    ],
)
def test_what_a_branch_says_of_its_schedules(schedules: list[Json], reason: str | None, part: str) -> None:
    play = Play(*schedules)
    body = play.rig.reconcile_branch()
    conditions = conditions_of(body)
    assert conditions.get("Snapshotted") == reason and conditions["Ready"] == "Available"
    assert conditions.get("Stalled") == (reason if reason == "InvalidSchedule" else None)
    if reason:
        assert part in message_of(body, "Snapshotted")
        assert re.search(r"^[^;]+(;[^;]+){0,2}$", message_of(body, "Snapshotted"))
    assert play.rig.writes_of(play.rig.reconcile_branch) == []


def test_a_snapshot_that_is_not_taken_is_reported() -> None:
    play = Play(HOURLY)
    play.step()
    play.step(NOON + play.delay)
    path = f"{SNAPSHOTS}/shop-main-203006011200"
    play.rig.snapshots.reconcile("team", "shop-main-203006011200", play._cache())
    full = Finding(Reason.POOL_FULL, "the pool of project shop is full").as_dict()
    play.rig.api.merge(f"{path}/status", {"status": {"node": {"storage": full}}})
    play.rig.snapshots.reconcile("team", "shop-main-203006011200", play._cache())
    body = play.rig.reconcile_branch()
    assert conditions_of(body)["Snapshotted"] == "SnapshotFailed" and "is full" in message_of(
        body, "Snapshotted"
    )
    # The next one is taken.
    missed = Finding(Reason.SNAPSHOT_MISSED, "it was not taken").as_dict()
    play.rig.api.merge(f"{path}/status", {"status": {"node": {"storage": missed}}})
    play.rig.snapshots.reconcile("team", "shop-main-203006011200", play._cache())
    play.step(NOON + HOUR + play.delay)
    play.take()
    play.step(play.now + MINUTE)
    play.step(play.now + MINUTE)
    assert conditions_of(play.rig.reconcile_branch())["Snapshotted"] == "OnSchedule"
    play.take()
    assert play.snapshots() == ["203006011300"]


def test_a_record_that_is_made_again_takes_nothing() -> None:
    """Velero, or `kubectl apply` of a saved file: the time has passed; or the branch is another one of its name."""
    play = Play(HOURLY)
    play.step()
    play.step(NOON + play.delay)
    old: Any = play.rig.snapshot("main-203006011200")
    play.rig.api.merge(f"{SNAPSHOTS}/shop-main-203006011200", {"metadata": {"finalizers": []}})
    play.rig.api.delete(f"{SNAPSHOTS}/shop-main-203006011200")
    for label, due, reason in (
        (None, NOON - 11 * MINUTE, "SnapshotMissed"),
        ("other", NOON, "BranchNotFound"),
        ("", None, "SnapshotMissed"),
    ):
        body = {"apiVersion": old["apiVersion"], "kind": old["kind"], "spec": dict(old["spec"])}
        labels = {**old["metadata"]["labels"], **({names.LABEL_BRANCH_UID: label} if label else {})}
        body["metadata"] = {"name": "shop-again", "labels": labels}
        body["spec"]["origin"] = {"reason": "Schedule", "schedules": ["hourly"]} | (
            {"time": format_time(due)} if due else {}
        )
        play.rig.api.put(SNAPSHOTS, body)
        repeated = play.rig.reconcile_snapshot("again")
        assert repeated is not None and conditions_of(repeated)["Ready"] == reason
        assert "nodeName" not in repeated["status"]
        play.rig.api.delete(f"{SNAPSHOTS}/shop-again")


def test_nothing_is_done_before_all_snapshots_are_known_or_where_things_end() -> None:
    play = Play(HOURLY)
    play.step()
    play.loop = ScheduleLoop(
        cast(Cluster, play.rig.api),
        play.rig.limits,
        ControllerMetrics(),
        play.added.append,
        play.rig.cache,
        lambda: play.now,
    )
    assert play.step(NOON + 10 * MINUTE) == []
    play.start()
    play.rig.api.refuse(
        "create", "dbsnapshots", ApiError(403, "Forbidden", "the namespace is being terminated")
    )
    play.step(NOON + 10 * MINUTE)
    play.rig.api.answer_again()
    play.rig.api.delete(f"{BRANCHES}/shop-main")
    assert play.step() == []


def test_what_the_api_server_refuses_is_not_tried_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    play, seconds = Play(HOURLY), [0.0]
    monkeypatch.setattr(schedule_loop, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    play.step()
    quota = ApiError(403, "Forbidden", "exceeded quota: snapshots")
    play.rig.api.refuse("create", "dbsnapshots", quota)
    created = "create dbsnapshots/shop-main-203006011200"
    assert play.step(NOON + play.delay) == [created]
    assert play.added == [Key(names.BRANCH_KIND, "team", "shop-main")]
    play.rig.reconcile_branch()
    assert conditions_of(play.rig.branch())["Snapshotted"] == "ObjectRefused"
    assert message_of(play.rig.branch(), "Snapshotted") == (
        "snapshot shop-main-203006011200 of branch main cannot be taken: exceeded quota: snapshots; "
        "this run has none; it is tried again"
    )
    assert play.step(play.now + MINUTE) == []
    seconds[0] += 61
    assert play.step(play.now + MINUTE) == [created]
    play.rig.api.answer_again()
    seconds[0] += 61
    assert play.step(play.now + MINUTE) == [created] and play.snapshots() == ["203006011200"]
    play.rig.reconcile_branch()
    assert conditions_of(play.rig.branch())["Snapshotted"] == "OnSchedule"


def test_fewer_are_said_a_day_before() -> None:
    play = Play({**HOURLY, "keep": 3})
    play.step()
    for hours in range(3):
        play.hour(hours)
    play.rig.change_branch(snapshots=[{**HOURLY, "keep": 1}])
    writes = play.step()
    assert "merge dbbranches/shop-main/status" in writes and any("events" in write for write in writes)
    assert len(play.snapshots()) == 3 and play.step() == []
    (event,) = play.rig.api.find("/api/v1/namespaces/team/events")
    assert event["reason"] == "Expiring" and "no longer 3" in event["message"]
    assert len(play.snapshots()) == 3
    play.step(play.now + timedelta(hours=24))
    play.step()
    play.take()
    assert play.snapshots() == ["203006011400"]
