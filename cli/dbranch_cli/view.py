"""The texts of `list`, `status`, `show`, `tree` and `projects`, from the API server's JSON. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from dbranch.api import names
from dbranch.api.conditions import Condition, Reason, find_condition, is_condition_true
from dbranch.api.enums import ConditionStatus, NodeRestoreState
from dbranch_cli.durations import format_until
from dbranch_cli.expiry_view import expires_text, protection_text
from dbranch_cli.formatting import (
    escape_controls,
    format_age,
    format_count,
    format_fields,
    format_size,
    format_table,
)
from dbranch_cli.objects import active_branch_of, branch_name_of, event_time, source_of
from dbranch_cli.schedule_view import refresh_line

Json = Mapping[str, Any]


def state_of(body: Json) -> str:
    """Return an object's state: Ready, Pending, Stopped, Deleting, Stalled or Unknown; of a branch also Restoring."""
    status = body.get("status") or {}
    if body["metadata"].get("deletionTimestamp"):
        return "Deleting"
    if restore_of(body):
        return "Restoring"
    ready = find_condition(status, Condition.READY)
    if ready and ready["status"] == ConditionStatus.TRUE:
        return "Ready"
    if ready and ready["reason"] == Reason.STOPPED:
        return "Stopped"
    if is_condition_true(status, Condition.STALLED):
        return "Stalled"
    if ready and ready["status"] == ConditionStatus.UNKNOWN and ready["reason"] != Reason.PENDING:
        return "Unknown"
    return "Pending"


def restore_of(branch: Json) -> Mapping[str, Any] | None:
    """Return `status.restore` of a branch that a restore is to give other data; None if it has that already."""
    status = branch.get("status") or {}
    restore, answer = status.get("restore"), (status.get("node") or {}).get("restore") or {}
    if not restore:
        return None
    is_answered = answer.get("uid") == restore.get("uid") and answer.get("state") not in (
        NodeRestoreState.PREPARING,
        NodeRestoreState.PREPARED,
    )
    return None if is_answered else restore


def data_source_of(branch: Json) -> str | None:
    """Return what a branch's data is of, as `source_of`: since its last restore, else since its creation."""
    return ((branch.get("status") or {}).get("data") or {}).get("source") or source_of(branch)


def data_time_of(branch: Json) -> str | None:
    """Return the time (RFC 3339) as of which a branch has its source's data; None for a root branch."""
    status = branch.get("status") or {}
    return (status.get("data") or {}).get("time") or (status.get("node") or {}).get("snapshotTime")


def problem_of(body: Json) -> tuple[str, str] | None:
    """Return reason and message of Ready if it is neither True nor Stopped, else None."""
    ready = find_condition(body.get("status"), Condition.READY)
    if ready is None or ready["status"] == ConditionStatus.TRUE or ready["reason"] == Reason.STOPPED:
        return None
    return str(ready["reason"]), str(ready.get("message", ""))


def branch_header(wide: bool) -> list[str]:
    """Return the columns of `dbranch list`; `wide` adds some."""
    header = ["ACTIVE", "BRANCH", "SOURCE", "STATE", "SIZE", "UNIQUE", "EXPIRES", "AGE"]
    return header + (["DATA", "REASON", "NODE", "MESSAGE"] if wide else [])


def branch_row(project: Json, body: Json, wide: bool, now: datetime | None = None) -> list[str]:
    """Return a branch's row in the table of `dbranch list`."""
    status = body.get("status") or {}
    node, ready = status.get("node") or {}, find_condition(status, Condition.READY) or {}
    row = [
        "*" if branch_name_of(body) == active_branch_of(project) else "",
        branch_name_of(body),
        data_source_of(body) or "-",
        state_of(body),
        format_size(node, "logical"),
        format_size(node, "unique"),
        format_until(status.get("expirationTime"), now),
        format_age(body["metadata"].get("creationTimestamp"), now),
    ]
    if wide:
        row += [
            format_age(data_time_of(body), now),
            ready.get("reason") or "-",
            status.get("nodeName") or "-",
            ready.get("message") or "",
        ]
    return row


def branch_table(project: Json, branches: Sequence[Json], wide: bool, now: datetime | None = None) -> str:
    """Return the table of `dbranch list`; `wide` adds columns."""
    return format_table(branch_header(wide), [branch_row(project, body, wide, now) for body in branches])


def project_table(
    projects: Sequence[Json], current: str | None, wide: bool, now: datetime | None = None
) -> str:
    """Return the table of `dbranch projects`; `current` is the current project's name, `wide` adds columns."""
    header = ["CURRENT", "PROJECT", "STATE", "ACTIVE", "BRANCHES", "USED", "SIZE", "AGE"]
    rows = []
    for body in projects:
        status = body.get("status") or {}
        ready = find_condition(status, Condition.READY) or {}
        name = body["metadata"]["name"]
        row = [
            "*" if name == current else "",
            name,
            state_of(body),
            (status.get("route") or {}).get("branch") or "-",
            str(status.get("branches", "-")),
            format_size(status.get("node") or {}, "used"),
            str((body["spec"].get("storage") or {}).get("size", "-")),
            format_age(body["metadata"].get("creationTimestamp"), now),
        ]
        if wide:
            row += [status.get("nodeName") or "-", status.get("host") or "-", ready.get("message") or ""]
        rows.append(row)
    return format_table(header + (["NODE", "HOST", "MESSAGE"] if wide else []), rows)


def count_sessions(project: Json) -> tuple[int, int]:
    """Return the open sessions and the draining sessions of all proxy pods."""
    proxies = (project.get("status") or {}).get("proxies") or ()
    return sum(int(p.get("sessions", 0)) for p in proxies), sum(int(p.get("draining", 0)) for p in proxies)


def count_branch_sessions(project: Json, branch: str) -> int:
    """Return the open sessions on a branch of all proxy pods, draining ones included; others nobody counts."""
    proxies = (project.get("status") or {}).get("proxies") or ()
    entries = [b for p in proxies for b in p.get("branches") or () if b.get("branch") == branch]
    return sum(int(b.get("sessions", 0)) + int(b.get("draining", 0)) for b in entries)


def status_block(project: Json, branches: Sequence[Json], context: str, wide: bool = False) -> str:
    """Return the text of `dbranch status`: the project, then a line for each branch with a problem."""
    meta, spec, status = project["metadata"], project["spec"], project.get("status") or {}
    node, postgres = status.get("node") or {}, spec.get("postgres") or {}
    port = (spec.get("proxy") or {}).get("port", names.POSTGRES_PORT)
    host = status.get("host") or names.service_host(meta["name"], meta["namespace"])
    version, image = node.get("postgresVersion"), postgres.get("image", "-")
    pairs = [
        ("Project", f"{meta['name']} (namespace {meta['namespace']}, context {context})"),
        ("Ready", _ready_line(project)),
        ("Active", _active_line(project)),
        ("Connect", f"{host}:{port}"),
        ("Postgres", f"{version} ({image})" if version else str(image)),
        ("Pool", _pool_line(project)),
        ("Branches", _branches_line(branches)),
    ]
    if wide:
        warm_slots = node.get("warmSlots")
        pairs.append(("Slots", "-" if warm_slots is None else f"{warm_slots} warm"))
    lines = [format_fields(pairs)]
    for body in branches:
        problem = problem_of(body)
        if problem:
            lines.append(escape_controls(f"! {branch_name_of(body)}  {problem[0]}: {problem[1]}"))
    return "\n".join(lines)


def _ready_line(body: Json) -> str:
    ready = find_condition(body.get("status"), Condition.READY)
    if ready is None:
        return "Unknown, no conditions reported yet"
    if ready["status"] == ConditionStatus.TRUE:
        return "True"
    return f"{ready['status']}, {ready['reason']}: {ready.get('message', '')}".rstrip(": ")


def _active_line(project: Json) -> str:
    active, desired = active_branch_of(project), project["spec"].get("activeBranch") or names.ROOT_BRANCH
    sessions, draining = count_sessions(project)
    line = f"{active}, {format_count(sessions, 'session')}"
    if draining:
        proxies = (project.get("status") or {}).get("proxies") or ()
        old = sorted({b["branch"] for p in proxies for b in p.get("branches") or () if b.get("draining")})
        line += f"; {draining} draining on {', '.join(old) or 'old branches'}"
    if desired != active:
        routed = find_condition(project.get("status"), Condition.ROUTED) or {}
        line += f"; wanted: {desired}" + (f" ({routed['reason']})" if routed.get("reason") else "")
    return line


def _pool_line(project: Json) -> str:
    status = project.get("status") or {}
    node = status.get("node") or {}
    size = (project["spec"].get("storage") or {}).get("size", "-")
    line = f"{format_size(node, 'used')} of {size}"
    if status.get("nodeName"):
        line += f"; node {status['nodeName']}"
        if node.get("hostFreeBytes") is not None or node.get("hostFreeSize"):
            line += f", disk {format_size(node, 'hostFree')} free"
    return line


def _branches_line(branches: Sequence[Json]) -> str:
    states = Counter(state_of(body) for body in branches)
    order = ("Ready", "Pending", "Stopped", "Deleting", "Stalled", "Unknown")
    return f"{len(branches)}" + (
        ": " + ", ".join(f"{states[state]} {state}" for state in order if states[state]) if states else ""
    )


def branch_block(body: Json, active: bool, events: Sequence[Json] | None, now: datetime | None = None) -> str:
    """Return the text of `dbranch show`: the branch, its conditions and its Events (None: forbidden)."""
    meta, spec, status = body["metadata"], body["spec"], body.get("status") or {}
    node = status.get("node") or {}
    host = names.service_host(meta["name"], meta["namespace"])
    pairs = [
        ("Branch", f"{branch_name_of(body)}{' (active)' if active else ''}"),
        ("Object", f"dbbranch/{meta['name']} (namespace {meta['namespace']})"),
        ("Project", spec["project"]),
        ("Source", source_of(body) or "- (root branch)"),
        ("State", state_of(body)),
        ("Connect", f"{host}:{names.POSTGRES_PORT}"),
        ("Node", status.get("nodeName") or "-"),
        ("Pod", node.get("pod") or "-"),
        ("Postgres", node.get("postgresVersion") or "-"),
        ("Size", _sizes_of(node)),
        ("Data", _data_line(body, now)),
        ("Age", format_age(meta.get("creationTimestamp"), now)),
        ("Expires", expires_text(body, now)),
    ]
    if restore := restore_of(body):
        pairs.append(("Restore", _restore_line(restore, node)))
    protection = protection_text(body, now)
    if protection:
        pairs.append(("Protection", protection))
    refreshed = refresh_line(body)
    top = [refreshed, ""] if refreshed else []
    return "\n".join([*top, format_fields(pairs), "", *conditions_and_events(status, events, now)])


def _data_line(body: Json, now: datetime | None) -> str:
    """Say what a branch's data is of, and as of when; `-` for the root branch that was never restored."""
    data, time = (body.get("status") or {}).get("data") or {}, data_time_of(body)
    if not time:
        return "-"
    line = f"of {data_source_of(body) or '-'} as of {time} ({format_age(time, now)} ago)"
    return f"{line}, by restore {data['restore']}" if data.get("restore") else line


def _restore_line(restore: Mapping[str, Any], node: Mapping[str, Any]) -> str:
    """Say which restore is going on, and at which step it is."""
    source, answer = restore.get("source") or {}, node.get("restore") or {}
    of = f"snapshot/{source.get('name')}" if source.get("kind") == "Snapshot" else source.get("name")
    step = answer.get("reason") or restore.get("state")
    return f"{restore.get('name')} from {of}: {step}" + (
        f", {answer['message']}" if answer.get("message") else ""
    )


def conditions_and_events(
    status: Json, events: Sequence[Json] | None, now: datetime | None = None
) -> list[str]:
    """Return the parts of a `show` below the fields: the conditions, and the Events (None: forbidden)."""
    conditions = [
        [
            c.get("type", ""),
            c.get("status", ""),
            c.get("reason", ""),
            format_age(c.get("lastTransitionTime"), now),
            c.get("message", ""),
        ]
        for c in status.get("conditions") or ()
    ]
    parts = [
        format_table(["CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"], conditions)
        if conditions
        else "No conditions reported yet.",
        "",
    ]
    if events is None:
        parts.append("Events: you are not allowed to list them.")
    elif events:
        rows = [
            [
                format_age(event_time(e), now),
                e.get("type", "-"),
                e.get("reason", "-"),
                str(e.get("message") or ""),
            ]
            for e in events
        ]
        parts.append(format_table(["EVENT", "TYPE", "REASON", "MESSAGE"], rows))
    else:
        parts.append("No Events.")
    return parts


def branch_tree(project: Json, branches: Sequence[Json]) -> str:
    """Return the text of `dbranch tree`: each branch below its source; one without its source is at the left."""
    by_name = {branch_name_of(body): body for body in branches}
    children: dict[str, list[str]] = {}
    tops: list[str] = []
    for name, body in by_name.items():
        source = body["spec"].get("source")
        (children.setdefault(source, []) if source in by_name else tops).append(name)
    lines: list[str] = []

    def draw(name: str, indent: str, child_indent: str) -> None:
        body = by_name[name]
        source = body["spec"].get("source")
        labels = ["*"] if name == active_branch_of(project) else []
        state = state_of(body)
        labels += [state] if state != "Ready" else []
        labels += [f"(source {source} is deleted)"] if source and source not in by_name else []
        labels += [f"(of {source_of(body)})"] if body["spec"].get("sourceSnapshot") else []
        lines.append(escape_controls(f"{indent}{name}{''.join(f'  {label}' for label in labels)}"))
        names_below = children.get(name, [])
        for index, child in enumerate(names_below):
            last = index == len(names_below) - 1
            draw(
                child,
                child_indent + ("└─ " if last else "├─ "),
                child_indent + ("   " if last else "│  "),
            )

    for top in tops:
        draw(top, "", "")
    return "\n".join(lines)


def _sizes_of(node: Mapping[str, Any]) -> str:
    """Return a branch's sizes; what it wrote only where its pool counts that."""
    parts = [format_size(node, "logical"), f"{format_size(node, 'unique')} unique"]
    if node.get("writtenBytes") is not None:
        parts.append(f"{format_size(node, 'written')} written")
    return ", ".join(parts)
