"""`dbranch load`: load a dump into a branch. The dump's format is detected from its first bytes."""

from __future__ import annotations

import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import click

from dbranch.api.quantity import format_bytes
from dbranch_cli.connect import require_client, run_client, write_stdin
from dbranch_cli.dump_script import Script, UnsafeScript
from dbranch_cli.dump_stream import DamagedDump, Dump
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.formatting import format_count
from dbranch_cli.invocation import Invocation
from dbranch_cli.load_role import LoadRole
from dbranch_cli.objects import active_branch_of
from dbranch_cli.options import BranchName, Command, passthrough_arguments

_CHUNK_BYTES = 1 << 18
_PROGRESS_INTERVAL_SECONDS = 0.5
# The dump's roles may not exist here: whoever loads it owns everything.
_FOR_ANY_ROLE = ("--no-owner", "--no-privileges")
_PSQL = ("-X", "-q", "-v", "ON_ERROR_STOP=1")


@click.command(cls=Command, passthrough=True, epilog="Arguments after -- are passed to psql or pg_restore.")
@click.argument("file", metavar="FILE|-")
@click.argument("branch", type=BranchName(), required=False)
@click.option(
    "--no-transaction",
    is_flag=True,
    help="Do not load in one transaction, for dumps with commands that cannot run in one.",
)
@click.pass_context
def load(context: click.Context, file: str, branch: str | None, no_transaction: bool) -> None:
    """Load a dump into a branch (default: the active one).

    Formats: SQL, pg_dump's custom, directory and tar format; unpacked are gzip, zstd, xz, bzip2 and UTF-16. The
    format is detected. The superuser loads it in one transaction; what the dump gives no owner belongs to the
    application's role.
    """
    invocation: Invocation = context.obj
    target = branch or active_branch_of(invocation.project())
    arguments, role = list(passthrough_arguments(context)), load_role(invocation)
    if file != "-" and Path(file).is_dir():
        if not Path(file, "toc.dat").is_file():
            message = f"directory {file} is not a dump of pg_dump: it has no toc.dat"
            raise Failure(ExitCode.USAGE, "InvalidInput", message)
        arguments.append(str(Path(file).absolute()))
        code = _load_archive(invocation, branch, arguments, None, role, no_transaction)
        _print_outcome(invocation, code, "pg_restore", file, target)
        return
    with ExitStack() as stack:
        source: IO[bytes] = stack.enter_context(_open_file(file)) if file != "-" else sys.stdin.buffer
        try:
            dump = Dump(source)
            if not dump.prefix:
                message = f"{_display_name(file)} is empty; nothing was loaded"
                raise Failure(ExitCode.USAGE, "EmptyDump", message)
            if dump.packing:
                invocation.print_note(f"{_display_name(file)} is {dump.packing}")
            program = program_for(dump.prefix)
            chunks = _read_chunks(dump, invocation)
            if program == "psql":
                code = _load_script(invocation, branch, arguments, chunks, role, no_transaction)
            elif no_transaction and file != "-" and Path(file).is_file() and not dump.packing:
                # In an archive that it opens itself pg_restore can seek, which --jobs needs.
                arguments = [*arguments, str(Path(file).absolute())]
                code = _load_archive(invocation, branch, arguments, None, role, no_transaction)
            else:
                code = _load_archive(invocation, branch, arguments, chunks, role, no_transaction)
        except DamagedDump as error:
            loaded = "what stands before that may be loaded" if no_transaction else "nothing was loaded"
            message = f"cannot load {_display_name(file)}: {error}; {loaded}"
            exit_code = ExitCode.REFUSED if isinstance(error, UnsafeScript) else ExitCode.OTHER
            raise Failure(exit_code, type(error).__name__, message) from error
    _print_outcome(invocation, code, program, file, target)


def load_role(invocation: Invocation) -> LoadRole | None:
    """Return a new role that loads for the application; None if the application's role is the superuser itself."""
    project = invocation.project_name
    owner = invocation.store.secret(project)["username"]
    superuser = invocation.store.superuser_secret(project)["username"]
    return None if owner == superuser else LoadRole(f"dbranch_load_{secrets.token_hex(4)}", owner, superuser)


def _load_script(
    invocation: Invocation,
    branch: str | None,
    arguments: list[str],
    chunks: Iterator[bytes],
    role: LoadRole | None,
    no_transaction: bool,
) -> int:
    script = Script(atomic=not no_transaction)
    arguments = [*psql_arguments(role, not no_transaction), *arguments]
    passed = script.pass_on(chunks)
    code = run_client(invocation, "psql", arguments, branch, passed, quiet=True, superuser=True)
    if script.left_out and not code:
        commands = format_count(script.left_out, "command")
        invocation.print_note(
            f"left out, since it is loaded in one transaction: {commands} that begin or end one"
        )
    return code


def _load_archive(
    invocation: Invocation,
    branch: str | None,
    arguments: list[str],
    chunks: Iterator[bytes] | None,
    role: LoadRole | None,
    no_transaction: bool,
) -> int:
    """Load a dump of pg_dump that is no script: from chunks, or from the path that `arguments` end with."""
    if not no_transaction:
        script = Script(atomic=True).pass_on(archive_script(arguments, chunks))
        return run_client(
            invocation, "psql", psql_arguments(role, True), branch, script, True, superuser=True
        )
    as_role = ["--role", role.name] if role else []
    restore = ["--dbname", "", *_FOR_ANY_ROLE, *as_role, "--exit-on-error", *arguments]
    if role:
        _run_statements(invocation, branch, role.create)
    try:
        return run_client(invocation, "pg_restore", restore, branch, chunks, quiet=True, superuser=True)
    finally:
        if role:
            _run_statements(invocation, branch, *role.finish)


def _run_statements(invocation: Invocation, branch: str | None, *statements: str) -> None:
    """Run statements as the superuser. Raise Failure if one fails."""
    arguments = [*_PSQL, *(f"-c{statement}" for statement in statements)]
    if run_client(invocation, "psql", arguments, branch, quiet=True, superuser=True):
        message = "the superuser cannot prepare or finish the load; see the messages above"
        raise Failure(ExitCode.OTHER, "LoadFailed", message)


def _open_file(file: str) -> IO[bytes]:
    try:
        return Path(file).open("rb")
    except FileNotFoundError as error:
        raise Failure(ExitCode.NOT_FOUND, "NotFound", f"file {file} not found") from error
    except OSError as error:
        raise Failure(ExitCode.OTHER, "CannotRead", f"cannot read {file}: {error.strerror}") from error


def program_for(prefix: bytes) -> str:
    """Return the program that loads a dump with these first bytes: pg_restore, or psql for SQL."""
    is_tar = prefix[257:262] == b"ustar" and prefix[:7] == b"toc.dat"
    return "pg_restore" if prefix[:5] == b"PGDMP" or is_tar else "psql"


def psql_arguments(role: LoadRole | None, single_transaction: bool) -> list[str]:
    """Return psql's arguments: read the script from standard input, as `role`, and stop at its first error."""
    arguments = [*_PSQL, *(["--single-transaction"] if single_transaction else [])]
    if role is None:
        return [*arguments, "-f", "-"]
    before, after = (role.create, role.become), role.finish
    return [*arguments, *(f"-c{sql}" for sql in before), "-f", "-", *(f"-c{sql}" for sql in after)]


def archive_script(arguments: Sequence[str], chunks: Iterator[bytes] | None) -> Iterator[bytes]:
    """Yield the SQL of an archive, whose bytes are `chunks` or, with None, in the directory that `arguments` name.

    Raise Failure at the end if pg_restore could not read all of it, so that nothing is committed.
    """
    require_client("pg_restore")
    process = subprocess.Popen(
        ["pg_restore", "--file", "-", *_FOR_ANY_ROLE, *arguments],
        stdin=subprocess.PIPE if chunks is not None else None,
        stdout=subprocess.PIPE,
    )
    errors: list[BaseException] = []
    feeder = threading.Thread(target=_feed, args=[process, chunks, errors], daemon=True)
    feeder.start()
    assert process.stdout is not None
    try:
        while block := process.stdout.read(_CHUNK_BYTES):
            yield block
        feeder.join()
        code = process.wait()
    finally:
        process.kill()
        process.wait()
    if errors:
        raise errors[0]
    if code:
        message = f"cannot read the dump: pg_restore failed with exit code {code}; nothing was loaded"
        raise Failure(ExitCode.OTHER, "LoadFailed", message)


def _feed(
    process: subprocess.Popen[bytes], chunks: Iterator[bytes] | None, errors: list[BaseException]
) -> None:
    try:
        if chunks is not None:
            write_stdin(process, chunks)
    except BaseException as error:  # noqa: BLE001 - raised where the output is read
        errors.append(error)


def _read_chunks(dump: Dump, invocation: Invocation) -> Iterator[bytes]:
    """Yield the whole dump in chunks and show the progress on a terminal."""
    live = sys.stderr.isatty() and invocation.human_output
    started, count, chunk, shown_at = time.monotonic(), 0, dump.prefix, 0.0
    while chunk:
        yield chunk
        count += len(chunk)
        if live and time.monotonic() - shown_at > _PROGRESS_INTERVAL_SECONDS:
            shown_at = time.monotonic()
            sys.stderr.write(f"\r\x1b[K… {format_bytes(count)} read, {shown_at - started:.0f} s")
            sys.stderr.flush()
        chunk = dump.read(_CHUNK_BYTES)
    if live and shown_at:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def _print_outcome(invocation: Invocation, code: int, program: str, file: str, target: str) -> None:
    if code:
        message = f"cannot load into branch {target}: {program} failed with exit code {code}; see its messages above"
        raise Failure(ExitCode.OTHER, "LoadFailed", message)
    invocation.print_note(f"{_display_name(file)} loaded into branch {target}")


def _display_name(file: str) -> str:
    return "standard input" if file == "-" else file
