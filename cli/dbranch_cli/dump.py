"""`dbranch dump`: write a branch's data into a file that `dbranch load` reads."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from dbranch.api.quantity import format_bytes
from dbranch_cli.connect import require_client, run_client
from dbranch_cli.dump_format import FORMATS, DumpFormat, choose_program, dump_format_of, major_of
from dbranch_cli.dump_writer import DumpWriter
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.invocation import Invocation
from dbranch_cli.options import BranchName, Command, passthrough_arguments

# Where Debian's packages put the clients of each major.
_DEBIAN: Final = "/usr/lib/postgresql"
_OWN_OPTIONS: Final = ("-f", "--file", "-F", "--format")


@click.command(cls=Command, passthrough=True, epilog="Arguments after -- are passed to pg_dump.")
@click.argument("branch", type=BranchName())
@click.argument("file", metavar="FILE|-", type=click.Path(allow_dash=True))
@click.option(
    "-F",
    "--format",
    "chosen",
    type=click.Choice(FORMATS),
    help="Format; default: by FILE's suffix, else custom.",
)
@click.option("--schema-only", is_flag=True, help="Only the definitions, no rows.")
@click.option("--data-only", is_flag=True, help="Only the rows, no definitions.")
@click.option("-t", "--table", "tables", multiple=True, metavar="PATTERN", help="Only these tables.")
@click.option("--schema", "schemas", multiple=True, metavar="PATTERN", help="Only these schemas.")
@click.option("--no-owner", is_flag=True, help="Without the owners of the objects.")
@click.pass_context
def dump(context: click.Context, /, branch: str, file: str, chosen: str | None, **options: Any) -> None:
    """Dump a branch into a file, or to standard output (-).

    The local pg_dump writes it, as the superuser, through its own port-forward. The format follows the suffix: .sql
    plain, .tar tar, else custom; a name that ends with / is a directory. With .gz or .zst behind that it is
    compressed. The file appears under its name when it is whole.
    """
    invocation: Invocation = context.obj
    if options["schema_only"] and options["data_only"]:
        message = "--schema-only and --data-only exclude each other"
        raise Failure(ExitCode.USAGE, "InvalidInput", message)
    arguments = [*_pg_dump_options(**options), *passthrough_arguments(context)]
    refused = next((a for a in arguments if a.startswith(_OWN_OPTIONS)), None)
    if refused:
        message = f"{refused} after -- is not passed on: name the file and the format (-F) before it"
        raise Failure(ExitCode.USAGE, "InvalidInput", message)
    dump_format = dump_format_of(file, chosen)
    _check_target(file, dump_format)
    program = find_program(invocation.branch(branch))
    started = time.monotonic()
    with DumpWriter(invocation, file, dump_format) as writer:
        code = run_client(
            invocation,
            program,
            [f"--format={dump_format.name}", *writer.arguments, *arguments],
            branch,
            stdout=writer.stdout,
            superuser=True,
        )
        if code:
            kept = "" if writer.is_direct else f"; nothing was written to {file}"
            message = f"cannot dump branch {branch}: pg_dump failed with exit code {code}{kept}"
            raise Failure(ExitCode.OTHER, "DumpFailed", message)
        size = writer.finish()
    where = "standard output" if file == "-" else file
    written = f"{dump_format}" if size is None else f"{dump_format}, {format_bytes(size)}"
    seconds = time.monotonic() - started
    invocation.print_note(f"branch {branch} dumped into {where} ({written}) in {seconds:.1f} s")


def _pg_dump_options(
    schema_only: bool, data_only: bool, tables: Sequence[str], schemas: Sequence[str], no_owner: bool
) -> list[str]:
    flags = {"--schema-only": schema_only, "--data-only": data_only, "--no-owner": no_owner}
    return [
        *(flag for flag, given in flags.items() if given),
        *(f"--table={pattern}" for pattern in tables),
        *(f"--schema={pattern}" for pattern in schemas),
    ]


def _check_target(file: str, dump_format: DumpFormat) -> None:
    """Raise Failure before the dump if the target cannot take it."""
    if file == "-":
        if sys.stdout.isatty() and not dump_format.is_text:
            message = f"a dump ({dump_format}) is not written to a terminal; name a file"
            raise Failure(ExitCode.USAGE, "InvalidInput", message)
        return
    path = Path(file)
    if not path.parent.is_dir():
        raise Failure(ExitCode.NOT_FOUND, "NotFound", f"directory {path.parent} does not exist")
    if dump_format.name == "directory":
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            message = f"{file} exists and is not an empty directory; name another one"
            raise Failure(ExitCode.REFUSED, "AlreadyExists", message)
    elif path.is_dir():
        message = f"{file} is a directory; name a file in it, or use -F directory"
        raise Failure(ExitCode.USAGE, "InvalidInput", message)


def find_program(branch: dict[str, Any]) -> str:
    """Return the path of a pg_dump for the branch's major version. Raise Failure if there is none."""
    require_client("pg_dump")
    node = (branch.get("status") or {}).get("node") or {}
    server = major_of(str(node.get("postgresVersion") or ""))
    first = shutil.which("pg_dump")
    candidates = ([first] if first else []) + sorted(map(str, Path(_DEBIAN).glob("*/bin/pg_dump")))
    available = [(program, major) for program in candidates if (major := _major_of_program(program))]
    program = choose_program(available, server)
    if program is None:
        newest = max((major for _, major in available), default="unknown")
        raise Failure(
            ExitCode.OTHER,
            "ClientTooOld",
            f"pg_dump here is of Postgres {newest}, older than the branch's {server}, which it refuses to dump;"
            f" install the client of {server} (Debian, Ubuntu: postgresql-client-{server} from apt.postgresql.org)",
        )
    return program


def _major_of_program(program: str) -> int | None:
    try:
        completed = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return major_of(completed.stdout)
