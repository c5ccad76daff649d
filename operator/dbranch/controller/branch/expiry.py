"""When a branch goes by itself: facts, the time of day -> status, what blocks it, Events; and which go now. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

from dbranch.api.branch import Branch
from dbranch.api.conditions import Condition, Finding, Reason, find_condition
from dbranch.api.expiry import (
    FIELD_CAP,
    FIELD_DEFAULT,
    NEVER,
    Deadline,
    asked_deadline,
    deadline_of,
    format_time,
    parse_time,
    with_grace,
)
from dbranch.api.project import Project
from dbranch.api.protection import ended_protection, is_protected
from dbranch.controller import timing
from dbranch.controller.conditions import Findings
from dbranch.controller.events import EXPIRING, EXPIRING_IN_GIT

Json = dict[str, Any]

_DELETION_COUNTS: Final = timedelta(seconds=timing.DELETION_COUNTS_SECONDS)
_CREATE_COUNTS: Final = timedelta(seconds=timing.CREATE_COUNTS_SECONDS)


@dataclass(frozen=True)
class Expiry:
    """What follows from a branch's ttl. `fields`: of the status; `events`: (reason, message) that announce it."""

    fields: Json = field(default_factory=dict)
    findings: Findings = ()
    events: tuple[tuple[str, str], ...] = ()


def plan_expiry(
    branch: Branch, project: Project | None, now: datetime, git_manager: str | None = None
) -> Expiry:
    """Decide when a branch goes that is not being deleted. `now`: of the API server; `git_manager`: makes it again.

    Only what stood in the manifest at the branch's creation counts without a grace.
    """
    branch = replace(branch, default_ttl=_default_ttl(branch, project))
    protection_ended = ended_protection(branch.protected_until, now)
    fields: Json = {"ttl": branch.default_ttl, "expirationTime": None, "protectionEnded": protection_ended}
    deadline = deadline_of(branch, project.max_ttl if project else None)
    if deadline is None:
        return Expiry(fields)
    blocked = _blocked_finding(branch, project, protection_ended)
    if blocked:
        return Expiry(fields, ((Condition.EXPIRATION_BLOCKED, blocked),))
    moment, is_sooner = with_grace(deadline.time, _time_in_force(branch), deadline.ttl, now)
    fields["expirationTime"] = format_time(moment)
    events = [(EXPIRING, _expiring_text(branch, deadline, moment))] if is_sooner else []
    had_none = branch.expiration_time is None
    if git_manager and had_none and not find_condition(branch.status, Condition.EXPIRATION_BLOCKED):
        events.append((EXPIRING_IN_GIT, _git_text(branch, git_manager)))
    return Expiry(fields, (), tuple(events))


def _default_ttl(branch: Branch, project: Project | None) -> str | None:
    """Return `status.ttl`: read when a branch first has a project, before it is bound, and never again."""
    if branch.default_ttl is not None or project is None or branch.node_name is not None:
        return branch.default_ttl
    return NEVER if branch.is_root else project.default_ttl or NEVER


def _time_in_force(branch: Branch) -> datetime | None:
    """Return when the branch was to go until now: by its status, or by its manifest if it was never seen before."""
    asked, created = asked_deadline(branch), parse_time(branch.created)
    moment = parse_time(branch.expiration_time)
    is_first = branch.generation == 1 and not branch.status.get("conditions")
    if is_first and asked is not None and asked.field != FIELD_DEFAULT:
        moment = asked.time
    # One that was past at the creation is of another object: a manifest applied again, a status from a backup.
    return moment if moment is None or created is None or moment > created else None


def is_active(branch: Branch, project: Project) -> bool:
    """Return True if the project's sessions reach the branch, or are to reach it: as the deletion policy has it."""
    return branch.name in (project.active_branch, project.route.branch if project.route else None)


def _blocked_finding(branch: Branch, project: Project | None, protection_ended: str | None) -> Finding | None:
    subject = f"branch {branch.name}"
    if branch.is_root:
        text = f"{subject} is the root branch of project {branch.project}; it does not expire"
        return Finding(Reason.ROOT_BRANCH, f"{text}; take spec.ttl and spec.expirationTime away")
    if project and is_active(branch, project):
        text = f"{subject} is the active branch of project {branch.project}; it does not expire meanwhile"
        return Finding(Reason.ACTIVE_BRANCH, f"{text}; switch to another one to let it expire")
    if is_protected(branch.protection, branch.protected_until, protection_ended):
        text = f"{subject} is protected; it does not expire meanwhile"
        return Finding(Reason.PROTECTED, f"{text}; to let it expire: dbranch unprotect {branch.name}")
    return None


def _expiring_text(branch: Branch, deadline: Deadline, moment: datetime) -> str:
    why, keep = f"{deadline.field} says so", f"dbranch extend {branch.name} 7d"
    if deadline.field == FIELD_CAP:
        why = f"{deadline.field} of project {branch.project} allows no more"
        keep = f"dbranch protect {branch.name}, or raise that"
    elif deadline.field == FIELD_DEFAULT:
        why = f"{deadline.field} of project {branch.project} says so, as it was when the branch was made"
    return f"branch {branch.name} is deleted at {format_time(moment)}: {why}; to keep it: {keep}"


def _git_text(branch: Branch, manager: str) -> str:
    return (
        f"branch {branch.name} has a time to expire and is managed by {manager}, which makes it again, as a new copy "
        "of its source; take the ttl away in Git, or the branch when its time comes"
    )


def is_expired(branch: Branch, now: datetime) -> bool:
    """Return True if `status.expirationTime` has passed, and is what follows from the present spec."""
    expires = parse_time(branch.expiration_time)
    if expires is None or branch.deleting or branch.observed_generation != branch.generation:
        return False
    return expires <= now


def may_go(branch: Branch, project: Project | None, now: datetime) -> bool:
    """Return True if an expired branch may be deleted: what the objects say now leads to no later time."""
    if not is_expired(branch, now):
        return False
    planned = parse_time(plan_expiry(branch, project, now).fields["expirationTime"])
    return planned is not None and planned <= now


def outdated_leases(branches: Iterable[Branch], now: datetime) -> list[Branch]:
    """Return the branches whose `status.protectionEnded` has to follow the clock."""
    return [
        branch
        for branch in branches
        if branch.protected_until is not None
        and not branch.deleting
        and ended_protection(branch.protected_until, now) != branch.status.get("protectionEnded")
    ]


def going_now(branches: Sequence[Branch], now: datetime) -> list[Branch]:
    """Return the expired branches that are deleted now, the longest expired first: few at a time, behind creates."""
    expired = [branch for branch in branches if is_expired(branch, now)]
    if not expired:
        return []
    going = sum(branch.deleting and _age(branch.deleted, now) < _DELETION_COUNTS for branch in branches)
    is_creating = any(_is_being_created(branch, now) for branch in branches)
    places = (1 if is_creating else timing.MAX_BRANCH_EXPIRIES) - going
    expired.sort(key=lambda branch: branch.expiration_time or "")
    return expired[: max(0, places)]


def _is_being_created(branch: Branch, now: datetime) -> bool:
    is_young = _age(branch.created, now) < _CREATE_COUNTS
    return is_young and not branch.deleting and branch.node_name is not None and branch.node.postgres is None


def _age(since: str | None, now: datetime) -> timedelta:
    moment = parse_time(since)
    return now - moment if moment else timedelta.max


# The values of `expiry_state`.
EXPIRY_STATES: Final = ("never", "blocked", "later", "soon", "overdue")


def expiry_state(branch: Branch, now: datetime) -> str:
    """Return what a branch's expiry is for the metrics; `soon`: within a day, `overdue`: since minutes."""
    expires = parse_time(branch.expiration_time)
    if expires is None:
        return "blocked" if find_condition(branch.status, Condition.EXPIRATION_BLOCKED) else "never"
    if expires <= now - timedelta(seconds=timing.EXPIRY_OVERDUE_SECONDS):
        return "overdue"
    return "soon" if expires <= now + timedelta(days=1) else "later"
