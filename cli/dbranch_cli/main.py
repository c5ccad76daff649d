"""`dbranch`, also `kubectl dbranch`: the verbs, wired."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path

import click

from dbranch.api.errors import DbranchError
from dbranch_cli import branches, completion, connect, load, projects, switch
from dbranch_cli.failure import INTERRUPTED, USAGE, Failure, failure_of
from dbranch_cli.options import Verbs
from dbranch_cli.scope import Scope


def _version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        try:
            click.echo(f"dbranch {metadata.version('dbranch')}")
        except metadata.PackageNotFoundError:
            click.echo("dbranch, run from its sources")
        context.exit()


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version."
)
@click.pass_context
def cli(context: click.Context) -> None:
    """Git-like branches of PostgreSQL inside your own Kubernetes cluster.

    The project is named by -p, DBRANCH_PROJECT, a file .dbranch in this or a parent directory, the
    current one (set-default), or it is the only one there.
    """
    context.ensure_object(Scope)


for _verb in (
    projects.init,
    branches.create,
    switch.use,
    branches.list_branches,
    projects.status,
    branches.show,
    branches.tree,
    connect.psql,
    connect.url,
    connect.start,
    load.load,
    switch.stop,
    switch.resume,
    switch.restart,
    branches.wait,
    branches.delete,
    projects.delete_project,
    projects.projects,
    projects.set_default,
    completion.completion,
):
    cli.add_command(_verb)
cli.aliases.update({"ls": "list", "rm": "delete", "port-forward": "start"})


def main(argv: list[str] | None = None) -> None:
    """Run a verb and end the process with its exit code; see docs/cli.md for what each one means."""
    given = sys.argv[1:] if argv is None else argv
    called = Path(sys.argv[0]).name
    prog = "kubectl dbranch" if called.startswith("kubectl-") else "dbranch"
    try:
        code = cli.main(given, prog_name=prog, standalone_mode=False, complete_var="_DBRANCH_COMPLETE")
        sys.stdout.flush()
    except click.UsageError as error:
        where = f"; see {error.ctx.command_path} --help" if error.ctx else ""
        code = _failed(Failure(USAGE, "Usage", error.format_message().rstrip(".") + where), given)
    except click.ClickException as error:
        code = _failed(Failure(error.exit_code, "Error", error.format_message()), given)
    except (click.Abort, KeyboardInterrupt):
        code = _failed(Failure(INTERRUPTED, "Interrupted", "interrupted"), given)
    except BrokenPipeError:
        # Who reads our output has gone (`dbranch list | head`); nothing more can be said to them.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except DbranchError as error:
        code = _failed(failure_of(error), given)
    sys.exit(code if isinstance(code, int) else 0)


def _failed(failure: Failure, given: list[str]) -> int:
    """Say it on standard error, in the form asked for; the exit code."""
    if wants_json(given):
        click.echo(json.dumps(failure.as_dict()), err=True)
    else:
        click.echo(f"dbranch: {failure}", err=True)
    return failure.code


def wants_json(given: list[str]) -> bool:
    """Whether `-o json` was given, also where the line could not be parsed."""
    form = ""
    for place, word in enumerate(given):
        if word == "--":
            break
        if word in ("-o", "--output") and place + 1 < len(given):
            form = given[place + 1]
        elif word.startswith("--output="):
            form = word.removeprefix("--output=")
        elif word.startswith("-o") and len(word) > 2:
            form = word[2:].removeprefix("=")
    return form == "json"
