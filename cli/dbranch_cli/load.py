"""`dbranch load`: a dump into a branch. The dump's form is seen from its first bytes."""

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
from dbranch_cli.failure import NOT_FOUND, OTHER, USAGE, Failure
from dbranch_cli.objects import active_of
from dbranch_cli.options import BranchName, Verb, after
from dbranch_cli.scope import Scope

_HEAD, _CHUNK = 512, 1 << 18


@click.command(cls=Verb, passes_on=True, epilog="What follows -- goes to psql or pg_restore.")
@click.argument("file", metavar="FILE|-")
@click.argument("branch", type=BranchName(), required=False)
@click.option(
    "--no-transaction", is_flag=True, help="Not all or nothing: for dumps with commands that need this."
)
@click.pass_context
def load(context: click.Context, file: str, branch: str | None, no_transaction: bool) -> None:
    """Load a dump (SQL, also gzipped, or pg_dump's custom, directory or tar form) into a branch."""
    scope: Scope = context.obj
    target = branch or active_of(scope.project())
    more = list(after(context))
    if file != "-" and Path(file).is_dir():
        if not Path(file, "toc.dat").is_file():
            raise Failure(USAGE, "InvalidInput", f"{file} is a directory, but not one of pg_dump: no toc.dat")
        code = run_client(scope, "pg_restore", [*restore_arguments(not no_transaction), *more, file], branch)
        _end(scope, code, "pg_restore", file, target)
        return
    with ExitStack() as stack:
        source: IO[bytes] = stack.enter_context(_opened(file)) if file != "-" else sys.stdin.buffer
        head = _head_of(source)
        if head[:2] == b"\x1f\x8b":
            source = cast(IO[bytes], gzip.GzipFile(fileobj=_Joined(head, source)))
            head = _head_of(source)
        if not head:
            raise Failure(USAGE, "EmptyDump", f"{_called(file)} is empty; nothing was loaded")
        program = program_for(head)
        options = (
            restore_arguments(not no_transaction)
            if program == "pg_restore"
            else script_arguments(not no_transaction)
        )
        code = run_client(scope, program, [*options, *more], branch, _chunks(head, source, scope), quiet=True)
    _end(scope, code, program, file, target)


def _opened(file: str) -> IO[bytes]:
    try:
        return Path(file).open("rb")
    except FileNotFoundError as error:
        raise Failure(NOT_FOUND, "NotFound", f"there is no file {file}") from error
    except OSError as error:
        raise Failure(OTHER, "CannotRead", f"cannot read {file}: {error.strerror}") from error


def program_for(head: bytes) -> str:
    """What loads a dump that begins so: pg_restore knows its own forms, all else is SQL for psql."""
    is_tar = head[257:262] == b"ustar" and head[:7] == b"toc.dat"
    return "pg_restore" if head[:5] == b"PGDMP" or is_tar else "psql"


def script_arguments(all_or_nothing: bool) -> list[str]:
    """psql reads the script from standard input and stops at its first error."""
    one = ["--single-transaction"] if all_or_nothing else []
    return ["-X", "-q", "-v", "ON_ERROR_STOP=1", *one, "-f", "-"]


def restore_arguments(all_or_nothing: bool) -> list[str]:
    """The owner of all is who connects: roles of the dump's origin are not here."""
    from_env = ["--dbname", ""]  # what PGDATABASE says
    one = ["--single-transaction"] if all_or_nothing else ["--exit-on-error"]
    return [*from_env, "--no-owner", "--no-privileges", *one]


def _head_of(source: IO[bytes]) -> bytes:
    """The first bytes, also where a pipe hands them out piece by piece."""
    head = b""
    while len(head) < _HEAD and (piece := source.read(_HEAD - len(head))):
        head += piece
    return head


class _Joined(io.RawIOBase):
    """A head that was read already, then the rest."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        super().__init__()
        self.head, self.rest = head, rest

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self.head:
            if size < 0:
                taken, self.head = self.head, b""
                return taken + self.rest.read()
            taken, self.head = self.head[:size], self.head[size:]
            return taken
        return self.rest.read(size)


def _chunks(head: bytes, source: IO[bytes], scope: Scope) -> Iterator[bytes]:
    """All of the dump, its progress shown on a terminal."""
    live = sys.stderr.isatty() and scope.for_people
    began, count, chunk, shown = time.monotonic(), 0, head, 0.0
    while chunk:
        yield chunk
        count += len(chunk)
        if live and time.monotonic() - shown > 0.5:
            shown = time.monotonic()
            sys.stderr.write(f"\r\x1b[K… {format_bytes(count)} read, {shown - began:.0f} s")
            sys.stderr.flush()
        chunk = source.read(_CHUNK)
    if live and shown:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def _end(scope: Scope, code: int, program: str, file: str, target: str) -> None:
    if code:
        raise Failure(
            OTHER,
            "LoadFailed",
            f"{program} ended with exit code {code}; its messages above say why; branch {target} was being loaded",
        )
    scope.say(f"{_called(file)} loaded into {target}")


def _called(file: str) -> str:
    return "standard input" if file == "-" else file
