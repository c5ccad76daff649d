"""`dbranch load`: load a dump into a branch. The dump's format is detected from its first bytes."""

from __future__ import annotations

import gzip
import io
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, cast

import click

from dbranch.api.quantity import format_bytes
from dbranch_cli.connect import run_client
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.invocation import Invocation
from dbranch_cli.objects import active_branch_of
from dbranch_cli.options import BranchName, Command, passthrough_arguments

_PREFIX_BYTES, _CHUNK_BYTES = 512, 1 << 18
_PROGRESS_INTERVAL_SECONDS = 0.5
_GZIP_MAGIC = b"\x1f\x8b"


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

    Formats: SQL, gzipped SQL, pg_dump's custom, directory and tar format. The format is detected.
    """
    invocation: Invocation = context.obj
    target = branch or active_branch_of(invocation.project())
    extra_arguments = list(passthrough_arguments(context))
    if file != "-" and Path(file).is_dir():
        if not Path(file, "toc.dat").is_file():
            message = f"directory {file} is not a dump of pg_dump: it has no toc.dat"
            raise Failure(ExitCode.USAGE, "InvalidInput", message)
        arguments = [*pg_restore_arguments(not no_transaction), *extra_arguments, file]
        code = run_client(invocation, "pg_restore", arguments, branch)
        _print_outcome(invocation, code, "pg_restore", file, target)
        return
    with ExitStack() as stack:
        source: IO[bytes] = stack.enter_context(_open_file(file)) if file != "-" else sys.stdin.buffer
        prefix = read_prefix(source)
        if prefix.startswith(_GZIP_MAGIC):
            source = cast(IO[bytes], gzip.GzipFile(fileobj=PrefixedStream(prefix, source)))
            prefix = read_prefix(source)
        if not prefix:
            raise Failure(ExitCode.USAGE, "EmptyDump", f"{_display_name(file)} is empty; nothing was loaded")
        program = program_for(prefix)
        arguments = (
            pg_restore_arguments(not no_transaction)
            if program == "pg_restore"
            else psql_arguments(not no_transaction)
        )
        chunks = _read_chunks(prefix, source, invocation)
        code = run_client(invocation, program, [*arguments, *extra_arguments], branch, chunks, quiet=True)
    _print_outcome(invocation, code, program, file, target)


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


def psql_arguments(single_transaction: bool) -> list[str]:
    """Return psql's arguments: read the script from standard input and stop at its first error."""
    transaction = ["--single-transaction"] if single_transaction else []
    return ["-X", "-q", "-v", "ON_ERROR_STOP=1", *transaction, "-f", "-"]


def pg_restore_arguments(single_transaction: bool) -> list[str]:
    """Return pg_restore's arguments: the connected role owns everything, as the dump's roles may not exist."""
    database = ["--dbname", ""]  # an empty name means PGDATABASE
    transaction = ["--single-transaction"] if single_transaction else ["--exit-on-error"]
    return [*database, "--no-owner", "--no-privileges", *transaction]


def read_prefix(source: IO[bytes]) -> bytes:
    """Read the first 512 bytes, or fewer at the end of the stream; a pipe may return them in pieces."""
    prefix = b""
    while len(prefix) < _PREFIX_BYTES and (piece := source.read(_PREFIX_BYTES - len(prefix))):
        prefix += piece
    return prefix


class PrefixedStream(io.RawIOBase):
    """A stream of bytes that were read already, followed by what remains of another stream."""

    def __init__(self, prefix: bytes, remainder: IO[bytes]) -> None:
        super().__init__()
        self.prefix, self.remainder = prefix, remainder

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self.prefix:
            if size < 0:
                taken, self.prefix = self.prefix, b""
                return taken + self.remainder.read()
            taken, self.prefix = self.prefix[:size], self.prefix[size:]
            return taken
        return self.remainder.read(size)


def _read_chunks(prefix: bytes, source: IO[bytes], invocation: Invocation) -> Iterator[bytes]:
    """Yield the whole dump in chunks and show the progress on a terminal."""
    live = sys.stderr.isatty() and invocation.human_output
    started, count, chunk, shown_at = time.monotonic(), 0, prefix, 0.0
    while chunk:
        yield chunk
        count += len(chunk)
        if live and time.monotonic() - shown_at > _PROGRESS_INTERVAL_SECONDS:
            shown_at = time.monotonic()
            sys.stderr.write(f"\r\x1b[K… {format_bytes(count)} read, {shown_at - started:.0f} s")
            sys.stderr.flush()
        chunk = source.read(_CHUNK_BYTES)
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
