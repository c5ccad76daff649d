"""A password as Postgres stores it: a SCRAM-SHA-256 verifier. Pure.

Sources: RFC 5803 (format), RFC 4013 (SASLprep), PostgreSQL's `scram_build_secret`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import stringprep
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

_ITERATIONS: Final = 4096
_VERSION_DIGITS: Final = 16
_VERIFIER: Final = re.compile(r"SCRAM-SHA-256\$(\d+):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)")
_PROHIBITED: Final = (
    stringprep.in_table_a1,
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


def saslprep(password: str) -> str:
    """Return the password as it is hashed: by SASLprep, or unchanged if that prohibits it (as Postgres does)."""
    if password.isascii():
        return password
    mapped = "".join(
        " " if stringprep.in_table_c12(c) else c for c in password if not stringprep.in_table_b1(c)
    )
    normal = unicodedata.normalize("NFKC", mapped)
    if not normal or any(prohibits(c) for c in normal for prohibits in _PROHIBITED):
        return password
    if any(stringprep.in_table_d1(c) for c in normal):
        ends = stringprep.in_table_d1(normal[0]) and stringprep.in_table_d1(normal[-1])
        if not ends or any(stringprep.in_table_d2(c) for c in normal):
            return password
    return normal


def verifier_of(password: str, salt: bytes, iterations: int = _ITERATIONS) -> str:
    """Return the verifier of a password. `salt`: 16 random bytes.

    >>> verifier_of("pencil", b"0" * 16)[:22]
    'SCRAM-SHA-256$4096:MDA'
    """
    salted = hashlib.pbkdf2_hmac("sha256", saslprep(password).encode(), salt, iterations)
    client = hmac.digest(salted, b"Client Key", "sha256")
    server = hmac.digest(salted, b"Server Key", "sha256")
    stored = hashlib.sha256(client).digest()
    texts = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return "SCRAM-SHA-256${}:{}${}:{}".format(iterations, *texts)


def version_of(verifier: str) -> str:
    """Return 16 hex digits that change with the verifier and reveal nothing of it: a part of its SHA-256."""
    return hashlib.sha256(verifier.strip().encode()).hexdigest()[:_VERSION_DIGITS]


def joined_version(*verifiers: str) -> str:
    """Return the versions of several verifiers as one, in their order.

    >>> joined_version("a", "b") == version_of("a") + version_of("b")
    True
    """
    return "".join(map(version_of, verifiers))


def parse_branch_verifiers(text: str | None, version: str) -> tuple[tuple[str, ...], ...]:
    """Parse the verifiers of which each branch has its own; none if they are of other passwords than this version's.

    >>> parse_branch_verifiers(render_branch_verifiers("v1", [("a", "b"), ("c", "d")]), "v1")
    (('a', 'b'), ('c', 'd'))
    """
    lines = (text or "").splitlines()
    return tuple(tuple(line.split()) for line in lines[1:]) if lines[:1] == [version] else ()


def render_branch_verifiers(version: str, verifiers: Iterable[Sequence[str]]) -> str:
    """Render the version of the passwords (`joined_version`), then a line a branch with a verifier for each role."""
    return "\n".join([version, *map(" ".join, verifiers)])


def split_version(joined: str) -> tuple[str, ...]:
    """Return the versions of which `joined_version` made one.

    >>> split_version(joined_version("a", "b")) == (version_of("a"), version_of("b"))
    True
    """
    return tuple(joined[i : i + _VERSION_DIGITS] for i in range(0, len(joined), _VERSION_DIGITS))


def is_verifier_of(verifier: str, password: str) -> bool:
    """Return True if the verifier was computed from this password."""
    match = _VERIFIER.fullmatch(verifier.strip())
    if match is None:
        return False
    expected = verifier_of(password, base64.b64decode(match[2]), int(match[1]))
    return hmac.compare_digest(expected, verifier.strip())
