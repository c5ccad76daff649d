"""What a branch costs the API server by its controller: every write is stored, and sent to all who watch.

The requests are those of reconciles that events lead to, on the fake API server; agents, proxies and kopf not.
"""

from __future__ import annotations

import pytest
from tests.factories import NAMESPACE, Json, branch
from tests.unit.controller.rig import BRANCHES, PODS
from tests.unit.controller.test_stale import Follower

from dbranch.api import names


class Costs(Follower):
    """A project with two branches that are Ready, and one proxy."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.ready()
        self.branch_up("x")
        self.run()
        self.requested()
        self.api.take_requests()
        self.reads.clear()

    def reconcile_branch(self, name: str = "main", of: str = "shop", bypass_cache: bool = False) -> Json:
        """Reconcile the branch, and record the reads that are the controller's own."""
        cache = self.cache()
        before = len(self.api.requests)
        self.result = self.branches.reconcile(NAMESPACE, f"{of}-{name}", cache, bypass_cache)
        self.reads += [str(request) for request in self.api.requests[before:] if not request.writes]
        return self.branch(name, of)

    def followed(self) -> list[str]:
        """Reconcile what events lead to; return the writes."""
        self.api.take_requests()
        self.follow()
        return self.api.take_writes()


@pytest.fixture
def shop() -> Costs:
    return Costs()


def test_a_create_costs_seven_writes_and_one_for_the_count(shop: Costs) -> None:
    shop.put(branch("y"))
    bound = shop.followed()
    shop.agent_reports(branch("y").accepting("10.0.0.10"))
    ready = shop.followed()
    assert bound == [
        "create services/shop-y",
        # The agent's finalizer: neither kopf writes one.
        "merge dbbranches/shop-y",
        "merge dbbranches/shop-y/status",
        "create secrets/shop-y-conn",
        # A moment later, and once for all branches of a burst.
        "merge dbprojects/shop/status",
    ]
    # Between the agent's report and Ready there are two requests, and nothing is written twice.
    assert ready == ["create endpointslices/shop-y", "merge dbbranches/shop-y/status"]


def test_a_create_costs_one_read_of_the_project(shop: Costs) -> None:
    """The branch is as the event had it, and so is the project once the branch is bound: it was four reads."""
    shop.put(branch("y"))
    shop.follow()
    assert shop.reads == ["get dbprojects/shop"]
    shop.agent_reports(branch("y").accepting("10.0.0.10"))
    shop.follow()
    assert shop.reads == ["get dbprojects/shop"]
    # Nor does anything else that an event leads to cost one.
    shop.change_branch("y", state="Stopped")
    shop.agent_reports(branch("y").stored())
    shop.follow()
    assert shop.reads == ["get dbprojects/shop"]
    # Without an event what is there is read.
    shop.reconcile_branch("y", bypass_cache=True)
    assert "get dbbranches/shop-y" in shop.reads and shop.reads.count("get dbprojects/shop") == 2


def test_a_create_has_one_event(shop: Costs) -> None:
    shop.events.clear()
    shop.put(branch("y"))
    shop.follow()
    shop.agent_reports(branch("y").accepting("10.0.0.10"))
    shop.follow()
    assert shop.events == [("Normal", "Available")]


def test_a_stop_a_resume_and_a_restart_cost_two_writes_each(shop: Costs) -> None:
    shop.change_branch("x", state="Stopped")
    assert shop.followed() == ["apply endpointslices/shop-x", "merge dbbranches/shop-x/status"]
    shop.change_branch("x", state="Running")
    assert shop.followed() == ["apply endpointslices/shop-x", "merge dbbranches/shop-x/status"]


def test_a_switch_costs_one_write_before_and_three_behind_the_acknowledgement(shop: Costs) -> None:
    shop.change_project(activeBranch="x")
    assert shop.followed() == ["merge dbprojects/shop/status"]
    shop.proxy_obeys()
    assert sorted(shop.followed()) == [
        "merge dbbranches/shop-main/status",
        "merge dbbranches/shop-x/status",
        "merge dbprojects/shop/status",
    ]


def test_a_branch_costs_its_own_object_five_writes_of_the_controller(shop: Costs) -> None:
    """A finalizer of kopf's in each of the two roles, and the removal of one, were three more."""
    shop.api.take_requests()
    shop.put(branch("y"))
    shop.follow()
    shop.agent_reports(branch("y").accepting("10.0.0.10"))
    shop.follow()
    shop.api.delete(f"{BRANCHES}/shop-y")
    shop.follow()
    shop.proxy_acknowledges("y")
    shop.follow()
    own = [
        write for write in shop.api.take_writes() if "dbbranches/shop-y" in write and "delete" not in write
    ]
    assert own == ["merge dbbranches/shop-y"] + ["merge dbbranches/shop-y/status"] * 4


def test_a_deletion_without_a_proxy_writes_the_branch_once(shop: Costs) -> None:
    shop.api.remove_pod(f"{PODS}/p1")
    shop.reconcile_project()
    shop.api.delete(f"{BRANCHES}/shop-x")
    assert [write for write in shop.followed() if "dbbranches" in write] == ["merge dbbranches/shop-x/status"]


def test_a_deletion_costs_five_writes_and_one_for_the_count(shop: Costs) -> None:
    shop.api.delete(f"{BRANCHES}/shop-x")
    assert shop.followed() == ["merge dbbranches/shop-x/status"]
    shop.proxy_acknowledges("x")
    assert shop.followed() == [
        "delete endpointslices/shop-x",
        "delete services/shop-x",
        "delete secrets/shop-x-conn",
        # Its last conditions and status.release.
        "merge dbbranches/shop-x/status",
    ]
    assert shop.branch("x")["metadata"]["finalizers"] == [names.AGENT_FINALIZER]
    shop.api.merge(f"{BRANCHES}/shop-x", {"metadata": {"finalizers": []}})
    assert shop.followed() == ["merge dbprojects/shop/status"]


def test_a_write_of_the_project_does_not_grow_with_its_branches(shop: Costs) -> None:
    sizes: list[int] = []
    for count in range(12):
        shop.branch_up(f"n{count}", f"10.0.1.{count}")
        status = {key: value for key, value in shop.project()["status"].items() if key != "proxies"}
        sizes.append(len(str(status)))
    assert sizes[-1] - sizes[0] <= len("12") - len("3")
