"""Bring a deleted project back: its pool is adopted, with its branches and snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import click

from dbranch.api import names
from dbranch.api.conditions import Condition
from dbranch.api.enums import State
from dbranch.api.errors import ApiError
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.formatting import format_age, format_count
from dbranch_cli.invocation import Invocation
from dbranch_cli.naming import check_project_name, did_you_mean
from dbranch_cli.objects import Body, branch_name_of
from dbranch_cli.options import Command, ExistingName, no_wait_option, timeout_option
from dbranch_cli.waiting import has_condition, wait_for

# The project comes last: it adopts the pool, and meets what it is to bind.
_ORDER: Final = (names.SNAPSHOT_KIND, names.BRANCH_KIND, names.PROJECT_KIND)


class DeletedProjectName(ExistingName):
    """The name of a project that was deleted and can be brought back."""

    name = "deleted project"

    def existing(self, invocation: Invocation) -> list[str]:
        return sorted({body["spec"]["project"] for body in deleted_projects(invocation)})


def deleted_projects(invocation: Invocation, name: str | None = None) -> list[Body]:
    """Return the records of deleted projects (of this name) in the namespace, the last deleted first."""
    records = [
        body
        for body in invocation.store.all_snapshots()
        if (body["spec"].get("origin") or {}).get("projectUID") and name in (None, body["spec"]["project"])
    ]
    return sorted(records, key=lambda body: body["metadata"].get("creationTimestamp", ""), reverse=True)


@click.command("undelete-project", cls=Command)
@click.argument("name", type=DeletedProjectName())
@no_wait_option()
@timeout_option("5m")
@click.pass_obj
def undelete_project(invocation: Invocation, name: str, no_wait: bool, timeout: float) -> None:
    """Bring a deleted project back, with all its branches and snapshots.

    That is possible for the project's spec.undo.keep. Without a passwordSecret its password is a new one.
    """
    check_project_name(name)
    records = deleted_projects(invocation, name)
    if not records:
        existing = sorted({body["spec"]["project"] for body in deleted_projects(invocation)})
        text = f"no deleted project {name} is kept in namespace {invocation.namespace}"
        raise Failure(ExitCode.NOT_FOUND, "NotFound", text + did_you_mean(name, existing))
    record = records[0]
    uid = record["spec"]["origin"]["projectUID"]
    live = invocation.store.find(names.PROJECTS, name)
    if live is not None and (live["spec"].get("storage") or {}).get("adopt") != uid:
        text = (
            f"project {name} exists; nothing was changed; delete it and run this again, "
            f"or make it with spec.storage.adopt: {uid}"
        )
        raise Failure(ExitCode.REFUSED, "AlreadyExists", text)
    objects: list[Body] = list(record["spec"]["origin"].get("objects") or ())
    made = _apply(invocation, objects)
    project = invocation.store.project(name)
    branches = [body for body in made if body["kind"] == names.BRANCH_KIND]
    age = format_age(record["metadata"].get("creationTimestamp"))
    result = f"project {name}, deleted {age} ago, is made again with {format_count(len(branches), 'branch')}"
    if not no_wait:
        _wait(invocation, project, branches, timeout)
        # From here on it is history.
        invocation.store.delete(record)
        result += "; Ready"
    invocation.print_result(result, invocation.store.project(name))


def _apply(invocation: Invocation, objects: Sequence[Body]) -> list[Body]:
    """Create the objects that do not exist yet; return all as they are now. It goes on wherever it was cut off."""
    made: list[Body] = []
    for kind in _ORDER:
        for body in (each for each in objects if each.get("kind") == kind):
            meta = {**body["metadata"], "namespace": invocation.namespace}
            try:
                made.append(invocation.store.create({**body, "metadata": meta}))
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise
                plural = {names.SNAPSHOT_KIND: names.SNAPSHOTS, names.BRANCH_KIND: names.BRANCHES}
                existing = invocation.store.find(plural.get(kind, names.PROJECTS), meta["name"])
                made += [existing] if existing else []
    return made


def _wait(invocation: Invocation, project: Body, branches: Sequence[Body], timeout: float) -> None:
    quiet = not invocation.human_output
    stopped = project["spec"].get("state") == State.STOPPED
    if stopped:
        return
    goal = f"project {project['metadata']['name']} is Ready"
    wait_for(invocation.store, project, has_condition(Condition.READY), goal, timeout, quiet=quiet)
    for body in branches:
        if body["spec"].get("state") == State.STOPPED:
            continue
        goal = f"branch {branch_name_of(body)} is Ready"
        wait_for(invocation.store, body, has_condition(Condition.READY), goal, timeout, quiet=quiet)
