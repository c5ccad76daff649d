"""The commands that switch, stop and start: use, stop, resume, restart."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import click

from dbranch.api import names
from dbranch.api.conditions import Condition, Reason, find_condition
from dbranch.api.enums import OnSwitch, State
from dbranch_cli.expiry_view import leaving_note
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.formatting import format_count
from dbranch_cli.invocation import Invocation, format_objects
from dbranch_cli.objects import Body, active_branch_of, branch_name_of, manifest
from dbranch_cli.options import (
    BranchName,
    Command,
    dry_run_option,
    force_option,
    no_wait_option,
    timeout_option,
    yes_option,
)
from dbranch_cli.parsing import should_run
from dbranch_cli.view import count_sessions
from dbranch_cli.waiting import has_condition, is_restarted, is_routed, is_stopped, wait_for


@click.command(cls=Command)
@click.argument("branch", type=BranchName())
@force_option()
@no_wait_option()
@timeout_option("1m")
@dry_run_option()
@click.pass_obj
def use(
    invocation: Invocation, branch: str, force: bool, no_wait: bool, timeout: float, dry_run: str
) -> None:
    """Switch the project's connection string to a branch."""
    live = invocation.branch(branch)
    if dry_run == "client":
        spec = {"activeBranch": branch}
        body = manifest(names.PROJECT_KIND, invocation.namespace, invocation.project_name, spec)
        click.echo(format_objects(body, "json" if invocation.output == "json" else "yaml"))
        return
    project = invocation.project()
    if is_routed(branch)(project) and project["spec"].get("activeBranch") == branch:
        invocation.print_result(f"branch {branch} is already active", project)
        return
    project = use_branch(invocation, project, live, force, 0 if no_wait else timeout)
    text = f"switch to branch {branch} requested" if no_wait else f"branch {branch} is active"
    invocation.print_result(text, project)


def use_branch(
    invocation: Invocation, project: Body, live: Mapping[str, Any], force: bool, timeout: float
) -> Body:
    """Set `spec.activeBranch`, wait until all proxies have acknowledged the route, and return the project.

    `timeout` is in seconds; 0: do not wait. Raise Failure if the project or the branch is stopped or deleted.
    """
    branch = branch_name_of(live)
    if project["spec"].get("state") == State.STOPPED:
        message = f"project {invocation.project_name} is stopped; start it with 'dbranch resume --all'"
        raise Failure(ExitCode.REFUSED, "Stopped", message)
    if live["metadata"].get("deletionTimestamp"):
        raise Failure(ExitCode.REFUSED, "BranchDeleting", f"branch {branch} is being deleted")
    if live["spec"].get("state") == State.STOPPED:
        message = f"branch {branch} is stopped; start it with 'dbranch resume {branch}'"
        raise Failure(ExitCode.REFUSED, "BranchStopped", message)
    old_branch, (sessions, _) = active_branch_of(project), count_sessions(project)
    changed = invocation.store.set_field(project, "activeBranch", branch, force)
    if old_branch != branch:
        effect = _effect_on_sessions(project, sessions, old_branch)
        invocation.print_note(f"{old_branch} → {branch}: {effect}")
        _note_expiry(invocation, changed, old_branch)
    if not timeout:
        return changed
    return wait_for(
        invocation.store,
        changed,
        is_routed(branch),
        f"branch {branch} is active",
        timeout,
        primary=Condition.ROUTED,
        quiet=not invocation.human_output,
    )


def _note_expiry(invocation: Invocation, project: Body, old_branch: str) -> None:
    """Say when the branch goes that was the active one, if that has kept it beyond its time."""
    if not invocation.human_output or old_branch == names.ROOT_BRANCH:
        return
    old = invocation.store.find_branch(invocation.project_name, old_branch)
    note = leaving_note(project, old, invocation.store.server_time().astimezone()) if old else None
    if note:
        invocation.print_note(note)


def _effect_on_sessions(project: Mapping[str, Any], sessions: int, old_branch: str) -> str:
    """Describe what a switch does to the open sessions, by `spec.proxy.onSwitch`."""
    if not sessions:
        return "no open sessions"
    on_switch = (project["spec"].get("proxy") or {}).get("onSwitch", OnSwitch.TERMINATE)
    effect = {
        OnSwitch.DRAIN: "each ends after its current transaction",
        OnSwitch.KEEP: "they stay there until their clients disconnect",
    }.get(on_switch, "they end with FATAL 57P01")
    return f"{format_count(sessions, 'session')} on {old_branch}: {effect}"


@click.command(cls=Command)
@click.argument("branch", type=BranchName(), required=False)
@click.option("--all", "everything", is_flag=True, help="Stop the project: all branches and the pool.")
@force_option()
@yes_option()
@no_wait_option()
@timeout_option("2m")
@click.pass_obj
def stop(
    invocation: Invocation,
    branch: str | None,
    everything: bool,
    force: bool,
    yes: bool,
    no_wait: bool,
    timeout: float,
) -> None:
    """Stop a branch, or the project with --all. Postgres is stopped, the data stays."""
    live, object_text = _select_object(invocation, branch, everything, "stop")
    if everything:
        question = f"Stop {object_text} with all its branches? Nobody can connect until it is resumed."
        invocation.confirm(question, yes)
    elif branch == active_branch_of(invocation.project()):
        invocation.print_note(
            f"branch {branch} is the active branch: the connection string does not work until it is resumed"
        )
    live = invocation.store.set_field(live, "state", State.STOPPED, force)
    if not no_wait:
        live = wait_for(
            invocation.store,
            live,
            is_stopped,
            f"{object_text} is stopped",
            timeout,
            quiet=not invocation.human_output,
        )
    invocation.print_result(f"{object_text} {'is being stopped' if no_wait else 'stopped'}", live)


@click.command(cls=Command)
@click.argument("branch", type=BranchName(), required=False)
@click.option("--all", "everything", is_flag=True, help="Start the project.")
@force_option()
@no_wait_option()
@timeout_option("2m")
@click.pass_obj
def resume(
    invocation: Invocation, branch: str | None, everything: bool, force: bool, no_wait: bool, timeout: float
) -> None:
    """Start a stopped branch, or the project with --all."""
    live, object_text = _select_object(invocation, branch, everything, "resume")
    live = invocation.store.set_field(live, "state", State.RUNNING, force)
    if not no_wait:
        live = wait_for(
            invocation.store,
            live,
            has_condition(Condition.READY),
            f"{object_text} is Ready",
            timeout,
            quiet=not invocation.human_output,
        )
    invocation.print_result(f"{object_text} is {'being started' if no_wait else 'Ready'}", live)


# At the end of a condition's message: what to do next.
_RESET_OPTION: Final = "--reset-alter-system"


@click.command(cls=Command)
@click.argument("branch", type=BranchName())
@click.option("--force", is_flag=True, help="Restart although Postgres does not take a setting.")
@click.option(
    _RESET_OPTION,
    is_flag=True,
    help="Undo what ALTER SYSTEM has set, also if Postgres does not start with it.",
)
@no_wait_option()
@timeout_option("2m")
@click.pass_obj
def restart(
    invocation: Invocation,
    branch: str,
    force: bool,
    reset_alter_system: bool,
    no_wait: bool,
    timeout: float,
) -> None:
    """Restart a branch. Its Postgres applies changed settings, resources and images.

    With --reset-alter-system it starts without what ALTER SYSTEM has set; that stays in PGDATA as
    postgresql.auto.conf.before-reset, which replaces one of an earlier reset.
    """
    live = invocation.branch(branch)
    if not should_run(invocation.project(), live):
        message = (
            f"branch {branch} is stopped; start it first with 'dbranch resume {branch}'"
            if reset_alter_system
            else f"branch {branch} is stopped; it applies all changes when it is resumed"
        )
        raise Failure(ExitCode.REFUSED, "Stopped", message)
    if not force:
        check_restart(live, reset_alter_system)
    restarted_at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    before, live = live, invocation.store.request_restart(live, restarted_at, reset_alter_system)
    if not no_wait:
        live = wait_for(
            invocation.store,
            live,
            is_restarted(restarted_at, reset_alter_system),
            f"branch {branch} is Ready",
            timeout,
            quiet=not invocation.human_output,
            since=before,
        )
    invocation.print_result(f"branch {branch} is {'being restarted' if no_wait else 'Ready'}", live)


def check_restart(live: Mapping[str, Any], reset_alter_system: bool = False) -> None:
    """Raise Failure if the branch's Postgres would not start again with the settings that it has now.

    With `reset_alter_system` it would, if that is the step that the condition names.
    """
    condition = find_condition(live.get("status"), Condition.POSTGRES_READY)
    if condition and condition["reason"] == Reason.SETTINGS_REJECTED:
        if reset_alter_system and condition["message"].endswith(_RESET_OPTION):
            return
        message = f"{condition['message']}; --force restarts it all the same"
        raise Failure(ExitCode.REFUSED, Reason.SETTINGS_REJECTED, message)


def _select_object(
    invocation: Invocation, branch: str | None, everything: bool, command: str
) -> tuple[Body, str]:
    """Return the branch, or with `--all` the project, and its name in messages."""
    if everything == bool(branch):
        message = f"specify what to {command}: a BRANCH, or --all for the whole project"
        raise Failure(ExitCode.USAGE, "InvalidInput", message)
    if branch:
        return invocation.branch(branch), f"branch {branch}"
    return invocation.project(), f"project {invocation.project_name}"
