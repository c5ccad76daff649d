"""Look at a dump before anything is changed: what it is, what it needs, and whether all of it is there.

A file is read once for that, and again to load it; of a pipe only the beginning is seen before.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dbranch_cli.dump_facts import BEGINNING_BYTES, DumpFacts
from dbranch_cli.dump_script import Script
from dbranch_cli.dump_stream import Dump
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.load_run import CHUNK_BYTES, archive_script, program_for
from dbranch_cli.progress import CountedReader, Progress


class DumpFile:
    """A dump by the name that it was given: a file, a directory of pg_dump, or `-`, standard input."""

    def __init__(self, name: str, quiet: bool) -> None:
        self.name, self._quiet = name, quiet
        self.path = None if name == "-" else Path(name)
        self.is_directory = self.path is not None and self.path.is_dir()
        # What a pipe has given so far, and the rest of it.
        self._stdin: tuple[bytes, Dump] | None = None
        if self.is_directory and not Path(name, "toc.dat").is_file():
            message = f"directory {name} is not a dump of pg_dump: it has no toc.dat"
            raise Failure(ExitCode.USAGE, "InvalidInput", message)

    @property
    def display_name(self) -> str:
        return "standard input" if self.path is None else self.name

    @property
    def is_file(self) -> bool:
        """True for a regular file, which can be read twice."""
        return self.path is not None and self.path.is_file()

    @contextmanager
    def chunks(self, label: str) -> Iterator[tuple[Dump | None, Iterator[bytes]]]:
        """Open it; return its unpacked bytes in chunks, and show the progress as `label`."""
        if self.path is None:
            beginning, dump = self._stdin or self._read_stdin()
            progress = Progress(label, None, self._quiet)
            yield dump, _count(beginning, dump, progress)
            progress.clear()
            return
        with _open(self.path) as source:
            progress = Progress(label, self.path.stat().st_size if self.is_file else None, self._quiet)
            try:
                dump = Dump(CountedReader(source, progress))  # type: ignore[arg-type]
                self._require_content(dump.prefix)
                yield dump, _read_on(dump.prefix, dump)
            finally:
                progress.clear()

    def _read_stdin(self) -> tuple[bytes, Dump]:
        dump = Dump(sys.stdin.buffer)
        beginning = dump.prefix
        self._require_content(beginning)
        while len(beginning) < BEGINNING_BYTES and (piece := dump.read(BEGINNING_BYTES - len(beginning))):
            beginning += piece
        self._stdin = (beginning, dump)
        return self._stdin

    def _require_content(self, prefix: bytes) -> None:
        if not prefix:
            message = f"{self.display_name} is empty; nothing was loaded"
            raise Failure(ExitCode.USAGE, "EmptyDump", message)

    def inspect(self, atomic: bool) -> DumpFacts:
        """Return what the dump is. Raise DamagedDump if a file is damaged, cut off or unsafe to load."""
        if self.is_directory:
            facts = DumpFacts("directory")
            _observe_archive(facts, [str(self.path)], None)
            return facts
        with self.chunks("looking") as (dump, chunks):
            assert dump is not None
            facts = DumpFacts(_format_of(dump.prefix), dump.packing)
            if facts.dump_format != "SQL":
                if self.is_file:
                    _observe_archive(facts, [], chunks)
                return facts
            if self.is_file:
                _observe_script(facts, chunks, atomic)
            else:
                assert self._stdin is not None
                _observe_beginning(facts, self._stdin[0], atomic)
        return facts


def _format_of(prefix: bytes) -> str:
    if program_for(prefix) == "psql":
        return "SQL"
    return "custom" if prefix.startswith(b"PGDMP") else "tar"


def _observe_script(facts: DumpFacts, chunks: Iterator[bytes], atomic: bool) -> None:
    beginning = b""

    def tee() -> Iterator[bytes]:
        nonlocal beginning
        for chunk in chunks:
            if len(beginning) < BEGINNING_BYTES:
                beginning = (beginning + chunk)[:BEGINNING_BYTES]
                facts.read_beginning(beginning)
            yield chunk

    for _ in Script(atomic, _observer(facts)).pass_on(tee()):
        pass
    facts.complete = True


def _observe_beginning(facts: DumpFacts, beginning: bytes, atomic: bool) -> None:
    """Look at what a pipe has given so far: all of a short script, or the whole lines of a beginning."""
    if len(beginning) < BEGINNING_BYTES:
        _observe_script(facts, iter([beginning]), atomic)
        return
    facts.read_beginning(beginning)
    Script(atomic, _observer(facts)).read_beginning(beginning)


def _observe_archive(facts: DumpFacts, arguments: list[str], chunks: Iterator[bytes] | None) -> None:
    """Take the facts of an archive from the SQL of its definitions."""
    _observe_script(facts, archive_script(["--schema-only", *arguments], chunks, keep_roles=True), True)
    facts.complete = True


def _observer(facts: DumpFacts) -> Any:
    def observe(statement: bytes) -> bytes:
        facts.observe(statement)
        return statement

    return observe


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise Failure(ExitCode.NOT_FOUND, "NotFound", f"file {path} not found") from error
    except OSError as error:
        raise Failure(ExitCode.OTHER, "CannotRead", f"cannot read {path}: {error.strerror}") from error


def _read_on(first: bytes, dump: Dump) -> Iterator[bytes]:
    chunk = first
    while chunk:
        yield chunk
        chunk = dump.read(CHUNK_BYTES)


def _count(first: bytes, dump: Dump, progress: Progress) -> Iterator[bytes]:
    for chunk in _read_on(first, dump):
        progress.add(len(chunk))
        yield chunk
