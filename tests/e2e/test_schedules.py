"""A branch with a schedule: snapshots come by themselves, and as many as keep says stay."""

from __future__ import annotations

import json
from typing import Any

from tests.e2e.cluster import Project, eventually


def scheduled(shop: Project, branch: str) -> list[dict[str, Any]]:
    """Return the snapshots of the branch that its schedule has made, which are not being deleted, by name."""
    listed = shop.team.kubectl("get", "dbsnapshots", "-o", "json", "-l", f"dbranch.io/branch={branch}").out
    return [item for item in json.loads(listed)["items"] if "deletionTimestamp" not in item["metadata"]]


def ready(shop: Project, branch: str, but: str = "") -> str:
    """Return the name of the only scheduled snapshot if it is Ready and another one than `but`; else ""."""
    items = scheduled(shop, branch)
    if len(items) != 1 or items[0]["metadata"]["name"] == but:
        return ""
    conditions = {c["type"]: c["status"] for c in (items[0].get("status") or {}).get("conditions") or ()}
    return str(items[0]["metadata"]["name"]) if conditions.get("Ready") == "True" else ""


def test_a_schedule_takes_a_snapshot_each_minute_while_something_is_written(shop: Project) -> None:
    shop.branch("minutely")
    shop.sql("insert into item values (60, 'minute')", "minutely")
    schedule = {"name": "minutely", "schedule": "* * * * *", "keep": 1}
    body = json.dumps({"spec": {"snapshots": [schedule]}})
    shop.team.kubectl("patch", "dbbranch", "shop-minutely", "--type=merge", "-p", body)
    shop.team.wait_reason("dbbranch", "shop-minutely", "Snapshotted", "OnSchedule")
    first = eventually("a snapshot is taken", lambda: ready(shop, "minutely"), 150)
    taken = shop.team.get("dbsnapshot", first)
    assert first.startswith("shop-minutely-2") and taken["spec"]["origin"]["schedules"] == ["minutely"]
    assert [o["kind"] for o in taken["metadata"]["ownerReferences"]] == ["DBProject"]
    # Something is written: another one, in place of the first.
    shop.sql("insert into item values (61, 'another')", "minutely")
    second = eventually("another one takes its place", lambda: ready(shop, "minutely", first), 180)
    status = shop.team.get("dbbranch", "shop-minutely")["status"]["snapshots"]
    assert status["nextScheduleTime"] and status["keep"] == [{"name": "minutely", "count": 1}]
    shop.team.apply(shop.branch_manifest("of-the-second", None, sourceSnapshot=second))
    shop.wait_ready("of-the-second")
    assert shop.sql("select name from item where id = 61", "of-the-second") == "another"
    shop.discard("of-the-second", "minutely")
    # It outlives its branch.
    assert second in [item["metadata"]["name"] for item in scheduled(shop, "minutely")]
    shop.team.kubectl("delete", "dbsnapshot", second)
