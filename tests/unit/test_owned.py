"""Objects of the controller's own: how many requests one costs, and that nobody else's is taken."""

from __future__ import annotations

from typing import Any, cast

import pytest

from dbranch.api.errors import ApiError, NameTaken
from dbranch.controller.owned import OwnedObjects
from dbranch.kube.client import Cluster

Json = dict[str, Any]


class Paper:
    """One object's place, and the verbs that were asked for."""

    def __init__(self, there: Json | None = None) -> None:
        self.there, self.verbs, self._uids = there, [], iter(["u1", "u2", "u3"])

    def get(self, path: str) -> Json | None:
        self.verbs.append("get")
        return self.there

    def find(self, path: str, labels: str) -> list[Json]:
        assert labels == "app.kubernetes.io/managed-by=dbranch"
        self.verbs.append("find")
        return [self.there] if self.there else []

    def create(self, path: str, body: Json) -> Json:
        self.verbs.append("create")
        if self.there is not None:
            raise ApiError(409, "AlreadyExists", path)
        return self._put(body, next(self._uids))

    def apply(self, path: str, body: Json) -> Json:
        self.verbs.append("apply")
        uid = body["metadata"].get("uid")
        if uid and (self.there is None or self.there["metadata"]["uid"] != uid):
            raise ApiError(409, "Conflict", path)
        return self._put(body, self.there["metadata"]["uid"] if self.there else next(self._uids))

    def _put(self, body: Json, uid: str) -> Json:
        self.there = {**body, "metadata": {**body["metadata"], "uid": uid}}
        return self.there

    def asked(self) -> list[str]:
        verbs, self.verbs = self.verbs, []
        return verbs


def wanted(value: str, owner: str = "mine") -> Json:
    meta = {"name": "shop", "namespace": "team", "ownerReferences": [{"uid": owner}]}
    return {"kind": "Service", "metadata": meta, "spec": value}


def ensure(owned: OwnedObjects, value: str, **how: bool) -> None:
    owned.ensure("v1", "services", wanted(value), **how)


def test_a_new_one_costs_one_request_and_one_that_is_as_it_should_be_none() -> None:
    paper = Paper()
    owned = OwnedObjects(cast(Cluster, paper))
    ensure(owned, "a", new=True)
    assert paper.asked() == ["create"] and paper.there and paper.there["spec"] == "a"
    ensure(owned, "a", new=True)
    assert paper.asked() == []
    ensure(owned, "b")
    assert paper.asked() == ["apply"] and paper.there["spec"] == "b"
    # Somebody else's controller starts: it looks, and writes nothing.
    ensure(OwnedObjects(cast(Cluster, paper)), "b")
    assert paper.asked() == ["get"]
    ensure(owned, "b", fresh=True)
    assert paper.asked() == ["get"]


def test_what_an_earlier_process_applied_costs_no_request_each() -> None:
    paper = Paper()
    ensure(OwnedObjects(cast(Cluster, paper)), "a", new=True)
    paper.asked()
    owned = OwnedObjects(cast(Cluster, paper))
    owned.remember("v1", "services")
    ensure(owned, "a")
    assert paper.asked() == ["find"]
    ensure(owned, "b")
    assert paper.asked() == ["get", "apply"] and paper.there and paper.there["spec"] == "b"
    ensure(owned, "c")
    assert paper.asked() == ["apply"]


def test_what_an_earlier_process_applied_for_another_owner_is_looked_at() -> None:
    paper = Paper()
    OwnedObjects(cast(Cluster, paper)).ensure("v1", "services", wanted("a", "before"))
    owned = OwnedObjects(cast(Cluster, paper))
    owned.remember("v1", "services")
    with pytest.raises(NameTaken):
        ensure(owned, "a")
    assert paper.there and paper.there["metadata"]["ownerReferences"] == [{"uid": "before"}]


def test_what_has_the_label_and_was_not_applied_is_no_more_ours_than_before() -> None:
    theirs = wanted("a", "theirs")
    paper = Paper({**theirs, "metadata": {**theirs["metadata"], "uid": "t"}})
    owned = OwnedObjects(cast(Cluster, paper))
    owned.remember("v1", "services")
    with pytest.raises(NameTaken):
        ensure(owned, "a")


def test_a_name_that_is_taken_is_left_alone() -> None:
    for how in ({"new": True}, {}, {"fresh": True}):
        paper = Paper(
            {**wanted("x", "theirs"), "metadata": {**wanted("x", "theirs")["metadata"], "uid": "t"}}
        )
        with pytest.raises(NameTaken):
            ensure(OwnedObjects(cast(Cluster, paper)), "a", **how)
        assert paper.there and paper.there["spec"] == "x"


def test_one_that_was_exchanged_for_another_is_not_written_to() -> None:
    paper = Paper()
    owned = OwnedObjects(cast(Cluster, paper))
    ensure(owned, "a", new=True)
    theirs = wanted("x", "theirs")
    paper.there = {**theirs, "metadata": {**theirs["metadata"], "uid": "t"}}
    with pytest.raises(NameTaken):
        ensure(owned, "b")
    assert paper.there["spec"] == "x"
    # Deleted by hand: made anew.
    paper.there = None
    ensure(owned, "b")
    assert paper.there and paper.there["spec"] == "b"


def test_one_of_ours_that_is_there_though_it_should_be_new() -> None:
    paper = Paper()
    ensure(OwnedObjects(cast(Cluster, paper)), "a", new=True)
    paper.asked()
    ensure(OwnedObjects(cast(Cluster, paper)), "b", new=True)
    assert paper.asked() == ["create", "get", "apply"] and paper.there and paper.there["spec"] == "b"
