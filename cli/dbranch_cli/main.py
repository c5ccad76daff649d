"""`dbranch`, also `kubectl dbranch`: the group of all commands, and the process's exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import click

from dbranch.api.errors import DbranchError
from dbranch_cli import (
    branches,
    completion,
    connect,
    deletion,
    doctor,
    dump,
    expiry,
    lifecycle,
    listing,
    load,
    logs,
    orphans,
    projects,
    report,
    restores,
    schedules,
    snapshots,
    undelete,
    undelete_project,
)
from dbranch_cli.failure import ExitCode, Failure, failure_from
from dbranch_cli.formatting import escape_controls
from dbranch_cli.invocation import Invocation
from dbranch_cli.options import CommandGroup


def _print_version(context: click.Context, _: click.Parameter, requested: bool) -> None:
    if requested and not context.resilient_parsing:
        from importlib import metadata

        try:
            click.echo(f"dbranch {metadata.version('dbranch')}")
        except metadata.PackageNotFoundError:
            click.echo("dbranch (not installed: running from source)")
        context.exit()


@click.group(
    cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80}
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.pass_context
def cli(context: click.Context) -> None:
    """Git-like branches of PostgreSQL inside your own Kubernetes cluster.

    The project is the first of: -p, DBRANCH_PROJECT, the file .dbranch in this or a parent directory,
    the current project (set-default), the namespace's only project.
    """
    context.ensure_object(Invocation)


cli.sections = {
    "Branches": (
        branches.create,
        lifecycle.use,
        listing.list_branches,
        branches.show,
        listing.tree,
        logs.logs,
        lifecycle.stop,
        lifecycle.resume,
        lifecycle.restart,
        expiry.extend,
        expiry.protect,
        expiry.unprotect,
        restores.reset,
        restores.undo,
        restores.history,
        branches.wait,
        deletion.delete,
        undelete.undelete,
    ),
    "Data and connections": (
        connect.psql,
        connect.url,
        connect.start,
        load.load,
        dump.dump,
        snapshots.snapshot,
        schedules.schedule,
    ),
    "Projects": (
        projects.init,
        projects.status,
        projects.current,
        projects.project,
        undelete_project.undelete_project,
    ),
    "Cluster": (doctor.doctor, report.report, orphans.orphan, completion.completion),
}
cli.aliases = {
    "ls": "list",
    "rm": "delete",
    "port-forward": "start",
    # Of the original dbranch.
    "projects": "project list",
    "set-default": "project set-default",
    "delete-project": "project delete",
}
cli.explained = {
    "init-postgres": "'dbranch init' starts Postgres, too",
    "import": "use 'dbranch load FILE BRANCH'",
    "query": "use 'dbranch psql BRANCH -- -c SQL'",
}


def main(argv: list[str] | None = None) -> None:
    """Run a command and exit with its code; docs/cli.md lists the codes."""
    _exit_on_signals()
    arguments = sys.argv[1:] if argv is None else argv
    program = Path(sys.argv[0]).name
    prog_name = "kubectl dbranch" if program.startswith("kubectl-") else "dbranch"
    try:
        code = cli.main(
            arguments, prog_name=prog_name, standalone_mode=False, complete_var="_DBRANCH_COMPLETE"
        )
        sys.stdout.flush()
    except click.UsageError as error:
        hint = f"; see '{error.ctx.command_path} --help'" if error.ctx else ""
        message = error.format_message().rstrip(".") + hint
        code = _print_failure(Failure(ExitCode.USAGE, "Usage", message), arguments)
    except click.ClickException as error:
        code = _print_failure(Failure(error.exit_code, "Error", error.format_message()), arguments)
    except (click.Abort, KeyboardInterrupt):
        code = _print_failure(Failure(ExitCode.INTERRUPTED, "Interrupted", "interrupted"), arguments)
    except BrokenPipeError:
        # The reader of our output has gone (`dbranch list | head`): drop the rest and succeed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except DbranchError as error:
        code = _print_failure(failure_from(error), arguments)
    sys.exit(code if isinstance(code, int) else 0)


def _exit_on_signals() -> None:
    """Let SIGTERM and SIGHUP end the process in order: private files are removed, a psql that runs is ended."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup(1) has it ignored, and it stays so.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


def _print_failure(failure: Failure, arguments: list[str]) -> int:
    """Print a failure to standard error, as JSON with `-o json`, and return its exit code."""
    if wants_json(arguments):
        click.echo(json.dumps(failure.as_dict()), err=True)
    else:
        click.echo(f"dbranch: {escape_controls(str(failure))}", err=True)
    return failure.code


def wants_json(arguments: list[str]) -> bool:
    """Return whether `-o json` was given, even if click cannot parse the arguments.

    >>> wants_json(["list", "-ojson"]), wants_json(["psql", "--", "-o", "json"])
    (True, False)
    """
    output = ""
    for index, word in enumerate(arguments):
        if word == "--":
            break
        if word in ("-o", "--output") and index + 1 < len(arguments):
            output = arguments[index + 1]
        elif word.startswith("--output="):
            output = word.removeprefix("--output=")
        elif word.startswith("-o") and len(word) > 2:
            output = word[2:].removeprefix("=")
    return output == "json"
