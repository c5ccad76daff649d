"""Run psql and pg_restore to load a dump: in one transaction, or without one."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dbranch_cli.connect import require_client, run_client, write_stdin
from dbranch_cli.dump_roles import RoleRewriter
from dbranch_cli.dump_script import Script
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.formatting import format_count
from dbranch_cli.invocation import Invocation
from dbranch_cli.load_role import LoadRole, quote_identifier
from dbranch_cli.load_server import CLEAN

CHUNK_BYTES: Final = 1 << 18
# The dump's roles may not exist here: whoever loads it owns everything.
_FOR_ANY_ROLE: Final = ("--no-owner", "--no-privileges")
_PSQL: Final = ("-X", "-q", "-v", "ON_ERROR_STOP=1")


@dataclass(frozen=True)
class Loader:
    """Loads into one branch (None: the active one), as `role`; None: as the superuser, who owns it all then.

    `arguments`: those that the user gives to psql or pg_restore. `keep_roles`: owners and grants of an archive are
    loaded, too. `clean`: what the database holds is dropped before.
    """

    invocation: Invocation
    branch: str | None
    role: LoadRole | None
    rewriter: RoleRewriter
    arguments: Sequence[str] = ()
    atomic: bool = True
    keep_roles: bool = False
    clean: bool = False

    def load_script(self, chunks: Iterator[bytes], user_arguments: bool = True) -> int:
        """Load SQL; return psql's exit code."""
        script = Script(self.atomic, self.rewriter.rewrite)
        arguments = list(self.arguments) if user_arguments else []
        if self.atomic:
            options = psql_arguments(self.role, True, self.clean)
            code = self._run("psql", [*options, *arguments], script.pass_on(chunks))
            if script.left_out and not code:
                commands = format_count(script.left_out, "command")
                self.invocation.print_note(
                    f"left out, since it is loaded in one transaction: {commands} that begin or end one"
                )
            return code
        # The script may connect to other databases: what comes before and after it has connections of its own.
        self._prepare()
        try:
            become = [f"-c{self.role.become}"] if self.role else []
            return self._run("psql", [*_PSQL, *become, "-f", "-", *arguments], script.pass_on(chunks))
        finally:
            self._finish()

    def load_archive(self, path: str | None, chunks: Iterator[bytes] | None, direct: bool) -> int:
        """Load a dump of pg_dump that is no script, from `path` or from chunks.

        `direct`: pg_restore loads it itself, without a transaction, so that it may have several jobs.
        """
        arguments = [*self.arguments, *([path] if path else [])]
        if not direct:
            return self.load_script(archive_script(arguments, chunks, self.keep_roles), user_arguments=False)
        as_role = ["--role", self.role.name] if self.role else []
        owners = () if self.keep_roles else _FOR_ANY_ROLE
        restore = ["--dbname", "", *owners, *as_role, "--exit-on-error", *arguments]
        self._prepare()
        try:
            return self._run("pg_restore", restore, chunks)
        finally:
            self._finish()

    def create_roles(self, names: Sequence[str]) -> None:
        """Create roles that cannot log in, before a load that does not do so itself."""
        if names:
            self._run_statements(*(f"create role {quote_identifier(name)} nologin" for name in names))

    def _prepare(self) -> None:
        if self.clean:
            self._run_statements(CLEAN)
        if self.role:
            self._run_statements(self.role.create)

    def _finish(self) -> None:
        if self.role:
            self._run_statements(*self.role.finish)

    def _run(self, program: str, arguments: list[str], chunks: Iterator[bytes] | None = None) -> int:
        return run_client(
            self.invocation, program, arguments, self.branch, chunks, quiet=True, superuser=True
        )

    def _run_statements(self, *statements: str) -> None:
        """Run statements as the superuser. Raise Failure if one fails."""
        if self._run("psql", [*_PSQL, *(f"-c{statement}" for statement in statements)]):
            message = "the superuser cannot prepare or finish the load; see the messages above"
            raise Failure(ExitCode.OTHER, "LoadFailed", message)


def program_for(prefix: bytes) -> str:
    """Return the program that loads a dump with these first bytes: pg_restore, or psql for SQL."""
    is_tar = prefix[257:262] == b"ustar" and prefix[:7] == b"toc.dat"
    return "pg_restore" if prefix[:5] == b"PGDMP" or is_tar else "psql"


def psql_arguments(role: LoadRole | None, single_transaction: bool, clean: bool = False) -> list[str]:
    """Return psql's arguments: read the script from standard input, as `role`, and stop at its first error."""
    arguments = [*_PSQL, *(["--single-transaction"] if single_transaction else [])]
    before = [*((role.create, role.become) if role else ()), *([CLEAN] if clean else [])]
    after = role.finish if role else ()
    return [*arguments, *(f"-c{sql}" for sql in before), "-f", "-", *(f"-c{sql}" for sql in after)]


def archive_script(
    arguments: Sequence[str], chunks: Iterator[bytes] | None, keep_roles: bool = False
) -> Iterator[bytes]:
    """Yield the SQL of an archive, whose bytes are `chunks` or, with None, in the path that `arguments` end with.

    `keep_roles`: with its owners and grants. Raise Failure at the end if pg_restore could not read all of it, so that
    nothing is committed.
    """
    require_client("pg_restore")
    process = subprocess.Popen(
        ["pg_restore", "--file", "-", *(() if keep_roles else _FOR_ANY_ROLE), *arguments],
        stdin=subprocess.PIPE if chunks is not None else None,
        stdout=subprocess.PIPE,
    )
    errors: list[BaseException] = []
    feeder = threading.Thread(target=_feed, args=[process, chunks, errors], daemon=True)
    feeder.start()
    assert process.stdout is not None
    try:
        while block := process.stdout.read(CHUNK_BYTES):
            yield block
        feeder.join()
        code = process.wait()
    finally:
        process.kill()
        process.wait()
    if errors:
        raise errors[0]
    if code:
        message = (
            f"cannot read the dump: pg_restore failed with exit code {code}; it has to be as new as the pg_dump"
            " that made it; nothing was loaded"
        )
        raise Failure(ExitCode.OTHER, "LoadFailed", message)


def _feed(
    process: subprocess.Popen[bytes], chunks: Iterator[bytes] | None, errors: list[BaseException]
) -> None:
    try:
        if chunks is not None:
            write_stdin(process, chunks)
    except BaseException as error:  # noqa: BLE001 - raised where the output is read
        errors.append(error)
