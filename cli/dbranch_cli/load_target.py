"""The branch that a dump is loaded into, where it is created for that: removed again if the load fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dbranch.api import names
from dbranch.api.conditions import Condition
from dbranch.api.errors import DbranchError
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.invocation import Invocation
from dbranch_cli.naming import check_branch_name
from dbranch_cli.objects import manifest
from dbranch_cli.waiting import has_condition, wait_for


@contextmanager
def new_branch(invocation: Invocation, name: str | None, source: str, timeout: float) -> Iterator[str | None]:
    """Create a branch from `source` for the block, and remove it if the block fails; None: do nothing.

    `timeout`: how long to wait until it is Ready, in seconds.
    """
    if name is None:
        yield None
        return
    project = invocation.project_name
    check_branch_name(project, name)
    if invocation.store.find_branch(project, name) is not None:
        message = f"branch {name} already exists; load into it without --into-new, or choose another name"
        raise Failure(ExitCode.REFUSED, "AlreadyExists", message)
    spec = {"project": project, "source": source}
    body = manifest(names.BRANCH_KIND, invocation.namespace, names.branch_object_name(project, name), spec)
    invocation.print_note(f"creating branch {name} from {source}")
    live = invocation.store.create(body)
    try:
        wait_for(
            invocation.store,
            live,
            has_condition(Condition.READY),
            f"branch {name} is Ready",
            timeout,
            quiet=not invocation.human_output,
        )
        yield name
    except BaseException:
        try:
            invocation.store.delete(live)
            invocation.print_note(f"branch {name} is removed, since nothing was loaded into it")
        except DbranchError as error:
            invocation.print_note(f"branch {name} is not removed ({error}); run 'dbranch delete {name}'")
        raise
