"""The record of a deletion or a restore: made once, found again, and refused in the API server's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest
from tests.factories import NAMESPACE, branch, restore
from tests.fakes.api import FakeApi
from tests.unit.controller.rig import RESTORES, SNAPSHOTS, Rig

from dbranch.api import names
from dbranch.api.errors import ApiError, ClusterUnreachable, NamespaceEnding, NameTaken, ObjectRefused
from dbranch.controller.undo_records import ensure_record
from dbranch.kube.client import Cluster, path_of

NAMESPACES = path_of("v1", "namespaces")
RECORD = {
    "kind": "DBSnapshot",
    "metadata": {"name": "shop-x-deleted-a", "namespace": NAMESPACE},
    "spec": {"project": "shop", "branch": "x", "origin": {"branchUID": "u"}},
}


@pytest.fixture
def api() -> FakeApi:
    fake = FakeApi()
    fake.put(NAMESPACES, {"metadata": {"name": NAMESPACE}})
    return fake


def ensure(api: FakeApi, uid: str = "u") -> Mapping[str, Any]:
    return ensure_record(
        cast(Cluster, api), RECORD, lambda body: bool(body["spec"]["origin"]["branchUID"] == uid)
    )


def test_it_is_made_once_and_found_again(api: FakeApi) -> None:
    made = ensure(api)
    assert ensure(api)["metadata"]["uid"] == made["metadata"]["uid"]
    with pytest.raises(NameTaken):
        ensure(api, "other")


def test_it_is_refused_in_the_servers_words(api: FakeApi) -> None:
    api.refuse("create", "/dbsnapshots/", ApiError(403, "Forbidden", "exceeded quota: few"))
    with pytest.raises(ObjectRefused, match="exceeded quota: few") as refused:
        ensure(api)
    assert not isinstance(refused.value, NamespaceEnding)
    api.remove_pod(f"{NAMESPACES}/{NAMESPACE}")
    with pytest.raises(NamespaceEnding):
        ensure(api)


def test_a_server_that_does_not_answer_is_no_refusal(api: FakeApi) -> None:
    api.refuse("create", "/dbsnapshots/", ClusterUnreachable("no answer"))
    with pytest.raises(ClusterUnreachable):
        ensure(api)


def test_a_restore_does_not_take_another_snapshot_of_its_undos_name_for_its_own() -> None:
    rig = Rig().ready()
    rig.api.put(NAMESPACES, {"metadata": {"name": NAMESPACE}})
    rig.branch_up("x")
    rig.agent_reports(branch("x").accepting("10.0.0.9").node(opened=True))
    rig.run()
    rig.api.put(RESTORES, restore(of="x", source="main").body())
    name = names.undo_snapshot_name("shop-x", "again-uid")
    origin = {"reason": "Restore", "restoreUID": "another", "branchUID": "shop-x-uid"}
    spec = {"project": "shop", "branch": "x", "origin": origin}
    rig.api.put(SNAPSHOTS, {"kind": "DBSnapshot", "metadata": {"name": name}, "spec": spec})
    for _ in range(4):
        rig.reconcile_restore()
    (reconciling,) = [c for c in rig.restore()["status"]["conditions"] if c["type"] == "Reconciling"]
    assert reconciling["reason"] == "ObjectRefused"
    assert f"DBSnapshot {name} exists and is not this restore's" in reconciling["message"]
    assert (rig.branch("x")["status"]).get("restore") is None
