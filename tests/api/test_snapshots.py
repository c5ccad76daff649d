"""The CRD's rules on snapshots and on branches made of them, and the policies: asked of the API server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.api.test_policies import AGENT, NODE, Api, Shop, admin, shop, team

from dbranch.api import names
from dbranch.kube.client import branch_path, path_of, snapshot_path

__all__ = ["admin", "shop", "team"]

Json = dict[str, Any]
CRD = Path(__file__).parents[2] / "crds" / "dbsnapshots.yaml"
CONTROLLER = "system:serviceaccount:dbranch-system:dbranch-controller"


def snapshot(name: str = "shop-before", **spec: Any) -> Json:
    kind = {"apiVersion": names.API_VERSION, "kind": names.SNAPSHOT_KIND}
    return {**kind, "metadata": {"name": name}, "spec": {"project": "shop", "branch": "main", **spec}}


def snapshots(team: str) -> str:
    return path_of(names.API_VERSION, names.SNAPSHOTS, team)


def bound(admin: Api, team: str, node: str = NODE, **spec: Any) -> str:
    """Create a snapshot that is bound to the node; return its path."""
    admin.allowed("POST", snapshots(team), snapshot(**spec))
    path = snapshot_path(team, "shop-before")
    admin.allowed("PATCH", f"{path}/status", {"status": {"nodeName": node, "branchUID": "u"}})
    return path


def agent(node: str = NODE) -> Api:
    return Api(AGENT, node_name=node)


def test_the_defaults_and_what_cannot_be_changed(admin: Api, team: str) -> None:
    made = admin.allowed("POST", snapshots(team), snapshot())
    defaults = {"ttl": "Never", "protection": "Disabled", "origin": {"reason": "Requested"}}
    assert made["spec"] == {"project": "shop", "branch": "main", **defaults}
    path = snapshot_path(team, "shop-before")
    for field, value in (("project", "other"), ("branch", "other"), ("origin", {"reason": "Schedule"})):
        assert "immutable" in admin.rejected("PATCH", path, {"spec": {field: value}})
    admin.allowed("PATCH", path, {"spec": {"ttl": "168h", "protection": "Enabled"}})


@pytest.mark.parametrize("ttl", ["90m", "1h30m", "168h", "2s"])
def test_durations(admin: Api, team: str, ttl: str) -> None:
    admin.allowed("POST", snapshots(team), snapshot(ttl=ttl), dry=True)


@pytest.mark.parametrize("ttl", ["", "0h", "7d", "-1h", "h", "1h1h1h1h", "never", "99999999h"])
def test_what_is_no_duration(admin: Api, team: str, ttl: str) -> None:
    admin.rejected("POST", snapshots(team), snapshot(ttl=ttl))


def test_any_name_of_an_object_will_do(admin: Api, team: str) -> None:
    for name in ("x", "2026.nightly", "s" * 253):
        admin.allowed("POST", snapshots(team), snapshot(name), dry=True)


def test_a_branch_has_one_source_and_the_root_none(admin: Api, team: str, shop: Shop) -> None:
    path = path_of(names.API_VERSION, names.BRANCHES, team)

    def branch(name: str, **spec: str) -> Json:
        kind = {"apiVersion": names.API_VERSION, "kind": names.BRANCH_KIND}
        return {**kind, "metadata": {"name": name}, "spec": {"project": "shop", **spec}}

    admin.allowed("POST", path, branch("shop-x", sourceSnapshot="shop-before"), dry=True)
    admin.allowed("POST", path, branch("shop-x", source="main"), dry=True)
    for spec in ({}, {"source": "main", "sourceSnapshot": "shop-before"}):
        assert "one of the two" in admin.rejected("POST", path, branch("shop-x", **spec))
    other = {"project": "other", "sourceSnapshot": "other-before"}
    assert "one of the two" in admin.rejected("POST", path, {**branch("other-main"), "spec": other})
    existing = branch_path(team, "shop-feature-x")
    change: Json = {"spec": {"sourceSnapshot": "shop-before"}}
    admin.rejected("PATCH", existing, change)
    change["spec"]["source"] = None
    assert "cannot be added or taken away" in admin.rejected("PATCH", existing, change)
    admin.allowed("POST", path, branch("shop-y", sourceSnapshot="shop-before"))
    change = {"spec": {"sourceSnapshot": "shop-after"}}
    assert "immutable" in admin.rejected("PATCH", branch_path(team, "shop-y"), change)


def test_a_record_is_made_by_nobody(admin: Api, team: str) -> None:
    record = snapshot(origin={"reason": "Deletion"})
    admin.eventually_rejected("dbranch alone writes", "POST", snapshots(team), record)
    # Its account has no permission for it either, in this release.
    assert "is forbidden" in Api(CONTROLLER).rejected("POST", snapshots(team), snapshot())


def test_a_protected_snapshot_goes_with_its_project_only(admin: Api, team: str, shop: Shop) -> None:
    path = bound(admin, team, protection="Enabled")
    admin.eventually_rejected("is protected", "DELETE", path)
    # Not even the controller, whose expiry lost against a protection in the same second.
    assert "is protected" in Api(CONTROLLER).rejected("DELETE", path)
    admin.allowed("PATCH", path, {"spec": {"protection": "Disabled"}})
    admin.allowed("DELETE", path, dry=True)


def test_an_agent_writes_the_state_of_its_own_nodes_snapshots(admin: Api, team: str) -> None:
    path = bound(admin, team)
    agent().eventually_allowed("PATCH", f"{path}/status", {"status": {"node": {"uniqueBytes": 1}}})
    other = agent("node-b").rejected("PATCH", f"{path}/status", {"status": {"node": {"uniqueBytes": 2}}})
    assert "its own node" in other
    assert "an agent changes" in agent().rejected("PATCH", path, {"spec": {"ttl": "1h"}})
    assert "an agent changes" in agent().rejected("PATCH", path, {"metadata": {"labels": {"a": "b"}}})
    agent().rejected("DELETE", path)


def test_an_agent_and_the_controller_write_no_field_of_each_other(admin: Api, team: str) -> None:
    """Each key of the schema's status is tried, so that a new one does not escape the policies."""
    path = bound(admin, team)
    crd = yaml.safe_load(CRD.read_text())
    status = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    values: Json = {
        "observedGeneration": 7,
        "conditions": [],
        "nodeName": "node-c",
        "branchUID": "other",
        "expirationTime": "2030-01-01T00:00:00Z",
        "node": {"logicalBytes": 5},
    }
    assert set(values) == set(status)
    controller = Api(CONTROLLER)
    for key, value in values.items():
        body = {"status": {key: value}}
        if key == "node":
            agent().eventually_allowed("PATCH", f"{path}/status", body, dry=True)
            assert "status.node" in controller.rejected("PATCH", f"{path}/status", body)
        else:
            assert "only status.node" in agent().rejected("PATCH", f"{path}/status", body), key
            controller.allowed("PATCH", f"{path}/status", body, dry=True)


def test_the_controller_writes_labels_of_its_own_only(admin: Api, team: str) -> None:
    path = bound(admin, team)
    controller = Api(CONTROLLER)
    labels = {names.LABEL_PROJECT: "shop", names.LABEL_BRANCH_UID: "u", names.LABEL_MANAGED_BY: "dbranch"}
    meta = {"labels": labels, "finalizers": [names.AGENT_FINALIZER]}
    controller.eventually_allowed("PATCH", path, {"metadata": meta}, dry=True)
    refused = controller.rejected("PATCH", path, {"metadata": {"labels": {"team": "x"}}})
    assert "labels of its own" in refused
    assert "neither spec" in controller.rejected("PATCH", path, {"spec": {"ttl": "1h"}})
    # Nobody else writes a status.
    person = admin
    person.allowed("PATCH", f"{path}/status", {"status": {"expirationTime": None}}, dry=True)


def scheduled(team: str, **origin: Any) -> Json:
    """Return the snapshot of a schedule's run, as the controller makes it."""
    body = snapshot("shop-main-203001010300", origin={"reason": "Schedule", **origin})
    body["metadata"]["ownerReferences"] = [
        {
            "apiVersion": names.API_VERSION,
            "kind": names.PROJECT_KIND,
            "name": "shop",
            "uid": "u",
            "controller": True,
        }
    ]
    return body


def test_the_controller_alone_makes_the_snapshots_of_schedules(admin: Api, team: str) -> None:
    origin = {"schedules": ["hourly", "nightly"], "time": "2030-01-01T03:02:00Z"}
    controller = Api(CONTROLLER)
    made = controller.allowed("POST", snapshots(team), scheduled(team, **origin), dry=True)
    assert made["spec"]["origin"] == {"reason": "Schedule", **origin}
    assert "dbranch alone" in admin.rejected("POST", snapshots(team), scheduled(team, **origin))
    many = {**origin, "schedules": [f"s{n}" for n in range(5)]}
    controller.rejected("POST", snapshots(team), scheduled(team, **many))
    foreign = scheduled(team, **origin)
    foreign["metadata"]["ownerReferences"][0]["kind"] = names.BRANCH_KIND
    assert "something else than its project" in controller.rejected("POST", snapshots(team), foreign)


def with_schedules(**spec: Any) -> Json:
    kind = {"apiVersion": names.API_VERSION, "kind": names.BRANCH_KIND}
    return {**kind, "metadata": {"name": "shop-x"}, "spec": {"project": "shop", "source": "main", **spec}}


def test_schedules_and_their_defaults(admin: Api, team: str) -> None:
    branches = path_of(names.API_VERSION, names.BRANCHES, team)
    body = with_schedules(
        snapshots=[{"name": "hourly", "schedule": "0 * * * *"}],
        refresh={"schedule": "*/5 9-17 * JAN MON#1,5L"},
    )
    spec = admin.allowed("POST", branches, body, dry=True)["spec"]
    defaults = {"timeZone": "Etc/UTC", "state": "Active"}
    assert spec["snapshots"] == [{"name": "hourly", "schedule": "0 * * * *", "keep": 24, **defaults}]
    assert spec["refresh"] == {"schedule": "*/5 9-17 * JAN MON#1,5L", "whenInUse": "Replace", **defaults}


@pytest.mark.parametrize(
    "spec",
    [
        {"snapshots": [{"name": "x", "schedule": "@daily"}]},
        {"snapshots": [{"name": "x", "schedule": "0 * * *"}]},
        {"snapshots": [{"name": "x", "schedule": "0 * * * * *"}]},
        {"snapshots": [{"name": "x", "schedule": "0 * * * *", "timeZone": "../etc"}]},
        {"snapshots": [{"name": "x", "schedule": "0 * * * *", "keep": 0}]},
        {"snapshots": [{"name": "x", "schedule": "0 * * * *"}] * 2},
        {"snapshots": [{"name": f"x{n}", "schedule": "0 * * * *"} for n in range(5)]},
        {"snapshots": [{"name": "X", "schedule": "0 * * * *"}]},
        {"snapshots": [{"schedule": "0 * * * *"}]},
        {"refresh": {"schedule": "soon"}},
        {"refresh": {"schedule": "0 3 * * *", "whenInUse": "Wait"}},
        {"refresh": {}},
    ],
)
def test_what_is_no_schedule(admin: Api, team: str, spec: Json) -> None:
    admin.rejected("POST", path_of(names.API_VERSION, names.BRANCHES, team), with_schedules(**spec))
