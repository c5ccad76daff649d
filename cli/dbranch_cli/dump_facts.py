"""What a dump is, as its own text says: tool and version, server, roles, extensions, encoding. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from dbranch_cli.dump_roles import created_name, roles_in
from dbranch_cli.dump_script import UnsafeScript
from dbranch_cli.formatting import format_count

_SERVER: Final = re.compile(rb"^-- Dumped from database version (\d+(?:\.\d+)*)", re.MULTILINE)
_TOOL: Final = re.compile(rb"^-- Dumped by (pg_dump(?:all)?) version (\d+(?:\.\d+)*)", re.MULTILINE)
_CLUSTER: Final = re.compile(rb"^-- PostgreSQL database cluster dump\r?$", re.MULTILINE)
_ENCODING: Final = re.compile(rb"(?im)^set\s+client_encoding\s*(?:=|to)\s*'([^']+)'")
# The beginnings of other systems' dumps.
_FOREIGN: Final = (
    (re.compile(rb"^-- (?:MySQL|MariaDB) dump", re.MULTILINE), "MySQL"),
    (re.compile(rb"\A\s*PRAGMA foreign_keys"), "SQLite"),
    (re.compile(rb"\A\s*USE \[\w+\]\s*\r?\n\s*GO\b"), "SQL Server"),
    (re.compile(rb"\APK\x03\x04"), "a zip file"),
    (re.compile(rb"\A\x04\x22\x4d\x18"), "lz4"),
    (re.compile(rb"\ASQLite format 3\x00"), "SQLite"),
)
BEGINNING_BYTES: Final = 1 << 16


@dataclass
class DumpFacts:
    """What was seen of a dump. `dump_format`: "SQL", or pg_dump's "custom", "directory" or "tar" format.

    `complete`: all of it was looked at, not only its beginning.
    """

    dump_format: str
    packing: str = ""
    tool: str = ""
    tool_version: str = ""
    server_version: str = ""
    encoding: str = ""
    roles: list[str] = field(default_factory=list)
    owners: list[str] = field(default_factory=list)
    extensions: list[str] = field(default_factory=list)
    databases: list[str] = field(default_factory=list)
    complete: bool = False
    # Roles that the dump itself creates.
    created_roles: list[str] = field(default_factory=list)

    def read_beginning(self, beginning: bytes) -> None:
        """Take the facts of the first bytes of a script. Raise UnsafeScript if it is none of Postgres."""
        for pattern, name in _FOREIGN:
            if pattern.search(beginning[:4096]):
                advice = (
                    "unpack it first"
                    if name in ("lz4", "a zip file")
                    else "convert it first, as with pgloader"
                )
                raise UnsafeScript(f"it is {name}, not a dump of Postgres; {advice}")
        if match := _SERVER.search(beginning):
            self.server_version = match[1].decode()
        if match := _TOOL.search(beginning):
            self.tool, self.tool_version = match[1].decode(), match[2].decode()
        if match := _ENCODING.search(beginning):
            self.encoding = match[1].decode("ascii", "replace")
        if _CLUSTER.search(beginning):
            self.tool = "pg_dumpall"

    def observe(self, statement: bytes) -> None:
        """Take the facts of a statement that names roles, an extension or a database."""
        if (extension := created_name(statement, "EXTENSION")) and extension not in self.extensions:
            self.extensions.append(extension)
        if (database := created_name(statement, "DATABASE")) and database not in self.databases:
            self.databases.append(database)
        created = created_name(statement, "ROLE", "USER", "GROUP")
        if created:
            self.created_roles.append(created)
        for role in roles_in(statement):
            if role.name not in self.roles:
                self.roles.append(role.name)
            if role.owner and role.name not in self.owners:
                self.owners.append(role.name)

    @property
    def server_major(self) -> int:
        """The major version of the server that was dumped; 0 if the dump does not say. 9.6 is 9."""
        return int(self.server_version.partition(".")[0] or 0)

    def missing_roles(self, existing: Iterable[str], role_map: dict[str, str], no_owner: bool) -> list[str]:
        """Return the roles that must exist before it is loaded, and do not."""
        if no_owner:
            return []
        present = {*existing, *(role_map.get(role, role) for role in self.created_roles)}
        names = [role_map.get(role, role) for role in self.roles]
        return [n for n in dict.fromkeys(names) if n not in present and not n.startswith("pg_")]

    def lines(self) -> list[str]:
        """Return what the dump is, for people."""
        packed = f", packed with {self.packing}" if self.packing else ""
        kind = self.dump_format if self.dump_format == "SQL" else f"pg_dump's {self.dump_format} format"
        made = f" by {self.tool} {self.tool_version}".rstrip() if self.tool else ""
        server = f" of Postgres {self.server_version}" if self.server_version else ""
        encoding = f", encoding {self.encoding}" if self.encoding else ""
        lines = [f"{kind}{packed}{made}{server}{encoding}"]
        for noun, names in (
            ("role", self.roles),
            ("extension", self.extensions),
            ("database", self.databases),
        ):
            if names:
                lines.append(f"{format_count(len(names), noun)}: {', '.join(names)}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Return the facts for `-o json`."""
        return {
            "format": self.dump_format,
            "packing": self.packing,
            "tool": self.tool,
            "toolVersion": self.tool_version,
            "serverVersion": self.server_version,
            "encoding": self.encoding,
            "roles": self.roles,
            "owners": self.owners,
            "extensions": self.extensions,
            "databases": self.databases,
            "complete": self.complete,
        }
