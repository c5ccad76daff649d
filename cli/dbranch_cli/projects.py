"""The project verbs: init, status, projects, set-default, delete-project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dbranch.api import names
from dbranch.api.conditions import Condition
from dbranch.api.enums import DeletionPolicy, OnSwitch
from dbranch_cli.config import current_project, set_current_project
from dbranch_cli.failure import REFUSED, USAGE, Failure
from dbranch_cli.invocation import Invocation, serialize
from dbranch_cli.naming import check_project_name, suggest_name
from dbranch_cli.objects import branch_name_of, manifest
from dbranch_cli.options import (
    Command,
    ProjectName,
    dry_run_option,
    no_wait_option,
    timeout_option,
    yes_option,
)
from dbranch_cli.view import project_table, status_block
from dbranch_cli.waiting import has_condition, wait_deleted, wait_for


@click.command(cls=Command)
@click.argument("name", required=False)
@click.option("--name", "name_option", metavar="NAME", help="The same as the argument.")
@click.option("--image", metavar="IMAGE", help="Any image with initdb and postgres; default: postgres:17.")
@click.option("--size", metavar="QUANTITY", help="The pool's size for all branches; default: 10Gi.")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="The port of the connection string; default: 5432."
)
@click.option(
    "--parameter", "parameters", multiple=True, metavar="KEY=VALUE", help="Of postgresql.conf; repeatable."
)
@click.option("--password-secret", metavar="NAME[:KEY]", help="The owner's password; default: one is drawn.")
@click.option("--user", metavar="NAME", help="The owner; default: postgres.")
@click.option("--database", metavar="NAME", help="The database; default: dbranch.")
@click.option("--run-as-user", type=int, metavar="UID", help="The image's Postgres user; default: 999.")
@click.option(
    "--on-switch",
    type=click.Choice([choice.value for choice in OnSwitch]),
    help="What happens to open sessions at a switch; default: Terminate.",
)
@click.option(
    "--adopt", metavar="UID", help="Take over the pool of a deleted project (deletionPolicy Retain)."
)
@click.option(
    "--node-selector", "selectors", multiple=True, metavar="LABEL=VALUE", help="Nodes that may hold it."
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
    **given: Any,
) -> None:
    """Make a project (default name: this directory's); it becomes the current one."""
    if name and name_option and name != name_option:
        raise Failure(USAGE, "InvalidInput", f"two names were given: {name} and {name_option}")
    name = name or name_option or invocation.project_option
    if not name:
        name = suggest_name(Path.cwd().name, names.MAX_PROJECT_LENGTH, "a-z")
        if not name:
            raise Failure(USAGE, "InvalidInput", "name the project: dbranch init NAME")
    check_project_name(name)
    body = manifest(names.PROJECT_KIND, invocation.namespace, name, project_spec(**given))
    if dry_run == "client":
        click.echo(serialize(body, "json" if invocation.output == "json" else "yaml"))
        return
    if invocation.store.find(names.PROJECTS, name) is not None:
        raise Failure(
            REFUSED,
            "AlreadyExists",
            f"project {name} is there already in namespace {scope.namespace};"
            f" make it the current one: dbranch set-default {name}",
        )
    live = invocation.store.apply(body)
    set_current_project(invocation.login.context, invocation.namespace, name)
    invocation.say(f"project {name} in namespace {scope.namespace}, now the current one")
    done = f"project {name} made"
    if not no_wait:
        live = wait_for(
            invocation.store,
            live,
            has_condition(Condition.READY),
            f"project {name} is Ready",
            timeout,
            quiet=not invocation.for_people,
        )
        done = f"project {name} is Ready; connect: dbranch psql, or dbranch url"
    invocation.result(done, live)


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
    """The spec that `init`'s options say; what was not given is left to the API server's defaults."""
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
    given = {
        part: {key: value for key, value in fields.items() if value not in (None, {})}
        for part, fields in parts.items()
    }
    return {part: fields for part, fields in given.items() if fields}


def _parse_pairs(option: str, given: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for entry in given:
        key, mark, value = entry.partition("=")
        if not mark or not key:
            raise Failure(USAGE, "InvalidInput", f"{option} {entry}: write KEY=VALUE")
        pairs[key] = value
    return pairs


@click.command(cls=Command)
@click.pass_obj
def status(invocation: Invocation) -> None:
    """The project, and below it each branch that is not as it should be."""
    project = invocation.project()
    found = invocation.store.branches(invocation.project_name)
    wide = invocation.output == "wide"
    invocation.result(status_block(project, found, invocation.login.context, wide), project)


@click.command(cls=Command)
@click.pass_obj
def projects(invocation: Invocation) -> None:
    """All projects of the namespace; the current one has a star."""
    found = invocation.store.projects()
    current_condition = current_project(invocation.login.context, invocation.namespace)
    if not found and invocation.for_people:
        invocation.say(f"there is no project in namespace {scope.namespace}; make one: dbranch init NAME")
        return
    invocation.result(project_table(found, current_condition, invocation.output == "wide"), found)


@click.command("set-default", cls=Command)
@click.argument("name", type=ProjectName())
@click.pass_obj
def set_default(invocation: Invocation, name: str) -> None:
    """Make a project the current one for this context and namespace."""
    body = invocation.store.project(check_project_name(name))
    set_current_project(invocation.login.context, invocation.namespace, name)
    invocation.result(
        f"project {name} is the current one (context {scope.login.context}, namespace {scope.namespace})",
        body,
    )


@click.command("delete-project", cls=Command)
@click.argument("name", type=ProjectName(), required=False)
@yes_option()
@no_wait_option()
@timeout_option("5m")
@click.pass_obj
def delete_project(invocation: Invocation, name: str | None, yes: bool, no_wait: bool, timeout: float) -> None:
    """Delete a project with all its branches and their data."""
    body = invocation.store.project(check_project_name(name)) if name else invocation.project()
    name = body["metadata"]["name"]
    found = invocation.store.branches(name)
    kept = body["spec"].get("deletionPolicy") == DeletionPolicy.RETAIN
    listed = ", ".join(branch_name_of(b) for b in found[:10]) + (", …" if len(found) > 10 else "")
    invocation.confirm(
        f"Delete project {name} of namespace {scope.namespace} with {counted(len(found), 'branch')}"
        + (f" ({listed})" if listed else "")
        + ("? Its image file stays on the node (deletionPolicy Retain)." if kept else " and all data?"),
        yes,
    )
    invocation.store.delete(body)
    if not no_wait:
        wait_deleted(invocation.store, body, f"project {name} is gone", timeout, quiet=not invocation.for_people)
    if current_project(invocation.login.context, invocation.namespace) == name:
        set_current_project(invocation.login.context, invocation.namespace, None)
    stays = f"; its pool stays: dbranch init {name} --adopt {body['metadata']['uid']}" if kept else ""
    invocation.result(f"project {name} {'is being deleted' if no_wait else 'deleted'}{stays}", body)
