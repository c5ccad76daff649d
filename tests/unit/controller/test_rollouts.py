"""A new release replaces the projects' proxies a few at a time."""

from __future__ import annotations

from typing import cast

import pytest
from tests.factories import Json, project
from tests.unit.controller.rig import RELEASE, Rig

from dbranch.api import names
from dbranch.controller.manifests import Release
from dbranch.controller.metrics import ControllerMetrics
from dbranch.controller.owned import OwnedObjects
from dbranch.controller.project.reconciler import ProjectReconciler
from dbranch.controller.rollouts import Rollouts, is_rolled_out
from dbranch.controller.timing import PROXY_ROLLOUT_POLL_SECONDS, UNREADY_RESYNC_SECONDS
from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.locks import KeyedLocks
from dbranch.runtime.result import Key

NEWER = Release("dbranch", RELEASE.nodes_namespace, "dbranch-server:newer")
NAMES = tuple(f"shop{i}" for i in range(5))


def key(name: str) -> Key:
    return Key(names.PROJECT_KIND, "team", name)


def deployment(name: str) -> str:
    return path_of("apps/v1", "deployments", "team", f"{name}-proxy")


@pytest.fixture
def rig() -> Rig:
    """A rig with five projects, whose controller is then of a newer release."""
    rig = Rig()
    rig.put(*map(project, NAMES))
    rig.run()
    for name in NAMES:
        finish(rig, name)
    return rig


def finish(rig: Rig, name: str) -> None:
    """Write the status of a Deployment whose pods are all replaced."""
    body = rig.existing(deployment(name))
    counts = dict.fromkeys(("replicas", "updatedReplicas", "availableReplicas"), body["spec"]["replicas"])
    status = {"observedGeneration": body["metadata"]["generation"], **counts}
    rig.api.merge(f"{deployment(name)}/status", {"status": status})


def upgrade(rig: Rig, rollouts: Rollouts) -> None:
    cluster, locks, metrics = cast(Cluster, rig.api), KeyedLocks(), ControllerMetrics()
    rig.owned = OwnedObjects(cluster)
    rig.projects = ProjectReconciler(cluster, NEWER, rig.owned, locks, metrics, rig.emit, rollouts)


def updated(rig: Rig) -> list[str]:
    def image(name: str) -> str:
        containers: list[Json] = rig.existing(deployment(name))["spec"]["template"]["spec"]["containers"]
        return str(containers[0]["image"])

    return [name for name in NAMES if image(name) == NEWER.server_image]


def test_an_upgrade_replaces_the_proxies_of_a_few_projects_at_once(rig: Rig) -> None:
    rollouts, freed = Rollouts(limit=2), list[Key]()
    rollouts.on_free = freed.append
    upgrade(rig, rollouts)
    for name in NAMES:
        rig.reconcile_project(name)
    assert updated(rig) == ["shop0", "shop1"]
    # The one whose proxies are replaced is looked at soon, one that waits is called, and all else of it is done.
    rig.reconcile_project("shop1")
    assert rig.result.requeue_after == PROXY_ROLLOUT_POLL_SECONDS
    rig.reconcile_project("shop4")
    assert rig.result.requeue_after == UNREADY_RESYNC_SECONDS
    finish(rig, "shop0")
    rig.reconcile_project("shop0")
    assert freed == [key("shop2")]
    rig.reconcile_project("shop2")
    assert updated(rig) == ["shop0", "shop1", "shop2"]
    for name in ("shop1", "shop2", "shop3", "shop4"):
        rig.reconcile_project(name)
        finish(rig, name)
        rig.reconcile_project(name)
    assert updated(rig) == list(NAMES)
    assert not any(rollouts.is_running(key(name)) or rollouts.is_waiting(key(name)) for name in NAMES)


def test_a_rollout_that_does_not_end_keeps_the_others_waiting_for_a_limited_time(rig: Rig) -> None:
    now = [0.0]
    upgrade(rig, Rollouts(limit=1, seconds=120.0, clock=lambda: now[0]))
    for name in ("shop0", "shop1"):
        rig.reconcile_project(name)
    assert updated(rig) == ["shop0"]
    now[0] = 121.0
    rig.reconcile_project("shop1")
    assert updated(rig) == ["shop0", "shop1"]


def test_what_a_user_changes_does_not_wait_for_an_upgrade(rig: Rig) -> None:
    upgrade(rig, Rollouts(limit=1))
    rig.reconcile_project("shop0")
    rig.change_project("shop0", proxy={"replicas": 3})
    rig.reconcile_project("shop0")
    assert rig.existing(deployment("shop0"))["spec"]["replicas"] == 3


def test_a_new_project_does_not_wait_for_an_upgrade(rig: Rig) -> None:
    upgrade(rig, Rollouts(limit=1))
    rig.reconcile_project("shop0")
    rig.put(project("new"))
    rig.reconcile_project("new")
    assert rig.exists(deployment("new"))


@pytest.mark.parametrize(
    ("status", "is_done"),
    [
        ({}, False),
        ({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}, True),
        ({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}, False),
        ({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 2}, False),
        ({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 1}, False),
    ],
)
def test_a_rollout_has_ended_when_every_pod_is_new_and_available(status: Json, is_done: bool) -> None:
    body = {"metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": status}
    assert is_rolled_out(body) == is_done
    assert is_rolled_out(None)
