"""Warm slots of several classes on one node: a bad class harms only itself, and all together are bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from tests.fakes.api import FakeApi, Json
from tests.node.agent_life import NODE, PODS
from tests.node.machine import OWNER, Node

from dbranch.agent.context import NodeContext
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.slot.observe import observe_slots
from dbranch.agent.slot.pod_spec import slot_class_of
from dbranch.agent.warm import observe, reconciler
from dbranch.agent.warm.reconciler import WarmReconciler
from dbranch.agent.warm.sizing import WarmLimits
from dbranch.api import names
from dbranch.api.errors import ApiError, ClusterUnreachable
from dbranch.api.project import parse_project
from dbranch.kube.client import Cluster, path_of, project_path

CONTEXT = NodeContext(NODE, "node-uid", "dbranch-nodes", "dbranch")
SENTENCE = "spec.containers[0].resources.requests: Invalid value: must be less than or equal to memory limit"
INVALID = {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}


class ValidatingApi(FakeApi):
    """Rejects pods that request more than their limit, as the API server does."""

    def __init__(self) -> None:
        super().__init__()
        self.rejections = 0

    def create(self, path: str, body: Mapping[str, Any]) -> Json:
        if path == PODS and body["spec"]["containers"][0]["resources"] == INVALID:
            self.rejections += 1
            raise ApiError(422, "Invalid", f'Pod "{body["metadata"]["name"]}" is invalid: {SENTENCE}')
        return super().create(path, body)


class Clock:
    """The monotonic clock of the warm slots' reconciler."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall_time(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now)

    def seconds_since(self, timestamp: str) -> float:
        return (self.wall_time() - datetime.fromisoformat(timestamp)).total_seconds()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(reconciler, "time", clock)
    monkeypatch.setattr(observe, "seconds_since", clock.seconds_since)
    return clock


def put_project(api: FakeApi, namespace: str, resources: Json | None = None, **postgres: Any) -> None:
    spec = {
        "postgres": {"image": "postgres:17", "runAsUser": OWNER, "resources": resources or {}, **postgres}
    }
    meta = {"name": "shop", "namespace": namespace}
    status = {"nodeName": NODE, "node": {"initialized": True}}
    api.put(
        path_of(names.API_VERSION, names.PROJECTS, namespace),
        {"metadata": meta, "spec": spec, "status": status},
    )


def node_status(api: FakeApi, namespace: str) -> Json:
    body = api.get(project_path(namespace, "shop"))
    assert body
    return dict(body["status"]["node"])


def make_reconciler(api: FakeApi, node: Node, limit: int = 1, maximum: int = 10) -> WarmReconciler:
    return WarmReconciler(
        cast(Cluster, api), node.layout, CONTEXT, WarmLimits(limit, 0, maximum), AgentMetrics()
    )


def run_pods(api: FakeApi) -> None:
    """Let every pod run, and remove those that were deleted, as kubelet does."""
    for pod in api.find(PODS):
        path = f"{PODS}/{pod['metadata']['name']}"
        if pod["metadata"].get("deletionTimestamp"):
            api.remove_pod(path)
        elif not pod.get("status"):
            status = {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}
            api.merge(f"{path}/status", {"status": status})


def test_a_class_that_the_api_server_rejects_harms_only_itself(node: Node, clock: Clock) -> None:
    api = ValidatingApi()
    # The namespace that sorts first is reconciled first.
    put_project(api, "aaa", INVALID)
    put_project(api, "team")
    warm = make_reconciler(api, node)
    for _ in range(5):
        warm.reconcile()
        run_pods(api)
    pods = api.find(PODS)
    assert len(pods) == 1 and pods[0]["spec"]["containers"][0]["resources"] == {}
    # The directory of the pod that could not be created is gone, too.
    assert observe_slots(node.layout) == (pods[0]["metadata"]["name"],)
    assert node_status(api, "team")["warmSlots"] == 1 and "slots" not in node_status(api, "team")
    slots = node_status(api, "aaa")["slots"]
    assert (
        slots["reason"] == "WarmSlotsRejected"
        and "must be less than or equal to memory limit" in slots["message"]
    )
    assert api.rejections == 1, "it is tried again before its delay is over"


def test_a_rejected_class_is_tried_ever_more_rarely_and_its_correction_at_once(
    node: Node, clock: Clock
) -> None:
    api = ValidatingApi()
    put_project(api, "aaa", INVALID)
    warm = make_reconciler(api, node)
    for _ in range(3600):
        clock.now += 1
        warm.reconcile()
    assert 5 < api.rejections < 30
    api.take_writes()
    api.merge(
        project_path("aaa", "shop"), {"spec": {"postgres": {"resources": {"limits": None, "requests": None}}}}
    )
    clock.now += 61
    for _ in range(2):
        warm.reconcile()
        run_pods(api)
    warm.reconcile(resync=True)
    assert len(api.find(PODS)) == 1
    assert node_status(api, "aaa")["warmSlots"] == 1 and node_status(api, "aaa").get("slots") is None


def test_an_api_server_that_does_not_answer_is_no_rejection(node: Node) -> None:
    api = FakeApi()
    put_project(api, "aaa")
    api.refuse("create", "pods", ClusterUnreachable("no answer"))
    with pytest.raises(ClusterUnreachable):
        make_reconciler(api, node).reconcile()
    assert "slots" not in node_status(api, "aaa")


def test_a_project_that_is_gone_keeps_no_other_from_its_report(node: Node) -> None:
    api = FakeApi()
    put_project(api, "aaa")
    put_project(api, "team")
    warm = make_reconciler(api, node)
    warm.reconcile()
    run_pods(api)
    api.refuse("merge", "/aaa/", ApiError(404, "NotFound", "it is gone"))
    warm.reconcile(resync=True)
    assert node_status(api, "team")["warmSlots"] == 1


def image_counts(api: FakeApi) -> Counter[str]:
    pods = (pod for pod in api.find(PODS) if not pod["metadata"].get("deletionTimestamp"))
    return Counter(pod["spec"]["containers"][0]["image"] for pod in pods)


def test_all_classes_together_are_bounded_and_the_least_recently_used_goes(node: Node, clock: Clock) -> None:
    api = FakeApi()
    api.clock = clock.wall_time
    for letter in "abcd":
        put_project(api, f"team-{letter}", image=f"postgres:{letter}")
    warm = make_reconciler(api, node, limit=2, maximum=4)

    def use(letter: str) -> None:
        body = api.get(project_path(f"team-{letter}", "shop"))
        assert body
        warm.record_use(slot_class_of(parse_project(body)), "warm")
        warm.trigger(parse_project(body))
        for _ in range(4):
            warm.reconcile()
            # With those that are terminating, never more than the maximum.
            assert len(api.find(PODS)) <= 4
            run_pods(api)
        clock.now += 10

    for letter in "abcd":
        use(letter)
    # One of each before a second of any.
    assert image_counts(api) == Counter({f"postgres:{letter}": 1 for letter in "abcd"})
    put_project(api, "team-e", image="postgres:e")
    use("e")
    assert image_counts(api) == Counter({f"postgres:{letter}": 1 for letter in "bcde"})
    use("a")
    assert image_counts(api) == Counter({f"postgres:{letter}": 1 for letter in "acde"})
    # Nothing moves by itself, nor when another agent starts, which knows the pods only.
    api.take_writes()
    for another in (warm, make_reconciler(api, node, limit=2, maximum=4)):
        for _ in range(3):
            clock.now += 61
            another.reconcile()
            run_pods(api)
    assert image_counts(api) == Counter({f"postgres:{letter}": 1 for letter in "acde"})
