"""When a branch goes: the plan of its expiry, against whatever would make it go too early."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.factories import branch, project

from dbranch.api.branch import Branch, parse_branch
from dbranch.api.conditions import Condition, Reason
from dbranch.api.enums import Protection
from dbranch.api.expiry import EXPIRATION_GRACE, format_time, parse_time, parse_ttl
from dbranch.api.project import Project
from dbranch.controller import timing
from dbranch.controller.branch.expiry import (
    expiry_state,
    going_now,
    is_expired,
    may_go,
    outdated_leases,
    plan_expiry,
)
from dbranch.controller.conditions import report_conditions
from dbranch.controller.events import EXPIRING, EXPIRING_IN_GIT

BORN = datetime(2026, 1, 1, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
SHOP = project().bound().routed("main").parsed()


def born(name: str = "b", at: datetime = BORN, **spec: Any) -> Branch:
    """Return a branch as it is created."""
    return branch(name).changed(metadata={"creationTimestamp": format_time(at)}, spec=spec).parsed()


def seen(item: Branch, shop: Project | None, now: datetime, **bound: Any) -> Branch:
    """Return the branch as it is after a report at this time."""
    expiry = plan_expiry(item, shop, now)
    status = {**item.status, **expiry.fields, "observedGeneration": item.generation}
    ready = [(Condition.READY, finding) for _, finding in expiry.findings]
    status["conditions"] = (
        [
            {"type": "Ready", "status": "True", "reason": "Available", "message": ""},
            *report_conditions((), expiry.findings, ready[0][1], 1, format_time(now))[1:],
        ]
        if ready
        else [{"type": "Ready", "status": "True", "reason": "Available", "message": ""}]
    )
    node = item.node_name or ("n1" if shop else None)
    return replace(
        item,
        node_name=node,
        default_ttl=expiry.fields["ttl"],
        expiration_time=expiry.fields["expirationTime"],
        observed_generation=item.generation,
        status={key: value for key, value in status.items() if value is not None},
    )


def edited(item: Branch, **spec: Any) -> Branch:
    """Return the branch after a change of its spec; None takes a field away."""
    names = {"ttl": "ttl", "expirationTime": "expires", "protectedUntil": "protected_until"}
    changes = {names.get(key, key): value for key, value in spec.items()}
    return replace(item, generation=item.generation + 1, **changes)


def capped(max_ttl: str | None, default_ttl: str | None = None, active: str = "main") -> Project:
    return replace(SHOP, max_ttl=max_ttl, default_ttl=default_ttl, active_branch=active)


def goes(item: Branch, shop: Project | None, now: datetime) -> datetime | None:
    return parse_time(plan_expiry(item, shop, now).fields["expirationTime"])


def reasons(item: Branch, shop: Project | None, now: datetime) -> list[str]:
    return [reason for reason, _ in plan_expiry(item, shop, now).events]


# What stands in the manifest, and defaults.


@pytest.mark.parametrize(
    ("spec", "shop", "expected", "is_said"),
    [
        ({}, SHOP, None, False),
        ({"ttl": "Never"}, capped(None, "1h"), None, False),
        ({"ttl": "72h"}, SHOP, BORN + 3 * DAY, False),
        # It counts from the creation, also if nobody has looked for long.
        ({"ttl": "1h"}, SHOP, BORN + HOUR, False),
        ({"ttl": "1h"}, None, BORN + HOUR, False),
        ({"expirationTime": "2026-01-01T01:00:00Z"}, SHOP, BORN + HOUR, False),
        # In place of the ttl.
        ({"expirationTime": "2026-01-09T01:00:00+01:00", "ttl": "1h"}, SHOP, BORN + 8 * DAY, False),
        # A manifest with a time of last year is applied again: that is no order to delete.
        ({"expirationTime": "2025-01-01T00:00:00Z"}, SHOP, BORN + 2 * HOUR + DAY, True),
        # A default did not stand in the manifest.
        ({}, capped(None, "72h"), BORN + 3 * DAY, True),
        ({}, capped(None, "1h"), BORN + 3 * HOUR, True),
        ({}, capped(None, "Never"), None, False),
        ({"ttl": "9h"}, capped(None, "1h"), BORN + 9 * HOUR, False),
        # A cap shortens, and with a grace.
        ({"ttl": "72h"}, capped("48h"), BORN + 2 * DAY, True),
        ({"ttl": "72h"}, capped("1h"), BORN + 3 * HOUR, True),
        ({"ttl": "72h"}, capped("96h"), BORN + 3 * DAY, False),
        ({"ttl": "Never"}, capped("48h"), BORN + 2 * DAY, True),
        ({}, capped("48h"), BORN + 2 * DAY, True),
        ({"ttl": "2h30m"}, capped("1h"), BORN + timedelta(hours=2, minutes=30), False),
        # What cannot be read deletes nothing.
        ({"ttl": "7d"}, SHOP, None, False),
        ({"expirationTime": "tomorrow"}, SHOP, None, False),
    ],
)
def test_when_a_new_branch_goes(
    spec: dict[str, Any], shop: Project | None, expected: datetime | None, is_said: bool
) -> None:
    """It is seen two hours after its creation."""
    now = BORN + 2 * HOUR
    item = born(**spec)
    assert goes(item, shop, now) == expected
    assert reasons(item, shop, now) == ([EXPIRING] if is_said else [])
    # Said once: the next report is the same, and says nothing.
    repeated = seen(item, shop, now)
    assert (goes(repeated, shop, now + HOUR), reasons(repeated, shop, now + HOUR)) == (expected, [])


def test_a_default_is_read_once() -> None:
    first = seen(born(), capped(None, "72h"), BORN)
    assert first.default_ttl == "72h" and goes(first, capped(None, "1h"), BORN + HOUR) == BORN + 3 * DAY
    without = seen(born(), SHOP, BORN)
    assert without.default_ttl == "Never" and goes(without, capped(None, "1h"), BORN + HOUR) is None
    # One that release 0.1.0 has bound was seen before there were defaults.
    old = replace(born(), node_name="n1", status={"conditions": [{"type": "Ready"}]})
    assert plan_expiry(old, capped(None, "1h"), BORN).fields["ttl"] is None
    assert goes(old, capped(None, "1h"), BORN) is None
    # GitOps applies in any order: one that waits for its project gets that one's default.
    waits = seen(born(), None, BORN)
    assert waits.default_ttl is None and goes(waits, capped(None, "72h"), BORN) == BORN + 3 * DAY
    # The root has none.
    root = seen(born("main"), capped("1h", "1h"), BORN)
    assert root.default_ttl == "Never" and goes(root, capped("1h", "1h"), BORN) is None
    assert plan_expiry(root, capped("1h", "1h"), BORN).findings == ()


def test_a_default_that_arrives_while_nobody_looks_gives_its_grace() -> None:
    """The controller was away for a month, and the default came meanwhile."""
    now = BORN + 30 * DAY
    assert goes(born(), capped(None, "72h"), now) == now + DAY
    assert goes(born(), capped(None, "2h"), now) == now + 2 * HOUR
    assert reasons(born(), capped(None, "72h"), now) == [EXPIRING]


# Changes.


def test_a_cap_that_becomes_shorter_takes_effect_after_a_day() -> None:
    item, now = seen(born(), capped("720h"), BORN), BORN + 10 * DAY
    assert parse_time(item.expiration_time) == BORN + 30 * DAY
    assert goes(item, capped("240h1m"), now) == now + DAY
    shorter = seen(item, capped("24h"), now)
    assert parse_time(shorter.expiration_time) == now + DAY
    # The grace does not move on, not even for another one that is past as well; a longer cap counts at once.
    assert goes(shorter, capped("1h"), now + 5 * HOUR) == now + 6 * HOUR
    assert goes(shorter, capped("24h"), now + 5 * HOUR) == now + DAY
    assert goes(shorter, capped("720h"), now + 5 * HOUR) == BORN + 30 * DAY
    assert goes(shorter, SHOP, now + 5 * HOUR) is None


def test_extending_is_cut_by_the_cap_and_counts_at_once() -> None:
    item = seen(born(ttl="1h"), SHOP, BORN)
    extended = edited(item, expirationTime=format_time(BORN + 5 * DAY))
    assert goes(extended, SHOP, BORN + HOUR) == BORN + 5 * DAY
    assert goes(extended, capped("48h"), BORN + HOUR) == BORN + 2 * DAY
    assert reasons(extended, SHOP, BORN + HOUR) == []
    # The reaper, a moment later: the status has not followed yet.
    assert not is_expired(extended, BORN + 2 * HOUR) and not may_go(extended, SHOP, BORN + 2 * HOUR)
    # Taken away again, the ttl counts: it is past, so with a grace.
    back = edited(seen(extended, SHOP, BORN + HOUR), expirationTime=None)
    assert goes(back, SHOP, BORN + 2 * DAY) == BORN + 2 * DAY + HOUR


SPECS: list[dict[str, Any]] = [
    {},
    {"ttl": "1h"},
    {"ttl": "30h"},
    {"ttl": "168h"},
    {"ttl": "Never"},
    {"expirationTime": format_time(BORN + HOUR)},
    {"expirationTime": format_time(BORN + 3 * DAY)},
    {"expirationTime": "2025-01-01T00:00:00Z"},
    {"ttl": "1h", "protection": Protection.ENABLED},
    {"ttl": "30h", "protectedUntil": format_time(BORN + 2 * HOUR)},
]
SHOPS = [
    SHOP,
    capped("1h"),
    capped("100h"),
    capped(None, "2h"),
    capped("48h", "168h"),
    capped(None, "30h", active="b"),
]
KEYS = ("ttl", "expirationTime", "protection", "protectedUntil")


def test_no_change_makes_a_branch_go_without_its_grace() -> None:
    """Whatever of spec, defaults, cap, activity and protection changes, in any order, and however late it is seen.

    Nothing goes within min(24 h, ttl) of the first look at what brings it on, and nothing is brought on in silence.
    """
    checked = 0
    for (first, shop), (second, other) in itertools.product(itertools.product(SPECS, SHOPS), repeat=2):
        before = seen(born(**first), shop, BORN)
        in_force = parse_time(before.expiration_time)
        changes = {key: second.get(key, first.get(key) and None) for key in KEYS}
        changes["protection"] = second.get("protection", Protection.DISABLED)
        after = before if first == second else edited(before, **changes)
        for delay in (timedelta(minutes=5), 3 * HOUR, 9 * DAY):
            now = BORN + delay
            plan = plan_expiry(after, other, now)
            moment = parse_time(plan.fields["expirationTime"])
            if moment is None or (in_force is not None and moment >= in_force):
                assert not plan.events or moment is None or in_force is None
                continue
            ttls = [parse_ttl(text) for text in (after.ttl, after.default_ttl, other.max_ttl) if text]
            asked = parse_time(after.expires)
            ttls += [asked - BORN if asked and asked > BORN else EXPIRATION_GRACE] if asked else []
            shortest = min(ttl for ttl in [*ttls, EXPIRATION_GRACE] if ttl)
            assert moment - now >= shortest, (first, second, shop, other, delay)
            assert [reason for reason, _ in plan.events] == [EXPIRING]
            # Looked at again, it is the same, and nothing is said.
            reported = seen(after, other, now)
            repeated = plan_expiry(reported, other, now + timedelta(minutes=10))
            if not repeated.findings and repeated.fields["protectionEnded"] == plan.fields["protectionEnded"]:
                assert parse_time(repeated.fields["expirationTime"]) == moment and repeated.events == ()
            checked += 1
    assert checked > 1000


# What blocks it.


@pytest.mark.parametrize(
    ("item", "shop", "reason"),
    [
        (born("main", ttl="1h"), SHOP, Reason.ROOT_BRANCH),
        (born(ttl="1h"), capped(None, active="b"), Reason.ACTIVE_BRANCH),
        # It is to become active; and it still is.
        (born(ttl="1h"), replace(SHOP, active_branch="b"), Reason.ACTIVE_BRANCH),
        (born(ttl="1h"), project().bound().routed("b").parsed(), Reason.ACTIVE_BRANCH),
        (born(ttl="1h", protection="Enabled"), SHOP, Reason.PROTECTED),
        (born(ttl="1h", protectedUntil="2030-01-01T00:00:00Z"), SHOP, Reason.PROTECTED),
        (born(ttl="1h", protectedUntil="for ever"), SHOP, Reason.PROTECTED),
        (born(), capped("1h", active="b"), Reason.ACTIVE_BRANCH),
    ],
)
def test_what_does_not_expire(item: Branch, shop: Project, reason: Reason) -> None:
    plan = plan_expiry(item, shop, BORN + 9 * DAY)
    ((condition, finding),) = plan.findings
    assert (condition, finding.reason, finding.done) == (Condition.EXPIRATION_BLOCKED, reason, True)
    assert plan.fields["expirationTime"] is None and plan.events == ()
    assert len(finding.message) <= 256 and finding.message.count(";") == 2


@pytest.mark.parametrize(("spec", "grace"), [({"ttl": "1h"}, HOUR), ({"ttl": "48h"}, DAY)])
def test_a_block_that_ends_begins_the_grace(spec: dict[str, Any], grace: timedelta) -> None:
    """Also for a branch whose spec is that of its creation: it was active, or under a lease, from the beginning."""
    now = BORN + 9 * DAY
    lease = format_time(BORN + 8 * DAY)
    for item, meanwhile in (
        (born(**spec), capped(None, active="b")),
        (born(**spec, protectedUntil=lease), SHOP),
    ):
        blocked = seen(item, meanwhile, BORN)
        assert blocked.expiration_time is None and blocked.generation == 1
        plan = plan_expiry(blocked, SHOP, now)
        assert parse_time(plan.fields["expirationTime"]) == now + grace
        assert [reason for reason, _ in plan.events] == [EXPIRING] and plan.findings == ()
    # One whose time is far off keeps that.
    young = seen(born(ttl="720h"), capped(None, active="b"), BORN)
    assert goes(young, SHOP, BORN + DAY) == BORN + 30 * DAY


def test_a_lease_of_protection_ends_by_the_clock_and_an_extension_counts_at_once() -> None:
    until, extension = format_time(BORN + DAY), format_time(BORN + 2 * DAY)
    item = born(protectedUntil=until)
    assert plan_expiry(item, SHOP, BORN).fields["protectionEnded"] is None
    past_lease = seen(item, SHOP, BORN + DAY)
    assert past_lease.status["protectionEnded"] == until
    assert (
        plan_expiry(edited(past_lease, protectedUntil=extension), SHOP, BORN + DAY).fields["protectionEnded"]
        is None
    )
    body = branch("b").changed(spec={"protectedUntil": extension}, status={"protectionEnded": until}).body()
    assert parse_branch(body).protected
    body["status"]["protectionEnded"] = extension
    assert not parse_branch(body).protected
    # A clock that goes back takes the end back.
    assert plan_expiry(past_lease, SHOP, BORN).fields["protectionEnded"] is None
    assert outdated_leases([item, past_lease], BORN + DAY) == [item]
    assert outdated_leases([item, past_lease], BORN) == [past_lease]


# Events.


def test_what_git_makes_again_is_said_once() -> None:
    def reasons_of(item: Branch, shop: Project, at: datetime) -> list[str]:
        return [reason for reason, _ in plan_expiry(item, shop, at, "argocd-controller").events]

    item = born(ttl="72h")
    assert reasons_of(item, SHOP, BORN) == [EXPIRING_IN_GIT]
    assert reasons_of(born(), SHOP, BORN) == []
    assert reasons_of(seen(item, SHOP, BORN), SHOP, BORN + HOUR) == []
    # Not once more for each switch.
    blocked = seen(item, capped(None, active="b"), BORN)
    assert reasons_of(blocked, SHOP, BORN + 9 * DAY) == [EXPIRING]


def test_events_say_when_why_and_what_to_do() -> None:
    for item, shop, why in (
        (edited(seen(born(), SHOP, BORN), ttl="1h"), SHOP, "spec.ttl"),
        (edited(seen(born(), SHOP, BORN), expirationTime="2026-01-01T00:30:00Z"), SHOP, "expirationTime"),
        (born(), capped(None, "1h"), "branchDefaults.ttl"),
        (born(), capped("1h"), "branchPolicy.maxTTL"),
    ):
        ((reason, text),) = plan_expiry(item, shop, BORN + DAY).events
        assert reason == EXPIRING and why in text and "branch b is deleted at 2026-01-0" in text
        assert "dbranch protect b" in text if "maxTTL" in why else "dbranch extend b" in text


# Which go now.


def expiring(name: str, at: datetime, **metadata: Any) -> Branch:
    return replace(seen(born(name, ttl="1h"), SHOP, BORN), expiration_time=format_time(at), **metadata)


def test_few_go_at_a_time_the_longest_expired_first() -> None:
    now = BORN + 10 * DAY
    items = [expiring(f"b{number:02}", now - timedelta(minutes=number)) for number in range(20)]
    first = going_now(items, now)
    assert [item.name for item in first] == [f"b{number}" for number in (19, 18, 17, 16, 15)]
    assert going_now([], now) == [] == going_now([expiring("later", now + HOUR)], now)
    going = [replace(item, deleted=format_time(now - timedelta(seconds=5))) for item in first]
    waiting = [item for item in items if item not in first]
    assert going_now([*going, *waiting], now) == []
    assert len(going_now([*going[:3], *waiting], now)) == 2
    # A deletion that is held up holds up nobody.
    stuck = [replace(item, deleted=format_time(now - HOUR)) for item in first]
    assert len(going_now([*stuck, *waiting], now)) == timing.MAX_BRANCH_EXPIRIES


def test_creates_come_first() -> None:
    now = BORN + 10 * DAY
    items = [expiring(f"b{number:02}", now - HOUR) for number in range(20)]
    new = replace(born("new", now - timedelta(seconds=2)), node_name="n1")
    assert len(going_now([*items, new], now)) == 1
    # Who waits for its source, or is created for long, is no create that the node works on.
    for other in (replace(new, node_name=None), replace(new, created=format_time(now - HOUR))):
        assert len(going_now([*items, other], now)) == timing.MAX_BRANCH_EXPIRIES


def test_what_has_expired_and_what_has_not() -> None:
    now = BORN + 10 * DAY
    item = expiring("b", now)
    assert is_expired(item, now) and may_go(item, SHOP, now)
    assert not is_expired(item, now - timedelta(seconds=1))
    assert not is_expired(replace(item, deleted=format_time(now)), now)
    # The status is behind the spec, or behind the project: another time follows from them.
    assert not is_expired(edited(item, ttl="Never"), now)
    assert not may_go(item, capped(None, active="b"), now)
    assert not may_go(replace(item, protection=Protection.ENABLED), SHOP, now)
    assert may_go(item, None, now)


def test_a_branch_that_a_backup_brings_back_is_not_deleted_by_what_its_status_says() -> None:
    """Velero restores the object with its status; both of its times are past, and it has just been created."""
    now = BORN + 10 * DAY
    for spec in ({"expirationTime": format_time(BORN + HOUR)}, {"ttl": "1h"}, {"ttl": "72h"}):
        restored = replace(seen(born(**spec), SHOP, BORN), created=format_time(now))
        assert is_expired(restored, now)
        assert not may_go(restored, SHOP, now)
        assert (goes(restored, SHOP, now) or BORN) >= now + HOUR


def test_states_for_the_metrics() -> None:
    now = BORN + 10 * DAY
    states = [
        expiry_state(item, now)
        for item in (
            born(),
            seen(born(ttl="1h"), capped(None, active="b"), BORN),
            expiring("b", now + 2 * DAY),
            expiring("b", now + HOUR),
            expiring("b", now - timedelta(minutes=1)),
            expiring("b", now - HOUR),
        )
    ]
    assert states == ["never", "blocked", "later", "soon", "soon", "overdue"]
