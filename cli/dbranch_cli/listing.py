"""The commands that list a project's branches: list, also as they change, and tree."""

from __future__ import annotations

import queue
import shutil
import sys
import threading
from collections.abc import Mapping
from typing import Final

import click

from dbranch.api import names
from dbranch.api.errors import DbranchError
from dbranch_cli.diagrams import dot_graph, mermaid_graph
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.formatting import format_table
from dbranch_cli.invocation import Invocation, format_objects
from dbranch_cli.objects import Body, sorted_branches
from dbranch_cli.options import Command
from dbranch_cli.undelete import list_deleted
from dbranch_cli.view import branch_header, branch_row, branch_table, branch_tree
from dbranch_cli.watching import Change, follow

# Columns whose text changes with the time alone.
_TIMES: Final = [branch_header(wide=False).index(column) for column in ("EXPIRES", "AGE")]
_STATE: Final = branch_header(wide=False).index("STATE")
_DIAGRAMS: Final = {"mermaid": mermaid_graph, "dot": dot_graph}
_CLEAR_LINES: Final = "\x1b[{lines}A\x1b[J"


@click.command("list", cls=Command)
@click.option("-w", "--watch", is_flag=True, help="Go on until interrupted, and show each change.")
@click.option("--deleted", is_flag=True, help="Those that 'undelete' can bring back.")
@click.pass_obj
def list_branches(invocation: Invocation, watch: bool, deleted: bool) -> None:
    """List the branches with their states and sizes."""
    project = invocation.project()
    if deleted:
        list_deleted(invocation)
        return
    branches = invocation.store.branches(invocation.project_name)
    if watch:
        _Watch(invocation, project, branches).run()
    invocation.print_result(branch_table(project, branches, invocation.output == "wide"), branches)


@click.command(cls=Command, outputs=tuple(_DIAGRAMS))
@click.pass_obj
def tree(invocation: Invocation) -> None:
    """Show the branches as a tree, each below its source.

    With -o mermaid or -o dot it is the text of a diagram, for Markdown and for Graphviz.
    """
    project = invocation.project()
    branches = invocation.store.branches(invocation.project_name)
    if diagram := _DIAGRAMS.get(invocation.output):
        click.echo(diagram(project, branches))
        return
    invocation.print_result(branch_tree(project, branches), branches)


class _Watch:
    """The table of `list --watch`: drawn anew on a terminal, elsewhere a line for each change as in kubectl."""

    def __init__(self, invocation: Invocation, project: Body, branches: list[Body]) -> None:
        self._invocation, self._project = invocation, project
        self._wide, self._on_terminal = invocation.output == "wide", sys.stdout.isatty()
        self._branches = {body["metadata"]["uid"]: body for body in branches}
        self._changes: queue.SimpleQueue[Change | DbranchError] = queue.SimpleQueue()
        # By UID: the rows as they were printed last, without what the time changes. And the lines on the terminal.
        self._printed: dict[str, list[str]] = {}
        self._lines = 0

    def run(self) -> None:
        """Print the branches, then changes, until the project is deleted. Raises ApiError, ClusterUnreachable."""
        self._print()
        name = self._project["metadata"]["name"]
        projects, branches = (
            {"fieldSelector": f"metadata.name={name}"},
            {"fieldSelector": f"spec.project={name}"},
        )
        for plural, selector, existing in (
            (names.PROJECTS, projects, [self._project]),
            (names.BRANCHES, branches, list(self._branches.values())),
        ):
            threading.Thread(target=self._follow, args=(plural, selector, existing), daemon=True).start()
        while True:
            change = self._changes.get()
            if isinstance(change, DbranchError):
                raise change
            self._take(change)

    def _follow(self, plural: str, selector: Mapping[str, str], existing: list[Body]) -> None:
        try:
            for change in follow(self._invocation.store, plural, selector, existing):
                self._changes.put(change)
        except DbranchError as error:
            self._changes.put(error)

    def _take(self, change: Change) -> None:
        body = change.body
        if body["kind"] == names.PROJECT_KIND:
            if change.deleted:
                text = f"project {body['metadata']['name']} is deleted"
                raise Failure(ExitCode.NOT_FOUND, "Deleted", text)
            self._project = body
        elif self._branches.get(body["metadata"]["uid"]) == body and not change.deleted:
            return
        elif change.deleted:
            self._branches.pop(body["metadata"]["uid"], None)
        else:
            self._branches[body["metadata"]["uid"]] = body
        if self._invocation.human_output:
            self._print(body if change.deleted else None)
        elif body["kind"] == names.BRANCH_KIND:
            click.echo(format_objects(body, self._invocation.output))

    def _print(self, deleted: Body | None = None) -> None:
        """Print what differs from what was printed last."""
        name = self._project["metadata"]["name"]
        ordered = sorted_branches(name, self._branches.values())
        if not self._invocation.human_output:
            click.echo(format_objects(ordered, self._invocation.output))
            return
        rows = {body["metadata"]["uid"]: branch_row(self._project, body, self._wide) for body in ordered}
        if self._on_terminal:
            self._redraw(list(rows.values()))
            return
        if deleted and deleted["metadata"]["uid"] in self._printed:
            row = branch_row(self._project, deleted, self._wide)
            rows[deleted["metadata"]["uid"]] = [*row[:_STATE], "Deleted", *row[_STATE + 1 :]]
        lines = format_table(branch_header(self._wide), list(rows.values())).splitlines()
        if not self._printed:
            click.echo(lines[0])
        for (uid, row), line in zip(rows.items(), lines[1:], strict=True):
            compared = [cell for index, cell in enumerate(row) if index not in _TIMES]
            compared.append((self._branches.get(uid, {}).get("status") or {}).get("expirationTime") or "")
            if self._printed.get(uid) != compared:
                click.echo(line)
            self._printed[uid] = compared
        if deleted:
            self._printed.pop(deleted["metadata"]["uid"], None)

    def _redraw(self, rows: list[list[str]]) -> None:
        """Draw the table over the one before, as much of it as the terminal shows."""
        columns, height = shutil.get_terminal_size()
        lines = format_table(branch_header(self._wide), rows).splitlines()
        if len(lines) > height - 1:
            lines = [*lines[: height - 2], f"… {len(lines) - height + 2} more"]
        if self._lines:
            sys.stdout.write(_CLEAR_LINES.format(lines=self._lines))
        click.echo("\n".join(line[:columns] for line in lines))
        self._lines = len(lines)
