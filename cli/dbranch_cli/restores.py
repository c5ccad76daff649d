"""The commands on a branch's data over time: reset, undo, history."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from dbranch.api import names
from dbranch.api.conditions import Condition
from dbranch.api.enums import Undo
from dbranch.api.errors import ApiError
from dbranch_cli.deletion import kept_for
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.formatting import format_count
from dbranch_cli.invocation import Invocation
from dbranch_cli.naming import check_branch_name
from dbranch_cli.objects import Body, active_branch_of, manifest, source_of
from dbranch_cli.options import BranchName, Command, no_wait_option, timeout_option, yes_option
from dbranch_cli.restore_progress import StepPrinter
from dbranch_cli.restore_view import (
    clock_time,
    copies_of,
    history_of,
    history_table,
    restore_result,
    undo_target,
)
from dbranch_cli.snapshot_view import snapshot_name_of, snapshot_table
from dbranch_cli.snapshots import SnapshotName, find_snapshot, snapshot_as_of
from dbranch_cli.view import count_branch_sessions
from dbranch_cli.waiting import has_condition, wait_for

# How long the objects that this command line makes stay as records.
_RECORD_TTL: Final = "24h"
# Others may take the next name at the same time.
_MAX_ATTEMPTS: Final = 10
_NOTHING: Final = "nothing was changed"


@click.command(cls=Command)
@click.argument("branch", type=BranchName())
@click.option("--to-branch", type=BranchName(), metavar="BRANCH", help="To a branch's present data.")
@click.option("--to-snapshot", type=SnapshotName(), metavar="NAME", help="To the data of a snapshot.")
@click.option(
    "--to-time",
    metavar="TIME",
    help='To its own newest snapshot that was taken by then, as "2h ago".',
)
@click.option("--discard", is_flag=True, help="Delete the data that it has now: no undo.")
@yes_option()
@no_wait_option()
@timeout_option("5m")
@click.pass_obj
def reset(
    invocation: Invocation,
    branch: str,
    to_branch: str | None,
    to_snapshot: str | None,
    to_time: str | None,
    discard: bool,
    yes: bool,
    no_wait: bool,
    timeout: float,
) -> None:
    """Give a branch other data, in place. It keeps its connection string; 'undo' takes it back.

    Without an option it gets the present data of the branch, or the data of the snapshot, that it was made from.
    """
    if sum(map(bool, (to_branch, to_snapshot, to_time))) > 1:
        message = "--to-branch, --to-snapshot and --to-time exclude each other"
        raise Failure(ExitCode.USAGE, "InvalidInput", message)
    live = invocation.branch(branch)
    spec, text = _source(invocation, live, branch, to_branch, to_snapshot, to_time)
    if discard:
        spec["undo"] = Undo.DISCARD.value
    _confirm(invocation, live, branch, text, discard, yes)
    done = restore_in_place(invocation, live, branch, spec, no_wait, timeout)
    if no_wait:
        result = f"reset of branch {branch} to {text} requested"
    else:
        result = restore_result(done, _undo_copy(invocation, done))
    invocation.print_result(result, done)


@click.command(cls=Command)
@click.argument("branch", type=BranchName())
@yes_option()
@no_wait_option()
@timeout_option("5m")
@click.pass_obj
def undo(invocation: Invocation, branch: str, yes: bool, no_wait: bool, timeout: float) -> None:
    """Undo the last reset or undo of a branch. It gets back the data that it had before."""
    live = invocation.branch(branch)
    snapshots = invocation.store.snapshots(invocation.project_name)
    chosen = undo_target(live, snapshots) or _chosen_copy(branch, copies_of(live, snapshots))
    at = clock_time(chosen["status"]["node"].get("snapshotTime"))
    _confirm(invocation, live, branch, f"its data of {at}", False, yes)
    spec = {"sourceSnapshot": chosen["metadata"]["name"]}
    done = restore_in_place(invocation, live, branch, spec, no_wait, timeout)
    if no_wait:
        result = f"undo on branch {branch} requested: back to the data of {at}"
    else:
        result = f"branch {branch} is back to the data of {at}"
        if (done.get("status") or {}).get("undoSnapshot"):
            result += "; 'undo' again takes this back"
        result += f"; older: dbranch history {branch}"
    invocation.print_result(result, done)


@click.command(cls=Command)
@click.argument("branch", type=BranchName())
@click.pass_obj
def history(invocation: Invocation, branch: str) -> None:
    """List a branch's restores and snapshots, the newest first."""
    check_branch_name(invocation.project_name, branch)
    live = invocation.store.find_branch(invocation.project_name, branch)
    entries = history_of(
        branch,
        live,
        invocation.store.restores(invocation.project_name),
        invocation.store.snapshots(invocation.project_name),
    )
    if not entries:
        invocation.branch(branch)
        if invocation.human_output:
            invocation.print_note(f"branch {branch} was never restored, and has no snapshots")
            return
    invocation.print_result(history_table(entries, live, invocation.output == "wide"), entries)


def _source(
    invocation: Invocation,
    live: Body,
    branch: str,
    to_branch: str | None,
    to_snapshot: str | None,
    to_time: str | None,
) -> tuple[dict[str, str], str]:
    """Return the fields of the spec that say what a branch is restored to, and the same in words.

    Raise Failure if that does not exist.
    """
    if to_branch == branch:
        text = f"branch {branch} cannot be reset to itself; name another branch, a snapshot or a time"
        raise Failure(ExitCode.USAGE, "InvalidInput", text)
    if to_branch:
        invocation.branch(to_branch)
        return {"source": to_branch}, f"the present data of {to_branch}"
    if to_snapshot or to_time:
        chosen = (
            find_snapshot(invocation.store, invocation.project_name, to_snapshot)
            if to_snapshot
            else snapshot_as_of(invocation, branch, to_time or "", _NOTHING)
        )
        return {"sourceSnapshot": chosen["metadata"]["name"]}, f"snapshot {snapshot_name_of(chosen)}"
    if origin := live["spec"].get("sourceSnapshot"):
        text = snapshot_name_of(find_snapshot(invocation.store, invocation.project_name, origin))
        return {}, f"snapshot {text}"
    origin = source_of(live)
    if origin is None:
        text = f"branch {branch} is the root branch, and was made from nothing"
        text += "; say what to reset it to: --to-branch, --to-snapshot or --to-time"
        raise Failure(ExitCode.USAGE, "NoSource", text)
    invocation.branch(origin)
    return {}, f"the present data of {origin}"


def _confirm(invocation: Invocation, live: Body, branch: str, text: str, discard: bool, yes: bool) -> None:
    """Ask before others notice it, or before data is gone for good."""
    project = invocation.project()
    sessions = count_branch_sessions(project, branch)
    keep = None if discard else kept_for(project, live)
    affected = [f"{format_count(sessions, 'session')} on it end" + ("s" if sessions == 1 else "")]
    affected = affected if sessions else []
    if branch == active_branch_of(project):
        affected.insert(0, "it is the active branch")
    if not affected and keep:
        return
    lost = f"What it has now is kept for {keep}." if keep else "What it has now is deleted for good."
    because = f" ({'; '.join(affected)})" if affected else ""
    invocation.confirm(f"Reset branch {branch}{because} to {text}? {lost}", yes)


def restore_in_place(
    invocation: Invocation,
    live: Body,
    branch: str,
    source: Mapping[str, str],
    no_wait: bool,
    timeout: float,
) -> Body:
    """Create a DBRestore of the branch, and return it; without `no_wait` once it is complete."""
    spec = {"project": invocation.project_name, "branch": branch, **source, "ttlAfterFinished": _RECORD_TTL}
    created = _create(invocation, live, spec)
    if no_wait:
        return created
    return wait_for(
        invocation.store,
        created,
        has_condition(Condition.COMPLETE),
        f"restore {created['metadata']['name']} of branch {branch} is complete",
        timeout,
        primary=Condition.RECONCILING,
        printer=StepPrinter(quiet=not invocation.human_output),
    )


def _create(invocation: Invocation, live: Body, spec: Mapping[str, Any]) -> Body:
    """Create a DBRestore under the next name of its branch, `<object>-<n>`."""
    restores = invocation.store.restores(invocation.project_name)
    number = next_number(live, restores)
    for attempt in range(_MAX_ATTEMPTS):
        name = f"{live['metadata']['name']}-{number + attempt}"
        body = manifest(names.RESTORE_KIND, invocation.namespace, name, spec)
        try:
            return invocation.store.create(body)
        except ApiError as error:
            if error.reason != "AlreadyExists" or attempt == _MAX_ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def next_number(live: Mapping[str, Any], restores: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of a branch's next DBRestore: no other has it, and none of the branch ever had.

    A name is done once a branch, and the branch remembers those of objects that are gone.
    """
    pattern = re.compile(re.escape(live["metadata"]["name"]) + r"-([1-9][0-9]{0,8})")
    used = [body["metadata"]["name"] for body in restores]
    used += [str(record.get("name")) for record in (live.get("status") or {}).get("restores") or ()]
    return max((int(match[1]) for name in used if (match := pattern.fullmatch(name))), default=0) + 1


def _undo_copy(invocation: Invocation, done: Mapping[str, Any]) -> Body | None:
    """Return the DBSnapshot of the data that a restore has replaced; None if it was discarded."""
    name = (done.get("status") or {}).get("undoSnapshot")
    return invocation.store.find(names.SNAPSHOTS, name) if name else None


def _chosen_copy(branch: str, copies: Sequence[Body]) -> Body:
    """Return the copy that a person chooses of those that older restores have left.

    Raise Failure if there is none, or nobody to ask.
    """
    if not copies:
        text = f"branch {branch} has no data to go back to: it was not restored, or what it had is not kept any more"
        raise Failure(ExitCode.NOT_FOUND, "NothingToUndo", f"{text}; see 'dbranch history {branch}'")
    by_name = {snapshot_name_of(body): body for body in copies}
    text = f"what branch {branch} had before its last restore is not kept"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        listed = ", ".join(
            f"{name} ({clock_time(body['status']['node'].get('snapshotTime'))})"
            for name, body in by_name.items()
        )
        text += f"; older data: {listed}; choose with 'dbranch reset {branch} --to-snapshot NAME'"
        raise Failure(ExitCode.USAGE, "WhichSnapshot", text)
    click.echo(f"{text}; older data:\n{snapshot_table(copies, wide=False)}", err=True)
    answer: str = click.prompt("Go back to", type=click.Choice([*by_name]), err=True)
    return by_name[answer]
