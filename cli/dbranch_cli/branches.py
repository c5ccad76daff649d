"""The branch verbs: create, list, tree, show, wait, delete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from dbranch.api import names
from dbranch.api.conditions import Condition
from dbranch.api.errors import ApiError
from dbranch_cli.failure import NOT_FOUND, REFUSED, USAGE, Failure
from dbranch_cli.objects import Body, active_branch_of, branch_name_of, manifest
from dbranch_cli.options import (
    BranchName,
    Duration,
    Command,
    dry_run_option,
    force_option,
    no_wait_option,
    timeout_option,
    yes_option,
)
from dbranch_cli.invocation import Invocation, serialize
from dbranch_cli.lifecycle import use_branch
from dbranch_cli.view import branch_block, branch_table, branch_tree
from dbranch_cli.waiting import Goal, has_condition, is_stopped, wait_for, wait_deleted
from dbranch_cli.naming import check_branch_name, did_you_mean


@click.command(cls=Command)
@click.argument("branch")
@click.option(
    "-s", "--source", type=BranchName(), metavar="BRANCH", help="Copy this branch; default: the active one."
)
@click.option("-u", "--use", is_flag=True, help="Make it the active branch once it is Ready.")
@click.option(
    "--if-exists",
    type=click.Choice(["fail", "reuse", "replace"]),
    default="fail",
    show_default=True,
    help="What to do with a branch of that name; `replace` deletes it first.",
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
    use: bool,
    if_exists: str,
    force: bool,
    no_wait: bool,
    timeout: float,
    dry_run: str,
) -> None:
    """Make a branch: a writable copy of its source as of now."""
    if use and no_wait:
        raise Failure(USAGE, "InvalidInput", "--use waits until the branch is Ready; leave out --no-wait")
    name = invocation.project_name
    check_branch_name(name, branch)
    if source:
        check_branch_name(name, source)
    if dry_run == "client":
        chosen = source or active_branch_of(invocation.project())
        click.echo(serialize(_manifest(invocation, branch, chosen), "json" if invocation.output == "json" else "yaml"))
        return
    project = invocation.project()
    chosen = source or active_branch_of(project)
    live = invocation.store.find_branch(name, branch)
    if live is not None and if_exists == "fail":
        raise Failure(
            REFUSED,
            "AlreadyExists",
            f"branch {branch} is there already; see dbranch show {branch}, or say --if-exists reuse or replace",
        )
    if live is not None and if_exists == "replace":
        invocation.say(f"deleting branch {branch}")
        invocation.store.delete(live)
        wait_deleted(invocation.store, live, f"branch {branch} is gone", timeout, quiet=not invocation.for_people)
        live = None
    if live is None:
        _require_source(invocation, chosen)
        invocation.say(f"branch {branch} from {chosen}")
        live = invocation.store.apply(_manifest(invocation, branch, chosen))
        done = f"branch {branch} made from {chosen}"
    else:
        there = live["spec"].get("source")
        if live["metadata"].get("deletionTimestamp"):
            raise Failure(REFUSED, "Deleting", f"branch {branch} is being deleted; --if-exists replace waits")
        if source and there != source:
            raise Failure(
                REFUSED,
                "OtherSource",
                f"branch {branch} is there with source {there or 'none'}, not {source};"
                " --if-exists replace makes it anew",
            )
        done = f"branch {branch} was there already, from {there or 'no source'}"
    if not no_wait:
        live = wait_for(
            invocation.store,
            live,
            has_condition(Condition.READY),
            f"branch {branch} is Ready",
            timeout,
            quiet=not invocation.for_people,
        )
        done += "; Ready"
    if use:
        use_branch(invocation, invocation.project(), live, force, timeout)
        done += "; active"
    invocation.result(done, live)


def _manifest(invocation: Invocation, branch: str, source: str) -> Body:
    project = invocation.project_name
    spec = {"project": project, "source": source}
    return manifest(names.BRANCH_KIND, invocation.namespace, names.branch_object_name(project, branch), spec)


def _require_source(invocation: Invocation, source: str) -> None:
    known = [branch_name_of(body) for body in invocation.store.branches(invocation.project_name)]
    if source not in known:
        raise Failure(
            NOT_FOUND,
            "SourceNotFound",
            f'source "{source}" does not exist in project {scope.project_name}; nothing was made'
            + did_you_mean(source, known),
        )


@click.command("list", cls=Command)
@click.pass_obj
def list_branches(invocation: Invocation) -> None:
    """The branches, with their states and sizes."""
    project = invocation.project()
    found = invocation.store.branches(invocation.project_name)
    invocation.result(branch_table(project, found, invocation.output == "wide"), found)


@click.command(cls=Command)
@click.pass_obj
def tree(invocation: Invocation) -> None:
    """The branches, each below its source."""
    project = invocation.project()
    found = invocation.store.branches(invocation.project_name)
    invocation.result(branch_tree(project, found), found)


@click.command(cls=Command)
@click.argument("branch", type=BranchName(), required=False)
@click.pass_obj
def show(invocation: Invocation, branch: str | None) -> None:
    """One branch (default: the active one) with its conditions and Events."""
    project = invocation.project()
    body = invocation.branch(branch or active_branch_of(project))
    events: list[Body] | None = []
    if invocation.for_people:
        try:
            events = invocation.store.events(body)
        except ApiError as error:
            if error.status != 403:
                raise
            events = None
    invocation.result(branch_block(body, branch_name_of(body) == active_branch_of(project), events), body)


@click.command(cls=Command)
@click.argument("branch", type=BranchName())
@click.option(
    "--for",
    "goal",
    default="Ready",
    show_default=True,
    metavar="WHAT",
    help="Ready, stopped, deleted, or CONDITION or CONDITION=STATUS.",
)
@click.option("--timeout", type=Duration(), default="2m", show_default=True, help="How long to wait at most.")
@click.pass_obj
def wait(invocation: Invocation, branch: str, goal: str, timeout: float) -> None:
    """Wait until a branch is Ready, stopped or deleted, or one of its conditions turns."""
    quiet = not invocation.for_people
    if goal.lower() in ("deleted", "delete"):
        check_branch_name(invocation.project_name, branch)
        live = invocation.store.find_branch(invocation.project_name, branch)
        if live is not None:
            wait_deleted(invocation.store, live, f"branch {branch} is gone", timeout, quiet)
        invocation.say(f"branch {branch} is gone")
        return
    check, prefer = parse_goal(goal)
    live = invocation.branch(branch)
    what = f"branch {branch} is {goal}"
    live = wait_for(invocation.store, live, check, what, timeout, prefer=prefer, quiet=quiet)
    invocation.result(what, live)


def parse_goal(text: str) -> tuple[Goal, Condition | None]:
    """`Ready`, `stopped`, `PostgresReady`, `Ready=False`: the check, and the condition that it looks at."""
    kind, _, status = text.removeprefix("condition=").partition("=")
    if kind.lower() == "stopped" and not status:
        return is_stopped, Condition.READY
    found = next((c for c in Condition if c.lower() == kind.lower()), None)
    wanted = (status or "True").capitalize()
    if found is None or wanted not in ("True", "False", "Unknown"):
        raise Failure(
            USAGE,
            "InvalidInput",
            f"--for {text}: say Ready, stopped, deleted, or a condition: {', '.join(Condition)}",
        )
    return has_condition(found, wanted), found


@click.command(cls=Command)
@click.argument("branches", metavar="BRANCH...", nargs=-1, required=True, type=BranchName())
@click.option("--ignore-not-found", is_flag=True, help="A branch that is not there is no error.")
@yes_option()
@no_wait_option()
@timeout_option("2m")
@click.pass_obj
def delete(
    invocation: Invocation, branches: tuple[str, ...], ignore_not_found: bool, yes: bool, no_wait: bool, timeout: float
) -> None:
    """Delete branches with their data. The root, the active and a protected branch are refused."""
    found: dict[str, Mapping[str, Any]] = {}
    for branch in dict.fromkeys(branches):
        check_branch_name(invocation.project_name, branch)
        body = invocation.store.find_branch(invocation.project_name, branch)
        if body is not None:
            found[branch] = body
        elif ignore_not_found:
            invocation.say(f"branch {branch} is not there")
        else:
            invocation.branch(branch)  # fails with what was probably meant
    if not found:
        return
    invocation.confirm(f"Delete {', '.join(found)} of project {scope.project_name} with all its data?", yes)
    for branch, live in found.items():
        invocation.store.delete(live)
        if not no_wait:
            wait_deleted(invocation.store, live, f"branch {branch} is gone", timeout, quiet=not invocation.for_people)
        invocation.result(f"branch {branch} {'is being deleted' if no_wait else 'deleted'}", live)
