"""The commands on snapshots: create, list, show, delete; and which one `dbranch create` is to start from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click

from dbranch.api import names
from dbranch.api.conditions import Condition
from dbranch.api.enums import Protection
from dbranch.api.errors import ApiError, InvalidInput
from dbranch_cli.durations import parse_moment, parse_ttl
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.formatting import format_age
from dbranch_cli.invocation import Invocation
from dbranch_cli.naming import check_branch_name, did_you_mean
from dbranch_cli.objects import Body, Store, active_branch_of, manifest
from dbranch_cli.options import (
    BranchName,
    Command,
    CommandGroup,
    ExistingName,
    no_wait_option,
    timeout_option,
    yes_option,
)
from dbranch_cli.snapshot_view import snapshot_block, snapshot_name_of, snapshot_table
from dbranch_cli.view import state_of
from dbranch_cli.waiting import has_condition, wait_deleted, wait_for

Json = Mapping[str, Any]

_OBJECT_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


class SnapshotName(ExistingName):
    """A snapshot's name."""

    name = "snapshot"

    def existing(self, invocation: Invocation) -> list[str]:
        return [snapshot_name_of(body) for body in invocation.store.snapshots(invocation.project_name)]


def check_snapshot_name(project: str, name: str) -> str:
    """Return the name of the object of a new snapshot: `<project>-<name>`. Raise InvalidInput if it is none."""
    object_name = f"{project}-{name}"
    if not _OBJECT_NAME.fullmatch(name) or len(object_name) > names.MAX_SNAPSHOT_LENGTH:
        text = 'use lowercase letters, digits, "-" and ".", begin and end with a letter or digit'
        raise InvalidInput(f'invalid snapshot name "{name}": {text}')
    return object_name


def find_snapshot(store: Store, project: str, name: str) -> Body:
    """Return a snapshot by the name that people read, or by its object's. Raise Failure if there is none."""
    for object_name in (f"{project}-{name}", name):
        body = store.find(names.SNAPSHOTS, object_name) if _OBJECT_NAME.fullmatch(object_name) else None
        if body is not None and body["spec"]["project"] == project:
            return body
    existing = [snapshot_name_of(other) for other in store.snapshots(project)]
    text = f"snapshot {name} not found in project {project}{did_you_mean(name, existing)}"
    raise Failure(ExitCode.NOT_FOUND, "NotFound", text)


def newest_not_younger(snapshots: Sequence[Body], branch: str, moment: datetime) -> Body | None:
    """Return the newest snapshot of the branch that is stored and was taken at that moment or before it."""
    candidates = [
        (taken, body)
        for body in snapshots
        if body["spec"]["branch"] == branch
        and state_of(body) == "Ready"
        and (taken := _taken_at(body)) is not None
        and taken <= moment
    ]
    return max(candidates, key=lambda item: item[0], default=(None, None))[1]


def _taken_at(body: Json) -> datetime | None:
    text = ((body.get("status") or {}).get("node") or {}).get("snapshotTime")
    return datetime.fromisoformat(str(text).replace("Z", "+00:00")) if text else None


def chosen_snapshot(invocation: Invocation, branch: str | None, name: str | None, at: str | None) -> Body:
    """Return the snapshot that `create` is to start from: `name`, or the one of the branch as of the time `at`.

    `branch` None: the active one. Says which one it is for a time. Raise Failure if there is none.
    """
    if name is not None:
        return find_snapshot(invocation.store, invocation.project_name, name)
    branch = branch or active_branch_of(invocation.project())
    return snapshot_as_of(invocation, branch, at or "", "nothing was created")


def snapshot_as_of(invocation: Invocation, branch: str, at: str, nothing: str) -> Body:
    """Return the branch's newest snapshot that was taken at the time `at` or before it, and say which that is.

    Raise Failure if there is none; `nothing` says what was not done.
    """
    moment = parse_moment(at, invocation.store.server_time())
    snapshots = invocation.store.snapshots(invocation.project_name)
    body = newest_not_younger(snapshots, branch, moment)
    if body is None:
        by = f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        text = f"branch {branch} has no snapshot of {by} or before; {nothing}"
        raise Failure(
            ExitCode.NOT_FOUND, "SnapshotNotFound", f"{text}; see 'dbranch snapshot list -b {branch}'"
        )
    age = format_age(body["status"]["node"]["snapshotTime"])
    invocation.print_note(f"snapshot {snapshot_name_of(body)} of branch {branch}, taken {age} ago")
    return body


@click.group(cls=CommandGroup)
def snapshot() -> None:
    """Create, list, show or delete snapshots of branches."""


@snapshot.command("create", cls=Command)
@click.argument("name")
@click.option(
    "-b", "--branch", type=BranchName(), metavar="BRANCH", help="Branch to take; default: the active one."
)
@click.option("--ttl", metavar="DURATION", help="Delete it after 12h, 7d or 2w; default: never.")
@click.option("--protect", is_flag=True, help="Refuse its deletion until spec.protection is Disabled.")
@click.option("--wait/--no-wait", default=True, help="Wait until it is taken; that is the default.")
@timeout_option("2m")
@click.pass_obj
def create_snapshot(
    invocation: Invocation,
    name: str,
    branch: str | None,
    ttl: str | None,
    protect: bool,
    wait: bool,
    timeout: float,
) -> None:
    """Take a snapshot of a branch: its data as of now, read-only. It outlives the branch."""
    project = invocation.project()
    object_name = check_snapshot_name(invocation.project_name, name)
    branch = branch or active_branch_of(project)
    invocation.branch(branch)
    spec: dict[str, Any] = {"project": invocation.project_name, "branch": branch}
    spec |= {"ttl": parse_ttl(ttl)} if ttl else {}
    spec |= {"protection": Protection.ENABLED.value} if protect else {}
    body = manifest(names.SNAPSHOT_KIND, invocation.namespace, object_name, spec)
    try:
        live = invocation.store.create(body)
    except ApiError as error:
        if error.reason != "AlreadyExists":
            raise
        text = f"snapshot {name} already exists; see 'dbranch snapshot show {name}', or choose another name"
        raise Failure(ExitCode.REFUSED, "AlreadyExists", text) from error
    result = f"snapshot {name} of branch {branch} requested"
    if wait:
        goal = f"snapshot {name} is Ready"
        quiet = not invocation.human_output
        live = wait_for(
            invocation.store,
            live,
            has_condition(Condition.READY),
            goal,
            timeout,
            primary=Condition.READY,
            quiet=quiet,
        )
        result = f"snapshot {name} of branch {branch} taken"
    invocation.print_result(result, live)


@snapshot.command("list", cls=Command)
@click.option("-b", "--branch", type=BranchName(), metavar="BRANCH", help="Only those of this branch.")
@click.pass_obj
def list_snapshots(invocation: Invocation, branch: str | None) -> None:
    """List the project's snapshots, the oldest first.

    Those of branches that are gone are among them.
    """
    if branch:
        check_branch_name(invocation.project_name, branch)
    invocation.project()
    snapshots = invocation.store.snapshots(invocation.project_name)
    listed = [body for body in snapshots if branch in (None, body["spec"]["branch"])]
    if not listed and invocation.human_output:
        of = f"branch {branch}" if branch else f"project {invocation.project_name}"
        invocation.print_note(f"no snapshots of {of}; take one with 'dbranch snapshot create NAME'")
        return
    invocation.print_result(snapshot_table(listed, invocation.output == "wide"), listed)


@snapshot.command("show", cls=Command)
@click.argument("name", type=SnapshotName())
@click.pass_obj
def show_snapshot(invocation: Invocation, name: str) -> None:
    """Show a snapshot, its conditions and Events."""
    body = find_snapshot(invocation.store, invocation.project_name, name)
    events: list[Body] | None = []
    if invocation.human_output:
        try:
            events = invocation.store.events(body)
        except ApiError as error:
            if error.status != 403:
                raise
            events = None
    invocation.print_result(snapshot_block(body, events), body)


@snapshot.command("delete", cls=Command)
@click.argument("snapshots", metavar="NAME...", nargs=-1, required=True, type=SnapshotName())
@yes_option()
@no_wait_option()
@timeout_option("2m")
@click.pass_obj
def delete_snapshots(
    invocation: Invocation, snapshots: tuple[str, ...], yes: bool, no_wait: bool, timeout: float
) -> None:
    """Delete snapshots and their data. A protected one is refused. Branches that were made of them stay."""
    project = invocation.project_name
    existing = {name: find_snapshot(invocation.store, project, name) for name in dict.fromkeys(snapshots)}
    noun = "snapshot" if len(existing) == 1 else "snapshots"
    invocation.confirm(f"Delete {noun} {', '.join(existing)} of project {project}?", yes)
    for name, live in existing.items():
        invocation.store.delete(live)
        if not no_wait:
            quiet = not invocation.human_output
            wait_deleted(invocation.store, live, f"snapshot {name}", timeout, quiet=quiet)
        invocation.print_result(f"snapshot {name} {'is being deleted' if no_wait else 'deleted'}", live)
