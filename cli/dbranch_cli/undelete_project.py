"""Bring a deleted project back: which there are, and `dbranch undelete-project`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import click

from dbranch.api import names
from dbranch.api.conditions import Condition, Reason, find_condition
from dbranch.api.enums import State
from dbranch.api.errors import ApiError
from dbranch.api.expiry import parse_time
from dbranch_cli.durations import format_until
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.formatting import format_age, format_count, format_table
from dbranch_cli.invocation import Invocation
from dbranch_cli.naming import check_project_name, did_you_mean
from dbranch_cli.objects import Body, branch_name_of, deleted_project_uid, plural_for
from dbranch_cli.options import Command, ExistingName, no_wait_option, timeout_option
from dbranch_cli.view import state_of
from dbranch_cli.waiting import has_condition, wait_deleted, wait_for

# The project comes last: it adopts the pool, and meets what it is to bind.
_ORDER: Final = (names.SNAPSHOT_KIND, names.BRANCH_KIND, names.PROJECT_KIND)


class DeletedProjectName(ExistingName):
    """The name of a project that was deleted and can be brought back."""

    name = "deleted project"

    def existing(self, invocation: Invocation) -> list[str]:
        return sorted({body["spec"]["project"] for body in invocation.store.deleted_projects()})


def is_kept(invocation: Invocation, project: Mapping[str, Any]) -> bool:
    """Return True if there is the record of this project's deletion, by which it can be brought back."""
    meta = project["metadata"]
    record = invocation.store.find(names.SNAPSHOTS, names.deletion_copy_name(meta["name"], meta["uid"]))
    return record is not None and deleted_project_uid(record) == meta["uid"]


def list_deleted_projects(invocation: Invocation) -> None:
    """Print the projects that were deleted and can be brought back."""
    records = invocation.store.deleted_projects()
    if not records and invocation.human_output:
        invocation.print_note(f"no deleted projects of namespace {invocation.namespace} are kept")
        return
    invocation.print_result(deleted_project_table(records), records)


def deleted_project_table(records: Sequence[Mapping[str, Any]], now: datetime | None = None) -> str:
    """Return the table of `dbranch project list --deleted`."""
    rows = []
    for body in records:
        status = body.get("status") or {}
        rows.append(
            [
                body["spec"]["project"],
                f"{format_age(body['metadata'].get('creationTimestamp'), now)} ago",
                format_until(status.get("expirationTime"), now),
                str(sum(item.get("kind") == names.BRANCH_KIND for item in _objects_of(body))),
                state_of(body),
                status.get("nodeName") or "-",
                body["metadata"]["name"],
            ]
        )
    return format_table(["PROJECT", "DELETED", "EXPIRES", "BRANCHES", "STATE", "NODE", "SNAPSHOT"], rows)


@click.command("undelete-project", cls=Command)
@click.argument("name", type=DeletedProjectName())
@no_wait_option()
@timeout_option("5m")
@click.pass_obj
def undelete_project(invocation: Invocation, name: str, no_wait: bool, timeout: float) -> None:
    """Bring a deleted project back, with all its branches.

    Its snapshots come back, too. That is possible for the project's spec.undo.keep. Without a passwordSecret its
    passwords are new ones.
    """
    check_project_name(name)
    records = invocation.store.deleted_projects(name)
    if not records:
        existing = DeletedProjectName().existing(invocation)
        text = f"no deleted project {name} is kept in namespace {invocation.namespace}"
        raise Failure(ExitCode.NOT_FOUND, "NotFound", text + did_you_mean(name, existing))
    record = records[0]
    uid = deleted_project_uid(record)
    quiet = not invocation.human_output
    live = invocation.store.find(names.PROJECTS, name)
    if live is not None and live["metadata"].get("deletionTimestamp"):
        wait_deleted(invocation.store, live, f"project {name}", timeout, quiet=quiet)
        live = None
    if live is None:
        record = _await_kept(invocation, record, timeout)
    elif (live["spec"].get("storage") or {}).get("adopt") != uid:
        text = (
            f"project {name} exists; nothing was changed; delete it and run this again, "
            f"or make it with spec.storage.adopt: {uid}"
        )
        raise Failure(ExitCode.REFUSED, "AlreadyExists", text)
    made = _create_missing(invocation, _objects_of(record))
    project = invocation.store.project(name)
    branches = [body for body in made if body["kind"] == names.BRANCH_KIND]
    age = format_age(record["metadata"].get("creationTimestamp"))
    result = f"project {name}, deleted {age} ago, is made again with {format_count(len(branches), 'branch')}"
    if not no_wait:
        _wait(invocation, project, branches, timeout)
        # From here on it is history.
        invocation.store.delete(record)
        result += "; stopped, as it was" if _is_stopped(project) else "; Ready"
    invocation.print_result(result, invocation.store.project(name))


def _objects_of(record: Mapping[str, Any]) -> list[Body]:
    return list((record["spec"].get("origin") or {}).get("objects") or ())


def _await_kept(invocation: Invocation, record: Body, timeout: float) -> Body:
    """Return the record once its agent says that the pool is kept. Raise Failure if it is lost, or in the end."""

    def is_decided(body: Mapping[str, Any]) -> bool:
        ready = find_condition(body.get("status"), Condition.READY) or {}
        return ready.get("reason") in (Reason.AVAILABLE, Reason.SNAPSHOT_LOST)

    name = record["spec"]["project"]
    goal = f"the pool of deleted project {name} is kept"
    quiet = not invocation.human_output
    decided = wait_for(invocation.store, record, is_decided, goal, timeout, quiet=quiet)
    ready = find_condition(decided.get("status"), Condition.READY) or {}
    if ready.get("reason") != Reason.AVAILABLE:
        raise Failure(ExitCode.NOT_FOUND, Reason.SNAPSHOT_LOST, f"{ready.get('message')}; nothing was made")
    return decided


def _create_missing(invocation: Invocation, objects: Sequence[Body]) -> list[Body]:
    """Create the objects that do not exist yet; return all as they are now. It goes on wherever it was cut off."""
    made, now = list[Body](), invocation.store.server_time()
    for kind in _ORDER:
        for body in (each for each in objects if each.get("kind") == kind):
            meta = {**body["metadata"], "namespace": invocation.namespace}
            try:
                made.append(invocation.store.create({**body, "metadata": meta, "spec": _spec_of(body, now)}))
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise
                existing = invocation.store.find(plural_for(kind), meta["name"])
                made += [existing] if existing else []
    return made


def _spec_of(body: Mapping[str, Any], now: datetime) -> Body:
    """Return the spec without a time to expire that has passed: the branch would go at once."""
    spec = dict(body["spec"])
    expires = parse_time(spec.get("expirationTime"))
    if expires is not None and expires <= now:
        del spec["expirationTime"]
    return spec


def _is_stopped(body: Mapping[str, Any]) -> bool:
    return bool(body["spec"].get("state") == State.STOPPED)


def _wait(invocation: Invocation, project: Body, branches: Sequence[Body], timeout: float) -> None:
    if _is_stopped(project):
        return
    quiet = not invocation.human_output
    goal = f"project {project['metadata']['name']} is Ready"
    wait_for(invocation.store, project, has_condition(Condition.READY), goal, timeout, quiet=quiet)
    for body in branches:
        if not _is_stopped(body):
            goal = f"branch {branch_name_of(body)} is Ready"
            wait_for(invocation.store, body, has_condition(Condition.READY), goal, timeout, quiet=quiet)
