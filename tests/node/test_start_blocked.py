"""Every reason for which a slot's script does not start Postgres is a condition of the branch, until it is gone."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from tests.node.agent_life import PODS, PROJECTS
from tests.node.machine import OWNER, USER, owner_session
from tests.node.majors import programs_of
from tests.node.world import World

from dbranch.agent.postgres.session import Endpoint
from dbranch.api.parameters import OLDEST_MAJOR


def postgres(world: World, branch: str) -> tuple[str, str]:
    """Return reason and message of the branch's Postgres."""
    finding = (world.branch(branch)["status"].get("node") or {}).get("postgres") or {}
    return finding.get("reason", ""), finding.get("message", "")


@contextmanager
def reconciling(world: World) -> Iterator[None]:
    """Run an agent that reconciles everything again and again."""
    process = world.start_agent(0, 100000)
    try:
        yield
    finally:
        process.kill()
        process.wait_for_output()


def await_postgres(world: World, branch: str, reason: str) -> str:
    """Wait until the branch's Postgres has this reason; return its message."""
    deadline = time.monotonic() + 120
    while postgres(world, branch)[0] != reason:
        assert time.monotonic() < deadline, postgres(world, branch)
        time.sleep(0.1)
    return postgres(world, branch)[1]


def noop() -> None:
    """Do nothing."""


def owner_or_mode(pgdata: Path) -> Callable[[], None]:
    pgdata.chmod(0o750)
    return lambda: pgdata.chmod(0o700)


def another_user(pgdata: Path) -> Callable[[], None]:
    os.chown(pgdata, 12345, 12345)
    return lambda: os.chown(pgdata, OWNER, OWNER)


def no_lock_file(pgdata: Path) -> Callable[[], None]:
    lock, aside = pgdata.parent / "lock", pgdata.parent / "lock.aside"
    lock.rename(aside)

    def unblock() -> None:
        aside.replace(lock)

    return unblock


def lock_held(pgdata: Path) -> Callable[[], None]:
    handle = os.open(pgdata.parent / "lock", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return lambda: os.close(handle)


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        (
            owner_or_mode,
            f"PGDATA belongs to user {OWNER} and has mode 750, Postgres needs user {OWNER} and mode 700",
        ),
        (
            another_user,
            f"PGDATA belongs to user 12345 and has mode 700, Postgres needs user {OWNER} and mode 700",
        ),
        (no_lock_file, "its subvolume has no lock file"),
        (lock_held, "another container still runs on its data"),
    ],
)
def test_what_keeps_the_script_from_starting_postgres_is_reported(
    world: World, block: Callable[[Path], Callable[[], None]], sentence: str
) -> None:
    project = world.make_project()
    world.run_agent()
    world.patch_spec("main", state="Stopped")
    world.run_agent()
    unblock = block(world.node.layout.branch(project, world.uid("main")) / "pgdata")
    try:
        world.patch_spec("main", state="Running")
        with reconciling(world):
            message = await_postgres(world, "main", "StartBlocked")
            assert sentence in message and "Postgres is not started" in message
            assert world.api.find(PODS, "dbranch.io/branch-uid")[0]["status"]["phase"] == "Running"
            unblock()
            unblock = noop
            await_postgres(world, "main", "Accepting")
    finally:
        unblock()


def test_a_pool_that_is_adopted_with_another_user_is_reported(world: World) -> None:
    project = world.make_project(deletionPolicy="Retain")
    world.run_agent()
    world.delete_project()
    adopting = world.for_project("again")
    adopting.make_project(storage={"adopt": project})
    world.api.merge(f"{PROJECTS}/again", {"spec": {"postgres": {"user": "another"}}})
    with reconciling(world):
        message = await_postgres(adopting, "main", "RoleNotFound")
    assert "has no role another" in message and "spec.postgres.user" in message


def test_a_copy_that_cannot_be_cleaned_says_why_and_admits_nobody(world: World) -> None:
    # From PostgreSQL 17 on no event trigger of the source's fires in the agent's sessions.
    world.node.programs = programs_of(OLDEST_MAJOR)
    try:
        project = world.make_project()
        world.run_agent()
        world.sql(
            "main",
            "create subscription s connection 'host=/nowhere' publication p with (connect = false);"
            "create function refuse() returns event_trigger language plpgsql as"
            " $$ begin raise 'only by a change request'; end $$;"
            "create event trigger guard on ddl_command_start when tag in ('ALTER SUBSCRIPTION', 'DROP SUBSCRIPTION')"
            " execute function refuse()",
        )
        world.make_branch("x", "main")
        with reconciling(world):
            message = await_postgres(world, "x", "CleaningFailed")
            assert "only by a change request" in message
            assert world.branch("x")["status"]["node"].get("address") is None
            with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry"):
                world.log_in("x")
            assert '"cleaned": false' in marker_text(world, project, "x")
            # It is tried again, and needs no other branch once the cause is gone.
            node = world.branch("x")["status"]["node"]
            endpoint = Endpoint(node["pod"], node["port"], USER, OLDEST_MAJOR)
            with owner_session(world.node.layout, endpoint) as superuser:
                superuser.execute("drop event trigger guard")
            await_postgres(world, "x", "Accepting")
        assert world.sql("x", "select count(*) from pg_subscription") == [(0,)]
        world.log_in("x")
    finally:
        world.kubelet.stop()  # it would start them again
        world.node.tear_down()
        shutil.rmtree(world.node.programs.parents[1])


def marker_text(world: World, project: str, branch: str) -> str:
    return (world.node.layout.branch(project, world.uid(branch)) / "marker.json").read_text()
