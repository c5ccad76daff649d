"""Whatever changes, nobody who would now report something else is left out, from generated states.

A state is what a random history leaves when a controller has followed all events of it. After one more change the
test asks `stale`, and then reconciles each object in a world of its own to see whether it reports something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.factories import NAMESPACE, NODE, NODES_NAMESPACE, Json, agent_pod, branch, node, project
from tests.unit.controller.rig import AGENTS, BRANCHES, NODES, PODS, PROJECTS, Rig, conditions_of

from dbranch.api import names
from dbranch.api.branch import parse_branch
from dbranch.api.conditions import Finding, Reason
from dbranch.api.project import parse_project
from dbranch.controller.limits import Limits
from dbranch.controller.stale import (
    Change,
    ConnectionChange,
    NodeChange,
    ProxyChange,
    outdated_columns,
    stale,
)
from dbranch.kube.client import branch_path, project_path
from dbranch.runtime.result import Key

SHOP = f"{PROJECTS}/shop"
# A history of a few changes brings up no more events than this, unless two reconciles undo each other's work.
_MAX_EVENTS = 400


class Follower(Rig):
    """A controller that reconciles only what events lead to, as the wiring does."""

    def __init__(self, **limits: str) -> None:
        super().__init__(**limits)
        self._position = len(self.api._events)

    def requested(self) -> set[Key]:
        """Return who is to be reconciled after the events since the last call."""
        events, self._position = self.api._events[self._position :], len(self.api._events)
        keys: set[Key] = set()
        for _, path, old, new in events:
            change = change_of(path, new or old or {})
            if change is not None:
                keys |= (
                    stale([change], self.cache(), self.limits)
                    | outdated_columns([change], self.cache()).keys()
                )
            if path == SHOP and at(old, "status.passwordVersion") != at(new, "status.passwordVersion"):
                keys |= stale([ConnectionChange(NAMESPACE, "shop")], self.cache(), self.limits)
            keys |= set(own_requests(path, old, new))
        return keys

    def reconcile(self, key: Key) -> bool:
        """Reconcile the object, or go on with its deletion; return whether that changed anything."""
        is_project = key.kind == names.PROJECT_KIND
        path = (project_path if is_project else branch_path)(key.namespace, key.name)
        body = self.api.get(path)
        before = self.api._memory.version
        if body is None:
            return False
        if body["metadata"].get("deletionTimestamp"):
            if is_let_go(body):
                return False
            if is_project:
                self.remove_project(key.name)
            else:
                of = body["spec"]["project"]
                self.remove_branch(names.branch_name(of, key.name), of)
        elif is_project:
            self.reconcile_project(key.name)
        else:
            of = body["spec"]["project"]
            self.reconcile_branch(names.branch_name(of, key.name), of)
        return self.api._memory.version != before

    def follow(self) -> None:
        """Reconcile what events lead to, until there are none."""
        reconciles = 0
        while keys := self.requested():
            for key in sorted(keys):
                reconciles += 1
                assert reconciles < _MAX_EVENTS, f"no end: {self.api.take_writes()[-10:]}"
                self.reconcile(key)

    def all_keys(self) -> set[Key]:
        bodies = [*self.api.find(PROJECTS), *self.api.find(BRANCHES)]
        return {Key(body["kind"], body["metadata"]["namespace"], body["metadata"]["name"]) for body in bodies}


def is_let_go(body: Json) -> bool:
    """Return True if the controller has let go of an object that is being deleted."""
    if body["kind"] == names.BRANCH_KIND:
        return parse_branch(body).is_released
    return names.CONTROLLER_FINALIZER not in body["metadata"].get("finalizers", ())


def change_of(path: str, body: Json) -> Change | None:
    """Return what a handler makes of an event of the object at the path."""
    if path.startswith(PROJECTS):
        return parse_project(body)
    if path.startswith(BRANCHES):
        return parse_branch(body)
    if path.startswith(NODES + "/"):
        return NodeChange(body["metadata"]["name"])
    if path.startswith(AGENTS):
        return NodeChange(body["spec"]["nodeName"])
    if path.startswith(PODS):
        labels = body["metadata"]["labels"]
        return ProxyChange(body["metadata"]["namespace"], labels[names.LABEL_PROJECT])
    return None


def own_requests(path: str, old: Json | None, new: Json | None) -> Iterator[Key]:
    """Yield the object itself if kopf calls its handler: it is new, to be deleted, or one of these fields changed."""
    if new is None or not path.startswith((PROJECTS, BRANCHES)):
        return
    fields = ("spec", "status.node", "status.proxies", "metadata.deletionTimestamp")
    if old is None or any(at(old, field) != at(new, field) for field in fields):
        yield Key(new["kind"], new["metadata"]["namespace"], new["metadata"]["name"])


def at(body: Any, field: str) -> Any:
    for key in field.split("."):
        body = (body or {}).get(key)
    return body


# What may happen. Each does nothing where its object does not exist.

BRANCH_NAMES = ("main", "a", "b")
failing = Finding(Reason.CRASH_LOOPING, "ends").as_dict()
stopped = Finding(Reason.STOPPED, "stopped").as_dict()


def new_uid(rig: Rig) -> Json:
    """Return metadata of an object that was not there before, also if one of its name was."""
    return {"uid": f"uid-{rig.api._memory.version}"}


def create_project(rig: Rig) -> None:
    if not rig.exists(SHOP):
        rig.put(project().changed(metadata=new_uid(rig)))


def create_branch(rig: Rig, name: str, source: str) -> None:
    if not rig.exists(f"{BRANCHES}/shop-{name}") and name != source:
        rig.put(branch(name, source if name != "main" else None).changed(metadata=new_uid(rig)))


def delete(rig: Rig, path: str) -> None:
    rig.api.delete(path)


def agent_destroys(rig: Rig) -> None:
    """Remove the agent's finalizer where the controller has let go."""
    for body in [*rig.api.find(BRANCHES), *rig.api.find(PROJECTS)]:
        meta = body["metadata"]
        if meta.get("deletionTimestamp") and is_let_go(body):
            collection = BRANCHES if body["kind"] == names.BRANCH_KIND else PROJECTS
            rig.api.merge(f"{collection}/{meta['name']}", {"metadata": {"finalizers": []}})


def set_spec(rig: Rig, path: str, field: str, value: str) -> None:
    if rig.exists(path):
        rig.api.merge(path, {"spec": {field: value}})


def report_branch(rig: Rig, name: str, report: str) -> None:
    body = rig.api.get(f"{BRANCHES}/shop-{name}")
    if body is None or not (body.get("status") or {}).get("nodeName"):
        return
    rig.agent_reports(
        {
            "stored": branch(name).stored(),
            "accepting": branch(name).accepting(f"10.0.0.{len(name)}"),
            "moved": branch(name).accepting("10.0.1.1"),
            "failing": branch(name).stored().node(postgres=failing),
            "stopped": branch(name).stored().node(postgres=stopped),
        }[report]
    )


def report_project(rig: Rig, is_up: bool) -> None:
    if rig.exists(SHOP) and (rig.project().get("status") or {}).get("nodeName"):
        rig.agent_reports(project().up() if is_up else project().node(storage=stopped))


def change_proxy(rig: Rig, name: str, state: str) -> None:
    rig.api.remove_pod(f"{PODS}/{name}")
    if state != "gone" and rig.exists(SHOP):
        rig.proxy(name, ready=state == "ready", phase="Failed" if state == "ended" else "Running")


def acknowledge(rig: Rig, name: str, draining: int, is_old: bool) -> None:
    if rig.exists(SHOP) and (rig.project().get("status") or {}).get("route"):
        rig.proxy_obeys(name, draining=draining, is_old=is_old)


def acknowledge_deletion(rig: Rig, pod: str, name: str) -> None:
    if rig.exists(f"{BRANCHES}/shop-{name}") and at(rig.branch(name), "status.route.state") == "Deleting":
        rig.proxy_acknowledges(name, pod)


def change_node(rig: Rig, name: str, state: str) -> None:
    rig.api.remove_pod(f"{NODES}/{name}")
    if state != "gone":
        rig.api.put(NODES, node(name, ready=state == "ready", unschedulable=state == "cordoned"))


def change_agent(rig: Rig, name: str, state: str) -> None:
    rig.api.remove_pod(f"{AGENTS}/agent-{name}")
    if state != "gone":
        free_bytes = 2**20 if state == "full" else 2**40
        features = names.FEATURE_SNAPSHOTS if state == "old" else ",".join(names.FEATURES)
        pod = agent_pod(name, ready=state != "not ready", free_bytes=free_bytes, features=features)
        rig.api.put(AGENTS, pod)


def happening(act: Callable[..., None], *choices: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    return st.tuples(st.just(act), st.tuples(*map(st.sampled_from, choices)))


BRANCH_PATHS = tuple(f"{BRANCHES}/shop-{name}" for name in BRANCH_NAMES)
HAPPENINGS = st.one_of(
    happening(create_branch, BRANCH_NAMES, BRANCH_NAMES),
    happening(report_branch, BRANCH_NAMES, ("stored", "accepting", "moved", "failing", "stopped")),
    happening(set_spec, (SHOP,), ("activeBranch",), ("main", "a", "nowhere")),
    happening(set_spec, (SHOP, *BRANCH_PATHS), ("state",), ("Running", "Stopped")),
    happening(report_project, (True, False)),
    happening(change_proxy, ("p1", "p2"), ("ready", "not ready", "ended", "gone")),
    happening(acknowledge, ("p1", "p2"), (0, 1), (False, True)),
    happening(acknowledge_deletion, ("p1", "p2"), BRANCH_NAMES),
    happening(change_node, (NODE, "n2"), ("ready", "not ready", "cordoned", "gone")),
    happening(change_agent, (NODE, "n2"), ("ready", "not ready", "full", "old", "gone")),
    happening(delete, (SHOP, *BRANCH_PATHS)),
    happening(agent_destroys),
    happening(create_project),
)


def any_unreported(rig: Rig) -> bool:
    """Return True if a branch has reported nothing yet."""
    return any(not conditions_of(body) for body in rig.api.find(BRANCHES))


HISTORIES = st.lists(HAPPENINGS, max_size=8)


# Of a namespace with two branches at most, the project's image is none that is allowed.
LIMITS = st.sampled_from([{}, {"branches": "2", "images": "postgres:18"}, {"projects": "0"}])


@given(starts_ready=st.booleans(), limits=LIMITS, history=HISTORIES, change=HAPPENINGS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_nobody_who_would_report_something_else_is_left_out(
    starts_ready: bool, limits: Json, history: list[Any], change: Any
) -> None:
    rig = Follower(**limits)
    if starts_ready:
        rig.limits = Limits()
        rig.start()
        rig.ready()
        # They are set later, with which the controller starts again.
        rig.limits = Limits(limits)
        rig.start()
        rig.run()
    for act, arguments in history:
        act(rig, *arguments)
        rig.follow()
    act, arguments = change
    act(rig, *arguments)
    keys = rig.requested()
    for key in sorted(rig.all_keys() - keys):
        if key.kind == names.PROJECT_KIND and any_unreported(rig):
            # It is stale when that branch reports, and writes both at once.
            continue
        rig.api.take_requests()
        with rig.api.undone():
            assert not rig.reconcile(key), f"{act.__name__}{arguments}: {key.name}: {rig.api.take_writes()}"
    # Whoever is reconciled then makes no one stale for ever.
    rig._position = len(rig.api._events)
    for key in sorted(keys):
        rig.reconcile(key)
    rig.follow()
    for key in sorted(rig.all_keys()):
        assert not rig.reconcile(key), (
            f"{act.__name__}{arguments}: {key.name} at the end: {rig.api.take_writes()[-3:]}"
        )


# Some of it, spelled out.


@pytest.fixture
def shop() -> Rig:
    return Rig().ready()


def stale_after(rig: Rig, *changes: Change) -> set[str]:
    return {key.name for key in stale(changes, rig.cache(), rig.limits)}


def test_without_a_change_nobody_is_stale(shop: Rig) -> None:
    everything: list[Change] = [parse_project(shop.project()), parse_branch(shop.branch()), NodeChange(NODE)]
    assert stale_after(shop, *everything, ProxyChange("team", "shop")) == set()


def test_a_project_follows_its_branches(shop: Rig) -> None:
    """Its route is its own: the project, however large, is written for none of them but the active one's state."""
    shop.agent_reports(branch().accepting("10.0.0.2"))
    assert stale_after(shop, parse_branch(shop.branch())) == {"shop-main"}
    shop.agent_reports(branch().node(postgres=Finding(Reason.RECOVERING, "recovers").as_dict()))
    assert stale_after(shop, parse_branch(shop.branch())) == {"shop", "shop-main"}


def test_the_deletion_of_a_branch_follows_its_proxies(shop: Rig) -> None:
    shop.branch_up("x")
    shop.api.delete(f"{BRANCHES}/shop-x")
    shop.remove_branch("x")
    assert stale_after(shop, parse_branch(shop.branch("x"))) == set()
    shop.proxy_acknowledges("x")
    assert stale_after(shop, parse_branch(shop.branch("x"))) == {"shop-x"}


def test_an_unbound_branch_follows_its_source_and_the_project(shop: Rig) -> None:
    shop.put(branch("x", "y"), branch("other"))
    shop.run()
    shop.put(branch("y").bound().stored())
    shop.run()
    assert conditions_of(shop.branch("x"))["Scheduled"] == "Bound"
    shop.put(branch("z", "new"))
    shop.reconcile_branch("z")
    shop.reconcile_project()
    shop.put(branch("new").bound().stored())
    assert stale_after(shop, parse_branch(shop.branch("new"))) == {"shop-z"}


def test_everything_on_a_node_follows_its_agent(shop: Rig) -> None:
    shop.branch_up("x")
    shop.agent_of(ready=False)
    assert stale_after(shop, NodeChange(NODE)) == {"shop", "shop-main", "shop-x"}
    assert stale_after(shop, NodeChange("n2")) == set()


def test_a_project_that_is_bound_nowhere_follows_every_node() -> None:
    rig = Rig()
    rig.agent_of(ready=False)
    rig.put(project())
    rig.run()
    rig.api.put(NODES, node("n2"))
    rig.api.put(AGENTS, agent_pod("n2"))
    assert stale_after(rig, NodeChange("n2")) == {"shop"}


def test_a_project_follows_its_proxies(shop: Rig) -> None:
    shop.proxy("p2")
    assert stale_after(shop, ProxyChange("team", "shop")) == {"shop"}
    assert stale_after(shop, ProxyChange(NODES_NAMESPACE, "shop")) == set()


def test_branches_follow_the_route_when_every_proxy_obeys_it(shop: Rig) -> None:
    """They do a moment later: the first sessions on the new branch come first."""
    shop.branch_up("x")
    shop.change_project(activeBranch="x")
    shop.reconcile_project()
    switched = parse_project(shop.project())
    assert stale_after(shop, switched) == set() and outdated_columns([switched], shop.cache()) == {}
    shop.proxy_obeys()
    switched = parse_project(shop.project())
    assert stale_after(shop, switched) == {"shop"}
    columns = outdated_columns([switched], shop.cache())
    assert {key.name for key in columns} == {"shop-main", "shop-x"} and all(columns.values())
    assert outdated_columns([ProxyChange("team", "shop")], shop.cache()) == columns
    for name in ("main", "x"):
        shop.reconcile_branch(name)
    assert outdated_columns([switched], shop.cache()) == {}


def test_a_deletion_goes_on_when_the_proxies_obey_or_the_copy_is_taken(shop: Rig) -> None:
    shop.branch_up("x")
    shop.put(branch("y", "x"))
    shop.run()
    shop.api.delete(f"{BRANCHES}/shop-x")
    shop.run()
    shop.proxies_obey()
    shop.run()
    assert stale_after(shop, parse_project(shop.project()), parse_branch(shop.branch("x"))) == set()
    shop.agent_reports(branch("y").stored())
    assert "shop-x" in stale_after(shop, parse_branch(shop.branch("y")))


def test_a_branch_that_is_made_while_its_project_is_deleted_is_deleted_too(shop: Rig) -> None:
    shop.api.delete(SHOP)
    shop.reconcile_project()
    assert "shop" not in stale_after(shop, parse_project(shop.project()))
    shop.put(branch("x"))
    assert "shop" in stale_after(shop, parse_branch(shop.branch("x")))


def test_a_reconcile_that_failed_is_tried_again_after_a_change_of_another_object(shop: Rig) -> None:
    shop.projects.report_failure("team", "shop", shop.cache(), KeyError("a fault"))
    its_own, another = parse_project(shop.project()), parse_branch(shop.branch())
    assert stale_after(shop, its_own) == set()
    assert stale_after(shop, another) == {"shop"} == stale_after(shop, its_own, another)


def test_every_branchs_secret_follows_the_projects_password(shop: Rig) -> None:
    shop.branch_up("x")
    assert stale_after(shop, ConnectionChange("team", "shop")) == {"shop-main", "shop-x"}


def test_who_has_reported_nothing_yet_is_reconciled_by_its_own_creation(shop: Rig) -> None:
    shop.put(branch("x"))
    assert stale_after(shop, parse_branch(shop.branch("x"))) == set()


def test_who_has_no_place_follows_the_branches_of_other_projects() -> None:
    rig = Rig(branches="2").ready()
    rig.branch_up("x")
    rig.put(project("other"))
    rig.run()
    assert conditions_of(rig.branch("main", "other"))["Scheduled"] == "LimitExceeded"
    x = parse_branch(rig.branch("x"))
    assert stale_after(rig, x) == set()
    rig.api.delete(f"{BRANCHES}/shop-x")
    rig.api.merge(f"{BRANCHES}/shop-x", {"metadata": {"finalizers": []}})
    assert "other-main" in stale_after(rig, x)


def test_who_has_no_place_follows_the_other_projects() -> None:
    rig = Rig(projects="1").ready()
    rig.put(project("late"))
    rig.run()
    assert conditions_of(rig.project("late"))["Scheduled"] == "LimitExceeded"
    shop = parse_project(rig.project())
    assert stale_after(rig, shop) == set()
    rig.api.delete(SHOP)
    rig.api.merge(SHOP, {"metadata": {"finalizers": []}})
    assert "late" in stale_after(rig, shop)
