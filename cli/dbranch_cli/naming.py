"""Names of projects and branches as users type them: validation, valid alternatives, corrections of typos."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from dbranch.api import names
from dbranch.api.errors import InvalidInput

_PROJECT_NAME = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
_BRANCH_NAME = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
# Reserved: a project's proxy and Secrets are named `<project>-proxy`, `<project>-conn`, `<project>-superuser-conn`.
_RESERVED_BRANCH_NAMES = ("proxy", "conn", "superuser")
_MAX_LISTED_NAMES = 10


def suggest_name(name: str, limit: int, first: str = "a-z0-9") -> str:
    """Return a valid name close to `name`, or an empty string if there is none.

    `limit` is its greatest length; `first` is the set of characters that it may begin with.

    >>> suggest_name("feature/X", 61)
    'feature-x'
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower())
    return re.sub(rf"^[^{first}]+", "", plain)[:limit].rstrip("-")


def check_project_name(name: str) -> str:
    """Return a project's name unchanged. Raise InvalidInput with a valid alternative if it is invalid."""
    if _PROJECT_NAME.match(name) and len(name) <= names.MAX_PROJECT_LENGTH:
        return name
    rule = (
        'use lowercase letters, digits and "-", begin with a letter and end with a letter or digit'
        if not _PROJECT_NAME.match(name)
        else f"use at most {names.MAX_PROJECT_LENGTH} characters"
    )
    raise _invalid_name("project", name, rule, suggest_name(name, names.MAX_PROJECT_LENGTH, "a-z"))


def check_branch_name(project: str, name: str) -> str:
    """Return a branch's name unchanged. Raise InvalidInput with a valid alternative if it is invalid."""
    limit = names.MAX_OBJECT_LENGTH - len(project) - 1
    if name in _RESERVED_BRANCH_NAMES:
        raise InvalidInput(f"branch name {name} is reserved for the project's own objects; try {name}-branch")
    if _BRANCH_NAME.match(name) and len(name) <= limit:
        return name
    rule = (
        'use lowercase letters, digits and "-", begin and end with a letter or digit'
        if not _BRANCH_NAME.match(name)
        else f"use at most {limit} characters in project {project}"
    )
    raise _invalid_name("branch", name, rule, suggest_name(name, limit))


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return a clause for an error message: the candidate closest to `name`, or all of them if none is close.

    >>> did_you_mean("mian", ["main"]), did_you_mean("x", ["main"]), did_you_mean("x", [])
    ('; did you mean main?', '; available: main', '')
    """
    candidates = list(candidates)
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]}?"
    if not candidates:
        return ""
    return f"; available: {list_names(candidates)}"


def list_names(all_names: list[str]) -> str:
    """Return names separated by commas; after the first ten an ellipsis."""
    return ", ".join(all_names[:_MAX_LISTED_NAMES]) + (", …" if len(all_names) > _MAX_LISTED_NAMES else "")


def _invalid_name(noun: str, name: str, rule: str, alternative: str) -> InvalidInput:
    hint = f"; try {alternative}" if alternative else ""
    return InvalidInput(f'invalid {noun} name "{name}": {rule}{hint}')
