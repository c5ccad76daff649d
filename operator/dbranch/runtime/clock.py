"""The time of day in the format of Kubernetes' timestamps (RFC 3339, UTC, whole seconds)."""

from __future__ import annotations

from datetime import UTC, datetime


def now_rfc3339() -> str:
    """Return the current time, as in `2026-01-31T12:00:00Z`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_since(timestamp: str | None) -> float:
    """Return the seconds that have passed since an RFC 3339 timestamp; 0 for None or an empty one."""
    if not timestamp:
        return 0.0
    return (datetime.now(UTC) - datetime.fromisoformat(timestamp.replace("Z", "+00:00"))).total_seconds()
