"""Warm slots: each claimed by one branch, replaced, kept. Real btrfs and Postgres, a fake API server."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.fakes.api import FakeApi, Json
from tests.node.agent_life import BRANCHES, NAMESPACE, NODE, PODS, PROJECTS, running
from tests.node.machine import OWNER
from tests.node.test_agent import configure, postgres_status, restart
from tests.node.world import World

from dbranch.agent.context import NodeContext
from dbranch.agent.dispatch import Dispatcher
from dbranch.agent.linux import command
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.slot.observe import observe_slots
from dbranch.agent.slot.pod_spec import claim_patch
from dbranch.agent.slot.pod_status import pod_facts
from dbranch.agent.slot.pods import delete_warm_pod, ensure_claimed
from dbranch.agent.warm.reconciler import WarmReconciler
from dbranch.agent.warm.sizing import WarmLimits
from dbranch.api import names
from dbranch.api.branch import parse_branch
from dbranch.api.errors import ApiError, SlotTaken
from dbranch.api.project import parse_project
from dbranch.kube.client import Cluster
from dbranch.runtime.locks import KeyedLocks
from dbranch.runtime.result import Result

CONTEXT = NodeContext(NODE, "node-uid", "dbranch-nodes", "dbranch")
METRICS = AgentMetrics()


def uids(pods: list[Json]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods}


def pod_of(world: World, branch: str) -> Json:
    pods = world.api.find(PODS, f"{names.LABEL_BRANCH_UID}={world.uid(branch)}")
    assert len(pods) == 1
    return pods[0]


def reported_count(world: World) -> object:
    """Return status.node.warmSlots of the project."""
    return ((world.api.get(f"{PROJECTS}/shop") or {})["status"]["node"]).get("warmSlots")


@pytest.fixture
def shop(world: World) -> World:
    world.make_project()
    world.run_agent()
    world.sql("main", "create table item as select generate_series(1, 100) as id")
    return world


def test_a_branch_claims_the_warm_pod_and_another_is_created_after_it(shop: World) -> None:
    warm_pods = shop.warm_pods()
    assert len(warm_pods) == 1 and reported_count(shop) == 1
    shop.make_branch("copy", "main")
    shop.run_agent()
    pod = pod_of(shop, "copy")
    assert pod["metadata"]["uid"] == warm_pods[0]["metadata"]["uid"]
    assert pod["metadata"]["labels"][names.LABEL_NAMESPACE] == NAMESPACE
    assert pod["metadata"]["labels"][names.LABEL_BRANCH] == "copy"
    assert shop.branch("copy")["status"]["node"]["slot"] == pod["metadata"]["name"]
    assert shop.sql("copy", "select count(*) from item") == [(100,)]
    assert len(shop.warm_pods()) == 1 and reported_count(shop) == 1


def test_an_agent_that_restarts_keeps_the_warm_pods(shop: World) -> None:
    before = uids(shop.warm_pods())
    for _ in range(2):
        shop.run_agent()
    assert uids(shop.warm_pods()) == before


def test_resume_restart_and_a_lost_pod_claim_one_warm_pod_each_and_none_twice(shop: World) -> None:
    shop.make_branch("copy", "main")
    shop.run_agent()
    used = uids(shop.api.find(PODS)) - uids(shop.warm_pods())

    def assert_claims(change: Any) -> None:
        (warm_uid,) = uids(shop.warm_pods())
        change()
        pod = pod_of(shop, "copy")
        assert pod["metadata"]["uid"] == warm_uid not in used
        assert shop.sql("copy", "select count(*) from item") == [(100,)]
        used.add(warm_uid)

    def resume() -> None:
        shop.patch_spec("copy", state="Stopped")
        shop.run_agent()
        assert len(shop.pods()) == 1
        shop.patch_spec("copy", state="Running")
        shop.run_agent()

    def lose() -> None:
        shop.api.delete(f"{PODS}/{pod_of(shop, 'copy')['metadata']['name']}")
        shop.run_agent()

    assert_claims(resume)
    assert_claims(lambda: restart(shop, "copy", "2026-01-01T00:00:00Z"))
    assert pod_of(shop, "copy")["metadata"]["annotations"][names.RESTARTED_AT] == "2026-01-01T00:00:00Z"
    assert_claims(lose)
    # The pod after the restarted one serves the same restart: none happens again.
    assert shop.branch("copy")["status"]["node"]["restartedAt"] == "2026-01-01T00:00:00Z"


def test_warm_pods_are_replaced_for_another_image_or_resources_and_deleted_with_their_class(
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
    uid = shop.api.get(f"{PROJECTS}/shop")["metadata"]["uid"]
    assert spec["imagePullSecrets"] == [{"name": names.pull_secret_name(uid, "registry")}]
    assert postgres_status(shop, "main")[0] == "RestartPending"
    # A branch with a class of its own has no warm pod kept for it.
    before = uids(shop.warm_pods())
    shop.make_branch("large", "main")
    shop.patch_spec("large", postgres={"resources": {"requests": {"cpu": "20m"}}})
    shop.run_agent()
    assert uids(shop.warm_pods()) == before and len(shop.pods()) == 2
    shop.patch_spec("large", state="Stopped")
    shop.run_agent()
    shop.api.merge(f"{PROJECTS}/shop", {"spec": {"state": "Stopped"}})
    shop.run_agent()
    assert (
        shop.warm_pods() == []
        and shop.pods() == []
        and observe_slots(layout) == ()
        and reported_count(shop) is None
    )


@contextmanager
def agent(shop: World, api: FakeApi, warm_slots: int = 1) -> Iterator[Dispatcher]:
    """Run an agent's work queue, without kopf."""
    limits = WarmLimits(minimum=warm_slots)
    dispatcher = Dispatcher(cast(Cluster, api), shop.node.layout, CONTEXT, KeyedLocks(), limits, METRICS)
    with running(dispatcher):
        yield dispatcher


class ConcurrentClaims(FakeApi):
    """Delays the first claim until the second one arrives, so that both happen at the same moment."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self._barrier = threading.Barrier(2)
        self.claims = 0

    def json_patch(self, path: str, operations: list[Json]) -> Json:
        self.claims += 1
        if self.claims <= 2:
            self._barrier.wait(20)
        return super().json_patch(path, operations)


def test_of_two_branches_that_claim_the_last_warm_pod_one_gets_a_new_pod(shop: World) -> None:
    (warm_uid,) = uids(shop.warm_pods())
    api = ConcurrentClaims(shop.node.layout.base / "api.json")
    branches = [shop.make_branch(name, "main") for name in ("one", "two")]
    # Of two agents, as while one replaces the other: two branches of one agent do not claim one pod (WatchedWarmPods)
    with agent(shop, api) as former, agent(shop, api) as present:
        former.request_branch(NAMESPACE, "shop-one")
        present.request_branch(NAMESPACE, "shop-two")
        former.wait_idle(30)
        present.wait_idle(30)
    assert api.claims == 2 and warm_uid in uids(shop.pods()) and shop.warm_pods() == []
    branch_uids = [pod["metadata"]["labels"][names.LABEL_BRANCH_UID] for pod in shop.pods()]
    assert sorted(branch_uids) == sorted([*branches, shop.uid("main")])
    for name in ("one", "two"):
        assert shop.sql(name, "select count(*) from item") == [(100,)]


def test_a_create_starts_no_process(shop: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mount --bind` was one, under the lock of all slots: in a burst each branch waited for those before it."""
    started: list[list[str]] = []
    real_run = subprocess.run

    def run(argv: list[str], **arguments: Any) -> subprocess.CompletedProcess[str]:
        started.append(argv)
        return real_run(argv, **arguments)

    monkeypatch.setattr(command, "subprocess", SimpleNamespace(**{**vars(subprocess), "run": run}))
    shop.make_branch("copy", "main")
    with agent(shop, FakeApi(shop.node.layout.base / "api.json"), warm_slots=0) as dispatcher:
        dispatcher.request_branch(NAMESPACE, "shop-copy")
        dispatcher.wait_idle(30)
    assert shop.sql("copy", "select count(*) from item") == [(100,)]
    assert started == []


class DenyingApi(FakeApi):
    """An API server whose admission policies deny every claim."""

    def json_patch(self, path: str, operations: list[Json]) -> Json:
        raise ApiError(422, "Invalid", "denied by a policy")


def test_without_claims_branches_get_new_pods(shop: World) -> None:
    before = uids(shop.warm_pods())
    shop.make_branch("copy", "main")
    with agent(shop, DenyingApi(shop.node.layout.base / "api.json")) as dispatcher:
        dispatcher.request_branch(NAMESPACE, "shop-copy")
        dispatcher.wait_idle(30)
    assert shop.sql("copy", "select count(*) from item") == [(100,)]
    assert uids(shop.warm_pods()) == before


class CountingApi(FakeApi):
    """Counts the lists of all projects."""

    lists = 0

    def find(self, path: str, labels: str = "", fields: str = "") -> list[Json]:
        self.lists += path.endswith(f"/{names.PROJECTS}")
        return super().find(path, labels, fields)


def test_a_new_class_is_known_from_reconciles_and_its_pods_are_deleted_only_after_a_list(shop: World) -> None:
    api = CountingApi(shop.node.layout.base / "api.json")
    warm = WarmReconciler(cast(Cluster, api), shop.node.layout, CONTEXT, WarmLimits(), METRICS)
    warm.reconcile()
    lists, before = api.lists, uids(shop.warm_pods())
    assert lists == 1
    body = shop.api.get(f"{PROJECTS}/shop") or {}
    large = {"name": "large", "namespace": NAMESPACE}
    resources = {"requests": {"cpu": "20m"}}
    postgres = {**body["spec"]["postgres"], "resources": resources}
    spec = {**body["spec"], "postgres": postgres}
    status = {"nodeName": NODE, "node": {"initialized": True}}
    warm.trigger(parse_project(shop.api.put(PROJECTS, {"metadata": large, "spec": spec, "status": status})))
    warm.reconcile()
    assert len(shop.warm_pods()) == 2 and before < uids(shop.warm_pods())
    assert api.lists == lists
    # Before a warm pod is deleted, the objects are listed again.
    warm.trigger(parse_project(shop.api.merge(f"{PROJECTS}/large", {"spec": {"state": "Stopped"}})))
    deadline = time.monotonic() + 30
    while warm.reconcile() != Result():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert uids(shop.warm_pods()) == before
    assert api.lists > lists


def test_a_slow_reconcile_with_an_old_spec_does_not_bring_back_its_class(shop: World) -> None:
    cluster, layout = cast(Cluster, shop.api), shop.node.layout
    warm = WarmReconciler(cluster, layout, CONTEXT, WarmLimits(), METRICS)
    warm.reconcile()
    old = parse_project(shop.api.get(f"{PROJECTS}/shop") or {})
    resources = {"requests": {"cpu": "10m"}}
    new = parse_project(shop.api.merge(f"{PROJECTS}/shop", {"spec": {"postgres": {"resources": resources}}}))
    warm.trigger(new)
    warm.trigger(old)
    deadline = time.monotonic() + 30
    while warm.reconcile() != Result():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [pod["spec"]["containers"][0]["resources"] for pod in shop.warm_pods()] == [resources]


def test_a_burst_of_branches_never_leads_to_more_warm_pods_than_the_limit(shop: World) -> None:
    most = 0
    for n in range(6):
        shop.make_branch(f"b{n}", "main")
    with agent(shop, shop.api, warm_slots=2) as dispatcher:
        other = WarmReconciler(cast(Cluster, shop.api), shop.node.layout, CONTEXT, WarmLimits(2), METRICS)
        for n in range(6):
            dispatcher.branches.reconcile(NAMESPACE, f"shop-b{n}")
            for warm in (dispatcher.warm, other):
                warm.reconcile()
            most = max(most, len(shop.warm_pods()))
        assert most == 2 == len(shop.warm_pods())
        dispatcher.wait_idle(30)
    for body in shop.api.find(BRANCHES):
        assert body["status"]["node"]["postgres"]["reason"] == "Accepting"


def test_a_claimed_pod_is_neither_claimed_nor_deleted_again(shop: World) -> None:
    free_pod = pod_facts(shop.warm_pods()[0])
    cluster = cast(Cluster, shop.api)
    project = parse_project(shop.api.get(f"{PROJECTS}/shop") or {})
    branch = parse_branch(shop.branch("main"))
    ensure_claimed(cluster, CONTEXT.namespace, free_pod, claim_patch(project, branch, free_pod.uid))
    with pytest.raises(SlotTaken):
        ensure_claimed(cluster, CONTEXT.namespace, free_pod, claim_patch(project, branch, free_pod.uid))
    # A pod that was free when it was read and has been claimed since is not deleted.
    delete_warm_pod(cluster, CONTEXT.namespace, free_pod)
    pod = shop.api.get(f"{PODS}/{free_pod.name}")
    assert pod and "deletionTimestamp" not in pod["metadata"]
    assert shop.node.layout.run(free_pod.name).stat().st_uid == OWNER
