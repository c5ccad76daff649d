"""The texts of `dbranch snapshot list` and `show`, from the API server's JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from dbranch.api import names
from dbranch.api.conditions import Condition, find_condition
from dbranch.api.enums import Protection
from dbranch_cli.durations import format_until
from dbranch_cli.formatting import format_age, format_fields, format_size, format_table
from dbranch_cli.view import conditions_and_events, state_of

Json = Mapping[str, Any]


def snapshot_name_of(body: Json) -> str:
    """Return the name of a DBSnapshot that people read: without `<project>-`."""
    return names.snapshot_short_name(body["spec"]["project"], body["metadata"]["name"])


def snapshot_table(snapshots: Sequence[Json], wide: bool, now: datetime | None = None) -> str:
    """Return the table of `dbranch snapshot list`; `wide` adds columns."""
    header = ["SNAPSHOT", "BRANCH", "STATE", "ORIGIN", "TAKEN", "SIZE", "UNIQUE", "EXPIRES"]
    rows = []
    for body in snapshots:
        status = body.get("status") or {}
        node, ready = status.get("node") or {}, find_condition(status, Condition.READY) or {}
        row = [
            snapshot_name_of(body),
            body["spec"]["branch"],
            state_of(body),
            _origin_of(body),
            _ago(node.get("snapshotTime"), now),
            format_size(node, "logical"),
            format_size(node, "unique"),
            format_until(status.get("expirationTime"), now),
        ]
        if wide:
            row += [ready.get("reason") or "-", status.get("nodeName") or "-", body["metadata"]["name"]]
        rows.append(row)
    return format_table(header + (["REASON", "NODE", "OBJECT"] if wide else []), rows)


def snapshot_block(body: Json, events: Sequence[Json] | None, now: datetime | None = None) -> str:
    """Return the text of `dbranch snapshot show`: the snapshot, its conditions and its Events (None: forbidden)."""
    meta, spec, status = body["metadata"], body["spec"], body.get("status") or {}
    node = status.get("node") or {}
    expires = status.get("expirationTime")
    pairs = [
        ("Snapshot", snapshot_name_of(body)),
        ("Object", f"dbsnapshot/{meta['name']} (namespace {meta['namespace']})"),
        ("Project", spec["project"]),
        ("Branch", spec["branch"]),
        ("State", state_of(body)),
        ("Origin", _origin_of(body)),
        (
            "Taken",
            f"{node['snapshotTime']} ({_ago(node['snapshotTime'], now)})"
            if node.get("snapshotTime")
            else "-",
        ),
        ("Expires", f"{expires} ({format_until(expires, now)})" if expires else "never"),
        ("Node", status.get("nodeName") or "-"),
        ("Postgres", node.get("postgresVersion") or "-"),
        ("Size", f"{format_size(node, 'logical')}, {format_size(node, 'unique')} unique when it was taken"),
    ]
    if spec.get("protection", Protection.DISABLED) != Protection.DISABLED:
        pairs.append(("Protection", spec["protection"]))
    return "\n".join([format_fields(pairs), "", *conditions_and_events(status, events, now)])


def _origin_of(body: Json) -> str:
    return str((body["spec"].get("origin") or {}).get("reason") or "Requested")


def _ago(time: str | None, now: datetime | None) -> str:
    return f"{format_age(time, now)} ago" if time else "-"
