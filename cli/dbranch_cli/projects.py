"""The project verbs: init, status, projects, set-default, delete-project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dbranch.api import names
from dbranch.api.conditions import Condition
from dbranch_cli.failure import REFUSED, USAGE, Failure
from dbranch_cli.objects import branch_of, manifest
from dbranch_cli.options import (
    ProjectName,
    Verb,
    dry_run_option,
    no_wait_option,
    timeout_option,
    yes_option,
)
from dbranch_cli.scope import Scope, written
from dbranch_cli.settings import current_project, set_current_project
from dbranch_cli.view import counted, project_table, status_block
from dbranch_cli.waiting import holds, wait_for, wait_gone
from dbranch_cli.words import check_project, suggestion


@click.command(cls=Verb)
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
    type=click.Choice(["Terminate", "Drain", "Keep"]),
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
    scope: Scope,
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
    name = name or name_option or scope.project_option
    if not name:
        name = suggestion(Path.cwd().name, names.MAX_PROJECT, "a-z")
        if not name:
            raise Failure(USAGE, "InvalidInput", "name the project: dbranch init NAME")
    check_project(name)
    body = manifest(names.PROJECT_KIND, scope.namespace, name, project_spec(**given))
    if dry_run == "client":
        click.echo(written(body, "json" if scope.output == "json" else "yaml"))
        return
    if scope.store.find(names.PROJECTS, name) is not None:
        raise Failure(
            REFUSED,
            "AlreadyExists",
            f"project {name} is there already in namespace {scope.namespace};"
            f" make it the current one: dbranch set-default {name}",
        )
    live = scope.store.apply(body)
    set_current_project(scope.login.context, scope.namespace, name)
    scope.say(f"project {name} in namespace {scope.namespace}, now the current one")
    done = f"project {name} made"
    if not no_wait:
        live = wait_for(
            scope.store,
            live,
            holds(Condition.READY),
            f"project {name} is Ready",
            timeout,
            quiet=not scope.for_people,
        )
        done = f"project {name} is Ready; connect: dbranch psql, or dbranch url"
    scope.result(done, live)


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
        "parameters": _pairs("--parameter", parameters),
        "passwordSecret": {"name": secret_name, **({"key": secret_key} if secret_key else {})}
        if secret_name
        else None,
    }
    parts: dict[str, dict[str, Any]] = {
        "postgres": postgres,
        "storage": {"size": size, "nodeSelector": _pairs("--node-selector", selectors), "adopt": adopt},
        "proxy": {"port": port, "onSwitch": on_switch},
    }
    given = {
        part: {key: value for key, value in fields.items() if value not in (None, {})}
        for part, fields in parts.items()
    }
    return {part: fields for part, fields in given.items() if fields}


def _pairs(option: str, given: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for entry in given:
        key, mark, value = entry.partition("=")
        if not mark or not key:
            raise Failure(USAGE, "InvalidInput", f"{option} {entry}: write KEY=VALUE")
        pairs[key] = value
    return pairs


@click.command(cls=Verb)
@click.pass_obj
def status(scope: Scope) -> None:
    """The project, and below it each branch that is not as it should be."""
    project = scope.project()
    found = scope.store.branches(scope.project_name)
    wide = scope.output == "wide"
    scope.result(status_block(project, found, scope.login.context, wide), project)


@click.command(cls=Verb)
@click.pass_obj
def projects(scope: Scope) -> None:
    """All projects of the namespace; the current one has a star."""
    found = scope.store.projects()
    current = current_project(scope.login.context, scope.namespace)
    if not found and scope.for_people:
        scope.say(f"there is no project in namespace {scope.namespace}; make one: dbranch init NAME")
        return
    scope.result(project_table(found, current, scope.output == "wide"), found)


@click.command("set-default", cls=Verb)
@click.argument("name", type=ProjectName())
@click.pass_obj
def set_default(scope: Scope, name: str) -> None:
    """Make a project the current one for this context and namespace."""
    body = scope.store.project(check_project(name))
    set_current_project(scope.login.context, scope.namespace, name)
    scope.result(
        f"project {name} is the current one (context {scope.login.context}, namespace {scope.namespace})",
        body,
    )


@click.command("delete-project", cls=Verb)
@click.argument("name", type=ProjectName(), required=False)
@yes_option()
@no_wait_option()
@timeout_option("5m")
@click.pass_obj
def delete_project(scope: Scope, name: str | None, yes: bool, no_wait: bool, timeout: float) -> None:
    """Delete a project with all its branches and their data."""
    body = scope.store.project(check_project(name)) if name else scope.project()
    name = body["metadata"]["name"]
    found = scope.store.branches(name)
    kept = body["spec"].get("deletionPolicy") == "Retain"
    listed = ", ".join(branch_of(b) for b in found[:10]) + (", …" if len(found) > 10 else "")
    scope.confirm(
        f"Delete project {name} of namespace {scope.namespace} with {counted(len(found), 'branch')}"
        + (f" ({listed})" if listed else "")
        + ("? Its image file stays on the node (deletionPolicy Retain)." if kept else " and all data?"),
        yes,
    )
    scope.store.delete(body)
    if not no_wait:
        wait_gone(scope.store, body, f"project {name} is gone", timeout, quiet=not scope.for_people)
    if current_project(scope.login.context, scope.namespace) == name:
        set_current_project(scope.login.context, scope.namespace, None)
    stays = f"; its pool stays: dbranch init {name} --adopt {body['metadata']['uid']}" if kept else ""
    scope.result(f"project {name} {'is being deleted' if no_wait else 'deleted'}{stays}", body)
