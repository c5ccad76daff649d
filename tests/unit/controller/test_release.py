"""`status.release`: no agent touches a branch that is being deleted before the controller has let go of it.

Also not while parts of the last release run beside those of this one, and wherever the controller is cut off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.factories import BranchBuilder, branch
from tests.fakes.api import FakeApi, Request
from tests.unit.controller.rig import BRANCHES, Rig, conditions_of
from tests.unit.controller.test_stale import NODE, NodeChange, stale_after

from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.conditions import Condition, Reason
from dbranch.api.errors import ApiError, ClusterUnreachable
from dbranch.controller.scheduling import NodeFacts, missing_finalizers

X = f"{BRANCHES}/shop-x"
GOING = branch("x").bound().accepting().deleting()
BOTH = (names.CONTROLLER_FINALIZER, names.AGENT_FINALIZER)


@pytest.fixture
def shop() -> Rig:
    """A rig whose project `shop` is Ready."""
    return Rig().ready()


# Who may touch it.


@pytest.mark.parametrize(
    ("builder", "is_released"),
    [
        pytest.param(GOING, False, id="the controller has not seen it yet"),
        pytest.param(GOING.status(release="Pending"), False, id="proxies or copies are awaited"),
        pytest.param(GOING.released(), True, id="released"),
        pytest.param(GOING.released().finalizers(*BOTH), False, id="its finalizer is still on"),
        pytest.param(GOING.status(release="2026-01-01T00:00:00Z"), False, id="of another deletion"),
        pytest.param(
            GOING.reported(Condition.READY, Reason.DELETING), True, id="a controller of 0.1.0 let go"
        ),
        pytest.param(
            GOING.reported(Condition.READY, Reason.DELETING).finalizers(*BOTH),
            False,
            id="one of 0.1.0 holds it",
        ),
        pytest.param(
            GOING.reported(Condition.READY, Reason.DELETING).status(release="Pending"),
            False,
            id="this release's controller has begun, and one of 0.1.0 took over",
        ),
        pytest.param(GOING.reported(Condition.READY, Reason.AVAILABLE), False, id="nobody has reported it"),
    ],
)
def test_a_branch_is_released_by_the_word_of_a_controller_alone(
    builder: BranchBuilder, is_released: bool
) -> None:
    assert builder.parsed().is_released == is_released


NEW = NodeFacts("n1", has_agent=True, agent_ready=True, features=frozenset(names.FEATURES))
OLD = NodeFacts("n1", has_agent=True, agent_ready=True, features=frozenset({names.FEATURE_SNAPSHOTS}))
STARTING = NodeFacts("n1", has_agent=True)


@pytest.mark.parametrize(
    ("item", "node", "expected"),
    [
        pytest.param(branch("x"), NEW, [names.AGENT_FINALIZER], id="new agent"),
        pytest.param(branch("x"), OLD, [names.CONTROLLER_FINALIZER], id="old agent"),
        pytest.param(
            branch("x"), STARTING, [names.AGENT_FINALIZER, names.CONTROLLER_FINALIZER], id="unknown"
        ),
        pytest.param(branch("x").bound(), NEW, [], id="bound"),
        pytest.param(
            branch("x").bound().finalizers(),
            NEW,
            [names.AGENT_FINALIZER],
            id="bound, and its old agent never saw it",
        ),
        pytest.param(
            branch("x").bound(), OLD, [names.CONTROLLER_FINALIZER], id="bound, the agent rolled back"
        ),
        pytest.param(branch("x").bound(), STARTING, [], id="bound, the agent starts"),
        pytest.param(branch("x").bound().finalizers(*BOTH), OLD, [], id="it has them"),
    ],
)
def test_a_branch_gets_the_finalizers_that_its_nodes_agent_knows(
    item: BranchBuilder, node: NodeFacts, expected: list[str]
) -> None:
    assert list(missing_finalizers(item.parsed(), node)) == expected


def test_beside_an_agent_of_the_last_release_the_finalizer_goes_last(shop: Rig) -> None:
    """That one waits for it to go, and knows no status.release."""
    shop.agent_of(features=names.FEATURE_SNAPSHOTS)
    shop.branch_up("x")
    assert set(shop.branch("x")["metadata"]["finalizers"]) == set(BOTH)
    shop.api.delete(X)
    shop.withdraw("x")
    assert names.CONTROLLER_FINALIZER in shop.branch("x")["metadata"]["finalizers"]
    writes = shop.writes_of(lambda: shop.remove_branch("x"))
    assert writes[-2:] == ["merge dbbranches/shop-x/status", "merge dbbranches/shop-x"]
    assert shop.branch("x")["metadata"]["finalizers"] == [names.AGENT_FINALIZER]


def test_a_daemonset_that_is_rolled_back_gets_the_finalizers_that_its_agents_wait_for(shop: Rig) -> None:
    shop.branch_up("x")
    assert stale_after(shop, NodeChange(NODE)) == set()
    shop.agent_of(ready=False, features="")
    shop.run()
    assert shop.branch("x")["metadata"]["finalizers"] == [names.AGENT_FINALIZER]
    shop.agent_of(features="")
    assert stale_after(shop, NodeChange(NODE)) >= {"shop-main", "shop-x"}
    shop.run()
    for name in ("main", "x"):
        assert set(shop.branch(name)["metadata"]["finalizers"]) == set(BOTH)
    # An upgrade writes none of them; each goes with its branch.
    shop.agent_of()
    shop.run()
    shop.api.take_requests()
    shop.run()
    assert shop.api.take_writes() == []


def test_a_finalizer_is_put_on_the_branch_as_it_is_now(shop: Rig) -> None:
    shop.put(branch("x"))
    shop.api.before("merge", "shop-x$", lambda: shop.api.merge(X, {"metadata": {"finalizers": ["theirs"]}}))
    shop.reconcile_branch("x")
    assert shop.branch("x")["metadata"]["finalizers"] == ["theirs", names.AGENT_FINALIZER]
    assert conditions_of(shop.branch("x"))["Scheduled"] == "Bound"


def test_a_branch_that_is_deleted_at_that_moment_is_not_bound(shop: Rig) -> None:
    shop.put(branch("x"), branch("held").finalizers("theirs"))

    def delete() -> None:
        shop.api.delete(X)
        shop.api.delete(f"{BRANCHES}/shop-held")

    shop.api.before("merge", "shop-x$", delete)
    shop.branches.reconcile("team", "shop-x", shop.cache())
    assert not shop.exists(X)
    shop.branches.reconcile("team", "shop-held", shop.cache())
    assert "nodeName" not in (shop.branch("held").get("status") or {})


# Cut off.


def cut_at(api: FakeApi, number: int, is_done: bool) -> None:
    """Stop answering at the n-th write from now on: before it is done, or behind it."""
    served, count = api._request, 0

    @contextmanager
    def request(verb: str, path: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        nonlocal count
        count += Request(verb, path).writes
        is_last = Request(verb, path).writes and count == number
        if is_last and not is_done:
            raise ClusterUnreachable("killed")
        with served(verb, path, *args, **kwargs) as body:
            yield body
        if is_last:
            raise ClusterUnreachable("killed")

    api._request = request  # type: ignore[method-assign, assignment]


def is_serving(body: Branch) -> bool:
    """Return True if proxies may still send sessions to the branch: none has acknowledged its end."""
    return body.route is None or all(entry.generation < body.route.generation for entry in body.proxies)


def delete_step_by_step(rig: Rig) -> None:
    """Delete branch x; let a new process go on wherever the one before was cut off; check the order all the time."""
    rig.api.delete(X)
    for step in range(6):
        if step == 3:
            assert not parse_branch(rig.branch("x")).is_released
            rig.proxy_acknowledges("x")
        try:
            rig.remove_branch("x")
        except ClusterUnreachable:
            rig.start()
        check_order(rig)


def prepared() -> Rig:
    rig = Rig().ready()
    rig.branch_up("x")
    rig.api.take_requests()
    return rig


def test_a_deletion_that_is_cut_off_at_any_write_goes_on_in_order() -> None:
    rig = prepared()
    delete_step_by_step(rig)
    # The first is the test's.
    count = len(rig.api.take_writes()) - 1
    assert count == 5
    for number in range(1, count + 1):
        for is_done in (False, True):
            rig = prepared()
            # Behind the deletion and the proxy's word, which are writes of the test.
            cut_at(rig.api, number + 1 + (number > 1), is_done)
            delete_step_by_step(rig)
            assert parse_branch(rig.branch("x")).is_released, number
            assert rig.writes_of(lambda rig=rig: rig.remove_branch("x")) == []  # type: ignore[misc]


def check_order(rig: Rig) -> None:
    body = parse_branch(rig.branch("x"))
    assert not (body.is_released and is_serving(body))


@pytest.mark.parametrize("lost", ["shop-x$", "shop-x/status"])
@pytest.mark.parametrize("is_done", [False, True])
def test_a_binding_that_is_cut_off_is_finished_and_never_without_its_finalizer(
    shop: Rig, lost: str, is_done: bool
) -> None:
    shop.put(branch("x"))
    (shop.api.lose_answer if is_done else shop.api.refuse)("merge", lost, times=1)
    with pytest.raises((ClusterUnreachable, ApiError)):
        shop.reconcile_branch("x")
    shop.start()
    body = shop.branch("x")
    bound = "nodeName" in (body.get("status") or {})
    assert not bound or names.AGENT_FINALIZER in body["metadata"]["finalizers"]
    shop.reconcile_branch("x")
    body = shop.branch("x")
    assert body["status"]["nodeName"] == NODE and body["metadata"]["finalizers"] == [names.AGENT_FINALIZER]
