"""The roles that the statements of a dump name, and a dump's statements with other roles in their place. Pure.

Known are the statements of pg_dump and pg_dumpall that name roles: owners, grants, default privileges, memberships,
policies, `SET ROLE` and `SET SESSION AUTHORIZATION`, `CREATE ROLE` and `CREATE DATABASE`. They come from the lexer of
dump_script, so that no text of a literal, a function or the data of a COPY is taken for one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from dbranch_cli.load_role import quote_identifier

# Statements that a script hands over whole, with their names.
NAMING: Final = re.compile(
    rb"(?i)(?:alter|grant|revoke|reassign|drop\s+(?:owned|role|user|group)"
    rb"|set\s+(?:(?:local|session)\s+)?(?:role|session\s+authorization|authorization|transaction_timeout)"
    rb"|create\s+(?:role|user|group|database|extension|policy|schema))\b"
)
_TOKEN: Final = re.compile(
    rb"--[^\n]*|/\*.*?\*/|\"(?:[^\"]|\"\")*\"|[eE]'(?:\\.|''|[^'\\])*'|'(?:''|[^'])*'"
    rb"|\$(\w*)\$.*?\$\1\$|[A-Za-z_\x80-\xff][\w$\x80-\xff]*|\S",
    re.DOTALL,
)
# Keywords in the place of a role.
_NO_ROLE: Final = frozenset(
    {"PUBLIC", "CURRENT_USER", "CURRENT_ROLE", "SESSION_USER", "NONE", "DEFAULT", "ALL"}
)
_ROLE_WORDS: Final = frozenset({"ROLE", "USER", "GROUP"})


@dataclass(frozen=True)
class _Token:
    text: str
    start: int
    end: int

    @property
    def word(self) -> str:
        """The keyword; empty for what is quoted."""
        return self.text.upper() if self.text[:1] not in ("'", '"', "$") else ""

    @property
    def name(self) -> str:
        if self.text[:1] == '"':
            return self.text[1:-1].replace('""', '"')
        return self.text[1:-1].replace("''", "'") if self.text[:1] == "'" else self.text.lower()


@dataclass(frozen=True)
class RoleName:
    """A role's name in a statement: from byte `start` to `end`. `owner`: it is to own something, or to act."""

    name: str
    start: int
    end: int
    owner: bool = False


def _tokens(statement: bytes) -> list[_Token]:
    return [
        _Token(match[0].decode("utf-8", "surrogateescape"), match.start(), match.end())
        for match in _TOKEN.finditer(statement)
        if not match[0].startswith((b"--", b"/*"))
    ]


def roles_in(statement: bytes) -> list[RoleName]:
    """Return the roles that a statement names, in their order.

    >>> [role.name for role in roles_in(b'GRANT SELECT (a) ON TABLE public.to_do TO "Bob", PUBLIC GRANTED BY ann')]
    ['Bob', 'ann']
    """
    return list(_find(_tokens(statement)))


def _find(tokens: list[_Token]) -> Iterator[RoleName]:
    words = [token.word for token in tokens]
    verb, noun = (*words, "", "")[:2]
    if verb == "SET":
        yield from _set_role(tokens, words)
    elif noun in _ROLE_WORDS and "MAPPING" in words[2:3]:
        yield from _list_after(tokens, words, "FOR")
    elif verb in ("CREATE", "ALTER", "DROP") and noun in _ROLE_WORDS:
        exists = 2 if words[2:4] == ["IF", "EXISTS"] else 0
        yield from _list(tokens, 2 + exists)
        for index in range(3, len(words) - 1):
            if words[index] in _ROLE_WORDS and words[index - 1] in ("IN", "ADD", "DROP"):
                yield from _list(tokens, index + 1)
    elif verb in ("GRANT", "REVOKE") or (verb == "ALTER" and noun == "DEFAULT"):
        yield from _privileges(tokens, words)
    elif verb == "REASSIGN" or (verb, noun) == ("DROP", "OWNED"):
        yield from _list_after(tokens, words, "BY")
        yield from _list_after(tokens, words, "TO")
    elif noun == "POLICY":
        yield from _list_after(tokens, words, "TO")
    else:
        yield from _owner(tokens, words)


def _set_role(tokens: list[_Token], words: list[str]) -> Iterator[RoleName]:
    index = 2 if words[1:2] in (["LOCAL"], ["SESSION"]) else 1
    if words[index : index + 1] in (["ROLE"], ["AUTHORIZATION"]):
        for role in _list(tokens, index + (2 if words[index + 1 : index + 2] == ["TO"] else 1)):
            yield RoleName(role.name, role.start, role.end, owner=True)


def _privileges(tokens: list[_Token], words: list[str]) -> Iterator[RoleName]:
    if words[0] == "ALTER" and "FOR" in words and words[words.index("FOR") + 1 :][:1] in (["ROLE"], ["USER"]):
        yield from _list(tokens, words.index("FOR") + 2)
    revoking = "REVOKE" in words
    preposition = "FROM" if revoking else "TO"
    if words[0] != "ALTER" and "ON" not in words:  # a membership
        options = words.index("FOR") + 1 if revoking and words[2:4] == ["OPTION", "FOR"] else 1
        yield from _list(tokens, options)
    yield from _list_after(tokens, words, preposition)
    yield from _list_after(tokens, words, "BY")


def _owner(tokens: list[_Token], words: list[str]) -> Iterator[RoleName]:
    for index in range(1, len(words) - 1):
        # A column may be called owner, and be renamed.
        named = (
            words[index] == "OWNER" and words[index + 1] == "TO" and "RENAME" not in words[index - 2 : index]
        )
        if words[0] == "ALTER" and named:
            start = index + 2
        elif words[:2] == ["CREATE", "DATABASE"] and words[index] == "OWNER":
            start = index + (2 if words[index + 1] == "=" else 1)
        elif words[:2] == ["CREATE", "SCHEMA"] and words[index] == "AUTHORIZATION":
            start = index + 1
        else:
            continue
        for role in _list(tokens, start):
            yield RoleName(role.name, role.start, role.end, owner=True)
        return


def _list_after(tokens: list[_Token], words: list[str], keyword: str) -> Iterator[RoleName]:
    depth = 0
    for index, word in enumerate(words):
        depth += (word == "(") - (word == ")")
        if word == keyword and not depth:
            yield from _list(tokens, index + 1)
            return


def _list(tokens: list[_Token], index: int) -> Iterator[RoleName]:
    """Yield the names of a list that begins with token `index`."""
    while index < len(tokens):
        if tokens[index].word == "GROUP":
            index += 1
        token = tokens[index] if index < len(tokens) else None
        if token is None or not (
            token.text[0] in "\"'_" or token.text[0].isalpha() or token.text[0] > "\x7f"
        ):
            return
        if token.word not in _NO_ROLE:
            start, end = token.start, token.end
            yield RoleName(token.name, start, end)
        if index + 1 >= len(tokens) or tokens[index + 1].text != ",":
            return
        index += 2


def created_name(statement: bytes, *kinds: str) -> str | None:
    """Return the name that `CREATE KIND [IF NOT EXISTS] name` creates, if it is of one of these kinds.

    >>> created_name(b'create extension if not exists "uuid-ossp" with schema public', "EXTENSION")
    'uuid-ossp'
    """
    tokens = _tokens(statement)
    words = [token.word for token in tokens]
    if words[:1] != ["CREATE"] or words[1:2] == [] or words[1] not in kinds or words[2:3] == ["MAPPING"]:
        return None
    index = 5 if words[2:5] == ["IF", "NOT", "EXISTS"] else 2
    return tokens[index].name if index < len(tokens) else None


@dataclass
class RoleRewriter:
    """Rewrites the statements of one script that name roles, for the server that it is loaded into.

    `existing`: its roles; `managed`: those whose attributes and password dbranch keeps; `databases`: its databases;
    `role_map`: roles to be named instead. `no_owner`: nothing gets an owner, and grants of roles that do not
    exist are left out. `create_missing`: a role that is missing is created, without login, before it is first
    named.
    """

    existing: Collection[str]
    managed: Collection[str] = ()
    databases: Collection[str] = ()
    role_map: Mapping[str, str] = field(default_factory=dict)
    no_owner: bool = False
    create_missing: bool = False
    server_major: int = 99
    observe: Callable[[bytes], None] | None = None
    # What was done: roles that were created, statements that were left out because of `no_owner`.
    created: list[str] = field(default_factory=list)
    left_out: int = 0
    _present: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._present = set(self.existing)

    def rewrite(self, statement: bytes) -> bytes:
        """Return the statement (without its semicolon) as it is loaded; empty: it is left out."""
        if self.observe:
            self.observe(statement)
        tokens = _tokens(statement)
        words = [token.word for token in tokens]
        if words[1:2] == ["TRANSACTION_TIMEOUT"] and self.server_major < 17:
            return b""  # pg_dump 17 sets it first of all, and older servers refuse it
        names = list(_find(tokens))
        if self._is_present(statement, tokens, words):
            return b""
        if created := created_name(statement, *_ROLE_WORDS):
            self._present.add(self.role_map.get(created, created))
        if self.no_owner and words[0] == "SET":
            return b""
        if (
            self.no_owner
            and words[0] in ("GRANT", "REVOKE", "ALTER")
            and any(self._is_missing(role) for role in names if not role.owner)
        ):
            self.left_out += 1
            return b""
        result = statement
        for role in reversed(names):
            result = result[: role.start] + self._replacement(statement, role, words) + result[role.end :]
        return b"".join(self._creations(names, words)) + result

    def _is_present(self, statement: bytes, tokens: list[_Token], words: list[str]) -> bool:
        """Return whether the statement creates what exists, or changes a role that dbranch keeps."""
        created = created_name(statement, *_ROLE_WORDS)
        if created is not None and self.role_map.get(created, created) in self._present:
            return True
        if created_name(statement, "DATABASE") in self.databases:
            return True
        changes_role = words[0] == "ALTER" and words[1:2] and words[1] in _ROLE_WORDS and len(tokens) > 3
        settings = {"SET", "RESET", "IN", "RENAME", "ADD", "DROP"}
        return bool(changes_role and tokens[2].name in self.managed and words[3] not in settings)

    def _is_missing(self, role: RoleName) -> bool:
        name = self.role_map.get(role.name, role.name)
        return name not in self._present and not name.startswith("pg_")

    def _replacement(self, statement: bytes, role: RoleName, words: list[str]) -> bytes:
        original = statement[role.start : role.end]
        name = self.role_map.get(role.name)
        new = quote_identifier(name).encode() if name else original
        if self.no_owner and role.owner and words[1:2] != ["DATABASE"]:
            new = b"current_user"
        before = statement[: role.start].split()
        if (
            new != original
            and words[:2] == ["CREATE", "SCHEMA"]
            and before[-2].lower() in (b"schema", b"exists")
        ):
            # CREATE SCHEMA AUTHORIZATION joe: the role's name is the schema's.
            return new + b"; alter schema " + new + b" rename to " + original if name else original
        return new

    def _creations(self, names: list[RoleName], words: list[str]) -> Iterator[bytes]:
        if not self.create_missing or (words[0] in ("DROP", "CREATE") and words[1] in _ROLE_WORDS):
            return
        for role in names:
            if self._is_missing(role) and not (self.no_owner and role.owner):
                name = self.role_map.get(role.name, role.name)
                self._present.add(name)
                self.created.append(name)
                yield f"create role {quote_identifier(name)} nologin; ".encode()
