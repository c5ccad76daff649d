"""A hostile tenant, superuser in a branch: nothing outside is read, written or signalled, and deletion completes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.node.agent_life import BRANCHES, PODS, PROJECTS
from tests.node.machine import AS_TENANT, OWNER, Node
from tests.node.world import World

from dbranch.agent.linux import btrfs
from dbranch.agent.linux.files import opened_directory, remove_at
from dbranch.agent.slot import effect as slot
from dbranch.agent.slot.observe import observe_slot, observe_slots
from dbranch.agent.volume import effect as subvolume
from dbranch.agent.volume.observe import observe_subvolumes
from dbranch.agent.volume.sizes import observe_sizes
from dbranch.runtime.logs import log_command

LONG = "n" * 254


def as_tenant(script: str, directory: Path) -> None:
    """Run Python as the tenant in a directory of its own."""
    argv = [*AS_TENANT, "/usr/bin/python3", "-c"]
    # The tenant cannot open the path: it enters by a descriptor, as a pod does by its mount.
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        enter = f"import os, fcntl, struct\nos.fchdir({handle})\n"
        completed = subprocess.run(
            [*argv, enter + script], pass_fds=[handle], capture_output=True, text=True, check=False
        )
    finally:
        os.close(handle)
    assert completed.returncode == 0, completed.stderr


MAKE = """
def subvolume(name, at='.', read_only=False):
    directory = os.open(at, os.O_RDONLY)
    fcntl.ioctl(directory, 0x5000940E, bytearray(struct.pack('=q4088s', 0, os.fsencode(name))), True)
    if read_only:
        handle = os.open(os.path.join(at, name), os.O_RDONLY)
        fcntl.ioctl(handle, 0x4008941A, struct.pack('=Q', 2))
"""
# Each creates subvolumes of the tenant's in PGDATA.
NESTS: dict[str, str] = {
    "one": "subvolume('mine')",
    "read-only, with another in it": (
        "subvolume('mine'); os.mkdir('mine/in')\n"
        "subvolume('deeper', 'mine/in'); subvolume('last', 'mine/in/deeper')\n"
        "for at in ('mine/in/deeper', 'mine'):\n"
        "    fcntl.ioctl(os.open(at, os.O_RDONLY), 0x4008941A, struct.pack('=Q', 2))"
    ),
    "odd names": (
        "for name in ('..x', 'a\\nb', '\\x1b[2J', 'n' * 254, b'\\xff\\xfe', '-rf', ' '):\n"
        "    inner = os.path.join(os.fsencode(name), b'd')\n"
        "    subvolume(name); os.mkdir(inner); subvolume(name, inner)"
    ),
    "deeper than the kernel can say": (
        "subvolume('first')\n"
        "for _ in range(30):\n"
        "    os.mkdir('n' * 254); os.chdir('n' * 254)\n"
        "subvolume('mine'); os.chdir('mine')\n"
        "for _ in range(20):\n"
        "    os.mkdir('n' * 254); os.chdir('n' * 254)\n"
        "subvolume('mine', read_only=True)"
    ),
    "a thousand in one another": "for _ in range(1100): subvolume('s'); os.chdir('s')",
}


@pytest.mark.parametrize("nest", NESTS.values(), ids=list(NESTS))
def test_nested_subvolumes_of_a_tenant_are_destroyed_with_its_branch(up: Node, nest: str) -> None:
    source = up.create_root()
    branch = up.create_copy(source)
    as_tenant(MAKE + nest, up.layout.branch(up.project, branch) / "pgdata")
    assert observe_sizes(up.layout, up.project, branch)
    subvolume.ensure_trashed(up.layout, up.project, branch)
    subvolume.ensure_trash_emptied(up.layout, up.project)
    facts = observe_subvolumes(up.layout, up.project)
    assert set(facts.branches) == {source} and facts.unfinished == ()
    assert count_subvolumes(up) == 1


def count_subvolumes(node: Node) -> int:
    """Return the number of subvolumes of the pool, at any depth."""
    pool = node.layout.pool(node.project)
    listed = subprocess.run(["btrfs", "subvolume", "list", pool], capture_output=True, check=True)
    return listed.stdout.count(b"ID ")


def test_emptying_the_trash_continues_after_it_was_cut_off(up: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    branch = up.create_copy(up.create_root())
    as_tenant(MAKE + NESTS["read-only, with another in it"], up.layout.branch(up.project, branch) / "pgdata")
    subvolume.ensure_trashed(up.layout, up.project, branch)
    destroy_subvolume, failures = btrfs.destroy_subvolume, iter([False, True, False, True])

    def cut_off(path: Path) -> None:
        if next(failures, False):
            raise OSError("cut off")
        destroy_subvolume(path)

    monkeypatch.setattr(btrfs, "destroy_subvolume", cut_off)
    for _ in range(2):
        with pytest.raises(OSError, match="cut off"):
            subvolume.ensure_trash_emptied(up.layout, up.project)
    subvolume.ensure_trash_emptied(up.layout, up.project)
    assert count_subvolumes(up) == 1


DEEP = """
for _ in range(1500):
    os.mkdir('d'); os.chdir('d')
open('file', 'w').close()
"""

AS_DEEP_AS_IT_GETS = """
import errno
os.symlink('/etc', 'out')
try:
    while True:
        os.mkdir('d'); os.chdir('d')
except OSError as error:
    assert error.errno == errno.ENOSPC
"""


def test_a_very_deep_tree_is_measured_and_removed(up: Node) -> None:
    branch = up.create_copy(up.create_root())
    pgdata = up.layout.branch(up.project, branch) / "pgdata"
    as_tenant(DEEP, pgdata)
    as_tenant(DEEP, pgdata / "pg_replslot")
    assert observe_sizes(up.layout, up.project, branch)
    slot.ensure_slot(up.layout, "slot-deep", OWNER)
    # Its filesystem of 64 files ends a tree there.
    as_tenant(AS_DEEP_AS_IT_GETS, up.layout.run("slot-deep"))
    slot.ensure_slot_removed(up.layout, "slot-deep")
    assert "slot-deep" not in observe_slots(up.layout) and Path("/etc/passwd").exists()
    # The directory of replication slots is emptied in the copy.
    copy = up.layout.branch(up.project, up.create_copy(branch)) / "pgdata" / "pg_replslot"
    assert list(copy.iterdir()) == []


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("keep me")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    for directory in (tree, tree / "a", tree / "a" / "b"):
        (directory / "out").symlink_to(kept)
        (directory / "a\nb").write_text("")
    with opened_directory(tmp_path) as top:
        remove_at(top, "tree")
    assert not tree.exists() and (kept / "file").read_text() == "keep me"


def test_file_names_of_a_tenant_add_no_line_and_no_escape_to_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    log_command("rm", "-r", "/x/a\nERROR forged\x1b[2J\udcff")
    assert caplog.messages == ["# rm -r '/x/a\\nERROR forged\\x1b[2J\\udcff'"]


@pytest.fixture
def secret() -> Path:
    with tempfile.NamedTemporaryFile("w", prefix="dbranch-secret-", delete=False) as file:
        file.write("top secret\n")
    path = Path(file.name)
    path.chmod(0o600)
    return path


def test_a_tenant_that_links_to_others_and_names_their_processes(world: World, secret: Path) -> None:
    project = world.make_project()
    world.run_agent()
    world.make_branch("hostile", "main")
    world.run_agent()
    layout, node = world.node.layout, world.branch("hostile")["status"]["node"]
    pgdata = layout.branch(project, world.uid("hostile")) / "pgdata"
    run = layout.run(node["slot"])
    victim = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    main_run = layout.run(world.branch("main")["status"]["node"]["slot"])
    try:
        pidfile = (pgdata / "postmaster.pid").read_text().split("\n")
        (pgdata / "postmaster.pid").write_text("\n".join([str(victim.pid), *pidfile[1:]]))
        (run / "start-blocked-by").unlink(missing_ok=True)
        (run / "start-blocked-by").symlink_to(secret)
        (run / ".s.PGSQL.1").symlink_to(
            main_run / f".s.PGSQL.{world.branch('main')['status']['node']['port']}"
        )
        # A link in PGDATA that leads out of it would only keep the branch from being a source.
        (pgdata / "dbranch_initdb_done").symlink_to("PG_VERSION")
        for name in ("a\nb", "..x", LONG, "-rf"):
            (pgdata / name).mkdir()
            (run / name).mkdir()
        world.run_rounds()
        assert "secret" not in str(world.branch("hostile"))
        assert observe_slot(layout, node["slot"]).start_blocked_by is None
        # A branch can be created from it: the odd names do no harm.
        world.make_branch("copy", "hostile")
        world.run_agent()
        copy = layout.branch(project, world.uid("copy")) / "pgdata"
        assert str(victim.pid) not in (copy / "postmaster.pid").read_text().split("\n")
        # The socket is replaced by a link to main's: the agent's SQL never goes there.
        socket = run / f".s.PGSQL.{node['port']}"
        socket.rename(run / "aside")
        socket.symlink_to(main_run / f".s.PGSQL.{world.branch('main')['status']['node']['port']}")
        world.run_rounds()
        assert postgres_reason(world, "hostile") != "Accepting"
        for name in ("hostile", "copy"):
            world.api.delete(f"{BRANCHES}/shop-{name}")
        world.run_agent()
        assert victim.poll() is None and secret.read_text() == "top secret\n"
        world.assert_consistent(project, running=1, stored=1)
        assert world.sql("main", "select 1") == [(1,)]
    finally:
        victim.kill()
        victim.wait()
        secret.unlink()


def postgres_reason(world: World, branch: str) -> str:
    return str(world.branch(branch)["status"]["node"]["postgres"]["reason"])


def recreate(world: World, name: str, rounds: int) -> None:
    """Create, change and delete a branch of this name again and again; it never has the data of an earlier one."""
    for number in range(rounds):
        world.make_branch(name, "main")
        world.run_agent()
        assert world.sql(name, "select id from item") == [(0,)], number
        world.sql(name, f"insert into item values ({number + 1})")
        assert postgres_reason(world, name) == "Accepting"
        world.api.delete(f"{BRANCHES}/shop-{name}")
        world.run_agent()


def test_an_object_created_again_under_its_name_never_gets_old_data(world: World, soak: bool) -> None:
    project = world.make_project()
    world.run_agent()
    world.sql("main", "create table item as select 0 as id")
    world.make_branch("other", "main")
    world.run_agent()
    world.sql("other", "update item set id = 99")
    rounds = 50 if soak else 4
    recreate(world, "again", rounds)
    assert world.sql("other", "select id from item") == [(99,)]
    world.assert_consistent(project, running=2, stored=2)
    print(f"{rounds} branches of one name, none with old data")
    for _ in range(5 if soak else 1):
        world.delete_project()
        assert world.api.find(PODS) == [] and world.api.find(PROJECTS) == []
        world.make_project()
        world.run_agent()
        tables = "select count(*) from pg_class where relname = 'item'"
        assert world.sql("main", tables) == [(0,)]
