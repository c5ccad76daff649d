"""The verbs that move what runs: use, stop, resume, restart."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from dbranch.api import names
from dbranch.api.conditions import Condition
from dbranch_cli.failure import REFUSED, USAGE, Failure
from dbranch_cli.objects import Body, active_of, branch_of, manifest
from dbranch_cli.options import (
    BranchName,
    Verb,
    dry_run_option,
    force_option,
    no_wait_option,
    timeout_option,
    yes_option,
)
from dbranch_cli.scope import Scope, written
from dbranch_cli.view import counted, sessions_of
from dbranch_cli.waiting import holds, is_restarted, is_routed, is_stopped, wait_for


@click.command(cls=Verb)
@click.argument("branch", type=BranchName())
@force_option()
@no_wait_option()
@timeout_option("1m")
@dry_run_option()
@click.pass_obj
def use(scope: Scope, branch: str, force: bool, no_wait: bool, timeout: float, dry_run: str) -> None:
    """Make a branch the active one: the project's connection string then reaches it."""
    live = scope.branch(branch)
    if dry_run == "client":
        spec = {"activeBranch": branch}
        body = manifest(names.PROJECT_KIND, scope.namespace, scope.project_name, spec)
        click.echo(written(body, "json" if scope.output == "json" else "yaml"))
        return
    project = scope.project()
    if is_routed(branch)(project) and project["spec"].get("activeBranch") == branch:
        scope.result(f"{branch} is active already", project)
        return
    project = use_branch(scope, project, live, force, 0 if no_wait else timeout)
    scope.result(f"{branch} is {'wanted' if no_wait else 'active'}", project)


def use_branch(scope: Scope, project: Body, live: Mapping[str, Any], force: bool, timeout: float) -> Body:
    """Switch to a branch and, unless `timeout` is 0, wait until all proxies obey. The project as it is then."""
    branch = branch_of(live)
    if project["spec"].get("state") == "Stopped":
        raise Failure(
            REFUSED, "Stopped", f"project {scope.project_name} is stopped; start it with dbranch resume --all"
        )
    if live["metadata"].get("deletionTimestamp"):
        raise Failure(REFUSED, "BranchDeleting", f"branch {branch} is being deleted")
    if live["spec"].get("state") == "Stopped":
        raise Failure(
            REFUSED, "BranchStopped", f"branch {branch} is stopped; start it with dbranch resume {branch}"
        )
    old, (sessions, _) = active_of(project), sessions_of(project)
    changed = scope.store.set_field(project, "activeBranch", branch, force)
    if old != branch:
        scope.say(f"{old} → {branch}: {_touched(project, sessions, old)}")
    if not timeout:
        return changed
    return wait_for(
        scope.store,
        changed,
        is_routed(branch),
        f"{branch} is active",
        timeout,
        prefer=Condition.ROUTED,
        quiet=not scope.for_people,
    )


def _touched(project: Mapping[str, Any], sessions: int, old: str) -> str:
    """What a switch does to those who are connected."""
    if not sessions:
        return "nobody is connected"
    what = {
        "Drain": "each finishes its transaction, then ends",
        "Keep": "they stay there until they close",
    }.get((project["spec"].get("proxy") or {}).get("onSwitch", "Terminate"), "they end with FATAL 57P01")
    return f"{counted(sessions, 'session')} on {old}: {what}"


@click.command(cls=Verb)
@click.argument("branch", type=BranchName(), required=False)
@click.option("--all", "everything", is_flag=True, help="The whole project: every branch and its filesystem.")
@force_option()
@yes_option()
@no_wait_option()
@timeout_option("2m")
@click.pass_obj
def stop(
    scope: Scope,
    branch: str | None,
    everything: bool,
    force: bool,
    yes: bool,
    no_wait: bool,
    timeout: float,
) -> None:
    """Stop a branch's Postgres, or with --all everything of the project; the data stays."""
    live, what = _target(scope, branch, everything, "stop")
    if everything:
        scope.confirm(f"Stop {what} with every branch of it? Nobody can connect until it is resumed.", yes)
    elif branch == active_of(scope.project()):
        scope.say(f"{branch} is the active branch: the connection string answers no more until it is resumed")
    live = scope.store.set_field(live, "state", "Stopped", force)
    if not no_wait:
        live = wait_for(
            scope.store, live, is_stopped, f"{what} is stopped", timeout, quiet=not scope.for_people
        )
    scope.result(f"{what} {'is being stopped' if no_wait else 'stopped'}", live)


@click.command(cls=Verb)
@click.argument("branch", type=BranchName(), required=False)
@click.option("--all", "everything", is_flag=True, help="The whole project.")
@force_option()
@no_wait_option()
@timeout_option("2m")
@click.pass_obj
def resume(
    scope: Scope, branch: str | None, everything: bool, force: bool, no_wait: bool, timeout: float
) -> None:
    """Start what was stopped: a branch, or with --all the project."""
    live, what = _target(scope, branch, everything, "resume")
    live = scope.store.set_field(live, "state", "Running", force)
    if not no_wait:
        ready = holds(Condition.READY)
        live = wait_for(scope.store, live, ready, f"{what} is Ready", timeout, quiet=not scope.for_people)
    scope.result(f"{what} {'is being started' if no_wait else 'is Ready'}", live)


@click.command(cls=Verb)
@click.argument("branch", type=BranchName())
@no_wait_option()
@timeout_option("2m")
@click.pass_obj
def restart(scope: Scope, branch: str, no_wait: bool, timeout: float) -> None:
    """Restart a branch's Postgres: it takes settings, resources and an image that wait for that."""
    live = scope.branch(branch)
    stopped = "Stopped" in (live["spec"].get("state"), scope.project()["spec"].get("state"))
    if stopped:
        raise Failure(
            REFUSED, "Stopped", f"branch {branch} is stopped; it takes everything new when it is resumed"
        )
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    live = scope.store.ask_restart(live, when)
    if not no_wait:
        live = wait_for(
            scope.store, live, is_restarted(when), f"{branch} is Ready", timeout, quiet=not scope.for_people
        )
    scope.result(f"{branch} is {'being restarted' if no_wait else 'Ready'}", live)


def _target(scope: Scope, branch: str | None, everything: bool, verb: str) -> tuple[Body, str]:
    """The object that is meant, and how a message calls it."""
    if everything == bool(branch):
        raise Failure(USAGE, "InvalidInput", f"say what to {verb}: a BRANCH, or --all for the whole project")
    if branch:
        return scope.branch(branch), f"branch {branch}"
    return scope.project(), f"project {scope.project_name}"
