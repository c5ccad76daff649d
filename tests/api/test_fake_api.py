"""The contract that the tests' fake API server keeps, held against the real one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator

import pytest
from tests.fakes.contract import CONTRACT, Server, title

from dbranch.api import names
from dbranch.kube.client import Cluster, path_of

_NAMESPACES = path_of("v1", "namespaces")


class RealServer:
    """The cluster's API server, as the administrator."""

    def __init__(self) -> None:
        self.cluster = Cluster(names.CONTROLLER_MANAGER)

    @property
    def date(self) -> str:
        answer = self.cluster._send("GET", "/version", None, "application/json", None, 20)
        answer.read()
        answer.release_conn()
        return str(answer.headers["Date"])


@pytest.fixture(scope="module")
def server() -> RealServer:
    assert os.environ.get("KUBECONFIG"), 'no cluster: hack/cluster up, then eval "$(hack/cluster env)"'
    return RealServer()


@pytest.fixture
def team(server: RealServer) -> Iterator[str]:
    name = f"contract-{secrets.token_hex(3)}"
    server.cluster.create(_NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    server.cluster.delete(f"{_NAMESPACES}/{name}")


@pytest.mark.parametrize("promise", CONTRACT, ids=title)
def test_the_real_api_server_keeps_the_contract(
    promise: Callable[[Server, str], None], server: RealServer, team: str
) -> None:
    promise(server, team)


def test_objects_go_with_their_owner(server: RealServer, team: str) -> None:
    cluster, path = server.cluster, path_of("v1", "configmaps", team)
    owner = cluster.create(
        path, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner", "namespace": team}}
    )
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    meta = {"name": "owned", "namespace": team, "ownerReferences": [reference]}
    cluster.create(path, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta})
    watch = cluster.watch(path)
    # The watch begins with its first event.
    assert "SYNCED" in (event["type"] for event in watch)
    cluster.delete(f"{path}/owner")
    gone = (event["object"]["metadata"]["name"] for event in watch if event["type"] == "DELETED")
    assert {next(gone), next(gone)} == {"owner", "owned"}
