"""Bring deleted branches back: which there are, and `dbranch undelete`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import click

from dbranch.api import names
from dbranch.api.conditions import Condition
from dbranch.api.errors import ApiError
from dbranch.api.expiry import parse_time
from dbranch_cli.durations import format_until
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.formatting import format_age, format_size, format_table
from dbranch_cli.invocation import Invocation
from dbranch_cli.naming import check_branch_name, did_you_mean
from dbranch_cli.objects import Body, deleted_among, manifest
from dbranch_cli.options import Command, ExistingName, no_wait_option, timeout_option, yes_option
from dbranch_cli.restores import restore_in_place
from dbranch_cli.snapshot_view import snapshot_name_of
from dbranch_cli.waiting import has_condition, wait_deleted, wait_for

Json = Mapping[str, Any]

# Of the spec of a branch: what says where its data comes from, and is another one when it is made again.
_ORIGIN_FIELDS = ("source", "sourceSnapshot")


class DeletedName(ExistingName):
    """The name of a branch that was deleted and can be brought back."""

    name = "deleted branch"

    def existing(self, invocation: Invocation) -> list[str]:
        snapshots = invocation.store.snapshots(invocation.project_name)
        return sorted({body["spec"]["branch"] for body in deleted_among(snapshots)})


def deleted_table(records: Sequence[Json], now: datetime | None = None) -> str:
    """Return the table of `dbranch list --deleted`."""
    rows = []
    for body in records:
        status = body.get("status") or {}
        node = status.get("node") or {}
        rows.append(
            [
                body["spec"]["branch"],
                f"{format_age(body['metadata'].get('creationTimestamp'), now)} ago",
                format_until(status.get("expirationTime"), now),
                format_size(node, "logical"),
                format_size(node, "unique"),
                snapshot_name_of(body),
            ]
        )
    return format_table(["BRANCH", "DELETED", "EXPIRES", "SIZE", "UNIQUE", "SNAPSHOT"], rows)


def list_deleted(invocation: Invocation) -> None:
    """Print the branches that were deleted and can be brought back."""
    records = deleted_among(invocation.store.snapshots(invocation.project_name))
    if not records and invocation.human_output:
        invocation.print_note(f"no deleted branches of project {invocation.project_name} are kept")
        return
    invocation.print_result(deleted_table(records), records)


@click.command(cls=Command)
@click.argument("branch", type=DeletedName())
@yes_option()
@no_wait_option()
@timeout_option("5m")
@click.pass_obj
def undelete(invocation: Invocation, branch: str, yes: bool, no_wait: bool, timeout: float) -> None:
    """Bring a deleted branch back, with its data and spec.

    If the branch was made again meanwhile (by Git, say), that one is reset to the deleted data.
    """
    project = invocation.project_name
    check_branch_name(project, branch)
    snapshots = invocation.store.snapshots(project)
    records = deleted_among(snapshots, branch)
    if not records:
        raise _not_found(invocation, branch, snapshots)
    record = records[0]
    live = invocation.store.find_branch(project, branch)
    if live is not None and live["metadata"].get("deletionTimestamp"):
        wait_deleted(invocation.store, live, f"branch {branch}", timeout, quiet=not invocation.human_output)
        live = None
    deleted = f"deleted {format_age(record['metadata'].get('creationTimestamp'))} ago"
    if live is not None:
        question = f"Branch {branch} exists. Reset it to the data that was {deleted}?"
        invocation.confirm(question, yes)
        spec = {"sourceSnapshot": record["metadata"]["name"]}
        done = restore_in_place(invocation, live, branch, spec, no_wait, timeout)
        text = "requested" if no_wait else "done"
        invocation.print_result(f"branch {branch} exists: reset to the data that was {deleted} {text}", done)
        return
    if len(records) > 1:
        others = ", ".join(snapshot_name_of(body) for body in records[1:])
        invocation.print_note(f"branch {branch} was deleted {len(records)} times; the others: {others}")
    created = _create(invocation, branch, record)
    result = f"branch {branch} is made again with the data that was {deleted}"
    if not no_wait:
        created = wait_for(
            invocation.store,
            created,
            has_condition(Condition.READY),
            f"branch {branch} is Ready",
            timeout,
            quiet=not invocation.human_output,
        )
        result += "; Ready"
    invocation.print_result(result, created)


def _create(invocation: Invocation, branch: str, record: Json) -> Body:
    project = invocation.project_name
    spec = branch_spec(project, record, invocation.store.server_time())
    body = manifest(names.BRANCH_KIND, invocation.namespace, names.branch_object_name(project, branch), spec)
    try:
        return invocation.store.create(body)
    except ApiError as error:
        if error.reason != "AlreadyExists":
            raise
        text = f"branch {branch} was made again a moment ago; run the command again to reset it"
        raise Failure(ExitCode.REFUSED, "AlreadyExists", text) from error


def branch_spec(project: str, record: Json, now: datetime) -> dict[str, Any]:
    """Return the spec of a branch that is made again from the record of its deletion.

    A time to expire that has passed is left out: the branch would go at once.
    """
    kept = dict((record["spec"].get("origin") or {}).get("branchSpec") or {})
    for field in _ORIGIN_FIELDS:
        kept.pop(field, None)
    expires = parse_time(kept.get("expirationTime"))
    if expires is not None and expires <= now:
        del kept["expirationTime"]
    return {**kept, "project": project, "sourceSnapshot": record["metadata"]["name"]}


def _not_found(invocation: Invocation, branch: str, snapshots: Sequence[Body]) -> Failure:
    invocation.project()
    existing = sorted({body["spec"]["branch"] for body in deleted_among(snapshots)})
    text = f"no data of a deleted branch {branch} is kept in project {invocation.project_name}"
    hint = did_you_mean(branch, existing) or "; see 'dbranch list --deleted'"
    return Failure(ExitCode.NOT_FOUND, "NotFound", text + hint)
