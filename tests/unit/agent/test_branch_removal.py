"""How the Postgres of a branch that is being deleted is ended: what is kept gets its whole shutdown."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.factories import NODES_NAMESPACE, branch, project
from tests.fakes.api import FakeApi
from tests.unit.controller.rig import BRANCHES, PROJECTS

from dbranch.agent.branch.removal import BranchRemoval
from dbranch.agent.layout import Layout
from dbranch.agent.timing import NO_CHECKPOINT_GRACE_SECONDS
from dbranch.api import names
from dbranch.api.branch import parse_branch
from dbranch.kube.client import Cluster, path_of

PODS = path_of("v1", "pods", NODES_NAMESPACE)


@pytest.mark.parametrize(
    ("spec", "status", "is_deleted", "grace"),
    [
        pytest.param({}, {}, False, NO_CHECKPOINT_GRACE_SECONDS, id="of a project that stays"),
        pytest.param({}, {}, True, NO_CHECKPOINT_GRACE_SECONDS, id="with its project"),
        pytest.param({}, {"keptUntil": "2100-01-01T00:00:00Z"}, True, None, id="of a project that is kept"),
        pytest.param({"deletionPolicy": "Retain"}, {}, True, None, id="of a project that is retained"),
    ],
)
def test_only_what_is_destroyed_is_ended_without_a_checkpoint(
    tmp_path: Path, spec: dict[str, Any], status: dict[str, Any], is_deleted: bool, grace: int | None
) -> None:
    """A crash recovery would empty the unlogged tables of what comes back."""
    api = FakeApi()
    api.put(PROJECTS, project().spec(**spec).status(**status).finalizers(names.AGENT_FINALIZER).body())
    api.put(BRANCHES, branch("x").bound().finalizers(names.AGENT_FINALIZER).body())
    labels = {names.LABEL_BRANCH_UID: "shop-x-uid"}
    api.put(PODS, {"metadata": {"name": "slot", "uid": "slot-uid", "labels": labels}})
    if is_deleted:
        api.delete(f"{PROJECTS}/shop")
    api.delete(f"{BRANCHES}/shop-x")
    deleted = (api.get(f"{BRANCHES}/shop-x") or {})["metadata"]["deletionTimestamp"]
    api.merge(f"{BRANCHES}/shop-x/status", {"status": {"release": deleted}})
    api.take_requests()
    context = cast(Any, SimpleNamespace(namespace=NODES_NAMESPACE, node="n1"))
    removal = BranchRemoval(cast(Cluster, api), Layout(tmp_path), context, cast(Any, None))
    removal.remove(parse_branch(api.get(f"{BRANCHES}/shop-x") or {}))
    (deletion,) = [request for request in api.take_requests() if request.verb == "delete"]
    assert deletion.path == f"{PODS}/slot" and deletion.body["grace"] == grace
