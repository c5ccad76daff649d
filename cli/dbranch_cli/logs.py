"""`dbranch logs`: what the Postgres of a branch logs, also across its restarts."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from dbranch.api.conditions import Condition, find_condition
from dbranch.api.errors import ApiError, ClusterUnreachable
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.formatting import escape_controls
from dbranch_cli.invocation import Invocation
from dbranch_cli.objects import active_branch_of
from dbranch_cli.options import BranchName, Command, Duration, nodes_namespace_option

if TYPE_CHECKING:
    from dbranch_cli.connection import Connection

_CONTAINER: Final = "postgres"
_POLL_SECONDS: Final = 1.0
# A connection that is silent for so long is asked for again, from the line that it ended at.
_SILENCE_SECONDS: Final = 300.0

Moment = tuple[datetime, int]


@dataclass(frozen=True)
class LogLine:
    """A line of the log, when the container wrote it, and that time as the kubelet words it."""

    moment: Moment
    timestamp: str
    text: str


def parse_line(line: str) -> LogLine:
    """Return a line as the API server sends it with `timestamps=true`: RFC 3339 with nanoseconds, a space, the text.

    Raises ValueError if there is no time.
    """
    timestamp, _, text = line.partition(" ")
    moment = datetime.fromisoformat(timestamp)
    fraction = timestamp.partition(".")[2]
    digits = fraction[: next((i for i, c in enumerate(fraction) if not c.isdigit()), len(fraction))]
    return LogLine(
        (moment.replace(microsecond=0).astimezone(UTC), int(digits.ljust(9, "0"))), timestamp, text
    )


class PodLogs:
    """The logs of one Postgres pod after another in the nodes' namespace."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection, self.namespace = connection, namespace
        self._pod = ""
        self._last: LogLine | None = None

    def read(self, pod: str, params: Mapping[str, str]) -> Iterator[LogLine]:
        """Yield the pod's lines, of the same pod as before only those that were not yielded yet.

        Raises ClusterUnreachable if the connection breaks; the next call goes on where it did.
        """
        query = {**params, "container": _CONTAINER, "timestamps": "true"}
        if pod != self._pod:
            self._pod, self._last = pod, None
        after = self._last
        if after:
            # To the second: what is known already comes again.
            query["sinceTime"] = after.moment[0].strftime("%Y-%m-%dT%H:%M:%SZ")
            query.pop("tailLines", None)
            query.pop("sinceSeconds", None)
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log"
        for raw in self._connection.lines(path, query, _SILENCE_SECONDS):
            try:
                line = parse_line(raw)
            except ValueError:
                # The kubelet's own words, as "unable to retrieve container logs for …".
                raise Failure(ExitCode.OTHER, "NoLogs", raw) from None
            if after is None or line.moment > after.moment:
                self._last = line
                yield line


@click.command(cls=Command)
@click.argument("branch", type=BranchName(), required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on until interrupted, also across restarts.")
@click.option("--tail", type=click.IntRange(min=0), metavar="LINES", help="Only the last lines.")
@click.option("--since", type=Duration(), metavar="DURATION", help="Only what is newer, such as 10m.")
@click.option("--previous", is_flag=True, help="Of the container before its last restart.")
@click.option("--timestamps", is_flag=True, help="Begin each line with the time of the node.")
@nodes_namespace_option()
@click.pass_obj
def logs(
    invocation: Invocation,
    branch: str | None,
    follow: bool,
    tail: int | None,
    since: float | None,
    previous: bool,
    timestamps: bool,
    nodes_namespace: str,
) -> None:
    """Print what a branch's Postgres logs. The default is the active branch.

    Needs the right to get pods/log in the nodes' namespace. The log is the pod's: it ends with the pod, when the
    branch is stopped.
    """
    if follow and previous:
        raise Failure(ExitCode.USAGE, "InvalidInput", "--previous has ended; leave out --follow")
    name = branch or active_branch_of(invocation.project())
    params: dict[str, str] = {"follow": "true"} if follow else {}
    params |= {"previous": "true"} if previous else {}
    params |= {} if tail is None else {"tailLines": str(tail)}
    params |= {} if since is None else {"sinceSeconds": str(max(1, round(since)))}
    source = PodLogs(invocation.store.connection, nodes_namespace)
    if follow:
        _follow(invocation, name, source, params, timestamps)
        return
    body = invocation.branch(name)
    pod = _pod_of(body)
    if pod is None:
        raise Failure(ExitCode.NOT_FOUND, "NoPod", f"{_why_no_pod(name, body)}; there is no log")
    try:
        _print(source.read(pod, params), timestamps)
    except ApiError as error:
        raise _failure(error, nodes_namespace) from error


def _follow(
    invocation: Invocation, branch: str, source: PodLogs, params: Mapping[str, str], timestamps: bool
) -> None:
    """Print the log of each pod that the branch has, until it is deleted."""
    body: Mapping[str, Any] | None = invocation.branch(branch)
    printed_note = ""
    while body is not None:
        pod = _pod_of(body)
        note = f"branch {branch}: pod {pod}" if pod else f"{_why_no_pod(branch, body)}; waiting for its pod"
        if note != printed_note:
            invocation.print_note(note)
            printed_note = note
        try:
            if pod:
                _print(source.read(pod, params), timestamps)
        except ApiError as error:
            # 400: the container has not started yet; 404: the pod is gone, the branch gets another one.
            if error.status not in (400, 404):
                raise _failure(error, source.namespace) from error
        except ClusterUnreachable as error:
            invocation.print_note(f"{error}; trying again")
        time.sleep(_POLL_SECONDS)
        try:
            body = invocation.store.find_branch(invocation.project_name, branch)
        except ClusterUnreachable as error:
            invocation.print_note(f"{error}; trying again")
    invocation.print_note(f"branch {branch} is deleted")


def _print(lines: Iterator[LogLine], timestamps: bool) -> None:
    """Print lines. On a terminal control characters are escaped: whoever has a session writes into the log."""
    to_terminal = sys.stdout.isatty()
    for line in lines:
        text = escape_controls(line.text) if to_terminal else line.text
        sys.stdout.write(f"{line.timestamp} {text}\n" if timestamps else f"{text}\n")
        sys.stdout.flush()


def _pod_of(body: Mapping[str, Any]) -> str | None:
    pod = ((body.get("status") or {}).get("node") or {}).get("pod")
    return str(pod) if pod else None


def _why_no_pod(branch: str, body: Mapping[str, Any]) -> str:
    ready = find_condition(body.get("status"), Condition.READY)
    return f"branch {branch} has no pod" + (f" ({ready['reason']})" if ready else "")


def _failure(error: ApiError, namespace: str) -> ApiError | Failure:
    if error.status != 403:
        return error
    text = (
        f"{error}; the pods are in the nodes' namespace {namespace}: ask for the right to get pods/log there"
    )
    return Failure(ExitCode.FORBIDDEN, "Forbidden", text)
