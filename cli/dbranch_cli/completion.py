"""`dbranch completion`: print a shell's completion script."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.options import Command


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a shell's completion script. Use it with eval "$(dbranch completion bash)"."""
    completion_class = get_completion_class(shell)
    if completion_class is None:
        raise Failure(ExitCode.USAGE, "InvalidInput", f"completion of {shell} is not supported")
    root = context.find_root()
    click.echo(completion_class(root.command, {}, "dbranch", "_DBRANCH_COMPLETE").source())
