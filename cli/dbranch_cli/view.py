"""What `list`, `status`, `show`, `tree` and `projects` say of the API server's JSON. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from dbranch.api import names
from dbranch.api.conditions import Condition, Reason, find_condition, is_condition_true
from dbranch.api.enums import ConditionStatus, Protection
from dbranch_cli.formatting import age, block, size, table
from dbranch_cli.objects import active_branch_of, branch_name_of, event_time

Json = Mapping[str, Any]


def state_of(body: Json) -> str:
    """One word for a branch or project: Ready, Pending, Stopped, Deleting, Stalled, Unknown."""
    status = body.get("status") or {}
    if body["metadata"].get("deletionTimestamp"):
        return "Deleting"
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


def problem_of(body: Json) -> tuple[str, str] | None:
    """Reason and message of what a person may want to look at; None where all is as asked for."""
    ready = find_condition(body.get("status"), Condition.READY)
    if ready is None or ready["status"] == ConditionStatus.TRUE or ready["reason"] == Reason.STOPPED:
        return None
    return str(ready["reason"]), str(ready.get("message", ""))


def branch_table(project: Json, branches: Sequence[Json], wide: bool, now: datetime | None = None) -> str:
    head = ["ACTIVE", "BRANCH", "SOURCE", "STATE", "SIZE", "UNIQUE", "AGE"]
    rows = []
    for body in branches:
        status = body.get("status") or {}
        node, ready = status.get("node") or {}, find_condition(status, Condition.READY) or {}
        row = [
            "*" if branch_name_of(body) == active_branch_of(project) else "",
            branch_name_of(body),
            body["spec"].get("source") or "-",
            state_of(body),
            size(node, "logical"),
            size(node, "unique"),
            age(body["metadata"].get("creationTimestamp"), now),
        ]
        if wide:
            row += [ready.get("reason") or "-", status.get("nodeName") or "-", ready.get("message") or ""]
        rows.append(row)
    return table(head + (["REASON", "NODE", "MESSAGE"] if wide else []), rows)


def project_table(
    projects: Sequence[Json], current_condition: str | None, wide: bool, now: datetime | None = None
) -> str:
    head = ["CURRENT", "PROJECT", "STATE", "ACTIVE", "BRANCHES", "USED", "SIZE", "AGE"]
    rows = []
    for body in projects:
        status = body.get("status") or {}
        ready = find_condition(status, Condition.READY) or {}
        name = body["metadata"]["name"]
        row = [
            "*" if name == current_condition else "",
            name,
            state_of(body),
            (status.get("route") or {}).get("branch") or "-",
            str(status.get("branches", "-")),
            size(status.get("node") or {}, "used"),
            str((body["spec"].get("storage") or {}).get("size", "-")),
            age(body["metadata"].get("creationTimestamp"), now),
        ]
        if wide:
            row += [status.get("nodeName") or "-", status.get("host") or "-", ready.get("message") or ""]
        rows.append(row)
    return table(head + (["NODE", "HOST", "MESSAGE"] if wide else []), rows)


def count_sessions(project: Json) -> tuple[int, int]:
    """Open sessions of all proxies, and of these the ones still on an old branch."""
    proxies = (project.get("status") or {}).get("proxies") or ()
    return sum(int(p.get("sessions", 0)) for p in proxies), sum(int(p.get("draining", 0)) for p in proxies)


def count_noun(count: int, noun: str) -> str:
    """
    >>> counted(1, "session"), counted(3, "branch")
    ('1 session', '3 branches')
    """
    many = f"{noun}es" if noun.endswith("ch") else f"{noun}s"
    return f"{count} {noun if count == 1 else many}"


def status_block(project: Json, branches: Sequence[Json], context: str, wide: bool = False) -> str:
    """The block of `dbranch status`: the project, and below it each branch that is not as asked for."""
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
        waiting = node.get("warmSlots")
        pairs.append(("Slots", "-" if waiting is None else f"{waiting} waiting for the next branch"))
    lines = [block(pairs)]
    for body in branches:
        trouble = problem_of(body)
        if trouble:
            lines.append(f"! {branch_of(body)}  {trouble[0]}: {trouble[1]}")
    return "\n".join(lines)


def _ready_line(body: Json) -> str:
    ready = find_condition(body.get("status"), Condition.READY)
    if ready is None:
        return "Unknown, nothing has been said yet"
    if ready["status"] == ConditionStatus.TRUE:
        return "True"
    return f"{ready['status']}, {ready['reason']}: {ready.get('message', '')}".rstrip(": ")


def _active_line(project: Json) -> str:
    active, wanted = active_branch_of(project), project["spec"].get("activeBranch") or names.ROOT_BRANCH
    sessions, draining = count_sessions(project)
    line = f"{active}, {counted(sessions, 'session')}"
    if draining:
        proxies = (project.get("status") or {}).get("proxies") or ()
        old = sorted({b["branch"] for p in proxies for b in p.get("branches") or () if b.get("draining")})
        line += f"; {draining} draining on {', '.join(old) or 'old branches'}"
    if wanted != active:
        routed = find_condition(project.get("status"), Condition.ROUTED) or {}
        line += f"; wanted: {wanted}" + (f" ({routed['reason']})" if routed.get("reason") else "")
    return line


def _pool_line(project: Json) -> str:
    status = project.get("status") or {}
    node = status.get("node") or {}
    wanted = (project["spec"].get("storage") or {}).get("size", "-")
    line = f"{size(node, 'used')} of {wanted}"
    if status.get("nodeName"):
        line += f"; node {status['nodeName']}"
        if node.get("hostFreeBytes") is not None or node.get("hostFreeSize"):
            line += f", disk {size(node, 'hostFree')} free"
    return line


def _branches_line(branches: Sequence[Json]) -> str:
    states = Counter(state_of(body) for body in branches)
    order = ("Ready", "Pending", "Stopped", "Deleting", "Stalled", "Unknown")
    return f"{len(branches)}" + (
        ": " + ", ".join(f"{states[state]} {state}" for state in order if states[state]) if states else ""
    )


def branch_block(body: Json, active: bool, events: Sequence[Json] | None, now: datetime | None = None) -> str:
    """The block of `dbranch show`: the branch, its conditions, its Events (None: not allowed to see them)."""
    meta, spec, status = body["metadata"], body["spec"], body.get("status") or {}
    node = status.get("node") or {}
    host = names.service_host(meta["name"], meta["namespace"])
    pairs = [
        ("Branch", f"{branch_of(body)}{' (active)' if active else ''}"),
        ("Object", f"dbbranch/{meta['name']} (namespace {meta['namespace']})"),
        ("Project", spec["project"]),
        ("Source", spec.get("source") or "- (the root branch)"),
        ("State", state_of(body)),
        ("Connect", f"{host}:{names.POSTGRES_PORT}"),
        ("Node", status.get("nodeName") or "-"),
        ("Pod", node.get("pod") or "-"),
        ("Postgres", node.get("postgresVersion") or "-"),
        ("Size", f"{size(node, 'logical')}, of it {size(node, 'unique')} its own"),
        ("Snapshot", age(node.get("snapshotTime"), now) + (" ago" if node.get("snapshotTime") else "")),
        ("Age", age(meta.get("creationTimestamp"), now)),
    ]
    if spec.get("protection", Protection.DISABLED) != Protection.DISABLED:
        pairs.append(("Protection", spec["protection"]))
    conditions = [
        [c["type"], c["status"], c["reason"], age(c.get("lastTransitionTime"), now), c.get("message", "")]
        for c in status.get("conditions") or ()
    ]
    parts = [block(pairs), ""]
    parts.append(
        table(["CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"], conditions)
        if conditions
        else "No conditions yet: no part of dbranch has said anything of it."
    )
    parts.append("")
    if events is None:
        parts.append("Events: you may not list them.")
    elif events:
        rows = [
            [age(event_time(e), now), e.get("type", "-"), e.get("reason", "-"), str(e.get("message") or "")]
            for e in events
        ]
        parts.append(table(["EVENT", "TYPE", "REASON", "MESSAGE"], rows))
    else:
        parts.append("No Events.")
    return "\n".join(parts)


def branch_tree(project: Json, branches: Sequence[Json]) -> str:
    """Each branch below its source; one whose source is gone stands at the left with its source's name."""
    known = {branch_name_of(body): body for body in branches}
    below: dict[str, list[str]] = {}
    tops: list[str] = []
    for name, body in known.items():
        source = body["spec"].get("source")
        (below.setdefault(source, []) if source in known else tops).append(name)
    lines: list[str] = []

    def draw(name: str, first: str, rest: str) -> None:
        body = known[name]
        source = body["spec"].get("source")
        marks = ["*"] if name == active_branch_of(project) else []
        state = state_of(body)
        marks += [state] if state != "Ready" else []
        marks += [f"of {source}, deleted"] if source and source not in known else []
        lines.append(f"{first}{name}{''.join(f'  {mark}' for mark in marks)}")
        children = below.get(name, [])
        for place, child in enumerate(children):
            last = place == len(children) - 1
            draw(child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))

    for top in tops:
        draw(top, "", "")
    return "\n".join(lines)
