"""The format of a dump that is written: from the file's name and the option --format. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from dbranch.api.errors import InvalidInput

# Formats of pg_dump, and the suffixes that mean them.
FORMATS: Final = ("custom", "plain", "directory", "tar")
_SUFFIXES: Final = {
    ".sql": "plain",
    ".psql": "plain",
    ".tar": "tar",
    ".dump": "custom",
    ".dmp": "custom",
    ".pgdump": "custom",
    ".backup": "custom",
}
_PACKINGS: Final = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True)
class DumpFormat:
    """A format of pg_dump, and what its output is packed in: `gzip`, `zstd` or nothing."""

    name: str
    packing: str = ""

    @property
    def is_text(self) -> bool:
        """True if it may be shown on a terminal."""
        return self.name == "plain" and not self.packing

    def __str__(self) -> str:
        return f"{self.name}, {self.packing}" if self.packing else self.name


def dump_format_of(file: str, chosen: str | None) -> DumpFormat:
    """Return the format of a dump for a file's name; `chosen` is a format that overrides its suffix.

    Raise InvalidInput for a packed directory.

    >>> [str(dump_format_of(file, None)) for file in ("shop.sql.gz", "shop.dump", "-")]
    ['plain, gzip', 'custom', 'plain']
    """
    suffixes = [suffix.lower() for suffix in PurePath(file).suffixes]
    packing = _PACKINGS.get(suffixes[-1], "") if suffixes else ""
    if packing:
        suffixes.pop()
    named = _SUFFIXES.get(suffixes[-1]) if suffixes else None
    if named is None:
        named = "directory" if file.endswith("/") else "plain" if file == "-" or packing else "custom"
    chosen_format = DumpFormat(chosen or named, packing)
    if chosen_format.name == "directory" and (chosen_format.packing or file == "-"):
        raise InvalidInput(
            f"the directory format cannot be written to {file}: name a directory,"
            " whose files pg_dump compresses itself"
        )
    return chosen_format


def major_of(version: str) -> int | None:
    """Return the major version in `pg_dump (PostgreSQL) 17.6 (Debian 17.6-1)` or `17.6`; None if there is none.

    >>> major_of("pg_dump (PostgreSQL) 17.6 (Debian 17.6-1)"), major_of("18beta1"), major_of("")
    (17, 18, None)
    """
    for word in version.split():
        digits = word[: next((i for i, c in enumerate(word) if not c.isdigit()), len(word))]
        if digits:
            return int(digits)
    return None


def choose_program(available: Sequence[tuple[str, int]], server: int | None) -> str | None:
    """Return the pg_dump for a server of this major: one of the same, else the first newer; None if all are older.

    `available`: programs with their majors, in the order of preference. Of a newer pg_dump the dump may hold
    settings that this server does not know; an older one refuses the server.

    >>> choose_program([("a", 18), ("b", 17)], 17), choose_program([("a", 15)], 17)
    ('b', None)
    """
    if server is None:
        return available[0][0] if available else None
    same = [program for program, major in available if major == server]
    newer = [program for program, major in available if major > server]
    return next(iter(same + newer), None)
