"""The branch verbs: create, list, tree, show, wait, delete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from dbranch.api import names
from dbranch.api.conditions import Condition
from dbranch.api.errors import ApiError
from dbranch_cli.failure import NOT_FOUND, REFUSED, USAGE, Failure
from dbranch_cli.objects import Body, active_of, branch_of, manifest
from dbranch_cli.options import (
    BranchName,
    Seconds,
    Verb,
    dry_run_option,
    force_option,
    no_wait_option,
    timeout_option,
    yes_option,
)
from dbranch_cli.scope import Scope, written
from dbranch_cli.switch import use_branch
from dbranch_cli.view import branch_block, branch_table, branch_tree
from dbranch_cli.waiting import Goal, holds, is_stopped, wait_for, wait_gone
from dbranch_cli.words import check_branch, did_you_mean


@click.command(cls=Verb)
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
    scope: Scope,
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
    name = scope.project_name
    check_branch(name, branch)
    if source:
        check_branch(name, source)
    if dry_run == "client":
        chosen = source or active_of(scope.project())
        click.echo(written(_manifest(scope, branch, chosen), "json" if scope.output == "json" else "yaml"))
        return
    project = scope.project()
    chosen = source or active_of(project)
    live = scope.store.find_branch(name, branch)
    if live is not None and if_exists == "fail":
        raise Failure(
            REFUSED,
            "AlreadyExists",
            f"branch {branch} is there already; see dbranch show {branch}, or say --if-exists reuse or replace",
        )
    if live is not None and if_exists == "replace":
        scope.say(f"deleting branch {branch}")
        scope.store.delete(live)
        wait_gone(scope.store, live, f"branch {branch} is gone", timeout, quiet=not scope.for_people)
        live = None
    if live is None:
        _require_source(scope, chosen)
        scope.say(f"branch {branch} from {chosen}")
        live = scope.store.apply(_manifest(scope, branch, chosen))
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
            scope.store,
            live,
            holds(Condition.READY),
            f"branch {branch} is Ready",
            timeout,
            quiet=not scope.for_people,
        )
        done += "; Ready"
    if use:
        use_branch(scope, scope.project(), live, force, timeout)
        done += "; active"
    scope.result(done, live)


def _manifest(scope: Scope, branch: str, source: str) -> Body:
    project = scope.project_name
    spec = {"project": project, "source": source}
    return manifest(names.BRANCH_KIND, scope.namespace, names.branch_object(project, branch), spec)


def _require_source(scope: Scope, source: str) -> None:
    known = [branch_of(body) for body in scope.store.branches(scope.project_name)]
    if source not in known:
        raise Failure(
            NOT_FOUND,
            "SourceNotFound",
            f'source "{source}" does not exist in project {scope.project_name}; nothing was made'
            + did_you_mean(source, known),
        )


@click.command("list", cls=Verb)
@click.pass_obj
def list_branches(scope: Scope) -> None:
    """The branches, with their states and sizes."""
    project = scope.project()
    found = scope.store.branches(scope.project_name)
    scope.result(branch_table(project, found, scope.output == "wide"), found)


@click.command(cls=Verb)
@click.pass_obj
def tree(scope: Scope) -> None:
    """The branches, each below its source."""
    project = scope.project()
    found = scope.store.branches(scope.project_name)
    scope.result(branch_tree(project, found), found)


@click.command(cls=Verb)
@click.argument("branch", type=BranchName(), required=False)
@click.pass_obj
def show(scope: Scope, branch: str | None) -> None:
    """One branch (default: the active one) with its conditions and Events."""
    project = scope.project()
    body = scope.branch(branch or active_of(project))
    events: list[Body] | None = []
    if scope.for_people:
        try:
            events = scope.store.events(body)
        except ApiError as error:
            if error.status != 403:
                raise
            events = None
    scope.result(branch_block(body, branch_of(body) == active_of(project), events), body)


@click.command(cls=Verb)
@click.argument("branch", type=BranchName())
@click.option(
    "--for",
    "goal",
    default="Ready",
    show_default=True,
    metavar="WHAT",
    help="Ready, stopped, deleted, or CONDITION or CONDITION=STATUS.",
)
@click.option("--timeout", type=Seconds(), default="2m", show_default=True, help="How long to wait at most.")
@click.pass_obj
def wait(scope: Scope, branch: str, goal: str, timeout: float) -> None:
    """Wait until a branch is Ready, stopped or deleted, or one of its conditions turns."""
    quiet = not scope.for_people
    if goal.lower() in ("deleted", "delete"):
        check_branch(scope.project_name, branch)
        live = scope.store.find_branch(scope.project_name, branch)
        if live is not None:
            wait_gone(scope.store, live, f"branch {branch} is gone", timeout, quiet)
        scope.say(f"branch {branch} is gone")
        return
    check, prefer = goal_of(goal)
    live = scope.branch(branch)
    what = f"branch {branch} is {goal}"
    live = wait_for(scope.store, live, check, what, timeout, prefer=prefer, quiet=quiet)
    scope.result(what, live)


def goal_of(text: str) -> tuple[Goal, Condition | None]:
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
    return holds(found, wanted), found


@click.command(cls=Verb)
@click.argument("branches", metavar="BRANCH...", nargs=-1, required=True, type=BranchName())
@click.option("--ignore-not-found", is_flag=True, help="A branch that is not there is no error.")
@yes_option()
@no_wait_option()
@timeout_option("2m")
@click.pass_obj
def delete(
    scope: Scope, branches: tuple[str, ...], ignore_not_found: bool, yes: bool, no_wait: bool, timeout: float
) -> None:
    """Delete branches with their data. The root, the active and a protected branch are refused."""
    found: dict[str, Mapping[str, Any]] = {}
    for branch in dict.fromkeys(branches):
        check_branch(scope.project_name, branch)
        body = scope.store.find_branch(scope.project_name, branch)
        if body is not None:
            found[branch] = body
        elif ignore_not_found:
            scope.say(f"branch {branch} is not there")
        else:
            scope.branch(branch)  # fails with what was probably meant
    if not found:
        return
    scope.confirm(f"Delete {', '.join(found)} of project {scope.project_name} with all its data?", yes)
    for branch, live in found.items():
        scope.store.delete(live)
        if not no_wait:
            wait_gone(scope.store, live, f"branch {branch} is gone", timeout, quiet=not scope.for_people)
        scope.result(f"branch {branch} {'is being deleted' if no_wait else 'deleted'}", live)
