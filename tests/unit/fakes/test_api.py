"""The fake API server keeps the contract that the real one keeps, also in a file; and what it has for tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from tests.fakes.api import FakeApi
from tests.fakes.contract import CONTRACT, Server, title

from dbranch.api.errors import ApiError, ClusterUnreachable
from dbranch.kube.client import Cluster, path_of

SECRETS = path_of("v1", "secrets", "team")
ONE = f"{SECRETS}/one"


class FakeServer:
    """The fake as the contract takes it."""

    def __init__(self, api: FakeApi) -> None:
        self.cluster, self._api = cast(Cluster, api), api

    @property
    def date(self) -> str:
        return self._api.date


def secret(**meta: Any) -> dict[str, Any]:
    return {"metadata": {"name": "one", **meta}, "data": {"a": "1"}}


@pytest.mark.parametrize("promise", CONTRACT, ids=title)
@pytest.mark.parametrize("in_file", [False, True], ids=["memory", "file"])
def test_the_fake_keeps_the_contract(
    promise: Callable[[Server, str], None], in_file: bool, tmp_path: Path
) -> None:
    promise(FakeServer(FakeApi(tmp_path / "api.json" if in_file else None)), "team")


def test_another_process_reads_what_one_wrote(tmp_path: Path) -> None:
    file = tmp_path / "api.json"
    created = FakeApi(file).create(SECRETS, secret())
    assert FakeApi(file).get(ONE) == created
    assert list(json.loads(file.read_text())["objects"]) == [ONE]


def test_a_refused_request_changes_nothing_and_is_in_the_log() -> None:
    api = FakeApi()
    api.refuse("create", "/secrets/", ApiError(403, "Forbidden", "by a policy"), times=1)
    with pytest.raises(ApiError):
        api.create(SECRETS, secret())
    assert api.get(ONE) is None
    api.create(SECRETS, secret())
    assert api.take_writes() == ["create secrets/one"] * 2 and api.take_writes() == []


def test_an_answer_may_be_lost_after_the_request_was_served() -> None:
    api = FakeApi()
    api.lose_answer("create", "/secrets/")
    with pytest.raises(ClusterUnreachable):
        api.create(SECRETS, secret())
    assert api.get(ONE) is not None


def test_others_may_write_between_two_requests() -> None:
    api = FakeApi()
    version = api.create(SECRETS, secret())["metadata"]["resourceVersion"]
    api.before("merge", ONE, lambda: api.merge(ONE, {"data": {"theirs": "1"}}))
    with pytest.raises(ApiError) as raised:
        api.merge(ONE, {"metadata": {"resourceVersion": version}, "data": {"mine": "1"}})
    assert raised.value.status == 409
    assert (api.get(ONE) or {})["data"] == {"a": "1", "theirs": "1"}


def test_objects_go_with_their_last_owner() -> None:
    api = FakeApi()
    owners = [api.create(SECRETS, {"metadata": {"name": name}})["metadata"]["uid"] for name in ("x", "y")]
    api.create(SECRETS, secret(ownerReferences=[{"uid": uid} for uid in owners]))
    uid = (api.get(ONE) or {})["metadata"]["uid"]
    api.create(SECRETS, {"metadata": {"name": "two", "ownerReferences": [{"uid": uid}]}})
    api.delete(f"{SECRETS}/x")
    api.collect_garbage()
    assert api.get(ONE) and api.get(f"{SECRETS}/two")
    api.delete(f"{SECRETS}/y")
    api.collect_garbage()
    assert api.find(SECRETS) == []


def test_a_pod_that_runs_is_removed_by_its_kubelet() -> None:
    api, pods = FakeApi(), path_of("v1", "pods", "team")
    for name, spec in (("waits", {}), ("runs", {"nodeName": "n"})):
        api.create(pods, {"metadata": {"name": name}, "spec": spec})
        api.delete(f"{pods}/{name}")
    assert [body["metadata"]["name"] for body in api.find(pods)] == ["runs"]
    api.remove_pod(f"{pods}/runs")
    assert api.find(pods) == []


def test_a_watch_waits_for_writes_of_other_threads_and_ends_when_it_is_closed() -> None:
    api, types = FakeApi(), []
    synced, written = threading.Event(), threading.Event()

    def follow() -> None:
        for event in api.watch(SECRETS):
            types.append(event["type"])
            (synced if event["type"] == "SYNCED" else written).set()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    assert synced.wait(5)
    api.create(SECRETS, secret())
    assert written.wait(5)
    api.close_watches()
    thread.join(5)
    assert not thread.is_alive() and types == ["SYNCED", "ADDED"]
