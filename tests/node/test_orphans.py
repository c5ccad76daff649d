"""Nothing is deleted because something is unknown: data that no object names is kept, shown, and can be adopted."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from tests.node.agent_life import BRANCHES, NAMESPACES, NODE, PODS, PROJECTS, SNAPSHOTS
from tests.node.machine import OWNER, new_uid
from tests.node.world import World

from dbranch.agent.context import NodeContext
from dbranch.agent.housekeeping.loop import Housekeeping
from dbranch.agent.layout import SubvolumeKind, SubvolumeName
from dbranch.agent.linux import btrfs
from dbranch.agent.linux.btrfs import is_read_only
from dbranch.agent.linux.mounts import mounts_at
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.pool.effect import ensure_pool
from dbranch.agent.pool.record import PoolRecord
from dbranch.agent.pool.records import read_record
from dbranch.agent.slot.effect import ensure_slot
from dbranch.agent.timing import ORPHAN_ROUNDS
from dbranch.agent.volume.observe import observe_subvolumes
from dbranch.api import names
from dbranch.api.orphans import Orphan, OrphanKind, Published, parse_published
from dbranch.kube.client import Cluster, path_of

CONTEXT = NodeContext(NODE, "node-uid", "dbranch-nodes", "dbranch")
AGENT = f"{PODS}/agent"
EVENTS = path_of("v1", "events", "dbranch-nodes")


class Keeper:
    """The housekeeping of a world's node, and the agent's pod."""

    def __init__(self, world: World) -> None:
        self.world, self.api, self.layout = world, world.api, world.node.layout
        self.metrics = AgentMetrics()
        self.api.put(PODS, {"metadata": {"name": "agent", "namespace": "dbranch-nodes"}, "spec": {}})
        self.start()

    def start(self) -> None:
        """Start the agent's process (once more): what it remembers is gone."""
        cluster = cast(Cluster, self.api)
        self.housekeeping = Housekeeping(cluster, self.layout, CONTEXT, "agent", self.metrics)

    def rounds(self, count: int = ORPHAN_ROUNDS + 2, before: Callable[[], object] = lambda: None) -> None:
        for _ in range(count):
            before()
            self.housekeeping.round()

    def annotation(self, key: str) -> str:
        body = self.api.get(AGENT) or {"metadata": {}}
        return str((body["metadata"].get("annotations") or {}).get(key) or "")

    def published(self) -> Published:
        return parse_published(self.annotation(names.AGENT_ORPHANS))

    def orphans(self) -> list[Orphan]:
        return list(self.published().orphans)

    def ask(self, prefix: str, uid: str, value: str = "") -> None:
        """Ask as `dbranch orphan` does, and let the agent serve it."""
        self.api.merge(AGENT, {"metadata": {"annotations": {f"{prefix}{uid}": value}}})
        deadline = time.monotonic() + 60
        while f"{prefix}{uid}" in ((self.api.get(AGENT) or {})["metadata"].get("annotations") or {}):
            self.housekeeping.serve()
            assert time.monotonic() < deadline, "the request is not served"

    def await_gone(self, path: Path) -> None:
        """Run rounds until a path is gone: what is busy is left to the next."""
        deadline = time.monotonic() + 60
        while path.exists():
            self.housekeeping.round()
            assert time.monotonic() < deadline, f"{path} is still there"

    def metric(self, name: str, kind: str) -> float:
        lines = self.metrics.response().body.decode().splitlines()
        return float(next(line for line in lines if line.startswith(f'{name}{{kind="{kind}"}}')).split()[1])


@pytest.fixture
def keeper(world: World) -> Keeper:
    return Keeper(world)


def forget(world: World) -> None:
    """Let the objects of the project be gone without its agent: their pods are gone, too."""
    for path in (
        *(f"{BRANCHES}/{b['metadata']['name']}" for b in world.api.find(BRANCHES)),
        f"{PROJECTS}/shop",
    ):
        world.api.merge(path, {"metadata": {"finalizers": []}})
        world.api.delete(path)


def stop(world: World) -> None:
    world.api.merge(f"{PROJECTS}/shop", {"spec": {"state": "Stopped"}})
    world.run_agent()


def make_stopped(world: World, **spec: Any) -> str:
    """Make a project with a row of data, and stop it; return its UID."""
    uid = world.make_project(**spec)
    world.run_agent()
    world.sql("main", "create table item as select 7 as id")
    stop(world)
    return uid


def new_namespace_uid(world: World, name: str) -> None:
    """Let the namespace be another of the same name."""
    world.api.delete(f"{NAMESPACES}/{name}")
    world.api.put(NAMESPACES, {"metadata": {"name": name}})


def assert_adoptable(world: World, uid: str) -> str:
    """Assert that a new project gets the data of pool `uid`; return its UID."""
    new = world.make_project(storage={"adopt": uid})
    world.run_agent()
    assert world.sql("main", "select id from item") == [(7,)]
    assert not world.node.layout.image(uid).exists() and not world.node.layout.record(uid).exists()
    return new


def cluster_made_anew(world: World) -> None:
    forget(world)
    for namespace in ("kube-system", "team"):
        new_namespace_uid(world, namespace)


@pytest.mark.parametrize(
    ("policy", "lose", "why"),
    [
        ("Delete", cluster_made_anew, "it is of another cluster"),
        ("Delete", forget, "its DBProject is gone, and nobody asked"),
        ("Retain", forget, "it was retained"),
    ],
    ids=["cluster made anew", "etcd restored", "Retain behind an abandoned node"],
)
def test_a_pool_of_an_unknown_project_is_kept_shown_and_adopted(
    keeper: Keeper, policy: str, lose: Callable[[World], None], why: str
) -> None:
    world, layout = keeper.world, keeper.layout
    uid = make_stopped(world, deletionPolicy=policy)
    keeper.rounds(2)
    assert keeper.orphans() == [] and keeper.annotation(names.AGENT_RETAINED) == ""
    lose(world)
    keeper.start()

    def clock_jumps() -> None:
        for path in layout.pools.iterdir():
            os.utime(path, (0, 0))

    keeper.rounds(before=clock_jumps)
    assert layout.image(uid).exists()
    (orphan,) = keeper.orphans()
    assert (orphan.kind, orphan.uid, orphan.namespace, orphan.project) == (
        OrphanKind.POOL,
        uid,
        "team",
        "shop",
    )
    assert why in orphan.why
    assert keeper.metric("dbranch_agent_orphans", "pool") == 1
    assert keeper.metric("dbranch_agent_orphan_bytes", "pool") == layout.image(uid).stat().st_blocks * 512
    (event,) = world.api.find(EVENTS)
    assert uid in event["message"] and event["involvedObject"]["name"] == "agent"
    # Nothing is written while nothing changes, and no second Event.
    before = world.api.get(AGENT)
    keeper.rounds(2)
    keeper.start()
    keeper.rounds(1)
    assert world.api.get(AGENT) == before and len(world.api.find(EVENTS)) == 1
    new = assert_adoptable(world, uid)
    record = read_record(layout, new)
    assert isinstance(record, PoolRecord) and record.lineage == (uid,) and record.initialized
    keeper.rounds(1)
    assert keeper.orphans() == []


def test_a_retained_pool_is_offered_at_once_and_a_used_one_never(keeper: Keeper) -> None:
    uid = make_stopped(keeper.world, deletionPolicy="Retain")
    keeper.rounds(1)
    keeper.world.delete_project()
    keeper.housekeeping.serve()
    assert keeper.annotation(names.AGENT_RETAINED) == uid
    assert [orphan.uid for orphan in keeper.orphans()] == [uid]
    new = assert_adoptable(keeper.world, uid)
    # The pool of a project that exists is not given to another of its namespace.
    thief = keeper.world.for_project("thief")
    thief.make_project(storage={"adopt": new})
    thief.run_rounds()
    storage = (keeper.api.get(f"{PROJECTS}/thief") or {})["status"]["node"]["storage"]
    assert storage["reason"] == "PoolLost" and "in use by a DBProject" in storage["message"]
    assert keeper.world.sql("main", "select id from item") == [(7,)]


def test_a_namespace_made_again_does_not_get_the_data_of_the_one_before_unless_it_is_allowed(
    keeper: Keeper,
) -> None:
    world = keeper.world
    uid = make_stopped(world, deletionPolicy="Retain")
    world.delete_project()
    new_namespace_uid(world, "team")
    world.make_project(storage={"adopt": uid})
    world.run_rounds()
    storage = (world.api.get(f"{PROJECTS}/shop") or {})["status"]["node"]["storage"]
    assert storage["reason"] == "PoolLost" and f"dbranch orphan allow {uid} team" in storage["message"]
    keeper.rounds(1)
    keeper.ask(names.ORPHAN_ALLOW_PREFIX, uid, "nowhere")
    assert "namespace nowhere does not exist" in keeper.published().refused[uid]
    keeper.ask(names.ORPHAN_ALLOW_PREFIX, uid, "team")
    assert keeper.published().refused == {}
    world.run_agent()
    assert world.sql("main", "select id from item") == [(7,)]


def test_records_and_images_of_release_0_1_0(keeper: Keeper) -> None:
    world, layout = keeper.world, keeper.layout
    uid = make_stopped(world)
    # As 0.1.0 left it: an image without a record. The next reconcile writes one, of a pool that may hold data.
    layout.record(uid).unlink()
    world.run_agent()
    record = read_record(layout, uid)
    assert isinstance(record, PoolRecord) and record.initialized and record.pool_uuid and record.cluster
    # Retained by 0.1.0: four keys. The namespace's name counts, whatever its UID.
    forget(world)
    keys = ("project_uid", "pool_uuid", "namespace", "project")
    old = {key: value for key, value in json.loads(layout.record(uid).read_text()).items() if key in keys}
    layout.record(uid).write_text(json.dumps(old))
    (layout.pools / f"{uid}.orphan").touch()
    keeper.rounds()
    assert layout.image(uid).exists() and not list(layout.pools.glob("*.orphan"))
    new_namespace_uid(world, "team")
    new = assert_adoptable(world, uid)
    # Without a record it is known only that there may be data.
    stop(world)
    forget(world)
    layout.record(new).unlink()
    keeper.rounds()
    assert "it has no record" in keeper.orphans()[0].why and layout.image(new).exists()
    keeper.ask(names.ORPHAN_ALLOW_PREFIX, new, "team")
    assert keeper.annotation(names.AGENT_RETAINED) == new
    assert_adoptable(world, new)


def test_a_record_of_a_newer_release_is_left_alone(keeper: Keeper) -> None:
    world, layout = keeper.world, keeper.layout
    uid = make_stopped(world)
    record = layout.record(uid)
    newer = json.dumps({**json.loads(record.read_text()), "format": 99})
    record.write_text(newer)
    for body in world.api.find(BRANCHES):
        world.api.delete(f"{BRANCHES}/{body['metadata']['name']}")
    world.api.delete(f"{PROJECTS}/shop")
    world.run_rounds()
    body = world.api.get(f"{PROJECTS}/shop")
    assert body and body["status"]["node"]["storage"]["reason"] == "StorageUnclear"
    forget(world)
    keeper.rounds()
    assert layout.image(uid).exists() and record.read_text() == newer
    assert "a newer release" in keeper.orphans()[0].why


def test_snapshots_without_an_object_are_kept_adopted_and_removed_on_request(keeper: Keeper) -> None:
    world, layout = keeper.world, keeper.layout
    first = world.make_project(deletionPolicy="Retain")
    world.run_agent()
    world.sql("main", "create table item as select 7 as id")
    uids = {name: world.make_snapshot(name, "main") for name in ("kept", "unnamed")}
    world.run_agent()
    for name in uids:
        # Lost with the API server's objects; the agent is not asked.
        world.api.merge(f"{SNAPSHOTS}/shop-{name}", {"metadata": {"finalizers": []}})
        world.api.delete(f"{SNAPSHOTS}/shop-{name}")
    keeper.rounds()
    assert {(o.kind, o.uid, o.branch, o.pool) for o in keeper.orphans()} == {
        (OrphanKind.SNAPSHOT, uid, "main", first) for uid in uids.values()
    }
    assert set(observe_subvolumes(layout, first).snapshots) == set(uids.values())
    world.delete_project()
    second = world.make_project(storage={"adopt": first})
    world.run_agent()
    # A snapshot of that name gets the old data, whatever the branch has by now.
    world.sql("main", "update item set id = 8")
    kept = world.make_snapshot("kept", "main")
    killed = world.run_agent("^# btrfs property set .* ro true")
    assert killed is None
    world.run_agent()
    snapshots = observe_subvolumes(layout, second).snapshots
    assert set(snapshots) == {kept, uids["unnamed"]}
    assert snapshots[kept].data.project_uid == second and snapshots[kept].data.owner_uid == kept
    assert is_read_only(layout.branch(second, kept))
    world.make_branch_of_snapshot("b", "kept")
    world.run_agent()
    assert world.sql("b", "select id from item") == [(7,)]
    keeper.start()
    keeper.rounds()
    assert [(orphan.kind, orphan.uid) for orphan in keeper.orphans()] == [
        (OrphanKind.SNAPSHOT, uids["unnamed"])
    ]
    keeper.ask(names.ORPHAN_DELETE_PREFIX, uids["unnamed"])
    assert not layout.branch(second, uids["unnamed"]).exists()
    assert observe_subvolumes(layout, second).unfinished == ()


def test_branches_without_an_object_are_kept_and_removed_on_request(keeper: Keeper) -> None:
    world, layout = keeper.world, keeper.layout
    project = world.make_project()
    world.run_agent()
    for name in ("stripped", "kept"):
        world.make_branch(name, "main")
    world.run_agent()
    uids = {name: world.uid(name) for name in ("stripped", "kept", "main")}
    for name in ("stripped", "kept"):
        world.api.merge(f"{BRANCHES}/shop-{name}", {"metadata": {"finalizers": []}})
        world.api.delete(f"{BRANCHES}/shop-{name}")
    keeper.rounds(ORPHAN_ROUNDS - 1)
    assert keeper.orphans() == [] and len(world.pods()) == 3
    keeper.rounds(3)
    assert {(o.kind, o.uid, o.branch, o.pool) for o in keeper.orphans()} == {
        (OrphanKind.BRANCH, uids[name], name, project) for name in ("stripped", "kept")
    }
    assert all(layout.branch(project, uid).exists() for uid in uids.values())
    # Only what holds it goes: its pod.
    deadline = time.monotonic() + 60
    while len(world.pods()) > 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [pod["metadata"]["labels"][names.LABEL_BRANCH] for pod in world.pods()] == ["main"]
    keeper.ask(names.ORPHAN_DELETE_PREFIX, uids["stripped"])
    assert [orphan.uid for orphan in keeper.orphans()] == [uids["kept"]]
    assert not layout.branch(project, uids["stripped"]).exists()
    assert observe_subvolumes(layout, project).unfinished == ()
    # What has an object is no orphan.
    keeper.ask(names.ORPHAN_DELETE_PREFIX, uids["main"])
    assert "is no orphan" in keeper.published().refused[uids["main"]]
    keeper.ask(names.ORPHAN_DELETE_PREFIX, project)
    assert "is no orphan" in keeper.published().refused[project]
    assert world.sql("main", "select 1") == [(1,)]


def test_a_pool_is_adopted_twice_with_the_newest_of_its_branches_and_none_is_lost(keeper: Keeper) -> None:
    world, layout = keeper.world, keeper.layout
    first = world.make_project(deletionPolicy="Retain")
    world.run_agent()
    world.sql("main", "create table item as select 7 as id")
    for name in ("unnamed", "again"):
        world.make_branch(name, "main")
    world.run_agent()
    world.sql("again", "update item set id = 1")
    world.delete_project()
    second = world.make_project(storage={"adopt": first}, deletionPolicy="Retain")
    world.run_agent()
    # One of the same name that the first owner did not name is the older one, whatever the order of the UIDs.
    path = next(p for p in layout.pool(second).glob("*/marker.json") if '"branch": "again"' in p.read_text())
    marker = json.loads(path.read_text())
    copy = {
        **marker,
        "owner_uid": "00000000-0000-4000-8000-000000000000",
        "snapshot_time": "2020-01-01T00:00:00Z",
    }
    older = layout.branch(second, copy["owner_uid"])
    btrfs.create_snapshot(path.parent, older)
    (older / "marker.json").write_text(json.dumps(copy))
    keeper.rounds()
    whys = {orphan.branch: orphan.why for orphan in keeper.orphans()}
    assert set(whys) == {"unnamed", "again"} and all("adopted the pool" in why for why in whys.values())
    world.delete_project()
    third = world.make_project(storage={"adopt": second})
    world.run_agent()
    record = read_record(layout, third)
    assert isinstance(record, PoolRecord) and record.lineage == (first, second)
    # Their markers still name the first project.
    world.make_branch("unnamed", "main")
    world.make_branch("again", "main")
    world.run_agent()
    assert world.branch("unnamed")["metadata"]["uid"] != marker["owner_uid"]
    assert world.sql("unnamed", "select id from item") == [(7,)]
    assert world.sql("again", "select id from item") == [(1,)]
    assert (
        len(observe_subvolumes(layout, third).branches) == 4
        and older.name in observe_subvolumes(layout, third).branches
    )


def test_a_pool_is_removed_on_request_though_the_agent_is_killed_and_its_project_is_gone(
    keeper: Keeper,
) -> None:
    world, layout = keeper.world, keeper.layout
    uid = make_stopped(world)
    for body in world.api.find(BRANCHES):
        world.api.delete(f"{BRANCHES}/{body['metadata']['name']}")
    world.api.delete(f"{PROJECTS}/shop")
    # The deletion was requested and has begun.
    assert world.run_agent("^# touch .*tombstone") is None
    forget(world)
    keeper.await_gone(layout.tombstone(uid)) if layout.tombstone(uid).exists() else keeper.rounds(2)
    if layout.image(uid).exists():
        # Killed before the tombstone was written: then nobody's request is known, and it is kept.
        keeper.rounds()
        keeper.ask(names.ORPHAN_DELETE_PREFIX, uid)
    assert list(layout.pools.glob("[!.]*")) == [] and keeper.orphans() == []


def test_an_orphan_pool_is_removed_on_request_only(keeper: Keeper) -> None:
    world, layout = keeper.world, keeper.layout
    uid = make_stopped(world)
    forget(world)
    keeper.rounds()
    assert layout.image(uid).exists()
    keeper.ask(names.ORPHAN_DELETE_PREFIX, uid)
    assert list(layout.pools.glob("[!.]*")) == [] and keeper.orphans() == []
    assert keeper.metric("dbranch_agent_orphans", "pool") == 0


def test_only_what_never_was_data_goes_by_itself_and_not_at_once(keeper: Keeper) -> None:
    world, layout, node = keeper.world, keeper.layout, keeper.world.node
    project = make_stopped(world)
    world.api.merge(f"{PROJECTS}/shop", {"spec": {"state": "Running"}})
    world.run_agent()
    cluster = (world.api.get(f"{NAMESPACES}/kube-system") or {})["metadata"]["uid"]
    empty, filled, foreign = (new_uid() for _ in range(3))
    for uid, of in ((empty, cluster), (filled, cluster), (foreign, "another")):
        record = {"project_uid": uid, "pool_uuid": "", "namespace": "team", "project": "x", "cluster": of}
        pool_uuid = ensure_pool(layout, uid, 2**27, None, None)
        record |= {"pool_uuid": pool_uuid, "initialized": False, "format": 1, "deletion_policy": "Delete"}
        layout.record(uid).write_text(json.dumps(record))
    # As an agent of release 0.1.0 would leave it, which does not know the record.
    btrfs.create_subvolume(layout.branch(filled, new_uid()))
    owner, busy = new_uid(), new_uid()
    for uid, kind in (
        (owner, "new"),
        (owner, "init"),
        (owner, "restore"),
        (world.uid("main"), "new"),
        (busy, "new"),
    ):
        btrfs.create_subvolume(layout.subvolume(project, SubvolumeName(uid, kind)))
    point = node.layout.base / "held"
    point.mkdir()
    subprocess.run(["mount", "--bind", layout.new_snapshot(project, busy), point], check=True)
    keeper.rounds(ORPHAN_ROUNDS - 1)
    assert len(observe_subvolumes(layout, project).unfinished) == 5 and layout.image(empty).exists()
    # A round in which it is named begins the count anew.
    keeper.rounds(3)
    assert not layout.image(empty).exists() and not layout.record(empty).exists()
    assert layout.image(filled).exists() and layout.image(foreign).exists()
    assert {str(name) for name in observe_subvolumes(layout, project).unfinished} == {
        f".restore-{owner}",
        f".new-{world.uid('main')}",
        f".new-{busy}",
    }
    subprocess.run(["umount", point], check=True)
    keeper.rounds(1)
    assert busy not in observe_subvolumes(layout, project).owners_of(SubvolumeKind.NEW)
    keeper.rounds(ORPHAN_ROUNDS)
    # What a restore has left without a branch may be data: it is kept and named.
    assert {orphan.uid for orphan in keeper.orphans()} == {filled, foreign, owner}


def test_what_is_stuck_fails_or_is_foreign_does_not_end_the_round(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, world = keeper.layout, keeper.world
    slots = ["slot-a", "slot-b", "slot-c"]
    for slot in slots:
        ensure_slot(layout, slot, OWNER)
    # One that somebody is in, one with a foreign mount inside, which fails, and one that can go.
    for point in (layout.data("slot-a"), layout.run("slot-b")):
        subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)
    uid = new_uid()
    ensure_pool(layout, uid, 2**27, None, None)
    layout.tombstone(uid).write_text(json.dumps({"format": 1, "pool_uuid": "another"}))
    broken = new_uid()
    layout.tombstone(broken).write_text("{")
    with (layout.data("slot-a") / "file").open("w"):
        keeper.rounds(3)
        assert set(os.listdir(layout.slots)) & set(slots) >= {"slot-a", "slot-b"}
        assert not layout.slot("slot-c").exists()
    assert mounts_at(layout.run("slot-b"))[-1].source == "none"
    # The rounds went on to the removals: this image is not the one that the tombstone is for.
    assert not layout.tombstone(uid).exists() and layout.image(uid).exists()
    assert layout.tombstone(broken).exists()
    text = keeper.metrics.response().body.decode()
    assert "dbranch_agent_housekeeping_errors_total 0" not in text
    assert keeper.annotation(names.AGENT_HOST_FREE).isdecimal()
    keeper.rounds(1)
    assert not layout.slot("slot-a").exists()
    subprocess.run(["umount", layout.run("slot-b")], check=True)
    keeper.rounds(1)
    assert not layout.slot("slot-b").exists()
    world.kubelet.stop()


def test_a_process_that_goes_on_writing_into_a_slot_does_not_hold_the_round(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbranch.agent.slot.effect.SLOT_EMPTYING_TIMEOUT_SECONDS", 0.5)
    ensure_slot(keeper.layout, "slot-a", OWNER)
    run = keeper.layout.run("slot-a")
    loop = 'i=0; while :; do i=$((i+1)); : >"$1/$i" 2>/dev/null || :; done'
    writers = [subprocess.Popen(["sh", "-c", loop, "sh", run]) for _ in range(2)]
    try:
        keeper.rounds(2)
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    keeper.await_gone(keeper.layout.slot("slot-a"))
