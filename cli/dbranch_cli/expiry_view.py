"""The texts about when a branch goes, and what protects it, from the API server's JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from dbranch.api.conditions import Condition, find_condition
from dbranch.api.enums import Protection
from dbranch.api.expiry import FIELD_CAP, deadline_of, with_grace
from dbranch_cli.durations import format_moment, format_until
from dbranch_cli.parsing import parse_branch, parse_project

Json = Mapping[str, Any]


def expires_text(body: Json, now: datetime | None = None) -> str:
    """Return when a branch goes, for `show`: a time, `never`, or what it does not expire for."""
    status = body.get("status") or {}
    expires = status.get("expirationTime")
    if expires:
        return f"{expires} ({format_until(expires, now)})"
    blocked = find_condition(status, Condition.EXPIRATION_BLOCKED)
    return f"not now: {blocked['reason']}" if blocked else "never"


def protection_text(body: Json, now: datetime | None = None) -> str | None:
    """Return what protects a branch, for `show`; None if nothing does."""
    spec, branch = body["spec"], parse_branch(body)
    if not branch.protected:
        return None
    if branch.protection == Protection.ENABLED:
        return "Enabled"
    return f"until {spec['protectedUntil']} ({format_until(spec['protectedUntil'], now)})"


def leaving_note(project: Json, body: Json, now: datetime) -> str | None:
    """Return what becomes of a branch that ceases to be active, if its time is over; else None.

    `now`: in the time zone of who reads it.
    """
    branch, parsed = parse_branch(body), parse_project(project)
    deadline = deadline_of(branch, parsed.max_ttl)
    if deadline is None or branch.is_root or branch.protected or branch.deleting:
        return None
    moment, _ = with_grace(deadline.time, None, deadline.ttl, now)
    if moment <= deadline.time:
        return None
    keep = f"dbranch extend {branch.name} 7d"
    if deadline.field == FIELD_CAP:
        keep = f"dbranch protect {branch.name} --for 7d"
    when = format_moment(moment, now)
    return f"{branch.name} is past its time and goes {when}; keep it: {keep}"
