"""Text as part of an SQL statement: the only place that quotes. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def literal(text: str) -> str:
    r"""Quote a text as a string constant, whatever `standard_conforming_strings` is.

    >>> print(literal("it's"), literal("a\\b"))
    'it''s' E'a\\b'
    """
    _check(text)
    quoted = text.replace("'", "''")
    return f"'{quoted}'" if "\\" not in text else "E'" + quoted.replace("\\", "\\\\") + "'"


def identifier(name: str) -> str:
    """Quote a name.

    >>> print(identifier('a"B'))
    "a""B"
    """
    _check(name)
    return '"' + name.replace('"', '""') + '"'


def fill(sql: str, values: Sequence[str]) -> str:
    """Replace each `%s` of a statement by a value's string constant; without values nothing is replaced.

    >>> fill("select %s, %s", ["a", "b"])
    "select 'a', 'b'"
    """
    if not values:
        return sql
    first, *others = sql.split("%s")
    return first + "".join(literal(value) + text for value, text in zip(values, others, strict=True))


def _check(text: str) -> None:
    if "\0" in text:
        raise ValueError("a text with a NUL character is no part of a statement")
