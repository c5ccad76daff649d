"""Whether a branch is protected: the one place that says so, as the policies of the chart do in CEL. Pure."""

from __future__ import annotations

from datetime import datetime

from dbranch.api.enums import Protection
from dbranch.api.expiry import parse_time


def is_protected(protection: str | None, protected_until: str | None, protection_ended: str | None) -> bool:
    """Return True if a branch is protected, by `spec.protection` or `spec.protectedUntil`.

    Policies have no clock, so a lease of protection is over when the controller has written its very value into
    `status.protectionEnded`: another value in the spec counts at once.

    >>> until = "2030-01-31T12:00:00Z"
    >>> is_protected(None, until, until), is_protected("Disabled", until, "2030-01-01T12:00:00Z")
    (False, True)
    """
    if protection == Protection.ENABLED:
        return True
    return protected_until is not None and protected_until != protection_ended


def ended_protection(protected_until: str | None, now: datetime) -> str | None:
    """Return the value of `status.protectionEnded`: that of `spec.protectedUntil` once it has passed."""
    moment = parse_time(protected_until)
    # What cannot be read does not end.
    return protected_until if moment is not None and moment <= now else None
