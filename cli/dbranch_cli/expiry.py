"""The commands on how long a branch stays: extend, protect, unprotect; and the options of `create` on it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import click

from dbranch.api.enums import Protection
from dbranch.api.errors import InvalidInput
from dbranch.api.expiry import deadline_of, format_time, parse_time, parse_ttl
from dbranch_cli import durations
from dbranch_cli.durations import format_until, parse_moment, parse_period
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.invocation import Invocation
from dbranch_cli.options import BranchName, Command, force_option
from dbranch_cli.parsing import parse_branch, parse_project


def expiry_options() -> Callable[[Any], Any]:
    """Return the options `--ttl` and `--expires` of `create`."""

    def decorate(command: Any) -> Any:
        expires = click.option(
            "--expires", metavar="TIME", help='Delete it then: "in 3d" or 2030-01-31T12:00:00Z.'
        )
        ttl = click.option("--ttl", metavar="DURATION", help="Delete it after 12h, 3d or 2w; or Never.")
        return ttl(expires(command))

    return decorate


def expiry_spec(ttl: str | None, expires: str | None, invocation: Invocation) -> dict[str, str]:
    """Return the fields of the spec of `--ttl` and `--expires`. Raise InvalidInput if they are none."""
    if ttl and expires:
        raise InvalidInput("--ttl and --expires say the same in two ways; leave one of them out")
    if ttl:
        return {"ttl": durations.parse_ttl(ttl)}
    if expires:
        now = invocation.store.server_time()
        moment = parse_moment(expires, now)
        if moment <= now:
            raise InvalidInput(f'--expires "{expires}" is past; write a time to come, as "in 3d"')
        return {"expirationTime": format_time(moment)}
    return {}


@click.command(cls=Command)
@click.argument("branch", type=BranchName())
@click.argument("duration")
@force_option()
@click.pass_obj
def extend(invocation: Invocation, branch: str, duration: str, force: bool) -> None:
    """Keep a branch for DURATION from now on at least. It never shortens its time.

    The project's spec.branchPolicy.maxTTL, which counts from the branch's creation, cuts it.
    """
    period = parse_period(duration, "DURATION")
    live = invocation.branch(branch)
    parsed, project = parse_branch(live), parse_project(invocation.project())
    deadline = deadline_of(parsed, project.max_ttl)
    if deadline is None:
        text = f"branch {branch} does not expire; there is nothing to extend"
        invocation.print_result(text, live)
        return
    now, in_force = invocation.store.server_time(), parse_time(parsed.expiration_time)
    # While it is active or protected it has a time to expire that does not count, and none in its status.
    present, requested = in_force or deadline.time, now + period
    if present >= requested:
        invocation.print_result(f"branch {branch} stays until {_moment(present, now)} as it is", live)
        return
    live = invocation.store.set_field(live, "expirationTime", format_time(requested), force)
    longest, created = parse_ttl(project.max_ttl), parse_time(parsed.created)
    cut = min(requested, created + longest) if longest and created and not parsed.is_root else requested
    goes = max(cut, in_force or cut)
    text = f"branch {branch} stays until {_moment(goes, now)}"
    if goes < requested:
        text += f": maxTTL {project.max_ttl} of project {project.name} allows no more"
    invocation.print_result(text, live)


def _moment(moment: datetime, now: datetime) -> str:
    text = format_time(moment)
    return f"{text} ({format_until(text, now)})"


@click.command(cls=Command)
@click.argument("branch", type=BranchName())
@click.option(
    "--for", "period", metavar="DURATION", help="For 12h, 7d or 2w from now on; default: without end."
)
@force_option()
@click.pass_obj
def protect(invocation: Invocation, branch: str, period: str | None, force: bool) -> None:
    """Protect a branch from deletion, by hand and by its time.

    It goes with its project or namespace all the same. With --for the protection ends by itself; it never shortens
    one that lasts longer.
    """
    length = parse_period(period, "--for") if period else None
    live = invocation.branch(branch)
    now = invocation.store.server_time()
    until = None if length is None else now + length
    parsed = parse_branch(live)
    is_permanent = parsed.protection == Protection.ENABLED
    if until is None:
        if not is_permanent:
            live = invocation.store.set_field(live, "protection", Protection.ENABLED.value, force)
        invocation.print_result(f"branch {branch} is protected without end", live)
        return
    lasts = parse_time(parsed.protected_until)
    if lasts is None or lasts < until:
        live = invocation.store.set_field(live, "protectedUntil", format_time(until), force)
        lasts = until
    text = f"branch {branch} is protected until {_moment(lasts, now)}"
    if is_permanent:
        text += f"; without end as long as spec.protection is {Protection.ENABLED.value}"
    invocation.print_result(text, live)


@click.command(cls=Command)
@click.argument("branch", type=BranchName())
@force_option()
@click.pass_obj
def unprotect(invocation: Invocation, branch: str, force: bool) -> None:
    """End the protection of a branch. The root and the active branch stay protected.

    Where its time is over, it goes after a day, or its ttl if that is shorter.
    """
    live = invocation.branch(branch)
    if live["spec"].get("protectedUntil"):
        live = invocation.store.clear_field(live, "protectedUntil", force)
    if parse_branch(live).protection == Protection.ENABLED:
        live = invocation.store.set_field(live, "protection", Protection.DISABLED.value, force)
    if parse_branch(live).protected:
        text = f"branch {branch} is still protected; somebody else has protected it meanwhile"
        raise Failure(ExitCode.REFUSED, "Protected", text)
    invocation.print_result(f"branch {branch} is not protected", live)
