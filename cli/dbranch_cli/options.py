"""How the verbs are spelled: options that stand before or after the verb, aliases, completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from dbranch.api.errors import DbranchError, InvalidInput
from dbranch.api.project import parse_seconds
from dbranch_cli.objects import branch_of
from dbranch_cli.scope import Scope
from dbranch_cli.words import did_you_mean

OUTPUTS = ("table", "wide", "json", "yaml", "name")
AFTER = "dbranch_cli.after"


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """A callback that puts an option's value, where one was given, into the Scope."""

    def callback(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None:
            setattr(context.ensure_object(Scope), name, value)

    return callback


def common_options() -> list[click.Option]:
    """The options of every verb; given after the verb, they win over those before it."""

    def option(*spelled: str, field: str, **more: Any) -> click.Option:
        return click.Option(spelled, expose_value=False, callback=_remember(field), **more)

    return [
        option("-n", "--namespace", field="namespace_option", metavar="NAME", help="The namespace."),
        option(
            "--context", "kube_context", field="context", metavar="NAME", help="The kubeconfig's context."
        ),
        option("--kubeconfig", field="kubeconfig", metavar="FILE", help="The kubeconfig."),
        option("-p", "--project", field="project_option", metavar="NAME", help="The project."),
        option(
            "-o", "--output", field="output", type=click.Choice(OUTPUTS), help="The form of what is printed."
        ),
    ]


class Verb(click.Command):
    """A verb: takes the common options too, and hands what follows `--` on where it is asked to."""

    def __init__(self, *args: Any, passes_on: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.passes_on = passes_on
        self.params.extend(common_options())

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if self.passes_on and "--" in args:
            place = args.index("--")
            args, ctx.meta[AFTER] = args[:place], args[place + 1 :]
        return super().parse_args(ctx, args)


class Verbs(click.Group):
    """The group of all verbs: knows aliases, and asks what an unknown verb was to be."""

    command_class = Verb

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.aliases: dict[str, str] = {}
        self.params.extend(common_options())

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # as wired: what one needs first comes first

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, self.aliases.get(cmd_name, cmd_name))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        verb = args[0]
        if not verb.startswith("-") and self.get_command(ctx, verb) is None and not ctx.resilient_parsing:
            known = [*self.list_commands(ctx), *self.aliases]
            raise click.UsageError(f'there is no verb "{verb}"{did_you_mean(verb, known)}', ctx)
        return super().resolve_command(ctx, args)


def after(context: click.Context) -> Sequence[str]:
    """The arguments behind `--`."""
    found: list[str] = context.meta.get(AFTER, [])
    return found


class Seconds(click.ParamType[Any]):
    """A duration: `90s`, `2m`, `1m30s` or a plain number of seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return parse_seconds(value)
        except InvalidInput as error:
            return self.fail(str(error), param, ctx)


class BranchName(click.ParamType[Any]):
    """A branch's name; completes with those that there are."""

    name = "branch"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return _complete(ctx, incomplete, lambda s: [branch_of(b) for b in s.store.branches(s.project_name)])


class ProjectName(click.ParamType[Any]):
    """A project's name; completes with those that there are."""

    name = "project"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return _complete(ctx, incomplete, lambda s: [b["metadata"]["name"] for b in s.store.projects()])


def _complete(ctx: click.Context, begun: str, known: Callable[[Scope], list[str]]) -> list[CompletionItem]:
    """Names that begin so; none where the cluster does not say."""
    try:
        return [CompletionItem(name) for name in known(ctx.ensure_object(Scope)) if name.startswith(begun)]
    except DbranchError:
        return []


def timeout_option(default: str) -> Callable[[Any], Any]:
    return click.option(
        "--timeout", type=Seconds(), default=default, show_default=True, help="How long to wait at most."
    )


def no_wait_option() -> Callable[[Any], Any]:
    return click.option("--no-wait", is_flag=True, help="Return once it is asked for.")


def yes_option() -> Callable[[Any], Any]:
    return click.option("-y", "--yes", is_flag=True, help="Do not ask.")


def force_option() -> Callable[[Any], Any]:
    return click.option("--force", is_flag=True, help="Write a field that Argo CD, Flux or Helm keeps, too.")


def dry_run_option() -> Callable[[Any], Any]:
    return click.option(
        "--dry-run",
        type=click.Choice(["none", "client"]),
        default="none",
        help="`client`: print the manifest, as YAML or by -o json, and write nothing.",
    )
