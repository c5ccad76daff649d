"""Branches that go by themselves: many together, and one that is used against its time."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from tests.e2e.cluster import Project, eventually, holds

TTL = timedelta(seconds=60)


def test_twenty_branches_expire_together_beside_one_that_is_used(shop: Project) -> None:
    team = shop.team
    shop.branch("used", ttl=f"{TTL.seconds}s")
    shop.use("used")
    team.wait_reason("dbbranch", "shop-used", "ExpirationBlocked", "ActiveBranch")
    used = team.get("dbbranch", "shop-used")
    assert "expirationTime" not in used["status"]
    # At rest: the deletions are meant, not twenty Postgres.
    names = [f"shop-t{number:02}" for number in range(20)]
    manifests = (
        shop.branch_manifest(name.removeprefix("shop-"), state="Stopped", ttl="45s") for name in names
    )
    team.apply(*manifests)
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
