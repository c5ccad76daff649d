"""What an object's condition says after a reconcile that failed. Pure."""

from __future__ import annotations

from dbranch.api.conditions import Finding, Reason
from dbranch.api.errors import ApiError, ClusterUnreachable, DbranchError


def failure_finding(subject: str, error: Exception) -> Finding | None:
    """Return what to report of an exception; None if the object is not to blame: no answer, or written meanwhile."""
    if isinstance(error, ClusterUnreachable | OSError):
        return None
    if isinstance(error, ApiError) and error.status in (404, 409):
        return None
    cause = str(error) if isinstance(error, DbranchError) else f"unexpected {type(error).__name__}"
    return Finding(
        Reason.RECONCILE_FAILED, f"{subject}: {cause}; it is tried again; see the controller's log"
    )
