"""How commands are typed: options before or after the command, aliases, shell completion."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from dbranch.api.errors import DbranchError, InvalidInput
from dbranch.api.quantity import parse_seconds
from dbranch_cli.examples import EXAMPLES
from dbranch_cli.invocation import Invocation
from dbranch_cli.naming import did_you_mean
from dbranch_cli.objects import branch_name_of

OUTPUTS = ("table", "wide", "json", "yaml", "name")
# Characters: more than a summary has.
_WHOLE = 1000
_PASSTHROUGH_KEY = "dbranch_cli.passthrough"


def _store_in_invocation(field: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """Return a callback that stores an option's value, if one was given, in a field of the Invocation."""

    def callback(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None:
            setattr(context.ensure_object(Invocation), field, value)

    return callback


def superuser_option() -> Callable[[Any], Any]:
    """Return the option `--superuser` of the commands that connect."""
    return click.option(
        "--superuser", is_flag=True, help="As the superuser; needs the Secret <project>-superuser-conn."
    )


def common_options(outputs: Sequence[str] = ()) -> list[click.Option]:
    """Return the options of every command; those after the command override those before it.

    `outputs`: output formats of this command beside the common ones.
    """

    def option(*declarations: str, field: str, **attributes: Any) -> click.Option:
        callback = _store_in_invocation(field)
        return click.Option(declarations, expose_value=False, callback=callback, **attributes)

    return [
        option(
            "-n",
            "--namespace",
            field="namespace_option",
            metavar="NAME",
            help="Namespace; default: the context's.",
        ),
        option(
            "--context",
            "kube_context",
            field="context_option",
            metavar="NAME",
            help="Context of the kubeconfig; default: its current one.",
        ),
        option(
            "--kubeconfig",
            field="kubeconfig_option",
            metavar="FILE",
            help="Path of the kubeconfig; default: KUBECONFIG, else ~/.kube/config.",
        ),
        option(
            "-p",
            "--project",
            field="project_option",
            type=ProjectName(),
            metavar="NAME",
            help="Project.",
        ),
        option(
            "-o", "--output", field="output", type=click.Choice([*OUTPUTS, *outputs]), help="Output format."
        ),
    ]


class Command(click.Command):
    """A command with the common options. With `passthrough` it keeps the arguments after `--`.

    `outputs`: output formats beside the common ones.
    """

    def __init__(
        self, *args: Any, passthrough: bool = False, outputs: Sequence[str] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.passthrough = passthrough
        self.params.extend(common_options(outputs))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        _format_examples(ctx, formatter)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if self.passthrough and "--" in args:
            index = args.index("--")
            args, ctx.meta[_PASSTHROUGH_KEY] = args[:index], args[index + 1 :]
        return super().parse_args(ctx, args)


class CommandGroup(click.Group):
    """A group of commands: resolves aliases and suggests a command for a mistyped one.

    `sections` are its commands under headings, in the order of its help; `aliases` lead from other names to commands,
    also of its groups: `projects` to `project list`. `explained` says of other tools' commands what is here in place.
    """

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.aliases: dict[str, str] = {}
        self.explained: Mapping[str, str] = {}
        self._sections: Mapping[str, Sequence[click.Command]] = {}
        self.params.extend(common_options())

    @property
    def sections(self) -> Mapping[str, Sequence[click.Command]]:
        return self._sections

    @sections.setter
    def sections(self, sections: Mapping[str, Sequence[click.Command]]) -> None:
        self._sections = sections
        for commands in sections.values():
            for command in commands:
                self.add_command(command)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of a first use, not of the alphabet

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command: click.Command | None = self
        for name in self.aliases.get(cmd_name, cmd_name).split():
            command = command.commands.get(name) if isinstance(command, click.Group) else None
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None and not ctx.resilient_parsing:
            if name in self.explained:
                raise click.UsageError(f'there is no command "{name}": {self.explained[name]}', ctx)
            existing = [*self.list_commands(ctx), *self.aliases]
            raise click.UsageError(f'unknown command "{name}"{did_you_mean(name, existing)}', ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands))
        for heading, commands in (self.sections or {"Commands": ()}).items():
            named = {str(command.name): command for command in commands} or self.commands
            with formatter.section(heading):
                # A summary that is too long goes on in the next line.
                rows = [(name.ljust(width), c.get_short_help_str(_WHOLE)) for name, c in named.items()]
                formatter.write_dl(rows)
        if not self.aliases:
            return
        with formatter.section("Other names"):
            formatter.write_dl([(alias.ljust(width), name) for alias, name in self.aliases.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        _format_examples(ctx, formatter)


def _format_examples(ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the examples of a command, also of one that was called by another name."""
    root = ctx.find_root()
    typed: list[str] = []
    step: click.Context | None = ctx
    while step is not None and step is not root:
        typed.insert(0, str(step.info_name))
        step = step.parent
    if len(typed) == 1 and isinstance(root.command, CommandGroup):
        typed = root.command.aliases.get(typed[0], typed[0]).split()
    with formatter.section("Examples"):
        for line in EXAMPLES.get(" ".join(typed), ()):
            formatter.write(
                f"{'':{formatter.current_indent}}{line.replace('dbranch ', f'{root.info_name} ')}\n"
            )


def passthrough_arguments(context: click.Context) -> Sequence[str]:
    """Return the arguments after `--`."""
    arguments: list[str] = context.meta.get(_PASSTHROUGH_KEY, [])
    return arguments


class Duration(click.ParamType[Any]):
    """A duration in seconds: `90s`, `2m`, `1m30s` or a plain number of seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return parse_seconds(value)
        except InvalidInput as error:
            return self.fail(str(error), param, ctx)


class ExistingName(click.ParamType[Any], ABC):
    """The name of an object; completes to the existing ones, and to none if the API server cannot be asked."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    @abstractmethod
    def existing(self, invocation: Invocation) -> list[str]:
        """Return the names of the objects that exist."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        try:
            existing = self.existing(ctx.ensure_object(Invocation))
        except DbranchError:
            return []
        return [CompletionItem(name) for name in existing if name.startswith(incomplete)]


class BranchName(ExistingName):
    """A branch's name."""

    name = "branch"

    def existing(self, invocation: Invocation) -> list[str]:
        branches = invocation.store.branches(invocation.project_name)
        return [branch_name_of(body) for body in branches]


class ProjectName(ExistingName):
    """A project's name."""

    name = "project"

    def existing(self, invocation: Invocation) -> list[str]:
        return [body["metadata"]["name"] for body in invocation.store.projects()]


def timeout_option(default: str) -> Callable[[Any], Any]:
    return click.option(
        "--timeout",
        type=Duration(),
        default=default,
        show_default=True,
        help="How long to wait, such as 90s or 2m.",
    )


def no_wait_option() -> Callable[[Any], Any]:
    return click.option("--no-wait", is_flag=True, help="Do not wait until the change has taken effect.")


def yes_option() -> Callable[[Any], Any]:
    return click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")


def force_option() -> Callable[[Any], Any]:
    return click.option("--force", is_flag=True, help="Write fields that Argo CD, Flux or Helm manages.")


def dry_run_option() -> Callable[[Any], Any]:
    return click.option(
        "--dry-run",
        type=click.Choice(["none", "client"]),
        default="none",
        help="With `client`, print the manifest (YAML, or JSON with -o json) and write nothing.",
    )


def nodes_namespace_option() -> Callable[[Any], Any]:
    return click.option(
        "--nodes-namespace",
        envvar="DBRANCH_NODES_NAMESPACE",
        default="dbranch-nodes",
        show_default=True,
        metavar="NAME",
        help="Namespace of agents and Postgres pods (nodesNamespace.name of the chart).",
    )
