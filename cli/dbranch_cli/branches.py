"""The commands on branches: create, show, wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from dbranch.api import names
from dbranch.api.conditions import Condition
from dbranch.api.enums import ConditionStatus
from dbranch.api.errors import ApiError
from dbranch_cli.deletion import delete_branch
from dbranch_cli.expiry import expiry_options, expiry_spec
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.invocation import Invocation, format_objects
from dbranch_cli.lifecycle import use_branch
from dbranch_cli.naming import check_branch_name, did_you_mean
from dbranch_cli.objects import (
    Body,
    active_branch_of,
    branch_name_of,
    manifest,
    source_of,
)
from dbranch_cli.options import (
    BranchName,
    Command,
    dry_run_option,
    force_option,
    no_wait_option,
    timeout_option,
)
from dbranch_cli.snapshots import SnapshotName, chosen_snapshot
from dbranch_cli.view import branch_block
from dbranch_cli.waiting import Goal, has_condition, is_stopped, wait_deleted, wait_for


@click.command(cls=Command)
@click.argument("branch")
@click.option(
    "-s", "--source", type=BranchName(), metavar="BRANCH", help="Branch to copy; default: the active one."
)
@click.option(
    "--from-snapshot", type=SnapshotName(), metavar="NAME", help="Start with the data of a snapshot."
)
@click.option(
    "--at",
    metavar="TIME",
    help='Start with the source\'s newest snapshot that was taken by then, as "2h ago".',
)
@expiry_options()
@click.option("-u", "--use", is_flag=True, help="Make it the active branch once it is Ready.")
@click.option(
    "--if-exists",
    type=click.Choice(["fail", "reuse", "replace"]),
    default="fail",
    show_default=True,
    help="What to do if the branch exists; `replace` deletes it, with its data, first.",
)
@force_option()
@no_wait_option()
@timeout_option("2m")
@dry_run_option()
@click.pass_obj
def create(
    invocation: Invocation,
    branch: str,
    source: str | None,
    from_snapshot: str | None,
    at: str | None,
    ttl: str | None,
    expires: str | None,
    use: bool,
    if_exists: str,
    force: bool,
    no_wait: bool,
    timeout: float,
    dry_run: str,
) -> None:
    """Create a branch. It is a writable copy of its source's present data, or of a snapshot."""
    if use and no_wait:
        message = "--use waits until the branch is Ready; leave out --no-wait"
        raise Failure(ExitCode.USAGE, "InvalidInput", message)
    if from_snapshot and (source or at):
        message = "--from-snapshot names the data; leave out --source and --at"
        raise Failure(ExitCode.USAGE, "InvalidInput", message)
    expiry = expiry_spec(ttl, expires, invocation)
    name = invocation.project_name
    check_branch_name(name, branch)
    if source:
        check_branch_name(name, source)
    if dry_run == "client":
        body = _manifest(invocation, branch, _spec_source(invocation, source, from_snapshot, at) | expiry)
        click.echo(format_objects(body, "json" if invocation.output == "json" else "yaml"))
        return
    invocation.project()
    live = invocation.store.find_branch(name, branch)
    if live is not None and if_exists == "fail":
        raise _already_exists(branch)
    if live is not None and if_exists == "replace":
        invocation.print_note(f"deleting branch {branch}")
        # What is replaced on purpose, in CI all the time, is not kept.
        delete_branch(invocation, branch, live, purge=True)
        wait_deleted(invocation.store, live, f"branch {branch}", timeout, quiet=not invocation.human_output)
        live = None
    is_new = False
    asked_for: Body | None = None
    if live is None:
        asked_for = _manifest(
            invocation, branch, _spec_source(invocation, source, from_snapshot, at) | expiry
        )
        if "source" in asked_for["spec"]:
            _require_source(invocation, asked_for["spec"]["source"])
        invocation.print_note(f"creating branch {branch} from {source_of(asked_for)}")
        live, is_new = _create_or_find(invocation, branch, asked_for, reuse=if_exists == "reuse")
    if is_new:
        result = f"branch {branch} created from {source_of(live)}"
    elif source or from_snapshot or at:
        # Looked up once, also if somebody else was first to create the branch.
        if asked_for is None:
            asked_for = _manifest(invocation, branch, _spec_source(invocation, source, from_snapshot, at))
        result = _reuse(branch, live, source_of(asked_for))
    else:
        result = _reuse(branch, live, None)
    if expiry and not is_new:
        invocation.print_note(
            f"branch {branch} keeps its own time to expire; 'dbranch extend {branch} DURATION'"
        )
    if not no_wait:
        live = wait_for(
            invocation.store,
            live,
            has_condition(Condition.READY),
            f"branch {branch} is Ready",
            timeout,
            quiet=not invocation.human_output,
        )
        result += "; Ready"
    if use:
        use_branch(invocation, invocation.project(), live, force, timeout)
        result += "; active"
    invocation.print_result(result, live)


def _create_or_find(invocation: Invocation, branch: str, body: Body, reuse: bool) -> tuple[Body, bool]:
    """Create the branch; return it, and True. Somebody else may be first: with `reuse` return theirs, and False."""
    try:
        return invocation.store.create(body), True
    except ApiError as error:
        if error.reason != "AlreadyExists":
            raise
    existing = invocation.store.find(names.BRANCHES, body["metadata"]["name"])
    owner = existing["spec"]["project"] if existing else invocation.project_name
    if owner != invocation.project_name:
        name = body["metadata"]["name"]
        text = f"the name {name} is taken by a branch of project {owner}; choose another name"
        raise Failure(ExitCode.REFUSED, "NameTaken", text)
    if existing is None or not reuse:
        raise _already_exists(branch)
    return existing, False


def _already_exists(branch: str) -> Failure:
    return Failure(
        ExitCode.REFUSED,
        "AlreadyExists",
        f"branch {branch} already exists; see 'dbranch show {branch}',"
        " or pass --if-exists reuse or --if-exists replace",
    )


def _reuse(branch: str, live: Mapping[str, Any], source: str | None) -> str:
    """Return the result for a branch that exists. Raise Failure if it is being deleted or has another source."""
    existing_source = source_of(live)
    if live["metadata"].get("deletionTimestamp"):
        message = f"branch {branch} is being deleted; pass --if-exists replace to wait for that"
        raise Failure(ExitCode.REFUSED, "Deleting", message)
    if source and existing_source != source:
        raise Failure(
            ExitCode.REFUSED,
            "OtherSource",
            f"branch {branch} already exists with source {existing_source or 'none'}, not {source};"
            " pass --if-exists replace to recreate it",
        )
    return f"branch {branch} already exists, with source {existing_source or 'none'}"


def _spec_source(
    invocation: Invocation, source: str | None, from_snapshot: str | None, at: str | None
) -> dict[str, str]:
    """Return the field of the spec that says what a branch is made from."""
    if from_snapshot or at:
        chosen = chosen_snapshot(invocation, source, from_snapshot, at)
        return {"sourceSnapshot": chosen["metadata"]["name"]}
    return {"source": source or active_branch_of(invocation.project())}


def _manifest(invocation: Invocation, branch: str, fields: dict[str, str]) -> Body:
    """Return a branch to create. `fields`: of its spec, beside the project."""
    project = invocation.project_name
    spec = {"project": project, **fields}
    return manifest(names.BRANCH_KIND, invocation.namespace, names.branch_object_name(project, branch), spec)


def _require_source(invocation: Invocation, source: str) -> None:
    """Raise Failure if the source branch does not exist."""
    existing = [branch_name_of(body) for body in invocation.store.branches(invocation.project_name)]
    if source not in existing:
        raise Failure(
            ExitCode.NOT_FOUND,
            "SourceNotFound",
            f'source "{source}" does not exist in project {invocation.project_name}; nothing was created'
            + did_you_mean(source, existing),
        )


@click.command(cls=Command)
@click.argument("branch", type=BranchName(), required=False)
@click.pass_obj
def show(invocation: Invocation, branch: str | None) -> None:
    """Show a branch, its conditions and Events. The default is the active branch."""
    project = invocation.project()
    body = invocation.branch(branch or active_branch_of(project))
    events: list[Body] | None = []
    if invocation.human_output:
        try:
            events = invocation.store.events(body)
        except ApiError as error:
            if error.status != 403:
                raise
            events = None
    is_active = branch_name_of(body) == active_branch_of(project)
    invocation.print_result(branch_block(body, is_active, events), body)


@click.command(cls=Command)
@click.argument("branch", type=BranchName())
@click.option(
    "--for",
    "goal",
    default="Ready",
    show_default=True,
    metavar="GOAL",
    help="Ready, stopped, deleted, CONDITION or CONDITION=STATUS.",
)
@timeout_option("2m")
@click.pass_obj
def wait(invocation: Invocation, branch: str, goal: str, timeout: float) -> None:
    """Wait until a branch is Ready. With --for, until another goal is reached."""
    quiet = not invocation.human_output
    if goal.lower() in ("deleted", "delete"):
        check_branch_name(invocation.project_name, branch)
        existing = invocation.store.find_branch(invocation.project_name, branch)
        if existing is not None:
            wait_deleted(invocation.store, existing, f"branch {branch}", timeout, quiet)
        invocation.print_note(f"branch {branch} is deleted")
        return
    check, condition_type = parse_goal(goal)
    live = invocation.branch(branch)
    goal_text = f"branch {branch} is {goal}"
    live = wait_for(invocation.store, live, check, goal_text, timeout, primary=condition_type, quiet=quiet)
    invocation.print_result(goal_text, live)


def parse_goal(text: str) -> tuple[Goal, Condition]:
    """Return the goal of `--for` and the condition that it reads. Raise Failure if it is not a goal.

    Goals are `Ready`, `stopped`, `PostgresReady`, `Ready=False`, in any case; `condition=Ready` as in kubectl.
    """
    name, _, status = text.removeprefix("condition=").partition("=")
    if name.lower() == "stopped" and not status:
        return is_stopped, Condition.READY
    condition_type = next((c for c in Condition if c.lower() == name.lower()), None)
    status = (status or ConditionStatus.TRUE).capitalize()
    if condition_type is None or status not in tuple(ConditionStatus):
        raise Failure(
            ExitCode.USAGE,
            "InvalidInput",
            f"invalid --for {text}: use Ready, stopped, deleted, or a condition: {', '.join(Condition)}",
        )
    return has_condition(condition_type, status), condition_type
