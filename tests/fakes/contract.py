"""What the code relies on of the API server: operations with the answers that they must have.

Each function takes a `Cluster` (or the fake one) and a namespace for itself. `CONTRACT` is run against the fake
(tests/unit/fakes/test_api.py) and against the real API server (tests/api/test_fake_api.py).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

import pytest

from dbranch.api import names
from dbranch.api.errors import ApiError
from dbranch.kube.client import Cluster, branch_path, path_of, project_path

Json = dict[str, Any]


class Server(Protocol):
    """The API server: its verbs, and the header `Date` of an answer."""

    @property
    def cluster(self) -> Cluster: ...

    @property
    def date(self) -> str: ...


def config_map(team: str, name: str = "one", **meta: Any) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": team, **meta},
        "data": {"a": "1"},
    }


def config_maps(team: str, name: str | None = None) -> str:
    return path_of("v1", "configmaps", team, name)


def project(team: str, **spec: Any) -> Json:
    meta = {"name": "shop", "namespace": team}
    return {"apiVersion": names.API_VERSION, "kind": names.PROJECT_KIND, "metadata": meta, "spec": spec}


def branch(team: str, name: str = "shop-x", **meta: Any) -> Json:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.BRANCH_KIND,
        "metadata": {"name": name, "namespace": team, **meta},
        "spec": {"project": "shop", "source": "main"},
    }


def projects(team: str) -> str:
    return path_of(names.API_VERSION, names.PROJECTS, team)


def branches(team: str) -> str:
    return path_of(names.API_VERSION, names.BRANCHES, team)


def status_and_reason(call: Callable[[], object]) -> tuple[int, str]:
    """Return how the API server refuses the request."""
    with pytest.raises(ApiError) as raised:
        call()
    return raised.value.status, raised.value.reason


def existing(cluster: Cluster, path: str) -> Json:
    body = cluster.get(path)
    assert body is not None, path
    return body


def what_does_not_exist_is_none_or_not_found(server: Server, team: str) -> None:
    cluster, path = server.cluster, config_maps(team, "none")
    assert cluster.get(path) is None
    assert status_and_reason(lambda: cluster.merge(path, {"data": {}})) == (404, "NotFound")
    patch = [{"op": "add", "path": "/data", "value": {}}]
    assert status_and_reason(lambda: cluster.json_patch(path, patch)) == (404, "NotFound")
    status = {"apiVersion": names.API_VERSION, "kind": names.PROJECT_KIND, "metadata": {"name": "none"}}
    path = project_path(team, "none", "status")
    assert (
        status_and_reason(lambda: cluster.apply(path, {**status, "status": {"phase": "Pending"}}))[0] == 404
    )
    cluster.delete(config_maps(team, "none"))


def a_created_object_gets_its_identity_from_the_server(server: Server, team: str) -> None:
    cluster = server.cluster
    created = cluster.create(config_maps(team), config_map(team, uid="mine"))
    meta = created["metadata"]
    assert meta["namespace"] == team and meta["uid"] != "mine" and meta["resourceVersion"]
    assert cluster.get(config_maps(team, "one")) == created
    second = status_and_reason(lambda: cluster.create(config_maps(team), config_map(team)))
    assert second == (409, "AlreadyExists")


def a_merge_patch_sets_and_removes_members(server: Server, team: str) -> None:
    cluster, path = server.cluster, config_maps(team, "one")
    created = cluster.create(config_maps(team), config_map(team, labels={"a": "1", "b": "2"}))
    patched = cluster.merge(path, {"metadata": {"labels": {"a": None, "c": "3"}}, "data": {"b": "2"}})
    assert patched["metadata"]["labels"] == {"b": "2", "c": "3"} and patched["data"] == {"a": "1", "b": "2"}
    assert patched["metadata"]["resourceVersion"] != created["metadata"]["resourceVersion"]


def a_patch_that_changes_nothing_is_no_write(server: Server, team: str) -> None:
    cluster, path = server.cluster, config_maps(team, "one")
    created = cluster.create(config_maps(team), config_map(team))
    patched = cluster.merge(path, {"data": {"a": "1"}})
    assert patched["metadata"]["resourceVersion"] == created["metadata"]["resourceVersion"]


def a_merge_patch_for_another_uid_or_version_is_refused(server: Server, team: str) -> None:
    cluster, path = server.cluster, config_maps(team, "one")
    meta = cluster.create(config_maps(team), config_map(team))["metadata"]
    for field, value, refusal in (
        ("uid", "00000000-0000-4000-8000-000000000000", (422, "Invalid")),
        ("resourceVersion", "1", (409, "Conflict")),
    ):
        refused = status_and_reason(lambda f=field, v=value: cluster.merge(path, {"metadata": {f: v}}))  # type: ignore[misc]
        assert refused == refusal
    version = {"resourceVersion": meta["resourceVersion"]}
    cluster.merge(path, {"metadata": {"uid": meta["uid"], **version}, "data": {"b": "2"}})
    stale = status_and_reason(lambda: cluster.merge(path, {"metadata": version, "data": {"b": "3"}}))
    assert stale == (409, "Conflict")


def the_generation_counts_changes_of_the_spec_and_the_deletion(server: Server, team: str) -> None:
    cluster, path = server.cluster, branch_path(team, "shop-x")
    created = cluster.create(branches(team), branch(team, finalizers=["dbranch.io/test"]))
    assert created["metadata"]["generation"] == 1
    assert cluster.merge(path, {"metadata": {"annotations": {"a": "1"}}})["metadata"]["generation"] == 1
    status = {"status": {"phase": "Ready"}}
    assert cluster.merge(f"{path}/status", status)["metadata"]["generation"] == 1
    assert cluster.merge(path, {"spec": {"state": "Stopped"}})["metadata"]["generation"] == 2
    cluster.delete(path)
    assert existing(cluster, path)["metadata"]["generation"] == 3
    cluster.merge(path, {"metadata": {"finalizers": []}})


def the_status_is_written_through_its_own_path_only(server: Server, team: str) -> None:
    cluster, path = server.cluster, branch_path(team, "shop-x")
    created = cluster.create(branches(team), {**branch(team), "status": {"phase": "Ready"}})
    assert "status" not in created
    assert "status" not in cluster.merge(path, {"status": {"phase": "Ready"}})
    written = cluster.merge(
        f"{path}/status",
        {"metadata": {"labels": {"a": "1"}}, "spec": {"state": "Stopped"}, "status": {"phase": "Ready"}},
    )
    assert written["status"] == {"phase": "Ready"} and written["spec"].get("state", "Running") == "Running"
    assert not written["metadata"].get("labels")
    # The UID says nothing there; the version does.
    other = {"metadata": {"uid": "00000000-0000-4000-8000-000000000000"}, "status": {"phase": "Pending"}}
    assert cluster.merge(f"{path}/status", other)["status"] == {"phase": "Pending"}
    stale = {"metadata": {"resourceVersion": "1"}, "status": {"phase": "Ready"}}
    assert status_and_reason(lambda: cluster.merge(f"{path}/status", stale)) == (409, "Conflict")


def a_json_patch_applies_as_a_whole_or_not_at_all(server: Server, team: str) -> None:
    cluster, path = server.cluster, config_maps(team, "one")
    cluster.create(config_maps(team), config_map(team, labels={"a/b": "1"}))
    label, taken = "/metadata/labels/a~1b", "/metadata/labels/taken"
    failing: list[Json] = [
        {"op": "add", "path": taken, "value": "x"},
        {"op": "test", "path": label, "value": "2"},
    ]
    assert status_and_reason(lambda: cluster.json_patch(path, failing)) == (422, "Invalid")
    assert existing(cluster, path)["metadata"]["labels"] == {"a/b": "1"}
    free: Json = {"op": "test", "path": taken, "value": None}
    claim: list[Json] = [
        free,
        {"op": "test", "path": label, "value": "1"},
        {"op": "add", "path": taken, "value": "x"},
    ]
    assert cluster.json_patch(path, claim)["metadata"]["labels"] == {"a/b": "1", "taken": "x"}
    assert status_and_reason(lambda: cluster.json_patch(path, claim)) == (422, "Invalid")
    changed = cluster.json_patch(
        path, [{"op": "replace", "path": label, "value": "3"}, {"op": "remove", "path": taken}]
    )
    assert changed["metadata"]["labels"] == {"a/b": "3"}


def a_json_patch_reaches_into_lists(server: Server, team: str) -> None:
    cluster, path = server.cluster, branch_path(team, "shop-x")
    cluster.create(branches(team), branch(team, finalizers=["dbranch.io/a"]))
    add = [{"op": "add", "path": "/metadata/finalizers/-", "value": "dbranch.io/b"}]
    assert cluster.json_patch(path, add)["metadata"]["finalizers"] == ["dbranch.io/a", "dbranch.io/b"]
    first = "/metadata/finalizers/0"
    remove = [{"op": "test", "path": first, "value": "dbranch.io/a"}, {"op": "remove", "path": first}]
    assert cluster.json_patch(path, remove)["metadata"]["finalizers"] == ["dbranch.io/b"]
    assert status_and_reason(lambda: cluster.json_patch(path, remove)) == (422, "Invalid")
    cluster.json_patch(path, [{"op": "remove", "path": first}])


def applying_creates_and_removes_what_is_no_longer_applied(server: Server, team: str) -> None:
    cluster, path = server.cluster, config_maps(team, "one")
    body = config_map(team, labels={"a": "1"})
    first = cluster.apply(path, {**body, "data": {"a": "1", "b": "2"}})
    assert first["data"] == {"a": "1", "b": "2"} and first["metadata"]["uid"]
    cluster.merge(path, {"data": {"b": "3"}, "metadata": {"labels": {"theirs": "1"}}})
    second = cluster.apply(path, {**body, "data": {"a": "2"}})
    # A field that was written by other means is no longer theirs who applied it.
    assert second["data"] == {"a": "2", "b": "3"}
    assert second["metadata"]["labels"] == {"a": "1", "theirs": "1"}
    third = cluster.apply(path, {**body, "data": {"a": "2"}})
    assert third["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]
    fourth = cluster.apply(path, {**body, "data": {"c": "1"}})
    assert fourth["data"] == {"b": "3", "c": "1"}


def applying_takes_fields_over_from_others(server: Server, team: str) -> None:
    cluster, path = server.cluster, config_maps(team, "one")
    cluster.apply(path, {**config_map(team), "data": {"a": "1", "b": "1"}}, "first")
    taken = cluster.apply(path, {**config_map(team), "data": {"a": "2"}}, "second")
    assert taken["data"] == {"a": "2", "b": "1"}
    # The first one no longer owns what the second one took, so it cannot remove it.
    assert cluster.apply(path, {**config_map(team), "data": {"c": "1"}}, "first")["data"] == {
        "a": "2",
        "c": "1",
    }


def applying_to_another_uid_is_refused(server: Server, team: str) -> None:
    cluster, path = server.cluster, config_maps(team, "one")
    other = config_map(team, uid="00000000-0000-4000-8000-000000000000")
    assert status_and_reason(lambda: cluster.apply(path, other))[0] == 409
    meta = cluster.create(config_maps(team), config_map(team))["metadata"]
    assert status_and_reason(lambda: cluster.apply(path, other))[0] == 422
    mine = {**config_map(team, uid=meta["uid"]), "data": {"a": "2"}}
    assert cluster.apply(path, mine)["data"] == {"a": "2"}


def each_proxy_applies_its_own_entry(server: Server, team: str) -> None:
    cluster, path = server.cluster, project_path(team, "shop", "status")
    created = cluster.create(projects(team), project(team))

    def apply(pod: str, *entries: Json) -> list[str]:
        body = {key: created[key] for key in ("apiVersion", "kind")}
        body["metadata"] = {"name": "shop", "namespace": team}
        written = cluster.apply(path, {**body, "status": {"proxies": list(entries)}}, f"dbranch-proxy-{pod}")
        return sorted(f"{e['pod']}:{e['generation']}" for e in written["status"].get("proxies") or ())

    assert apply("a", {"pod": "a", "generation": 1}) == ["a:1"]
    assert apply("b", {"pod": "b", "generation": 1, "sessions": 2}) == ["a:1", "b:1"]
    assert apply("a", {"pod": "a", "generation": 2}) == ["a:2", "b:1"]
    # A merge patch of other fields leaves the entries alone, and the manager of one can remove it.
    merged = cluster.merge(path, {"status": {"phase": "Ready"}})
    assert len(merged["status"]["proxies"]) == 2
    assert apply("b") == ["a:2"]
    assert apply("gone") == ["a:2"]


def an_object_with_a_finalizer_goes_when_the_last_one_is_removed(server: Server, team: str) -> None:
    cluster, path = server.cluster, branch_path(team, "shop-x")
    cluster.create(branches(team), branch(team, finalizers=["dbranch.io/a", "dbranch.io/b"]))
    cluster.delete(path)
    deleted = existing(cluster, path)["metadata"]["deletionTimestamp"]
    cluster.delete(path)
    assert existing(cluster, path)["metadata"]["deletionTimestamp"] == deleted
    added = {"metadata": {"finalizers": ["dbranch.io/a", "dbranch.io/b", "dbranch.io/c"]}}
    assert status_and_reason(lambda: cluster.merge(path, added)) == (422, "Invalid")
    # A status can be written until the end.
    assert cluster.merge(f"{path}/status", {"status": {"phase": "Deleting"}})["status"]["phase"] == "Deleting"
    cluster.merge(path, {"metadata": {"finalizers": ["dbranch.io/b"]}})
    assert existing(cluster, path)["metadata"]["finalizers"] == ["dbranch.io/b"]
    cluster.merge(path, {"metadata": {"finalizers": []}})
    assert cluster.get(path) is None


def a_deletion_with_preconditions_leaves_another_object_alone(server: Server, team: str) -> None:
    cluster, path = server.cluster, config_maps(team, "one")
    meta = cluster.create(config_maps(team), config_map(team))["metadata"]
    cluster.delete(path, uid="00000000-0000-4000-8000-000000000000")
    cluster.delete(path, uid=meta["uid"], version="1")
    assert cluster.get(path) is not None
    cluster.delete(path, uid=meta["uid"], version=meta["resourceVersion"])
    assert cluster.get(path) is None


def a_list_is_selected_by_labels(server: Server, team: str) -> None:
    cluster = server.cluster
    for name, labels in (("one", {"a": "1"}), ("two", {"a": "2", "b": "1"}), ("three", {"b": "2"})):
        cluster.create(config_maps(team), config_map(team, name, labels=labels))

    def find(labels: str) -> set[str]:
        listed = cluster.find(config_maps(team), labels=labels)
        return {body["metadata"]["name"] for body in listed} - {"kube-root-ca.crt"}

    assert find("") == {"one", "two", "three"}
    assert find("a=1") == {"one"} and find("a") == {"one", "two"} and find("a,!b") == {"one"}
    assert find("a=2,b=1") == {"two"} and find("a in (1,2),b in (1,2)") == {"two"} and find("a=3") == set()


def a_list_is_selected_by_the_node_also_over_all_namespaces(server: Server, team: str) -> None:
    cluster, node = server.cluster, f"node-{team}"
    for name in ("shop-x", "shop-y"):
        cluster.create(branches(team), branch(team, name))
    cluster.merge(branch_path(team, "shop-y", "status"), {"status": {"nodeName": node}})
    for path in (branches(team), path_of(names.API_VERSION, names.BRANCHES)):
        listed = cluster.find(path, fields=f"status.nodeName={node}")
        assert [body["metadata"]["name"] for body in listed] == ["shop-y"]


def a_watch_begins_with_what_exists_and_goes_on_with_changes(server: Server, team: str) -> None:
    cluster = server.cluster
    cluster.create(config_maps(team), config_map(team, "old", labels={"a": "1"}))
    watch = cluster.watch(config_maps(team), "a=1")

    def event() -> tuple[str, str]:
        got = next(watch)
        return got["type"], got["object"].get("metadata", {}).get("name", "")

    assert [event(), event()] == [("ADDED", "old"), ("SYNCED", "")]
    cluster.create(config_maps(team), config_map(team, "other", labels={"a": "2"}))
    cluster.create(config_maps(team), config_map(team, "new", labels={"a": "1"}))
    assert event() == ("ADDED", "new")
    cluster.merge(config_maps(team, "new"), {"data": {"b": "1"}})
    assert event() == ("MODIFIED", "new")
    # An object that begins or ceases to match is added or deleted for who watches by a selector.
    cluster.merge(config_maps(team, "other"), {"metadata": {"labels": {"a": "1"}}})
    assert event() == ("ADDED", "other")
    cluster.merge(config_maps(team, "other"), {"metadata": {"labels": {"a": "2"}}})
    assert event() == ("DELETED", "other")
    cluster.delete(config_maps(team, "new"))
    assert event() == ("DELETED", "new")


def a_service_gets_an_ip_family_and_an_endpointslice_keeps_its_own(server: Server, team: str) -> None:
    cluster = server.cluster
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "one", "namespace": team},
        "spec": {"ports": [{"name": "postgres", "port": 5432, "protocol": "TCP"}]},
    }
    family = cluster.create(path_of("v1", "services", team), service)["spec"]["ipFamilies"][0]
    assert family in ("IPv4", "IPv6")
    slices = path_of("discovery.k8s.io/v1", "endpointslices", team)
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "one", "namespace": team},
        "addressType": "IPv4",
        "endpoints": [],
        "ports": [],
    }
    cluster.create(slices, endpoints)
    changed = status_and_reason(lambda: cluster.apply(f"{slices}/one", {**endpoints, "addressType": "IPv6"}))
    assert changed == (422, "Invalid")
    cluster.delete(f"{slices}/one")
    cluster.create(slices, {**endpoints, "addressType": "IPv6"})


def applying_replaces_a_selector_as_a_whole(server: Server, team: str) -> None:
    cluster, path = server.cluster, path_of("v1", "services", team, "one")
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "one", "namespace": team},
        "spec": {"selector": {"a": "1"}, "ports": [{"name": "postgres", "port": 5432, "protocol": "TCP"}]},
    }
    cluster.apply(path, service)
    cluster.merge(path, {"spec": {"selector": {"b": "2"}}})
    assert cluster.apply(path, service)["spec"]["selector"] == {"a": "1"}


def times_are_the_servers(server: Server, team: str) -> None:
    created = server.cluster.create(config_maps(team), config_map(team))["metadata"]["creationTimestamp"]
    date = parsedate_to_datetime(server.date)
    assert abs((datetime.fromisoformat(created.replace("Z", "+00:00")) - date).total_seconds()) < 10
    assert date.astimezone(UTC).utcoffset() == date.utcoffset()


CONTRACT: tuple[Callable[[Server, str], None], ...] = (
    what_does_not_exist_is_none_or_not_found,
    a_created_object_gets_its_identity_from_the_server,
    a_merge_patch_sets_and_removes_members,
    a_patch_that_changes_nothing_is_no_write,
    a_merge_patch_for_another_uid_or_version_is_refused,
    the_generation_counts_changes_of_the_spec_and_the_deletion,
    the_status_is_written_through_its_own_path_only,
    a_json_patch_applies_as_a_whole_or_not_at_all,
    a_json_patch_reaches_into_lists,
    applying_creates_and_removes_what_is_no_longer_applied,
    applying_takes_fields_over_from_others,
    applying_to_another_uid_is_refused,
    each_proxy_applies_its_own_entry,
    an_object_with_a_finalizer_goes_when_the_last_one_is_removed,
    a_deletion_with_preconditions_leaves_another_object_alone,
    a_list_is_selected_by_labels,
    a_list_is_selected_by_the_node_also_over_all_namespaces,
    a_watch_begins_with_what_exists_and_goes_on_with_changes,
    a_service_gets_an_ip_family_and_an_endpointslice_keeps_its_own,
    applying_replaces_a_selector_as_a_whole,
    times_are_the_servers,
)


def title(promise: Callable[..., object]) -> str:
    """Return the name of a promise as it reads in a list of tests."""
    return promise.__name__
