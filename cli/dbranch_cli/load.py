"""`dbranch load`: look at a dump, say what it is and what it needs, and load it, whole or not at all."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

from dbranch_cli.connect import run_client
from dbranch_cli.dump_facts import DumpFacts
from dbranch_cli.dump_roles import RoleRewriter
from dbranch_cli.dump_script import UnsafeScript
from dbranch_cli.dump_stream import DamagedDump
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.formatting import escape_controls, format_count
from dbranch_cli.invocation import Invocation
from dbranch_cli.load_look import DumpFile
from dbranch_cli.load_role import LoadRole
from dbranch_cli.load_run import Loader
from dbranch_cli.load_server import ServerFacts, observe_server
from dbranch_cli.load_target import new_branch
from dbranch_cli.objects import active_branch_of
from dbranch_cli.options import BranchName, Command, passthrough_arguments, timeout_option, yes_option


@dataclass(frozen=True)
class LoadOptions:
    """How a dump is to be loaded; `target`: the branch's name in messages."""

    target: str
    atomic: bool
    create_roles: bool
    no_owner: bool
    role_map: dict[str, str]
    clean: bool

    def keeps_roles(self, facts: DumpFacts) -> bool:
        """Return whether the dump's owners and grants are loaded: those of an archive only if asked for."""
        return not self.no_owner and (facts.dump_format == "SQL" or self.create_roles or bool(self.role_map))


class _RoleMapping(click.ParamType[Any]):
    name = "role map"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        old, equals, new = str(value).partition("=")
        if not (old and equals and new):
            self.fail(f'"{value}" is not OLD=NEW', param, ctx)
        return old, new


@click.command(
    cls=Command,
    passthrough=True,
    options_metavar="[OPTIONS]",
    epilog="""\b
Arguments after -- are passed to psql or pg_restore.

\b
Examples:
  dbranch load shop.sql.gz
  dbranch load shop.dump feature-x --create-roles
  dbranch load shop.dump main --into-new loaded --no-owner
  pg_dump shop | dbranch load - --clean --yes
  dbranch load shop.dump --no-transaction -- --jobs 4""",
)
@click.argument("file", metavar="FILE|-")
@click.argument("branch", type=BranchName(), required=False)
@click.option("--dry-run", is_flag=True, help="Only look at the dump, and say what would be done.")
@click.option("--create-roles", is_flag=True, help="Create the roles that are missing, without login.")
@click.option("--no-owner", is_flag=True, help="The application's role owns everything.")
@click.option(
    "--role-map",
    type=_RoleMapping(),
    multiple=True,
    metavar="OLD=NEW",
    help="Name another role in place of one of the dump; repeatable.",
)
@click.option("--clean", is_flag=True, help="Drop what the database holds before.")
@yes_option()
@click.option(
    "--into-new",
    metavar="NAME",
    help="Create a branch from BRANCH and load into it; it is removed if that fails.",
)
@click.option(
    "--no-transaction",
    is_flag=True,
    help="For commands that cannot run in one transaction, and for --jobs.",
)
@timeout_option("2m")
@click.pass_context
def load(
    context: click.Context,
    file: str,
    branch: str | None,
    dry_run: bool,
    create_roles: bool,
    no_owner: bool,
    role_map: tuple[tuple[str, str], ...],
    clean: bool,
    yes: bool,
    into_new: str | None,
    no_transaction: bool,
    timeout: float,
) -> None:
    """Load a dump into a branch (default: the active one).

    The format is detected: SQL, pg_dump's custom, directory and tar format;
    unpacked are gzip, zstd, xz, bzip2 and UTF-16. The superuser loads it in one
    transaction; what the dump gives no owner belongs to the application's role.
    """
    invocation: Invocation = context.obj
    source = branch or active_branch_of(invocation.project())
    options = LoadOptions(
        into_new or source, not no_transaction, create_roles, no_owner, dict(role_map), clean
    )
    dump = DumpFile(file, quiet=not invocation.human_output)
    with _named_damage(dump.display_name, "nothing was loaded"):
        facts = dump.inspect(options.atomic)
    for line in facts.lines():
        invocation.print_note(f"{dump.display_name}: {line}")
    server = observe_server(
        lambda arguments: run_client(invocation, "psql", arguments, branch, superuser=True)
    )
    missing = _check(invocation, dump.display_name, facts, server, options)
    if dry_run:
        print_dry_run(invocation, dump.display_name, facts, server, options, missing)
        return
    if clean and server.holds:
        question = f"Drop what the database of branch {options.target} holds ({server.holds})?"
        invocation.confirm(question, yes or bool(into_new))
    role = load_role(invocation)
    rewriter = _rewriter(server, options, role)
    with new_branch(invocation, into_new, source, timeout) as created:
        loader = Loader(
            invocation,
            created or branch,
            role,
            rewriter,
            list(passthrough_arguments(context)),
            options.atomic,
            options.keeps_roles(facts),
            clean,
        )
        _run(loader, dump, facts, options, missing)
        if rewriter.created:
            invocation.print_note(f"roles created, without login: {', '.join(rewriter.created)}")
        if rewriter.left_out:
            grants = format_count(rewriter.left_out, "grant")
            invocation.print_note(f"left out, since their roles do not exist: {grants}")
    invocation.print_note(f"{dump.display_name} loaded into branch {options.target}")


def load_role(invocation: Invocation) -> LoadRole | None:
    """Return a new role that loads for the application; None if the application's role is the superuser itself."""
    project = invocation.project_name
    owner = invocation.store.secret(project)["username"]
    superuser = invocation.store.superuser_secret(project)["username"]
    return None if owner == superuser else LoadRole(f"dbranch_load_{secrets.token_hex(4)}", owner, superuser)


def _rewriter(server: ServerFacts, options: LoadOptions, role: LoadRole | None) -> RoleRewriter:
    return RoleRewriter(
        server.roles,
        {server.user, *([role.owner, role.superuser] if role else [])},
        server.databases,
        options.role_map,
        options.no_owner,
        options.create_roles,
        server.major,
    )


def _check(
    invocation: Invocation, name: str, facts: DumpFacts, server: ServerFacts, options: LoadOptions
) -> list[str]:
    """Return the roles that are missing. Raise Failure if the dump needs what the branch does not have."""
    if facts.server_major > server.major:
        invocation.print_note(
            f"{name} is of Postgres {facts.server_version}, newer than the branch's {server.version}:"
            " it may hold what that does not know"
        )
    if extensions := [name for name in facts.extensions if name not in server.extensions]:
        message = (
            f"{name} needs extensions that the image of branch {options.target} does not have:"
            f" {', '.join(extensions)}; set spec.postgres.image to one that has them; nothing was loaded"
        )
        raise Failure(ExitCode.REFUSED, "MissingExtensions", message)
    missing = facts.missing_roles(server.roles, options.role_map, not options.keeps_roles(facts))
    if missing and not options.create_roles:
        message = (
            f"{name} names roles that do not exist in branch {options.target}: {', '.join(missing)};"
            " pass --create-roles, --role-map OLD=NEW or --no-owner; nothing was loaded"
        )
        raise Failure(ExitCode.REFUSED, "MissingRoles", message)
    return missing


def _run(
    loader: Loader, dump: DumpFile, facts: DumpFacts, options: LoadOptions, missing: Sequence[str]
) -> None:
    """Load the dump. Raise Failure if a part of it could not be loaded."""
    # pg_restore loads an archive itself where it need not rewrite anything; what it opens itself it can seek in,
    # which --jobs needs.
    direct = not options.atomic and not options.role_map and facts.dump_format != "SQL"
    path = str(dump.path.absolute()) if dump.path else None
    if direct and missing:
        loader.create_roles(missing)
    state = "nothing was loaded" if options.atomic else "what stands before that may be loaded"
    with _named_damage(dump.display_name, state):
        if dump.is_directory or (direct and dump.is_file and not facts.packing):
            code = loader.load_archive(path, None, direct)
        else:
            with dump.chunks("loading") as (_, chunks):
                if facts.dump_format == "SQL":
                    code = loader.load_script(chunks)
                else:
                    code = loader.load_archive(None, chunks, direct)
    if code:
        program = "pg_restore" if direct else "psql"
        message = (
            f"cannot load into branch {options.target}: {program} failed with exit code {code}; see its messages"
            f" above; {'nothing was loaded' if options.atomic else 'a part of it may be loaded'}"
        )
        raise Failure(ExitCode.OTHER, "LoadFailed", message)


@contextmanager
def _named_damage(name: str, state: str) -> Iterator[None]:
    """Turn what is wrong with the dump into a Failure; `state` says what has become of the load."""
    try:
        yield
    except DamagedDump as error:
        exit_code = ExitCode.REFUSED if isinstance(error, UnsafeScript) else ExitCode.OTHER
        raise Failure(exit_code, type(error).__name__, f"cannot load {name}: {error}; {state}") from error


def print_dry_run(
    invocation: Invocation,
    name: str,
    facts: DumpFacts,
    server: ServerFacts,
    options: LoadOptions,
    missing: Sequence[str],
) -> None:
    """Print what a load would do; for programs as a JSON object."""
    if not invocation.human_output:
        plan = {**facts.as_dict(), "missingRoles": list(missing), "serverMajor": server.major}
        click.echo(json.dumps({**plan, "branch": options.target, "transaction": options.atomic}, indent=2))
        return
    click.echo(f"{name} would be loaded into branch {options.target} (Postgres {server.version})")
    if missing:
        click.echo(escape_controls(f"roles would be created, without login: {', '.join(missing)}"))
    if options.clean and server.holds:
        click.echo(f"dropped before: {server.holds}")
    if not facts.complete:
        click.echo(
            "only its beginning was looked at, since it is no SQL file or archive that can be read twice"
        )
