"""`dbranch schedule`: the snapshots that a branch takes by itself, and its refresh."""

from __future__ import annotations

import re
from typing import Any, Final

import click

from dbranch.api.enums import ScheduleState, WhenInUse
from dbranch.api.errors import InvalidInput
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.invocation import Invocation
from dbranch_cli.objects import Body
from dbranch_cli.options import BranchName, Command, force_option
from dbranch_cli.schedule_view import schedule_block

_DEFAULT_NAME: Final = "default"
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?")
_FIELDS: Final = 5


@click.command(cls=Command)
@click.argument("branch", type=BranchName())
@click.option(
    "--snapshots", metavar="CRON", help="Take snapshots at these times: minute hour day month weekday."
)
@click.option(
    "--keep", type=click.IntRange(1, 500), metavar="N", help="How many of them are kept; default: 24."
)
@click.option(
    "--name",
    metavar="NAME",
    help="The schedule of snapshots, of up to four; default: `default`, or the only one.",
)
@click.option("--refresh", metavar="CRON", help="Replace the data by that of its origin at these times.")
@click.option(
    "--when-in-use",
    type=click.Choice(["replace", "skip"]),
    help="What a refresh does while sessions are open; default: replace.",
)
@click.option(
    "--time-zone", metavar="ZONE", help="Whose clock counts, such as Europe/Berlin; default: Etc/UTC."
)
@click.option("--pause", "action", flag_value="pause", help="Leave out the runs of --name, or all.")
@click.option("--resume", "action", flag_value="resume", help="Go on with them.")
@click.option("--off", "action", flag_value="off", help="Take them away. The snapshots stay.")
@force_option()
@click.pass_obj
def schedule(
    invocation: Invocation,
    branch: str,
    snapshots: str | None,
    keep: int | None,
    name: str | None,
    refresh: str | None,
    when_in_use: str | None,
    time_zone: str | None,
    action: str | None,
    force: bool,
) -> None:
    """Show or change schedules of snapshots and of the refresh."""
    live = invocation.branch(branch)
    sets = any(value is not None for value in (snapshots, keep, refresh, when_in_use, time_zone))
    if action and sets:
        raise InvalidInput(f"--{action} changes no schedule; use it alone, or with --name")
    if not action and not sets:
        if name is not None:
            raise InvalidInput("--name goes with --snapshots, --keep, --pause, --resume or --off")
        _show(invocation, branch, live)
        return
    if action == "off":
        live = _remove(invocation, branch, live, name, force)
    elif action:
        live = _set_state(invocation, branch, live, name, action, force)
    else:
        live = _set(invocation, live, snapshots, keep, name, refresh, when_in_use, time_zone, force)
    _show(invocation, branch, live)


def _show(invocation: Invocation, branch: str, live: Body) -> None:
    if not live["spec"].get("snapshots") and not live["spec"].get("refresh") and invocation.human_output:
        text = f"branch {branch} has no schedules"
        invocation.print_note(f"{text}; make one with 'dbranch schedule {branch} --snapshots \"0 * * * *\"'")
        return
    invocation.print_result(schedule_block(live), live)


def _entries(live: Body) -> list[dict[str, Any]]:
    return list(live["spec"].get("snapshots") or ())


def _set(
    invocation: Invocation,
    live: Body,
    snapshots: str | None,
    keep: int | None,
    name: str | None,
    refresh: str | None,
    when_in_use: str | None,
    time_zone: str | None,
    force: bool,
) -> Body:
    """Set a schedule of snapshots, the refresh, or both; --time-zone is of what is set."""
    spec: dict[str, Any] = {}
    if snapshots or keep or name or (time_zone and refresh is None and when_in_use is None):
        existing = {str(entry["name"]): entry for entry in _entries(live)}
        name = name or (next(iter(existing)) if len(existing) == 1 else _DEFAULT_NAME)
        if not _NAME.fullmatch(name):
            raise InvalidInput(f'invalid --name "{name}": up to 32 lowercase letters, digits and "-"')
        entry: dict[str, Any] = {"name": name}
        if snapshots is None and name not in existing:
            raise InvalidInput(f"there is no schedule {name} yet; say when with --snapshots CRON")
        entry |= {"schedule": _cron(snapshots, "--snapshots")} if snapshots else {}
        entry |= {"keep": keep} if keep else {}
        entry |= {"timeZone": time_zone} if time_zone else {}
        spec["snapshots"] = [entry]
    if refresh or when_in_use:
        fields: dict[str, Any] = {"schedule": _cron(refresh, "--refresh")} if refresh else {}
        if not refresh and not live["spec"].get("refresh"):
            raise InvalidInput("there is no refresh yet; say when with --refresh CRON")
        fields |= {"whenInUse": WhenInUse(when_in_use.capitalize()).value} if when_in_use else {}
        fields |= {"timeZone": time_zone} if time_zone else {}
        spec["refresh"] = fields
    return invocation.store.apply_schedules(live, spec, force)


def _cron(text: str | None, option: str) -> str:
    """Return the five fields with one space between two. Raise InvalidInput if they are not five."""
    fields = (text or "").split()
    if len(fields) != _FIELDS:
        example = 'as in "0 3 * * *": minute, hour, day of the month, month, day of the week'
        raise InvalidInput(f'invalid {option} "{text}": five fields, {example}')
    return " ".join(fields)


def _chosen(branch: str, live: Body, name: str | None) -> tuple[list[str], bool]:
    """Return the schedules of snapshots that are meant, and whether the refresh is. Raise Failure if none exist."""
    existing = [str(entry["name"]) for entry in _entries(live)]
    if name is not None:
        if name not in existing:
            text = f"branch {branch} has no schedule {name}; see 'dbranch schedule {branch}'"
            raise Failure(ExitCode.NOT_FOUND, "NotFound", text)
        return [name], False
    if not existing and not live["spec"].get("refresh"):
        raise Failure(ExitCode.NOT_FOUND, "NotFound", f"branch {branch} has no schedules")
    return existing, bool(live["spec"].get("refresh"))


def _set_state(
    invocation: Invocation, branch: str, live: Body, name: str | None, action: str, force: bool
) -> Body:
    chosen, has_refresh = _chosen(branch, live, name)
    state = (ScheduleState.PAUSED if action == "pause" else ScheduleState.ACTIVE).value
    spec: dict[str, Any] = (
        {"snapshots": [{"name": entry, "state": state} for entry in chosen]} if chosen else {}
    )
    spec |= {"refresh": {"state": state}} if has_refresh else {}
    return invocation.store.apply_schedules(live, spec, force)


def _remove(invocation: Invocation, branch: str, live: Body, name: str | None, force: bool) -> Body:
    chosen, has_refresh = _chosen(branch, live, name)
    return invocation.store.remove_schedules(live, chosen, has_refresh, force)
