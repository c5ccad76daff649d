"""The agent's part of a deletion: its node will never do it, or something on it holds it up."""

from __future__ import annotations

from typing import cast

import pytest
from tests.factories import NAMESPACE, NODES_NAMESPACE, BranchBuilder, branch, node, project
from tests.unit.controller.rig import BRANCHES, NODES, PROJECTS, RELEASE, Rig, conditions_of, message_of

from dbranch.api import names
from dbranch.api.branch import parse_branch
from dbranch.api.conditions import Condition, Finding, Reason
from dbranch.api.project import parse_project
from dbranch.controller import manifests
from dbranch.controller.finalizers import release_if_abandoned
from dbranch.controller.stale import stale
from dbranch.controller.sweep import Sweeper
from dbranch.kube.client import Cluster, path_of
from dbranch.runtime.finalizers import remove_finalizer
from dbranch.runtime.result import Key

X = f"{BRANCHES}/shop-x"
VERIFIERS = path_of("v1", "secrets", NODES_NAMESPACE)
RBAC = "rbac.authorization.k8s.io/v1"
POLICIES = path_of("networking.k8s.io/v1", "networkpolicies", NODES_NAMESPACE)
GOING = branch("x").bound("lost").deleting()
OTHERS = "example.com/wait"


@pytest.fixture
def rig() -> Rig:
    return Rig()


def finalizers(rig: Rig) -> list[str]:
    """Return the finalizers of branch x; none if it is gone."""
    return list((rig.api.get(X) or {"metadata": {}})["metadata"].get("finalizers") or ())


def release(rig: Rig, builder: BranchBuilder) -> None:
    item = builder.parsed()
    node_facts = rig.cache().node(item.node_name) if item.node_name else None
    release_if_abandoned(cast(Cluster, rig.api), item, node_facts)


def test_the_finalizer_of_a_node_that_is_gone_is_removed(rig: Rig) -> None:
    rig.put(GOING.finalizers(names.AGENT_FINALIZER, OTHERS))
    release(rig, GOING)
    assert finalizers(rig) == [OTHERS]
    assert rig.writes_of(lambda: release(rig, GOING)) == []


@pytest.mark.parametrize(
    "builder", [branch("x").bound("lost"), branch("x").bound("n1").deleting(), branch("x").deleting()]
)
def test_the_finalizer_stays_while_an_agent_may_come_or_nothing_is_deleted(
    rig: Rig, builder: BranchBuilder
) -> None:
    rig.put(builder)
    assert rig.writes_of(lambda: release(rig, builder)) == []


def test_a_node_that_is_only_away_is_abandoned_by_an_annotation_that_names_it(rig: Rig) -> None:
    rig.api.put(NODES, node("lost", ready=False))
    rig.put(GOING)
    for value, left in (("n1", 1), ("lost", 0)):
        release(rig, GOING.annotated(**{names.ABANDON_NODE: value}))
        assert len(finalizers(rig)) == left


@pytest.mark.parametrize("agent_ready", [True, False])
def test_a_node_that_is_ready_is_not_abandoned_and_an_event_says_so_once(rig: Rig, agent_ready: bool) -> None:
    rig.api.put(NODES, node("lost"))
    rig.agent_of("lost", ready=agent_ready)
    for builder in (GOING, project().bound("lost").deleting()):
        rig.put(builder.annotated(**{names.ABANDON_NODE: "lost"}))
    for _ in range(2):
        rig.remove_branch("x")
        rig.remove_project()
    assert names.AGENT_FINALIZER in finalizers(rig)
    assert names.AGENT_FINALIZER in rig.project()["metadata"]["finalizers"]
    assert rig.events.count(("Warning", "NodeNotAbandoned")) == 2
    # Once it is away, it is obeyed.
    rig.api.merge(f"{NODES}/lost/status", {"status": node("lost", ready=False)["status"]})
    rig.remove_branch("x")
    assert names.AGENT_FINALIZER not in finalizers(rig)


def test_an_owner_that_is_not_dbranchs_is_named_by_an_event_once(rig: Rig) -> None:
    """The garbage collector deletes with it, and asks nobody."""
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "pr-1", "uid": "u"}
    ours = {"apiVersion": names.API_VERSION, "kind": names.PROJECT_KIND, "name": "shop", "uid": "v"}
    owned = {"metadata": {"ownerReferences": [owner, ours]}}
    rig.put(project().changed(**owned), branch("x").changed(**owned))
    rig.put(branch("y").changed(metadata={"ownerReferences": [ours]}))
    rig.run()
    for _ in range(2):
        rig.reconcile_project(bypass_cache=True)
        rig.reconcile_branch("x", bypass_cache=True)
        rig.reconcile_branch("y", bypass_cache=True)
    assert rig.events.count(("Warning", "ForeignOwner")) == 2
    # Another owner is named, too; and a deletion says whom the branch belonged to.
    rig.api.merge(X, {"metadata": {"ownerReferences": [{**owner, "name": "pr-2"}]}})
    rig.reconcile_branch("x")
    assert rig.events.count(("Warning", "ForeignOwner")) == 3
    rig.api.merge(X, {"metadata": {"finalizers": [names.CONTROLLER_FINALIZER, OTHERS]}})
    rig.api.delete(X)
    rig.remove_branch("x")
    assert message_of(rig.branch("x"), "Ready") == "branch x is being deleted; it is owned by ConfigMap pr-2"


def test_a_project_is_released_too(rig: Rig) -> None:
    going = project().bound("lost").deleting()
    rig.put(going)
    rig.put(branch().bound("lost").deleting())
    assert not rig.remove_project()
    assert rig.project()["metadata"]["finalizers"] == [names.CONTROLLER_FINALIZER]
    rig.remove_branch("main")
    rig.remove_project()
    assert not rig.exists(f"{PROJECTS}/shop") and not rig.exists(f"{BRANCHES}/shop-main")


def test_another_object_of_that_name_keeps_its_finalizers(rig: Rig) -> None:
    rig.put(branch("x").changed(metadata={"uid": "another"}).bound("lost").deleting())
    assert rig.writes_of(lambda: release(rig, GOING)) == []


def test_finalizers_that_others_change_meanwhile_are_left_to_the_next_event(rig: Rig) -> None:
    rig.put(GOING.finalizers(names.AGENT_FINALIZER, OTHERS))
    rig.api.before("merge", X, lambda: rig.api.merge(X, {"metadata": {"labels": {"theirs": "1"}}}))
    remove_finalizer(cast(Cluster, rig.api), X, "shop-x-uid", names.AGENT_FINALIZER)
    assert len(finalizers(rig)) == 2
    remove_finalizer(cast(Cluster, rig.api), X, "shop-x-uid", names.AGENT_FINALIZER)
    assert finalizers(rig) == [OTHERS]


def nodes_namespace(rig: Rig) -> set[str]:
    """Return the names of verifiers, of what gives them to nodes, and of NetworkPolicies in the nodes' namespace."""
    access = (path_of(RBAC, plural, RELEASE.nodes_namespace) for plural in ("roles", "rolebindings"))
    return {
        f"{body['kind']} {body['metadata']['name']}"
        for path in (VERIFIERS, POLICIES, *access)
        for body in rig.api.find(path)
    }


def test_what_a_project_without_finalizers_leaves_in_the_nodes_namespace_is_swept(rig: Rig) -> None:
    rig.ready()
    sweeper = Sweeper(cast(Cluster, rig.api), RELEASE, rig.owned)
    others = {
        "kind": "Secret",
        "metadata": {"name": "pull-secret", "labels": {names.LABEL_MANAGED_BY: "dbranch"}},
    }
    rig.api.put(VERIFIERS, others)

    def sweep() -> None:
        sweeper.sweep_of_projects()
        sweeper.sweep_policies()

    before = nodes_namespace(rig)
    assert len(before) == 5 and rig.writes_of(sweep) == []
    rig.api.merge(f"{PROJECTS}/shop", {"metadata": {"finalizers": []}})
    rig.api.delete(f"{PROJECTS}/shop")
    sweep()
    assert nodes_namespace(rig) == {"Secret pull-secret"}


def test_the_policy_of_a_project_that_is_made_during_the_sweep_stays(rig: Rig) -> None:
    policy = manifests.allow_policy(NAMESPACE, RELEASE)
    rig.owned.apply("networking.k8s.io/v1", "networkpolicies", policy)
    name = policy["metadata"]["name"]

    def make_project() -> None:
        rig.put(project())
        # Its reconcile takes the policy for existing.
        rig.owned.apply("networking.k8s.io/v1", "networkpolicies", policy)

    rig.api.before("delete", name, make_project)
    Sweeper(cast(Cluster, rig.api), RELEASE, rig.owned).sweep_policies()
    assert nodes_namespace(rig) == {f"NetworkPolicy {name}"}


HELD = Finding(Reason.WAITING_FOR_AGENT, "branch x is not deleted yet: /slots/a/data is busy")


@pytest.mark.parametrize("kind", ["project", "branch"])
def test_what_holds_the_agents_part_of_a_deletion_up_is_reported_once(rig: Rig, kind: str) -> None:
    is_project = kind == "project"
    going = (
        project().up().bound().deleting().finalizers(names.AGENT_FINALIZER)
        if is_project
        else branch("x").bound().deleting().released()
    )
    rig.put(going.reported(Condition.READY, Reason.AVAILABLE))
    path = f"{PROJECTS}/shop" if is_project else X
    key = Key(names.PROJECT_KIND if is_project else names.BRANCH_KIND, NAMESPACE, path.rpartition("/")[2])

    def reconcile() -> None:
        (rig.projects if is_project else rig.branches).reconcile(NAMESPACE, key.name, rig.cache())

    def is_stale() -> bool:
        body = rig.existing(path)
        item = parse_project(body) if is_project else parse_branch(body)
        return key in stale([item], rig.cache())

    assert not is_stale() and rig.writes_of(reconcile) == []
    rig.api.merge(f"{path}/status", {"status": {"node": {"deletion": HELD.as_dict()}}})
    assert is_stale()
    assert rig.writes_of(reconcile) == [
        f"merge {path.rpartition('/')[0].rpartition('/')[2]}/{key.name}/status"
    ]
    conditions = conditions_of(rig.existing(path))
    assert conditions["DeletionBlocked"] == "WaitingForAgent" and conditions["Ready"] == "Deleting"
    assert message_of(rig.existing(path), "DeletionBlocked") == HELD.message
    assert not is_stale() and rig.writes_of(reconcile) == []
