"""What goes by the clock: a schedule's snapshots, and branches that expire. They begin at once, and wait together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.e2e.cluster import Project, eventually, holds

TTL = timedelta(seconds=60)
EXPIRING = [f"t{number:02}" for number in range(20)]


@pytest.fixture(scope="module", autouse=True)
def _begun(shop: Project) -> Iterator[None]:
    """Begin all that takes its time: a branch in use with a ttl, twenty with a shorter one, and a schedule."""
    shop.branch("used", ttl=f"{TTL.seconds}s")
    shop.use("used")
    # At rest: the deletions are meant, not twenty Postgres.
    expiring = (shop.branch_manifest(name, state="Stopped", ttl="45s") for name in EXPIRING)
    shop.team.apply(shop.branch_manifest("minutely"), *expiring)
    shop.wait_ready("minutely")
    shop.sql("insert into item values (60, 'minute')", "minutely")
    schedule = {"name": "minutely", "schedule": "* * * * *", "keep": 1}
    body = json.dumps({"spec": {"snapshots": [schedule]}})
    shop.team.kubectl("patch", "dbbranch", "shop-minutely", "--type=merge", "-p", body)
    yield
    shop.use("main")


def scheduled(shop: Project) -> list[dict[str, Any]]:
    """Return the snapshots that the schedule has made and that are not being deleted, by name."""
    listed = shop.team.kubectl("get", "dbsnapshots", "-o", "json", "-l", "dbranch.io/branch=minutely").out
    return [item for item in json.loads(listed)["items"] if "deletionTimestamp" not in item["metadata"]]


def ready(shop: Project, but: str = "") -> str:
    """Return the name of the only scheduled snapshot if it is Ready and another one than `but`; else ""."""
    items = scheduled(shop)
    if len(items) != 1 or items[0]["metadata"]["name"] == but:
        return ""
    conditions = {c["type"]: c["status"] for c in (items[0].get("status") or {}).get("conditions") or ()}
    return str(items[0]["metadata"]["name"]) if conditions.get("Ready") == "True" else ""


@pytest.fixture(scope="module")
def first(shop: Project) -> str:
    """The name of the schedule's first snapshot, behind which something is written."""
    shop.team.wait_reason("dbbranch", "shop-minutely", "Snapshotted", "OnSchedule")
    name = eventually("a snapshot is taken", lambda: ready(shop))
    shop.sql("insert into item values (61, 'another')", "minutely")
    return str(name)


def test_a_schedule_takes_a_snapshot(shop: Project, first: str) -> None:
    taken = shop.team.get("dbsnapshot", first)
    assert first.startswith("shop-minutely-2") and taken["spec"]["origin"]["schedules"] == ["minutely"]
    assert [o["kind"] for o in taken["metadata"]["ownerReferences"]] == ["DBProject"]


def test_twenty_branches_expire_together_beside_one_that_is_used(shop: Project) -> None:
    team = shop.team
    team.wait_reason("dbbranch", "shop-used", "ExpirationBlocked", "ActiveBranch")
    used = team.get("dbbranch", "shop-used")
    assert "expirationTime" not in used["status"]
    names = [f"shop-{name}" for name in EXPIRING]
    for name in names:
        team.await_deleted("dbbranch", name)
    expired = '{.items[?(@.reason=="Expired")].involvedObject.name}'
    assert {*names} <= {*team.kubectl("get", "events", "-o", f"jsonpath={expired}").text.split()}
    # Its own time is over by now, and it serves.
    created = datetime.fromisoformat(used["metadata"]["creationTimestamp"])
    eventually("its time is over", lambda: datetime.now(UTC) - created > TTL)
    assert shop.sql("select name from item where id = 1", "used") == "first"
    # Back and forth: each time its grace begins anew.
    for _ in range(3):
        said = team.dbranch("-p", "shop", "use", "main").output
        assert "used is past its time and goes " in said and "dbranch extend used 7d" in said
        eventually("its grace has begun", lambda: "expirationTime" in shop.status("used"))
        shop.use("used")
        eventually("it does not count", lambda: "expirationTime" not in shop.status("used"))
    holds("the branch in use stays", lambda: team.exists("dbbranch", "shop-used"))
    team.dbranch("-p", "shop", "protect", "used", "--for", "1h")
    shop.use("main")
    team.wait_reason("dbbranch", "shop-used", "ExpirationBlocked", "Protected")
    refused = team.kubectl("delete", "dbbranch", "shop-used", check=False)
    assert refused.code != 0 and "used is protected until " in refused.err
    # A lease that ends by itself, and behind it the grace.
    until = "2020-01-01T00:00:00Z"
    patch = json.dumps({"spec": {"protectedUntil": until}})
    team.kubectl("patch", "dbbranch", "shop-used", "--type=merge", "-p", patch)
    eventually("the lease is over", lambda: shop.status("used").get("protectionEnded") == until)
    eventually("its grace has begun", lambda: "expirationTime" in shop.status("used"))
    assert team.exists("dbbranch", "shop-used")
    shop.discard("used")


def test_the_next_run_replaces_the_snapshot_since_something_was_written(shop: Project, first: str) -> None:
    second = eventually("another one takes its place", lambda: ready(shop, first))
    status = shop.team.get("dbbranch", "shop-minutely")["status"]["snapshots"]
    assert status["nextScheduleTime"] and status["keep"] == [{"name": "minutely", "count": 1}]
    shop.team.apply(shop.branch_manifest("of-the-second", None, sourceSnapshot=second))
    shop.wait_ready("of-the-second")
    assert shop.sql("select name from item where id = 61", "of-the-second") == "another"
    shop.discard("of-the-second", "minutely")
    # It outlives its branch.
    assert second in [item["metadata"]["name"] for item in scheduled(shop)]
    shop.team.kubectl("delete", "dbsnapshot", second)
