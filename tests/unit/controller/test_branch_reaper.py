"""Branches that expire, over a fake API server: what is written and said, and what keeps a branch."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.factories import branch, project
from tests.unit.controller.rig import BRANCHES, PROJECTS, Rig, conditions_of

from dbranch.api import names
from dbranch.api.errors import ApiError, ClusterUnreachable
from dbranch.api.expiry import format_time, parse_time
from dbranch.controller import timing
from dbranch.controller.stale import stale
from dbranch.kube.client import branch_path, project_path
from dbranch.runtime.result import Key

B, SHOP = branch_path("team", "shop-b"), project_path("team", "shop")
KEY = Key(names.BRANCH_KIND, "team", "shop-b")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
REFUSED = ApiError(422, "Invalid", "denied by policy")


class Clocked(Rig):
    """A rig whose API server's clock the test moves."""

    def __init__(self) -> None:
        super().__init__()
        self.now = datetime.now(UTC).replace(microsecond=0)
        self.api.clock = lambda: self.now

    def wait(self, time: timedelta) -> None:
        self.now += time

    def expiration(self, name: str = "b") -> timedelta | None:
        """Return the time until the branch goes."""
        text = (self.branch(name).get("status") or {}).get("expirationTime")
        moment = parse_time(text)
        return moment - self.now if moment else None

    def is_going(self, name: str = "b") -> bool:
        body = self.api.peek(branch_path("team", f"shop-{name}"))
        return body is None or "deletionTimestamp" in body["metadata"]


def rig_with(**spec: Any) -> Clocked:
    """Return a rig with a branch b, created now and seen."""
    rig = Clocked()
    rig.ready()
    add(rig, "b", **spec)
    rig.events.clear()
    rig.api.take_requests()
    return rig


def add(rig: Clocked, name: str, **spec: Any) -> None:
    rig.put(branch(name).changed(metadata={"creationTimestamp": format_time(rig.now)}, spec=spec))
    rig.run()
    rig.agent_reports(branch(name).accepting())
    rig.run()


def test_a_branch_goes_when_its_ttl_is_over_and_not_before() -> None:
    rig = rig_with(ttl="2h")
    assert rig.expiration() == 2 * HOUR and rig.branch()["status"].get("expirationTime") is None
    rig.wait(2 * HOUR - timedelta(seconds=1))
    rig.reaper.reap()
    assert not rig.is_going() and rig.events == []
    rig.wait(timedelta(seconds=1))
    assert rig.writes_of(rig.reaper.reap) == ["delete dbbranches/shop-b"]
    assert rig.is_going() and rig.events == [("Normal", "Expired")]
    # Nothing twice.
    assert rig.writes_of(rig.reaper.reap) == [] and len(rig.events) == 1


def test_the_deletion_names_the_very_object_as_it_was_read() -> None:
    rig = rig_with(ttl="2h")
    rig.wait(2 * HOUR)
    version = rig.branch("b")["metadata"]["resourceVersion"]
    rig.api.take_requests()
    rig.reaper.reap()
    (request,) = [request for request in rig.api.take_requests() if request.verb == "delete"]
    assert request.body == {"uid": "shop-b-uid", "version": version, "grace": None}


@pytest.mark.parametrize(
    "spec", [{"ttl": "Never"}, {"expirationTime": "2999-01-01T00:00:00Z"}, {"protection": "Enabled"}]
)
def test_a_write_in_the_same_second_wins(spec: dict[str, Any]) -> None:
    rig = rig_with(ttl="2h")
    rig.wait(2 * HOUR)
    rig.api.before("delete", "shop-b", lambda: rig.change_branch("b", **spec))
    rig.reaper.reap()
    assert not rig.is_going() and rig.events == []
    # Nor afterwards: the status does not follow from the present spec.
    rig.reaper.reap()
    rig.reconcile_branch("b")
    rig.reaper.reap()
    assert not rig.is_going()


def test_a_switch_to_it_is_seen_before_its_status_says_so() -> None:
    rig = rig_with(ttl="2h")
    rig.wait(2 * HOUR)
    rig.change_project(activeBranch="b")
    assert rig.writes_of(rig.reaper.reap) == [] and rig.reaper_requests == [KEY]
    assert conditions_of(rig.reconcile_branch("b"))["ExpirationBlocked"] == "ActiveBranch"
    assert rig.expiration() is None


def test_using_it_in_a_loop_against_its_expiry() -> None:
    """The policy refuses what the reaper asks for, since a switch came in between: the branch stays, unharmed."""
    rig = rig_with(ttl="2h")
    rig.wait(2 * HOUR)
    for _ in range(5):
        # As the policy does for a branch that has become active behind the reaper's look.
        rig.api.refuse("delete", "shop-b", REFUSED, times=1)
        rig.reaper.reap()
        rig.start()
        assert not rig.is_going()
        rig.change_project(activeBranch="b")
        rig.run()
        rig.reaper.reap()
        rig.change_project(activeBranch="main")
        rig.run()
        rig.proxies_obey()
        rig.run()
        # The block has ended, so the grace begins.
        rig.reaper.reap()
        assert not rig.is_going() and rig.expiration() == 2 * HOUR
        rig.wait(2 * HOUR)
    assert ("Normal", "Expired") not in rig.events
    rig.api.answer_again()
    rig.reaper.reap()
    assert rig.is_going()


def test_a_deletion_that_is_refused_is_tried_again_ever_more_rarely() -> None:
    rig = rig_with(ttl="2h")
    seconds = 0.0
    rig.reaper._monotonic = lambda: seconds
    rig.wait(2 * HOUR)
    rig.api.refuse("delete", "shop-b", REFUSED)
    tries = 0
    for _ in range(720):
        tries += len(rig.writes_of(rig.reaper.reap))
        seconds += timing.EXPIRY_POLL_SECONDS
    assert 5 < tries < 25 and rig.events == []
    # It holds up nobody.
    add(rig, "other", ttl="1h")
    rig.wait(2 * HOUR)
    rig.reaper.reap()
    assert rig.is_going("other") and not rig.is_going()


def test_an_idle_system_writes_nothing() -> None:
    rig = rig_with(ttl="2h")
    add(rig, "leased", protectedUntil=format_time(rig.now + HOUR))
    add(rig, "active", ttl="1h")
    add(rig, "plain")
    rig.change_project(activeBranch="active", branchPolicy={"maxTTL": "48h"})
    rig.run()
    rig.proxies_obey()
    rig.run()
    rig.api.take_requests()
    for _ in range(5):
        rig.wait(timedelta(minutes=7))
        rig.reaper.reap()
        for name in ("main", "b", "leased", "active", "plain"):
            rig.reconcile_branch(name)
    assert rig.api.take_writes() == [] and rig.reaper_requests == []
    assert stale([rig.cache().project("team", "shop")], rig.cache(), now=format_time(rig.now)) == set()


def test_a_change_of_the_project_concerns_its_branches_at_once() -> None:
    rig = rig_with(ttl="72h")
    rig.wait(HOUR)
    rig.change_project(branchPolicy={"maxTTL": "10h"})
    project_now = rig.cache().project("team", "shop")
    assert project_now and KEY in stale([project_now], rig.cache(), now=format_time(rig.now))
    rig.run()
    # The grace: as long as the cap itself, from now on.
    assert rig.expiration() == 10 * HOUR and rig.events == [("Normal", "Expiring")]
    # Set back, it is as it was, and nothing is said.
    rig.change_project(branchPolicy=None)
    rig.run()
    assert rig.expiration() == 71 * HOUR and len(rig.events) == 1


def test_a_lease_of_protection_ends_and_then_the_grace_begins() -> None:
    rig = rig_with(ttl="1h", protectedUntil=format_time(datetime.now(UTC) + 3 * HOUR))
    assert conditions_of(rig.branch("b"))["ExpirationBlocked"] == "Protected"
    rig.wait(4 * HOUR)
    rig.reaper.reap()
    assert rig.reaper_requests == [KEY] and not rig.is_going()
    assert rig.writes_of(lambda: rig.reconcile_branch("b")) == ["merge dbbranches/shop-b/status"]
    body = rig.branch("b")
    assert body["status"]["protectionEnded"] == body["spec"]["protectedUntil"]
    assert rig.expiration() == HOUR and rig.events == [("Normal", "Expiring")]
    # An extension counts at once.
    rig.change_branch("b", protectedUntil=format_time(rig.now + DAY))
    rig.wait(2 * HOUR)
    rig.reaper.reap()
    rig.reconcile_branch("b")
    assert not rig.is_going() and rig.expiration() is None


def test_a_clock_that_jumps_back_brings_nothing_on() -> None:
    rig = rig_with(ttl="2h")
    before = rig.branch("b")["status"]["expirationTime"]
    rig.wait(-400 * DAY)
    rig.reaper.reap()
    rig.reconcile_branch("b")
    assert rig.branch("b")["status"]["expirationTime"] == before and rig.events == []
    rig.wait(400 * DAY)
    rig.reconcile_branch("b")
    assert rig.branch("b")["status"]["expirationTime"] == before and rig.events == []


def test_a_branch_that_git_makes_again_is_a_new_one() -> None:
    rig = rig_with(ttl="2h")
    rig.wait(2 * HOUR)
    rig.reaper.reap()
    rig.api.merge(B, {"metadata": {"finalizers": None}})
    assert rig.api.peek(B) is None
    fields = {"f:spec": {"f:project": {}, "f:ttl": {}}}
    entry = {"manager": "argocd-controller", "operation": "Apply", "fieldsV1": fields}
    recreated = branch("b").changed(
        metadata={"uid": "recreated", "creationTimestamp": format_time(rig.now), "managedFields": [entry]},
        spec={"ttl": "2h"},
    )
    rig.events.clear()
    rig.put(recreated)
    rig.run()
    rig.reaper.reap()
    assert not rig.is_going() and rig.expiration() == 2 * HOUR
    assert [event for event in rig.events if event[1] == "ExpiringInGit"] == [("Normal", "ExpiringInGit")]
    rig.wait(HOUR)
    rig.run()
    assert len([event for event in rig.events if event[1] == "ExpiringInGit"]) == 1


def test_what_the_cache_still_has_is_no_other_branch() -> None:
    """The branch was deleted and made again under its name; the cache has the old one, which has expired."""
    rig = rig_with(ttl="2h")
    rig.wait(2 * HOUR)
    old = rig.cache()
    rig.reaper._branches = old.all_branches
    rig.api.merge(B, {"metadata": {"finalizers": None}})
    rig.api.delete(B)
    metadata = {"uid": "recreated", "creationTimestamp": format_time(rig.now)}
    rig.put(branch("b").changed(metadata=metadata, spec={"ttl": "2h"}))
    rig.reconcile_branch("b")
    rig.wait(3 * HOUR)
    assert rig.writes_of(rig.reaper.reap) == [] and not rig.is_going()


def test_a_namespace_and_a_project_that_end() -> None:
    rig = rig_with(ttl="2h")
    rig.wait(2 * HOUR)
    rig.api.delete(SHOP)
    # The policies have not heard of it yet: each branch is asked for, and again soon.
    rig.api.refuse("delete", "shop-", REFUSED, times=2)
    assert not rig.remove_project()
    assert rig.result.requeue_after == timing.POLICY_LAG_RETRY_SECONDS and not rig.is_going()
    rig.api.answer_again()
    assert not rig.remove_project()
    assert rig.is_going() and rig.is_going("main")
    # The reaper leaves them alone.
    assert rig.writes_of(rig.reaper.reap) == []


@pytest.mark.parametrize("lose", [False, True])
def test_a_controller_that_is_cut_off_at_every_write(lose: bool) -> None:
    """Whatever it was doing, the next one goes on: nothing goes early, and nothing is brought on in silence."""

    def interrupt(rig: Clocked, count: int) -> None:
        """Let the request of this number fail (or its answer be lost), and what follows in this process."""
        served = 0

        def fail() -> None:
            nonlocal served
            served += 1
            if served == count:
                raise ClusterUnreachable("cut off")

        for verb in ("merge", "delete", "create", "apply"):
            rig.api.before(verb, ".*", fail, times=1000)

    changes: list[Callable[[Clocked], None]] = [
        lambda rig: rig.change_project(branchPolicy={"maxTTL": "30m"}),
        lambda rig: rig.change_branch("b", ttl="30m"),
        lambda rig: rig.change_branch("b", protectedUntil=format_time(rig.now - HOUR)),
        lambda rig: rig.wait(2 * HOUR),
    ]
    for change in changes:
        for count in range(1, 6):
            rig = rig_with(ttl="2h")
            in_force = rig.branch("b")["status"]["expirationTime"]
            change(rig)
            if lose:
                rig.api.lose_answer("merge", "shop-b/status")
                rig.api.lose_answer("delete", "shop-b")
            else:
                interrupt(rig, count)
            for step in (lambda rig=rig: rig.reconcile_branch("b"), lambda rig=rig: rig.reaper.reap()):
                try:
                    step()
                except ClusterUnreachable:
                    rig.start()
                if rig.is_going():
                    break
            rig.api.answer_again()
            rig.start()
            if not rig.is_going():
                rig.reconcile_branch("b")
                text = rig.branch("b")["status"].get("expirationTime")
                if text is not None and text < in_force:
                    assert ("Normal", "Expiring") in rig.events
                    moment = parse_time(text)
                    assert moment is not None and moment - rig.now >= timedelta(minutes=30)
            rig.reaper.reap()
            is_due = rig.now >= (parse_time(in_force) or rig.now)
            assert rig.is_going() == is_due


def test_twenty_expire_together_a_few_at_a_time() -> None:
    rig = Clocked()
    rig.ready()
    for number in range(20):
        add(rig, f"b{number:02}", ttl="1h")
    rig.wait(HOUR)
    rounds = 0
    while rig.api.find(BRANCHES)[1:]:
        rounds += 1
        assert rounds < 20
        rig.reaper.reap()
        going = [body for body in rig.api.find(BRANCHES) if "deletionTimestamp" in body["metadata"]]
        assert 0 < len(going) <= timing.MAX_BRANCH_EXPIRIES
        for body in going:
            path = f"{BRANCHES}/{body['metadata']['name']}"
            rig.api.merge(path, {"metadata": {"finalizers": None}})
    assert rounds == 4 and rig.events.count(("Normal", "Expired")) == 20


def test_the_metrics_count_branches_by_expiry() -> None:
    rig = rig_with(ttl="2h")
    assert {state: rig.reaper.count(state) for state in ("never", "soon", "overdue")} == {
        "never": 1,
        "soon": 1,
        "overdue": 0,
    }
    rig.wait(3 * HOUR)
    assert rig.reaper.count("overdue") == 1


def test_a_default_of_the_project_is_read_at_the_first_reconcile() -> None:
    rig = Clocked()
    # Applied before its project.
    created = {"creationTimestamp": format_time(rig.now)}
    rig.put(branch("b").changed(metadata=created))
    assert "ttl" not in rig.reconcile_branch("b")["status"]
    rig.api.put(PROJECTS, project().changed(spec={"branchDefaults": {"ttl": "48h"}}).body())
    rig.run()
    assert rig.branch("b")["status"]["ttl"] == "48h" and rig.expiration() == 2 * DAY
    assert rig.branch()["status"]["ttl"] == "Never" and rig.expiration("main") is None
    rig.change_project(branchDefaults={"ttl": "1h"})
    rig.run()
    assert rig.branch("b")["status"]["ttl"] == "48h" and rig.expiration() == 2 * DAY
