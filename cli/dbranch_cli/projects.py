"""The commands on projects: init, status, current, and the noun `project`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dbranch.api import names
from dbranch.api.conditions import Condition
from dbranch.api.enums import DeletionPolicy, OnSwitch
from dbranch_cli.config import current_project, set_current_project
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.formatting import format_count
from dbranch_cli.invocation import Invocation, format_objects
from dbranch_cli.naming import check_project_name, list_names, suggest_name
from dbranch_cli.objects import active_branch_of, branch_name_of, manifest
from dbranch_cli.options import (
    Command,
    CommandGroup,
    ProjectName,
    dry_run_option,
    no_wait_option,
    timeout_option,
    yes_option,
)
from dbranch_cli.parsing import parse_project
from dbranch_cli.undelete_project import is_kept, list_deleted_projects
from dbranch_cli.view import project_table, status_block
from dbranch_cli.waiting import has_condition, wait_deleted, wait_for


@click.command(cls=Command)
@click.argument("name", required=False)
@click.option("--name", "name_option", metavar="NAME", help="Same as the argument NAME.")
@click.option("--image", metavar="IMAGE", help="Image with initdb and postgres; default: postgres:17.")
@click.option("--size", metavar="QUANTITY", help="Size of the pool of all branches; default: 10Gi.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the connection string; default: 5432.")
@click.option(
    "--parameter",
    "parameters",
    multiple=True,
    metavar="KEY=VALUE",
    help="Parameter of postgresql.conf; can be repeated.",
)
@click.option(
    "--password-secret",
    metavar="NAME[:KEY]",
    help="Secret with the user's password; default: a generated password.",
)
@click.option(
    "--user",
    metavar="NAME",
    help="Role of the application, which owns the database; default: app. With postgres it is the superuser.",
)
@click.option("--database", metavar="NAME", help="Name of the database; default: dbranch.")
@click.option(
    "--run-as-user", type=int, metavar="UID", help="User ID of Postgres in the image; default: 999."
)
@click.option(
    "--on-switch",
    type=click.Choice([mode.value for mode in OnSwitch]),
    help="What a switch does to open sessions; default: Terminate.",
)
@click.option(
    "--adopt",
    metavar="UID",
    help="Adopt the retained pool of a deleted project, by the project's UID.",
)
@click.option(
    "--node-selector",
    "selectors",
    multiple=True,
    metavar="LABEL=VALUE",
    help="Label of nodes that may store the project; can be repeated.",
)
@no_wait_option()
@timeout_option("5m")
@dry_run_option()
@click.pass_obj
def init(
    invocation: Invocation,
    /,
    name: str | None,
    name_option: str | None,
    no_wait: bool,
    timeout: float,
    dry_run: str,
    **spec_options: Any,
) -> None:
    """Create a project and make it the current one. Its default name is that of this directory."""
    if name and name_option and name != name_option:
        message = f"two different names given: {name} and {name_option}"
        raise Failure(ExitCode.USAGE, "InvalidInput", message)
    name = name or name_option or invocation.project_option
    if not name:
        name = suggest_name(Path.cwd().name, names.MAX_PROJECT_LENGTH, "a-z")
        if not name:
            raise Failure(ExitCode.USAGE, "InvalidInput", "specify the project's name: dbranch init NAME")
    check_project_name(name)
    body = manifest(names.PROJECT_KIND, invocation.namespace, name, project_spec(**spec_options))
    if dry_run == "client":
        click.echo(format_objects(body, "json" if invocation.output == "json" else "yaml"))
        return
    if invocation.store.find(names.PROJECTS, name) is not None:
        raise Failure(
            ExitCode.REFUSED,
            "AlreadyExists",
            f"project {name} already exists in namespace {invocation.namespace};"
            f" make it the current one with 'dbranch set-default {name}'",
        )
    live = invocation.store.create(body)
    set_current_project(invocation.kube_context.name, invocation.namespace, name)
    invocation.print_note(f"creating project {name} in namespace {invocation.namespace}, now the current one")
    result = f"project {name} created"
    if not no_wait:
        live = wait_for(
            invocation.store,
            live,
            has_condition(Condition.READY),
            f"project {name} is Ready",
            timeout,
            quiet=not invocation.human_output,
        )
        result = f"project {name} is Ready; connect with 'dbranch psql' or 'dbranch url'"
    invocation.print_result(result, live)


def project_spec(
    *,
    image: str | None = None,
    size: str | None = None,
    port: int | None = None,
    parameters: tuple[str, ...] = (),
    password_secret: str | None = None,
    user: str | None = None,
    database: str | None = None,
    run_as_user: int | None = None,
    on_switch: str | None = None,
    selectors: tuple[str, ...] = (),
    adopt: str | None = None,
) -> dict[str, Any]:
    """Return the spec for the options of `init`; fields that were not given get the API server's defaults."""
    secret_name, _, secret_key = (password_secret or "").partition(":")
    postgres: dict[str, Any] = {
        "image": image,
        "runAsUser": run_as_user,
        "user": user,
        "database": database,
        "parameters": _parse_pairs("--parameter", parameters),
        "passwordSecret": {"name": secret_name, **({"key": secret_key} if secret_key else {})}
        if secret_name
        else None,
    }
    parts: dict[str, dict[str, Any]] = {
        "postgres": postgres,
        "storage": {"size": size, "nodeSelector": _parse_pairs("--node-selector", selectors), "adopt": adopt},
        "proxy": {"port": port, "onSwitch": on_switch},
    }
    non_empty = {
        part: {key: value for key, value in fields.items() if value not in (None, {})}
        for part, fields in parts.items()
    }
    return {part: fields for part, fields in non_empty.items() if fields}


def _parse_pairs(option: str, entries: tuple[str, ...]) -> dict[str, str]:
    """Return the values of a repeated option KEY=VALUE. Raise Failure if one is not of this form."""
    pairs = {}
    for entry in entries:
        key, separator, value = entry.partition("=")
        if not separator or not key:
            raise Failure(ExitCode.USAGE, "InvalidInput", f"invalid {option} {entry}: use KEY=VALUE")
        pairs[key] = value
    return pairs


@click.command(cls=Command)
@click.pass_obj
def status(invocation: Invocation) -> None:
    """Show the project's status. Below it, each branch that is neither Ready nor stopped."""
    project = invocation.project()
    branches = invocation.store.branches(invocation.project_name)
    wide = invocation.output == "wide"
    text = status_block(project, branches, invocation.kube_context.name, wide)
    invocation.print_result(text, project)


@click.command(cls=Command)
@click.option("--deleted", is_flag=True, help="Those that 'undelete-project' can bring back.")
@click.pass_obj
def projects(invocation: Invocation, deleted: bool) -> None:
    """List the namespace's projects. The current one has an asterisk."""
    if deleted:
        list_deleted_projects(invocation)
        return
    listed = invocation.store.projects()
    current = current_project(invocation.kube_context.name, invocation.namespace)
    if not listed and invocation.human_output:
        invocation.print_note(
            f"no project in namespace {invocation.namespace}; create one with 'dbranch init NAME'"
        )
        return
    invocation.print_result(project_table(listed, current, invocation.output == "wide"), listed)


@click.command("set-default", cls=Command)
@click.argument("name", type=ProjectName())
@click.pass_obj
def set_default(invocation: Invocation, name: str) -> None:
    """Set the current project. It is kept for each context and namespace."""
    body = invocation.store.project(check_project_name(name))
    context, namespace = invocation.kube_context.name, invocation.namespace
    set_current_project(context, namespace, name)
    text = f"project {name} is the current one (context {context}, namespace {namespace})"
    invocation.print_result(text, body)


@click.command(cls=Command)
@click.pass_obj
def current(invocation: Invocation) -> None:
    """Print the current project and its active branch.

    As shop/feature-x, for prompts and scripts. What named the project stands on standard error.
    """
    project = invocation.project()
    invocation.print_note(
        f"project {project['metadata']['name']} of namespace {invocation.namespace},"
        f" context {invocation.kube_context.name}; named by {invocation.project_named_by}"
    )
    invocation.print_result(f"{project['metadata']['name']}/{active_branch_of(project)}", project)


@click.command("delete-project", cls=Command)
@click.argument("name", type=ProjectName(), required=False)
@yes_option()
@no_wait_option()
@timeout_option("5m")
@click.pass_obj
def delete_project(
    invocation: Invocation, name: str | None, yes: bool, no_wait: bool, timeout: float
) -> None:
    """Delete a project with all its branches. It is kept for its spec.undo.keep: see 'undelete-project'."""
    body = invocation.store.project(check_project_name(name)) if name else invocation.project()
    name = body["metadata"]["name"]
    branches = invocation.store.branches(name)
    retained = body["spec"].get("deletionPolicy") == DeletionPolicy.RETAIN
    policy = parse_project(body).undo
    kept = policy.ttl if policy.keeps and not retained else None
    listed = list_names([branch_name_of(branch) for branch in branches])
    invocation.confirm(
        f"Delete project {name} of namespace {invocation.namespace} with {format_count(len(branches), 'branch')}"
        + (f" ({listed})" if listed else "")
        + _question_about_data(retained, kept),
        yes,
    )
    invocation.store.delete(body)
    if not no_wait:
        wait_deleted(invocation.store, body, f"project {name}", timeout, quiet=not invocation.human_output)
    if current_project(invocation.kube_context.name, invocation.namespace) == name:
        set_current_project(invocation.kube_context.name, invocation.namespace, None)
    if retained:
        hint = (
            f"; its pool is retained, adopt it with 'dbranch init {name} --adopt {body['metadata']['uid']}'"
        )
    elif kept and (no_wait or is_kept(invocation, body)):
        hint = f"; it is kept for {kept}: dbranch undelete-project {name}"
    else:
        # As asked for, or because it never had a database, or its node's agent is of an earlier release.
        hint = ", with all data"
    invocation.print_result(f"project {name} {'is being deleted' if no_wait else 'deleted'}{hint}", body)


def _question_about_data(retained: bool, kept: str | None) -> str:
    if retained:
        return "? Its pool stays on the node (deletionPolicy Retain)."
    return f"? It is kept for {kept}: 'dbranch undelete-project'." if kept else " and all data?"


@click.group(cls=CommandGroup)
def project() -> None:
    """List, create, choose and delete projects."""


for _name, _command in {
    "list": projects,
    "create": init,
    "show": status,
    "current": current,
    "set-default": set_default,
    "delete": delete_project,
}.items():
    project.add_command(_command, _name)
