"""`dbranch completion`: the script that a shell evaluates to complete verbs, branches and projects."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from dbranch_cli.failure import USAGE, Failure
from dbranch_cli.options import Verb


@click.command(cls=Verb)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a shell's completion: eval "$(dbranch completion bash)"."""
    kind = get_completion_class(shell)
    if kind is None:
        raise Failure(USAGE, "InvalidInput", f"there is no completion for {shell}")
    root = context.find_root()
    click.echo(kind(root.command, {}, "dbranch", "_DBRANCH_COMPLETE").source())
