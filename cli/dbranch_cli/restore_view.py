"""The texts of `dbranch reset`, `undo` and `history`, from the API server's JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from dbranch.api import names
from dbranch.api.conditions import Condition, Reason, find_condition
from dbranch.api.enums import RestorePhase, SnapshotReason
from dbranch_cli.durations import format_until
from dbranch_cli.formatting import format_age, format_table
from dbranch_cli.objects import Body
from dbranch_cli.restore_progress import step_of
from dbranch_cli.snapshot_view import snapshot_name_of
from dbranch_cli.view import state_of

Json = Mapping[str, Any]


def copies_of(branch: Json, snapshots: Iterable[Body]) -> list[Body]:
    """Return the snapshots with data that restores of this very branch have replaced, the newest first."""
    uid = branch["metadata"]["uid"]
    copies = [
        body
        for body in snapshots
        if (origin := body["spec"].get("origin") or {}).get("reason") == SnapshotReason.RESTORE
        and origin.get("branchUID") == uid
        and state_of(body) == "Ready"
    ]
    return sorted(copies, key=lambda body: (_generation_of(body), _time_of(body)), reverse=True)


def undo_target(branch: Json, snapshots: Iterable[Body]) -> Body | None:
    """Return the snapshot with the data that the branch had before its last restore; None if there is none."""
    before = int(((branch.get("status") or {}).get("node") or {}).get("generation") or 1) - 1
    return next((body for body in copies_of(branch, snapshots) if _generation_of(body) == before), None)


def _generation_of(snapshot: Json) -> int:
    return int(((snapshot.get("status") or {}).get("node") or {}).get("generation") or 0)


def restore_result(restore: Json, copy: Json | None) -> str:
    """Return what a complete restore has done, how it is undone, and until when."""
    status, branch = restore.get("status") or {}, restore["spec"]["branch"]
    complete = find_condition(status, Condition.COMPLETE) or {}
    if complete.get("reason") == Reason.ALREADY_APPLIED:
        return str(complete.get("message"))
    at = f" as of {clock_time(status['dataTime'])}" if status.get("dataTime") else ""
    text = f"branch {branch} has the data of {status.get('source') or 'its source'}{at}"
    if status.get("undoSnapshot"):
        return f"{text}; 'dbranch undo {branch}' takes this back, {_kept_until(copy)}"
    return f"{text}; what it had before is deleted"


def _kept_until(copy: Json | None) -> str:
    """Say how long the copy for an undo is kept; its end may not have been reported yet."""
    if copy is None:
        return "as long as its snapshot is kept"
    end, ttl = (copy.get("status") or {}).get("expirationTime"), copy["spec"].get("ttl")
    if end:
        return f"until {clock_time(end)}"
    return f"for {ttl}" if ttl and ttl != "Never" else "until its snapshot is deleted"


def clock_time(time: str | None, now: datetime | None = None) -> str:
    """Return a time (RFC 3339) as a clock of this machine shows it: `13:40`, or with its day if that is another.

    >>> clock_time(None)
    'an unknown time'
    """
    if not time:
        return "an unknown time"
    local = datetime.fromisoformat(time.replace("Z", "+00:00")).astimezone()
    today = (now or datetime.now(UTC)).astimezone().date()
    return f"{local:%H:%M}" if local.date() == today else f"{local:%Y-%m-%d %H:%M}"


def history_of(
    branch: str, live: Json | None, restores: Iterable[Body], snapshots: Iterable[Body]
) -> list[Body]:
    """Return the DBRestores and DBSnapshots of a branch, the newest first.

    Restores whose objects are gone are shown as the branch's `status.restores` remembers them.
    """
    entries = [body for body in restores if body["spec"]["branch"] == branch]
    existing = {body["metadata"]["uid"] for body in entries}
    if live is not None:
        entries += [body for body in _remembered(branch, live) if body["metadata"]["uid"] not in existing]
    entries += [body for body in snapshots if body["spec"]["branch"] == branch]
    return sorted(entries, key=_time_of, reverse=True)


def _remembered(branch: str, live: Json) -> Iterator[Body]:
    for record in (live.get("status") or {}).get("restores") or ():
        status = {key: record[key] for key in ("source", "completionTime", "undoSnapshot") if key in record}
        meta = {"name": record["name"], "namespace": live["metadata"].get("namespace"), "uid": record["uid"]}
        yield {
            "apiVersion": names.API_VERSION,
            "kind": names.RESTORE_KIND,
            "metadata": meta,
            "spec": {"project": live["spec"]["project"], "branch": branch},
            "status": {"phase": RestorePhase.COMPLETE.value, **status},
        }


def _time_of(body: Json) -> str:
    """Return when a restore was done or a snapshot taken (RFC 3339); of others when they were made."""
    status = body.get("status") or {}
    time = status.get("completionTime") or (status.get("node") or {}).get("snapshotTime")
    return str(time or body["metadata"].get("creationTimestamp") or "")


def history_table(entries: Sequence[Json], live: Json | None, wide: bool, now: datetime | None = None) -> str:
    """Return the table of `dbranch history`; `wide` adds columns."""
    header = ["WHEN", "WHAT", "NAME", "STATE", "DETAILS"]
    rows = []
    for body in entries:
        is_restore = body["kind"] == names.RESTORE_KIND
        time = _time_of(body)
        row = [
            f"{format_age(time, now)} ago",
            "restore" if is_restore else "snapshot",
            snapshot_name_of(body),
            str((body.get("status") or {}).get("phase") or "Pending") if is_restore else state_of(body),
            _restore_details(body) if is_restore else _snapshot_details(body, live, now),
        ]
        if wide:
            row += [_reason_of(body), time, body["metadata"]["name"]]
        rows.append(row)
    return format_table(header + (["REASON", "TIME", "OBJECT"] if wide else []), rows)


def _reason_of(body: Json) -> str:
    ready = find_condition(body.get("status"), Condition.READY)
    if ready:
        return str(ready["reason"])
    return step_of(body)[0] if (body.get("status") or {}).get("conditions") else "-"


def _restore_details(body: Json) -> str:
    """Say what a restore has brought, or why it has not."""
    status = body.get("status") or {}
    step, message, _ = step_of(body)
    if status.get("phase") != RestorePhase.COMPLETE:
        return f"{step}: {message}" if message else step
    text = f"data of {status.get('source') or '-'}"
    if status.get("undoSnapshot"):
        copy = names.snapshot_short_name(body["spec"]["project"], status["undoSnapshot"])
        return f"{text}; before: {copy}"
    return text


def _snapshot_details(body: Json, live: Json | None, now: datetime | None) -> str:
    """Say what a snapshot was made for, when it expires, and whether it is of another branch of this name."""
    status = body.get("status") or {}
    text = str((body["spec"].get("origin") or {}).get("reason") or SnapshotReason.REQUESTED)
    if status.get("expirationTime"):
        text += f"; expires {format_until(status['expirationTime'], now)}"
    uid = live["metadata"]["uid"] if live else None
    if status.get("branchUID") and status["branchUID"] != uid:
        text += "; of an earlier branch of this name"
    return text
