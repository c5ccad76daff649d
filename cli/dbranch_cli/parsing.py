"""Objects as the controller reads them. The parsers are imported when they are used: `--help` has no need of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dbranch.api.branch import Branch
    from dbranch.api.project import Project


def parse_branch(body: Mapping[str, Any]) -> Branch:
    """Parse a DBBranch as the API server returns it."""
    from dbranch.api import branch

    return branch.parse_branch(body)


def parse_project(body: Mapping[str, Any]) -> Project:
    """Parse a DBProject as the API server returns it."""
    from dbranch.api import project

    return project.parse_project(body)


def should_run(project: Mapping[str, Any], body: Mapping[str, Any]) -> bool:
    """Return True if the Postgres of a DBBranch is to run: neither it nor its DBProject is Stopped."""
    from dbranch.api import branch

    return branch.should_run(parse_project(project), parse_branch(body))
