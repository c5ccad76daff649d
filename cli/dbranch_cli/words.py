"""Names as the user types them: what may be one, what would do instead, what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from dbranch.api import names
from dbranch.api.errors import InvalidInput

_PROJECT = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
_BRANCH = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
# The project's own objects have these names: `<project>-proxy`, `<project>-conn`.
_TAKEN = ("proxy", "conn")


def suggestion(name: str, limit: int, first: str = "a-z0-9") -> str:
    """A name near this one that would do, or the empty string.

    >>> suggestion("feature/X", 61)
    'feature-x'
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower())
    return re.sub(rf"^[^{first}]+", "", plain)[:limit].rstrip("-")


def check_project(name: str) -> str:
    """The name of a project, unchanged. Raises InvalidInput with one that would do."""
    if _PROJECT.match(name) and len(name) <= names.MAX_PROJECT:
        return name
    rule = (
        'lowercase letters, digits and "-", first a letter, last no "-"'
        if not _PROJECT.match(name)
        else f"at most {names.MAX_PROJECT} characters"
    )
    raise InvalidInput(_refusal("project", name, rule, suggestion(name, names.MAX_PROJECT, "a-z")))


def check_branch(project: str, name: str) -> str:
    """The name of a branch, unchanged. Raises InvalidInput with one that would do."""
    limit = names.MAX_OBJECT - len(project) - 1
    if name in _TAKEN:
        raise InvalidInput(
            f"a branch cannot be called {name}, since the project's own objects are; try {name}-branch"
        )
    if _BRANCH.match(name) and len(name) <= limit:
        return name
    rule = (
        'lowercase letters, digits and "-", first and last no "-"'
        if not _BRANCH.match(name)
        else f"at most {limit} characters in project {project}"
    )
    raise InvalidInput(_refusal("branch", name, rule, suggestion(name, limit)))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or `; there are: A, B` where nothing is near, or nothing where none is known."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]}?"
    if not known:
        return ""
    shown = ", ".join(known[:10]) + (", …" if len(known) > 10 else "")
    return f"; there {'is' if len(known) == 1 else 'are'}: {shown}"


def _refusal(what: str, name: str, rule: str, better: str) -> str:
    return f'"{name}" cannot be the name of a {what}: {rule}' + (f"; try {better}" if better else "")
