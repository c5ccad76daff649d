"""What ALTER SYSTEM has set is undone where a Postgres does not start with it: by a request on the DBBranch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.node.agent_life import BRANCHES
from tests.node.machine import OWNER, Node, new_uid
from tests.node.test_start_blocked import await_postgres, postgres, reconciling
from tests.node.world import World

from dbranch.agent.volume.alter_system import ensure_alter_system_reset, has_altered_settings
from dbranch.agent.volume.effect import marker_of
from dbranch.api import names
from dbranch.api.errors import Busy

FIRST, SECOND = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
ALTERED, MOVED = "postgresql.auto.conf", "postgresql.auto.conf.before-reset"


def annotate(world: World, branch: str, **annotations: str) -> None:
    keys = {"restart": names.RESTARTED_AT, "reset": names.ALTER_SYSTEM_RESET_AT}
    body = {"metadata": {"annotations": {keys[key]: value for key, value in annotations.items()}}}
    world.api.merge(f"{BRANCHES}/shop-{branch}", body)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        # kubelet's CrashLoopBackOff makes CrashLooping of it.
        (("alter system set shared_preload_libraries = 'nonexistent'",), "Recovering"),
        # More than there is memory for.
        (
            (
                "alter system set max_connections = 200000",
                "alter system set max_locks_per_transaction = 2147483647",
            ),
            "InvalidParameters",
        ),
    ],
    ids=["library", "memory"],
)
def test_a_branch_that_alter_system_broke_starts_again_with_its_data(
    world: World, broken: tuple[str, ...], reason: str
) -> None:
    project = world.make_project()
    world.run_agent()
    world.sql("main", "create table item as select 1 as id")
    for statement in broken:
        world.sql("main", statement)
    pgdata = world.node.layout.branch(project, world.uid("main")) / "pgdata"
    text = (pgdata / ALTERED).read_text()
    annotate(world, "main", restart=FIRST)
    with reconciling(world):
        await_postgres(world, "main", "WaitingForSlot")
        message = await_postgres(world, "main", reason)
        assert reason == "Recovering" or message.endswith("dbranch restart main --reset-alter-system")
    annotate(world, "main", reset=SECOND)
    world.run_agent()
    assert world.sql("main", "select count(*) from item") == [(1,)]
    assert (pgdata / MOVED).read_text() == text and not (pgdata / ALTERED).exists()
    assert world.branch("main")["status"]["node"]["alterSystemResetAt"] == SECOND
    world.assert_consistent(project, running=1, stored=1)
    # Once: what is set from now on stays, and so does the pod.
    pods = [pod["metadata"]["uid"] for pod in world.pods()]
    world.sql("main", "alter system set work_mem = '7MB'")
    world.run_agent()
    assert [pod["metadata"]["uid"] for pod in world.pods()] == pods
    assert "7MB" in (pgdata / ALTERED).read_text() and (pgdata / MOVED).read_text() == text


def test_a_file_that_postgres_cannot_read_is_said_with_the_command_and_undone(world: World) -> None:
    project = world.make_project()
    world.run_agent()
    pgdata = world.node.layout.branch(project, world.uid("main")) / "pgdata"
    write_as_tenant(pgdata / ALTERED, "no_such_parameter = here\n")
    annotate(world, "main", restart=FIRST)
    with reconciling(world):
        message = await_postgres(world, "main", "InvalidParameters")
        assert message.endswith("; run dbranch restart main --reset-alter-system")
        annotate(world, "main", reset=SECOND)
        await_postgres(world, "main", "Accepting")
    assert postgres(world, "main")[0] == "Accepting"


def test_what_a_running_postgres_does_not_take_of_alter_system_is_said_with_the_command(world: World) -> None:
    project = world.make_project()
    world.run_agent()
    pgdata = world.node.layout.branch(project, world.uid("main")) / "pgdata"
    write_as_tenant(pgdata / ALTERED, "work_mem = 'a secret'\n")
    world.run_agent()
    reason, message = postgres(world, "main")
    assert reason == "SettingsRejected" and "work_mem of ALTER SYSTEM" in message and "secret" not in message
    assert message.endswith("; run dbranch restart main --reset-alter-system")
    annotate(world, "main", restart=FIRST, reset=FIRST)
    world.run_agent()
    assert postgres(world, "main")[0] == "Accepting"
    assert world.branch("main")["status"]["node"]["restartedAt"] == FIRST


def test_a_stopped_branch_is_reset_at_its_next_start(world: World) -> None:
    world.make_project()
    world.run_agent()
    world.sql("main", "alter system set work_mem = '7MB'")
    world.patch_spec("main", state="Stopped")
    annotate(world, "main", reset=FIRST)
    world.run_agent()
    world.patch_spec("main", state="Running")
    world.run_agent()
    assert world.sql("main", "show work_mem") == [("4MB",)]


def write_as_tenant(path: Path, text: str) -> None:
    path.write_text(text)
    os.chown(path, OWNER, OWNER)


@pytest.fixture
def branch(up: Node) -> Iterator[tuple[Node, str, Path]]:
    """A branch whose Postgres does not run, and its PGDATA."""
    uid = up.create_root()
    yield up, uid, up.layout.branch(up.project, uid) / "pgdata"


def reset(node: Node, uid: str, requested_at: str) -> None:
    assert (
        ensure_alter_system_reset(node.layout, node.project, uid, requested_at).alter_system_reset
        == requested_at
    )


def test_nothing_of_a_tenant_is_followed(branch: tuple[Node, str, Path], tmp_path: Path) -> None:
    node, uid, pgdata = branch
    secret, directory = tmp_path / "secret", tmp_path / "directory"
    secret.write_text("of the node")
    directory.mkdir()
    (directory / "file").write_text("of the node")
    altered, moved = pgdata / ALTERED, pgdata / MOVED
    for number, target in enumerate((secret, directory, tmp_path / "nothing")):
        altered.unlink(missing_ok=True)
        altered.symlink_to(target)
        assert has_altered_settings(node.layout, node.project, uid)
        reset(node, uid, f"{number}")
        # The link itself has the other name, and that is a link when it is replaced.
        assert moved.is_symlink() and moved.readlink() == target and not os.path.lexists(altered)
    altered.write_text("work_mem = '7MB'\n")
    reset(node, uid, "3")
    assert moved.read_text() == "work_mem = '7MB'\n" and not moved.is_symlink()
    # Whatever else has the names.
    moved.unlink()
    (moved / "deep").mkdir(parents=True)
    (moved / "deep" / "link").symlink_to(directory)
    os.mkfifo(altered)
    reset(node, uid, "4")
    assert moved.is_fifo() and not altered.exists()
    altered.mkdir()
    subprocess.run(["btrfs", "-q", "subvolume", "create", str(altered / "nested")], check=True)
    reset(node, uid, "5")
    assert (moved / "nested").is_dir() and not altered.exists()
    assert secret.read_text() == (directory / "file").read_text() == "of the node"
    # Without a file nothing is lost of what was moved last.
    reset(node, uid, "6")
    assert (moved / "nested").is_dir()


def test_comments_and_newlines_are_nothing_that_was_set(branch: tuple[Node, str, Path]) -> None:
    node, uid, pgdata = branch
    assert not has_altered_settings(node.layout, node.project, uid)
    (pgdata / ALTERED).write_text("\n \n# work_mem = '7MB'\n")
    assert not has_altered_settings(node.layout, node.project, uid)
    (pgdata / ALTERED).write_text("# a comment\nwork_mem = '7MB'\n")
    assert has_altered_settings(node.layout, node.project, uid)
    (pgdata / ALTERED).unlink()
    assert not has_altered_settings(node.layout, node.project, uid)
    assert not has_altered_settings(node.layout, node.project, new_uid())


def test_nothing_is_moved_beside_a_postgres(branch: tuple[Node, str, Path]) -> None:
    node, uid, pgdata = branch
    node.start_postgres(uid)
    with pytest.raises(Busy):
        ensure_alter_system_reset(node.layout, node.project, uid, FIRST)
    assert (pgdata / ALTERED).exists() and marker_of(pgdata.parent).alter_system_reset == ""
