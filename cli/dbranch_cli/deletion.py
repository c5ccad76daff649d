"""Delete branches: what becomes of their data, and how it is had back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click

from dbranch.api import names
from dbranch.api.enums import Undo
from dbranch.api.errors import ApiError
from dbranch_cli.invocation import Invocation
from dbranch_cli.naming import check_branch_name
from dbranch_cli.objects import Body, active_branch_of, desired_branch_of
from dbranch_cli.options import BranchName, Command, no_wait_option, timeout_option, yes_option
from dbranch_cli.parsing import parse_branch, parse_project
from dbranch_cli.waiting import wait_deleted

# After a switch the policy that protects the active branch still reads the project as it was: the API server's cache
# is behind by a few milliseconds, on a busy machine by seconds.
_POLICY_LAG_SECONDS = 10.0
_POLICY_RETRY_SECONDS = 0.2


def kept_for(project: Mapping[str, Any], live: Mapping[str, Any]) -> str | None:
    """Return how long the data is kept that a branch loses by a restore or its deletion; None: it is deleted."""
    policy, undo = parse_project(project).undo, parse_branch(live).undo
    keeps = policy.keeps if undo is None else undo != Undo.DISCARD
    return policy.ttl if keeps else None


def deletion_copy_of(invocation: Invocation, live: Mapping[str, Any]) -> Body | None:
    """Return the DBSnapshot that has got the data of a branch that was deleted; None if there is none."""
    meta = live["metadata"]
    return invocation.store.find(names.SNAPSHOTS, names.deletion_copy_name(meta["name"], meta["uid"]))


@click.command(cls=Command)
@click.argument("branches", metavar="BRANCH...", nargs=-1, required=True, type=BranchName())
@click.option("--ignore-not-found", is_flag=True, help="Succeed if a branch does not exist.")
@click.option("--purge", is_flag=True, help="Keep no data: 'undelete' cannot bring it back.")
@yes_option()
@no_wait_option()
@timeout_option("2m")
@click.pass_obj
def delete(
    invocation: Invocation,
    branches: tuple[str, ...],
    ignore_not_found: bool,
    purge: bool,
    yes: bool,
    no_wait: bool,
    timeout: float,
) -> None:
    """Delete branches. Their data is kept for the project's spec.undo.keep, and 'undelete' brings it back.

    The root branch, the active and protected branches are refused.
    """
    existing: dict[str, Mapping[str, Any]] = {}
    for branch in dict.fromkeys(branches):
        check_branch_name(invocation.project_name, branch)
        body = invocation.store.find_branch(invocation.project_name, branch)
        if body is not None:
            existing[branch] = body
        elif ignore_not_found:
            invocation.print_note(f"branch {branch} not found, ignored")
        else:
            invocation.branch(branch)  # raises Failure with a similar name
    if not existing:
        return
    project = invocation.store.find(names.PROJECTS, invocation.project_name)
    kept = {
        branch: None if purge or project is None else kept_for(project, live)
        for branch, live in existing.items()
    }
    invocation.confirm(_question(invocation.project_name, kept), yes)
    for branch, live in existing.items():
        delete_branch(invocation, branch, live, purge)
        is_kept = kept[branch]
        if not no_wait:
            quiet = not invocation.human_output
            wait_deleted(invocation.store, live, f"branch {branch}", timeout, quiet=quiet)
            # Data that nobody could connect to yet is not kept.
            is_kept = is_kept if deletion_copy_of(invocation, live) else None
        done = "is being deleted" if no_wait else "deleted"
        fate = f"its data is kept for {is_kept}: dbranch undelete {branch}" if is_kept else "and its data"
        invocation.print_result(f"branch {branch} {done}{'; ' if is_kept else ', '}{fate}", live)


def _question(project: str, kept: Mapping[str, str | None]) -> str:
    """Return the question: which branches, and what becomes of their data."""
    noun = "branch" if len(kept) == 1 else "branches"
    question = f"Delete {noun} {', '.join(kept)} of project {project}"
    lost = [branch for branch, keep in kept.items() if keep is None]
    if len(lost) == len(kept):
        return f"{question} and all data?"
    keep = next(filter(None, kept.values()))
    data = f"The data is kept for {keep}: 'dbranch undelete'."
    return f"{question}? {data}" + (f" That of {', '.join(lost)} is deleted for good." if lost else "")


def delete_branch(invocation: Invocation, branch: str, live: Mapping[str, Any], purge: bool = False) -> None:
    """Delete a branch; with `purge` none of its data is kept.

    Repeat it for a few seconds if it is refused as the active one, and is that no more.
    """
    if purge and parse_branch(live).undo != Undo.DISCARD:
        # A branch whose deletion is refused must not be one whose data is discarded some day.
        _delete_inactive(invocation, branch, live, dry_run=True)
        live = invocation.store.set_field(live, "undo", Undo.DISCARD.value, force=True)
    _delete_inactive(invocation, branch, live)


def _delete_inactive(
    invocation: Invocation, branch: str, live: Mapping[str, Any], dry_run: bool = False
) -> None:
    deadline = time.monotonic() + _POLICY_LAG_SECONDS
    while True:
        try:
            if dry_run:
                invocation.store.check_deletion(live)
            else:
                invocation.store.delete(live)
            return
        except ApiError as error:
            if "is the active branch" not in str(error) or time.monotonic() >= deadline:
                raise
            project = invocation.store.find(names.PROJECTS, live["spec"]["project"])
            if project is not None and branch in (active_branch_of(project), desired_branch_of(project)):
                raise
        time.sleep(_POLICY_RETRY_SECONDS)
