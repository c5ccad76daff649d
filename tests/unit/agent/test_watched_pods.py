"""The warm pods that the watch has seen: a branch chooses among them without a list, and no two choose one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from tests.fakes.api import FakeApi, Json
from tests.unit.agent.branch_model import COPY, PROJECT

from dbranch.agent.branch.facts import Desired
from dbranch.agent.branch.observe import observe_branch
from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.metrics import AgentMetrics
from dbranch.agent.pod_watch import watch_pods
from dbranch.agent.slot.pod_spec import claim_patch, slot_class_of, warm_pod
from dbranch.agent.slot.pod_status import PodFacts
from dbranch.agent.slot.scripts import read_slot_start
from dbranch.agent.warm.reconciler import WarmReconciler
from dbranch.agent.warm.sizing import WarmLimits
from dbranch.agent.warm.watched import WatchedWarmPods
from dbranch.api.errors import SlotTaken
from dbranch.kube.client import Cluster, path_of

CONTEXT = NodeContext("n1", "n-uid", "dbranch-nodes", "dbranch")
PODS = path_of("v1", "pods", CONTEXT.namespace)
CLASS = slot_class_of(PROJECT)
UID = "3b0f1f4e-0000-4000-8000-00000000000%d"
DESIRED = Desired(replace(PROJECT, uid=UID % 1), replace(COPY, uid=UID % 2, source_uid=UID % 3))


class Stop(BaseException):
    """Ends the watch."""


class Watched:
    """A watch of pods over a fake API server, in a thread."""

    def __init__(self, base: Path) -> None:
        self.api, self.layout = FakeApi(), Layout(base)
        self.cluster = cast(Cluster, self.api)
        self.warm = WarmReconciler(self.cluster, self.layout, CONTEXT, WarmLimits(), AgentMetrics())
        self._stopped = False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        with suppress(Stop):
            watch_pods(self.cluster, CONTEXT, self.warm, lambda *_: None, self._beat)

    def _beat(self) -> None:
        if self._stopped:
            raise Stop

    def stop(self) -> None:
        self._stopped = True
        self.api.close_watches()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def create(self, name: str, running: bool = True) -> Json:
        body = warm_pod(CONTEXT, self.layout, CLASS, name, read_slot_start())
        created = self.api.create(PODS, body)
        state: Json = {"running": {}} if running else {"waiting": {}}
        self.api.merge(f"{PODS}/{name}/status", {"status": {"containerStatuses": [{"state": state}]}})
        return created

    def free(self) -> list[str]:
        return [pod.name for pod in self.warm.watched.free(CLASS, self.warm.template_hash)]

    def observed(self, tried: tuple[str, ...] = ()) -> tuple[list[str], bool]:
        """Return the pods that a new branch may claim, and whether they were listed."""
        self.api.take_requests()
        facts = observe_branch(
            self.cluster,
            self.layout,
            CONTEXT,
            self.warm.template_hash,
            DESIRED,
            self.warm.watched,
            tried,
        )
        lists = [request for request in self.api.take_requests() if request.verb == "find"]
        return [pod.name for pod in facts.warm_pods], len(lists) > 1


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path)
    yield watched
    watched.stop()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_branch_lists_warm_pods_only_if_the_watch_has_none_for_it(watched: Watched) -> None:
    watched.create("slot-a")
    watched.create("slot-b")
    watched.create("slot-c", running=False)
    wait_until(lambda: watched.free() == ["slot-a", "slot-b"])
    assert watched.observed() == (["slot-a", "slot-b"], False)
    assert watched.observed(("slot-a",)) == (["slot-b"], False)
    # Perhaps there is one that the watch has not delivered yet.
    watched.warm.watched.forget("slot-b")
    assert watched.observed(("slot-a",)) == (["slot-b"], True)


def test_a_pod_that_is_claimed_or_gone_is_no_longer_free(watched: Watched) -> None:
    created = watched.create("slot-a")
    watched.create("slot-b")
    wait_until(lambda: len(watched.free()) == 2)
    claim = claim_patch(PROJECT, COPY, created["metadata"]["uid"])
    watched.api.json_patch(f"{PODS}/slot-a", claim)
    wait_until(lambda: watched.free() == ["slot-b"])
    watched.api.remove_pod(f"{PODS}/slot-b")
    wait_until(lambda: watched.free() == [])


def test_one_pod_is_claimed_by_one_branch_at_a_time() -> None:
    pods = WatchedWarmPods()
    pod = PodFacts("slot-a", class_hash=CLASS.class_hash, template_hash="t", running=True)
    pods.put(pod)
    with pods.reserved("slot-a"):
        assert pods.free(CLASS, "t") == ()
        with pytest.raises(SlotTaken), pods.reserved("slot-a"):
            raise AssertionError
        # An event from before the claim.
        pods.put(pod)
        assert pods.free(CLASS, "t") == ()
    assert pods.free(CLASS, "t") == ()
    pods.put(pod)
    assert pods.free(CLASS, "t") == (pod,)
    pods.keep_only(())
    assert pods.free(CLASS, "t") == ()
