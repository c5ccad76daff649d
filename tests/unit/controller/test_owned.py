"""The objects that the controller owns: how many requests one costs, and that another owner's is left alone."""

from __future__ import annotations

from typing import Any, cast

import pytest

from dbranch.api.errors import ApiError, NameTaken
from dbranch.controller.owned import OwnedObjects
from dbranch.kube.client import Cluster

Json = dict[str, Any]


class FakeCluster:
    """An API server with one object or none, and the verbs of the requests to it."""

    def __init__(self, existing: Json | None = None) -> None:
        self.existing, self.verbs, self._uids = existing, [], iter(["u1", "u2", "u3"])

    def get(self, path: str) -> Json | None:
        self.verbs.append("get")
        return self.existing

    def find(self, path: str, labels: str) -> list[Json]:
        assert labels == "app.kubernetes.io/managed-by=dbranch"
        self.verbs.append("find")
        return [self.existing] if self.existing else []

    def create(self, path: str, body: Json) -> Json:
        self.verbs.append("create")
        if self.existing is not None:
            raise ApiError(409, "AlreadyExists", path)
        return self._put(body, next(self._uids))

    def apply(self, path: str, body: Json) -> Json:
        self.verbs.append("apply")
        uid = body["metadata"].get("uid")
        if uid and (self.existing is None or self.existing["metadata"]["uid"] != uid):
            raise ApiError(409, "Conflict", path)
        return self._put(body, self.existing["metadata"]["uid"] if self.existing else next(self._uids))

    def _put(self, body: Json, uid: str) -> Json:
        self.existing = {**body, "metadata": {**body["metadata"], "uid": uid}}
        return self.existing

    def take_requests(self) -> list[str]:
        verbs, self.verbs = self.verbs, []
        return verbs


def service(value: str, owner: str = "mine") -> Json:
    meta = {"name": "shop", "namespace": "team", "ownerReferences": [{"uid": owner}]}
    return {"kind": "Service", "metadata": meta, "spec": value}


def apply(owned: OwnedObjects, value: str, **options: bool) -> None:
    owned.apply("v1", "services", service(value), **options)


def test_a_new_object_costs_one_request_and_an_unchanged_one_none() -> None:
    cluster = FakeCluster()
    owned = OwnedObjects(cast(Cluster, cluster))
    apply(owned, "a", probably_new=True)
    assert cluster.take_requests() == ["create"] and cluster.existing and cluster.existing["spec"] == "a"
    apply(owned, "a", probably_new=True)
    assert cluster.take_requests() == []
    apply(owned, "b")
    assert cluster.take_requests() == ["apply"] and cluster.existing["spec"] == "b"
    # Another controller starts: it reads the object and writes nothing.
    apply(OwnedObjects(cast(Cluster, cluster)), "b")
    assert cluster.take_requests() == ["get"]
    apply(owned, "b", bypass_cache=True)
    assert cluster.take_requests() == ["get"]


def test_objects_that_an_earlier_process_applied_cost_one_request_together() -> None:
    cluster = FakeCluster()
    apply(OwnedObjects(cast(Cluster, cluster)), "a", probably_new=True)
    cluster.take_requests()
    owned = OwnedObjects(cast(Cluster, cluster))
    owned.preload("v1", "services")
    apply(owned, "a")
    assert cluster.take_requests() == ["find"]
    apply(owned, "b")
    assert (
        cluster.take_requests() == ["get", "apply"] and cluster.existing and cluster.existing["spec"] == "b"
    )
    apply(owned, "c")
    assert cluster.take_requests() == ["apply"]


def test_an_object_that_an_earlier_process_applied_for_another_owner_is_left_alone() -> None:
    cluster = FakeCluster()
    OwnedObjects(cast(Cluster, cluster)).apply("v1", "services", service("a", "before"))
    owned = OwnedObjects(cast(Cluster, cluster))
    owned.preload("v1", "services")
    with pytest.raises(NameTaken):
        apply(owned, "a")
    assert cluster.existing and cluster.existing["metadata"]["ownerReferences"] == [{"uid": "before"}]


def test_the_managed_by_label_alone_does_not_make_an_object_ours() -> None:
    theirs = service("a", "theirs")
    cluster = FakeCluster({**theirs, "metadata": {**theirs["metadata"], "uid": "t"}})
    owned = OwnedObjects(cast(Cluster, cluster))
    owned.preload("v1", "services")
    with pytest.raises(NameTaken):
        apply(owned, "a")


def test_an_object_of_another_owner_is_left_alone() -> None:
    for options in ({"probably_new": True}, {}, {"bypass_cache": True}):
        cluster = FakeCluster(
            {**service("x", "theirs"), "metadata": {**service("x", "theirs")["metadata"], "uid": "t"}}
        )
        with pytest.raises(NameTaken):
            apply(OwnedObjects(cast(Cluster, cluster)), "a", **options)
        assert cluster.existing and cluster.existing["spec"] == "x"


def test_an_object_that_was_replaced_by_another_owners_is_left_alone() -> None:
    cluster = FakeCluster()
    owned = OwnedObjects(cast(Cluster, cluster))
    apply(owned, "a", probably_new=True)
    theirs = service("x", "theirs")
    cluster.existing = {**theirs, "metadata": {**theirs["metadata"], "uid": "t"}}
    with pytest.raises(NameTaken):
        apply(owned, "b")
    assert cluster.existing["spec"] == "x"
    # Deleted by hand: created again.
    cluster.existing = None
    apply(owned, "b")
    assert cluster.existing and cluster.existing["spec"] == "b"


def test_an_object_of_ours_that_exists_though_it_is_probably_new_is_applied() -> None:
    cluster = FakeCluster()
    apply(OwnedObjects(cast(Cluster, cluster)), "a", probably_new=True)
    cluster.take_requests()
    apply(OwnedObjects(cast(Cluster, cluster)), "b", probably_new=True)
    assert (
        cluster.take_requests() == ["create", "get", "apply"]
        and cluster.existing
        and cluster.existing["spec"] == "b"
    )


def test_nothing_is_remembered_of_an_owner_that_is_gone() -> None:
    cluster = FakeCluster()
    owned = OwnedObjects(cast(Cluster, cluster))
    apply(owned, "a", probably_new=True)
    owned.forget_owner("mine")
    assert not owned._applied and not owned._ip_families
    # What is not remembered is read.
    cluster.take_requests()
    apply(owned, "a")
    assert cluster.take_requests() == ["get"]


def test_what_is_remembered_of_another_owner_is_not_believed() -> None:
    """A project and a branch may need the same name: the UID that is known is that of the other one's object."""
    cluster = FakeCluster()
    owned = OwnedObjects(cast(Cluster, cluster))
    owned.apply("v1", "services", service("a", "the branch"))
    with pytest.raises(NameTaken):
        apply(owned, "b")
    assert cluster.existing and cluster.existing["spec"] == "a"
