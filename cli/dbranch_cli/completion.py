"""`dbranch completion`: print a shell's completion script; and kubectl's completion of `kubectl dbranch`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import click
from click.shell_completion import ShellComplete, get_completion_class

from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.options import Command

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# The last line of the answer (cobra's ShellCompDirective): what the shell does with it.
_FILES, _NO_FILES, _DIRECTORIES = ":0", ":4", ":16"
_DIRECTIVES: Final = {"file": _FILES, "dir": _DIRECTORIES}


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a shell's completion script.

    It completes commands, options, and the names of branches and projects.

    `kubectl dbranch` is completed by kubectl's own script, if kubectl_complete-dbranch, which is installed beside
    dbranch, is on the PATH.
    """
    completion_class = get_completion_class(shell)
    if completion_class is None:
        raise Failure(ExitCode.USAGE, "InvalidInput", f"completion of {shell} is not supported")
    root = context.find_root()
    click.echo(completion_class(root.command, {}, "dbranch", "_DBRANCH_COMPLETE").source())


def complete_for_kubectl() -> None:
    """Complete the last argument of this process as kubectl asks `kubectl_complete-dbranch`; print cobra's form."""
    from dbranch_cli.main import cli

    *words, incomplete = sys.argv[1:] or [""]
    items = ShellComplete(cli, {}, "dbranch", "_DBRANCH_COMPLETE").get_completions(words, incomplete)
    for line in cobra_lines(items):
        click.echo(line)


def cobra_lines(items: list[CompletionItem[str]]) -> list[str]:
    """Return completions as lines of cobra: value, a tab and a description; at last what else the shell offers."""
    plain = [item for item in items if item.type == "plain"]
    others = [_DIRECTIVES[item.type] for item in items if item.type in _DIRECTIVES]
    lines = [f"{i.value}\t{i.help.splitlines()[0]}" if i.help else str(i.value) for i in plain]
    return [*lines, others[0] if others else _NO_FILES]
