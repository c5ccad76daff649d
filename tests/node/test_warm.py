"""Slots that wait: taken by one branch each, replaced, kept and made anew. Real btrfs and Postgres, API on paper."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from tests.node.agent_life import BRANCHES, NAMESPACE, NODE, PODS, PROJECTS
from tests.node.fake_api import FakeApi, Json
from tests.node.machine import OWNER
from tests.node.test_agent import configure, restart, says
from tests.node.world import World

from dbranch.agent.branch.reconciler import BranchReconciler
from dbranch.agent.context import NodeContext
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.slot.observe import observe_slots
from dbranch.agent.slot.pod_spec import claim_patch
from dbranch.agent.slot.pod_status import pod_facts
from dbranch.agent.slot.pods import delete_warm_pod, ensure_claimed
from dbranch.agent.warm.reconciler import WarmReconciler
from dbranch.api import names
from dbranch.api.branch import parse_branch
from dbranch.api.errors import ApiError, SlotTaken
from dbranch.api.project import parse_project
from dbranch.kube.client import Cluster
from dbranch.runtime.locks import KeyedLocks

HOME = NodeContext(NODE, "node-uid", "dbranch-nodes", "dbranch")
METRICS = AgentMetrics()


def uids(pods: list[Json]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods}


def pod_of(world: World, branch: str) -> Json:
    found = world.api.find(PODS, f"{names.LABEL_BRANCH_UID}={world.uid(branch)}")
    assert len(found) == 1
    return found[0]


def told(world: World) -> object:
    return ((world.api.get(f"{PROJECTS}/shop") or {})["status"]["node"]).get("warmSlots")


@pytest.fixture
def shop(world: World) -> World:
    world.make_project()
    world.run_agent()
    world.sql("main", "create table item as select generate_series(1, 100) as id")
    return world


def test_a_branch_takes_the_waiting_slot_and_another_is_made_behind_it(shop: World) -> None:
    waiting = shop.warm_pods()
    assert len(waiting) == 1 and told(shop) == 1
    shop.make_branch("copy", "main")
    shop.run_agent()
    pod = pod_of(shop, "copy")
    assert pod["metadata"]["uid"] == waiting[0]["metadata"]["uid"]
    assert pod["metadata"]["labels"][names.LABEL_NAMESPACE] == NAMESPACE
    assert pod["metadata"]["labels"][names.LABEL_BRANCH] == "copy"
    assert shop.branch("copy")["status"]["node"]["slot"] == pod["metadata"]["name"]
    assert shop.sql("copy", "select count(*) from item") == [(100,)]
    assert len(shop.warm_pods()) == 1 and told(shop) == 1


def test_an_agent_that_comes_back_keeps_them(shop: World) -> None:
    before = uids(shop.warm_pods())
    for _ in range(2):
        shop.run_agent()
    assert uids(shop.warm_pods()) == before


def test_resume_restart_and_a_lost_pod_take_one_each_and_none_twice(shop: World) -> None:
    shop.make_branch("copy", "main")
    shop.run_agent()
    used = uids(shop.api.find(PODS)) - uids(shop.warm_pods())

    def takes(act: Any) -> None:
        (waiting,) = uids(shop.warm_pods())
        act()
        pod = pod_of(shop, "copy")
        assert pod["metadata"]["uid"] == waiting not in used
        assert shop.sql("copy", "select count(*) from item") == [(100,)]
        used.add(waiting)

    def resume() -> None:
        shop.patch_spec("copy", state="Stopped")
        shop.run_agent()
        assert len(shop.pods()) == 1
        shop.patch_spec("copy", state="Running")
        shop.run_agent()

    def lose() -> None:
        shop.api.delete(f"{PODS}/{pod_of(shop, 'copy')['metadata']['name']}")
        shop.run_agent()

    takes(resume)
    takes(lambda: restart(shop, "copy", "2026-01-01T00:00:00Z"))
    assert pod_of(shop, "copy")["metadata"]["annotations"][names.RESTARTED_AT] == "2026-01-01T00:00:00Z"
    takes(lose)
    # The restart that was asked for is not made again by the pod that came after it.
    assert shop.branch("copy")["status"]["node"]["restartedAt"] == "2026-01-01T00:00:00Z"


def test_they_are_made_anew_for_another_image_and_other_resources_and_go_with_their_class(
    shop: World,
) -> None:
    layout = shop.node.layout
    for change in (
        {"image": "postgres:another"},
        {"resources": {"requests": {"cpu": "10m"}}},
        {"imagePullSecrets": [{"name": "registry"}]},
    ):
        before = uids(shop.warm_pods())
        configure(shop, **change)
        assert len(shop.warm_pods()) == 1 and not uids(shop.warm_pods()) & before
    spec = shop.warm_pods()[0]["spec"]
    assert spec["containers"][0]["image"] == "postgres:another"
    assert spec["containers"][0]["resources"] == {"requests": {"cpu": "10m"}}
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert says(shop, "main")[0] == "RestartPending"
    # A class of its own, while the branch runs.
    shop.make_branch("large", "main")
    shop.patch_spec("large", postgres={"resources": {"requests": {"cpu": "20m"}}})
    shop.run_agent()
    assert len(shop.warm_pods()) == 2
    shop.patch_spec("large", state="Stopped")
    shop.run_agent()
    assert len(shop.warm_pods()) == 1
    shop.api.merge(f"{PROJECTS}/shop", {"spec": {"state": "Stopped"}})
    shop.run_agent()
    assert shop.warm_pods() == [] and shop.pods() == [] and observe_slots(layout) == () and told(shop) is None


class Meeting(FakeApi):
    """Its first two claims are asked for at the same moment."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self._met = threading.Barrier(2)
        self.asked = 0

    def json_patch(self, path: str, operations: list[Json]) -> Json:
        self.asked += 1
        if self.asked <= 2:
            self._met.wait(20)
        return super().json_patch(path, operations)


def test_of_two_that_ask_for_the_last_one_the_other_goes_the_cold_way(shop: World) -> None:
    (waiting,) = uids(shop.warm_pods())
    api = Meeting(shop.node.layout.base / "api.json")
    cluster, layout, locks = cast(Cluster, api), shop.node.layout, KeyedLocks()
    work = BranchReconciler(
        cluster, layout, HOME, locks, WarmReconciler(cluster, layout, HOME, 1, METRICS), METRICS
    )
    branches = [shop.make_branch(name, "main") for name in ("one", "two")]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: work.reconcile(NAMESPACE, name), ("shop-one", "shop-two")))
    assert api.asked == 2 and waiting in uids(shop.pods()) and shop.warm_pods() == []
    of_branches = [pod["metadata"]["labels"][names.LABEL_BRANCH_UID] for pod in shop.pods()]
    assert sorted(of_branches) == sorted([*branches, shop.uid("main")])
    work.wait_idle(30)
    for name in ("one", "two"):
        assert shop.sql(name, "select count(*) from item") == [(100,)]


class Denying(FakeApi):
    """An API server whose policies let nothing be claimed."""

    def json_patch(self, path: str, operations: list[Json]) -> Json:
        raise ApiError(422, "Invalid", "denied by a policy")


def test_where_nothing_can_be_claimed_branches_go_the_cold_way(shop: World) -> None:
    before = uids(shop.warm_pods())
    cluster = cast(Cluster, Denying(shop.node.layout.base / "api.json"))
    layout = shop.node.layout
    work = BranchReconciler(
        cluster, layout, HOME, KeyedLocks(), WarmReconciler(cluster, layout, HOME, 1, METRICS), METRICS
    )
    shop.make_branch("copy", "main")
    work.reconcile(NAMESPACE, "shop-copy")
    work.wait_idle(30)
    assert shop.sql("copy", "select count(*) from item") == [(100,)]
    assert uids(shop.warm_pods()) == before


class Counting(FakeApi):
    """Counts how often all projects or branches are asked for."""

    lists = 0

    def find(self, path: str, labels: str = "", fields: str = "") -> list[Json]:
        self.lists += path.endswith((f"/{names.PROJECTS}", f"/{names.BRANCHES}"))
        return super().find(path, labels, fields)


def test_a_class_that_comes_is_known_from_the_visits_and_ended_after_a_look(shop: World) -> None:
    api = Counting(shop.node.layout.base / "api.json")
    cluster, layout = cast(Cluster, api), shop.node.layout
    warm = WarmReconciler(cluster, layout, HOME, 1, METRICS)
    work = BranchReconciler(cluster, layout, HOME, KeyedLocks(), warm, METRICS)
    warm.reconcile()
    listed, usual = api.lists, uids(shop.warm_pods())
    assert listed == 2
    shop.make_branch("large", "main")
    shop.patch_spec("large", postgres={"resources": {"requests": {"cpu": "20m"}}})
    work.reconcile(NAMESPACE, "shop-large")
    work.wait_idle(30)
    warm.reconcile()
    assert len(shop.warm_pods()) == 2 and usual < uids(shop.warm_pods())
    assert api.lists == listed
    # Before any is ended, it is made sure.
    shop.patch_spec("large", state="Stopped")
    until = time.monotonic() + 30
    while work.reconcile(NAMESPACE, "shop-large") is not None or warm.reconcile() is not None:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert uids(shop.warm_pods()) == usual
    assert api.lists > listed


def test_a_visit_that_took_long_does_not_bring_back_what_was(shop: World) -> None:
    cluster, layout = cast(Cluster, shop.api), shop.node.layout
    warm = WarmReconciler(cluster, layout, HOME, 1, METRICS)
    warm.reconcile()
    old = parse_project(shop.api.get(f"{PROJECTS}/shop") or {})
    resources = {"requests": {"cpu": "10m"}}
    new = parse_project(shop.api.merge(f"{PROJECTS}/shop", {"spec": {"postgres": {"resources": resources}}}))
    warm.trigger(new)
    warm.trigger(old)
    until = time.monotonic() + 30
    while warm.reconcile() is not None:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert [pod["spec"]["containers"][0]["resources"] for pod in shop.warm_pods()] == [resources]


def test_a_burst_never_has_more_of_them_than_the_limit(shop: World) -> None:
    cluster, layout = cast(Cluster, shop.api), shop.node.layout
    warm = [WarmReconciler(cluster, layout, HOME, 2, METRICS) for _ in range(2)]
    most = 0
    for n in range(6):
        shop.make_branch(f"b{n}", "main")
    work = BranchReconciler(cluster, layout, HOME, KeyedLocks(), warm[0], METRICS)
    for n in range(6):
        work.reconcile(NAMESPACE, f"shop-b{n}")
        for keeper in warm:
            keeper.reconcile()
        most = max(most, len(shop.warm_pods()))
    assert most == 2 == len(shop.warm_pods())
    work.wait_idle(30)
    for body in shop.api.find(BRANCHES):
        assert body["status"]["node"]["postgres"]["reason"] == "Accepting"


def test_a_claimed_slot_is_neither_claimed_nor_ended_any_more(shop: World) -> None:
    seen = pod_facts(shop.warm_pods()[0])
    cluster = cast(Cluster, shop.api)
    project = parse_project(shop.api.get(f"{PROJECTS}/shop") or {})
    branch = parse_branch(shop.branch("main"))
    ensure_claimed(cluster, HOME.namespace, seen, claim_patch(project, branch, seen.uid))
    with pytest.raises(SlotTaken):
        ensure_claimed(cluster, HOME.namespace, seen, claim_patch(project, branch, seen.uid))
    # What was seen free before it was claimed is not ended now.
    delete_warm_pod(cluster, HOME.namespace, seen)
    pod = shop.api.get(f"{PODS}/{seen.name}")
    assert pod and "deletionTimestamp" not in pod["metadata"]
    assert shop.node.layout.run(seen.name).stat().st_uid == OWNER
