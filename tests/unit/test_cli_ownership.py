"""Fields that this command line or Git's tools own."""

from __future__ import annotations

from typing import Any

import pytest

from dbranch_cli.ownership import git_manager, merged, owned


def entry(manager: str, fields: dict[str, Any], operation: str = "Apply", **more: str) -> dict[str, Any]:
    return {"manager": manager, "operation": operation, "fieldsV1": fields, **more}


SPEC = {
    "activeBranch": "main",
    "state": "Running",
    "storage": {"size": "1Gi", "nodeSelector": {}},
    "postgres": {"image": "postgres:17", "imagePullSecrets": [{"name": "a"}, {"name": "b"}]},
}


def body(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"managedFields": list(entries)}, "spec": SPEC}


def test_what_is_owned_comes_with_the_values_of_now() -> None:
    mine = {
        "f:spec": {
            ".": {},
            "f:storage": {"f:size": {}},
            "f:postgres": {"f:imagePullSecrets": {'k:{"name":"b"}': {}}},
            "f:gone": {},
        }
    }
    live = body(
        entry("dbranch-cli", mine),
        entry("dbranch-cli", {"f:spec": {"f:state": {}}}, operation="Update"),
        entry("dbranch-cli", {"f:spec": {"f:state": {}}}, subresource="status"),
        entry("kubectl", {"f:spec": {"f:activeBranch": {}}}),
    )
    assert owned(live) == {
        "spec": {"storage": {"size": "1Gi"}, "postgres": {"imagePullSecrets": [{"name": "b"}]}}
    }
    assert owned(body()) == {}


def test_merged() -> None:
    base = {"spec": {"a": {"b": 1}, "c": 2}}
    assert merged(base, {"spec": {"a": {"d": 3}, "c": 4}}) == {"spec": {"a": {"b": 1, "d": 3}, "c": 4}}
    assert base == {"spec": {"a": {"b": 1}, "c": 2}}


@pytest.mark.parametrize(
    ("manager", "kept"),
    [
        ("argocd-controller", True),
        ("kustomize-controller", True),
        ("helm-controller", True),
        ("helm", True),
        ("Flux", True),
        ("kubectl-patch", False),
        ("kubectl-client-side-apply", False),
        ("dbranch-cli", False),
    ],
)
def test_who_would_write_it_back(manager: str, kept: bool) -> None:
    live = body(entry(manager, {"f:spec": {"f:activeBranch": {}}}, operation="Update"))
    assert git_manager(live, "spec", "activeBranch") == (manager if kept else None)
    assert git_manager(live, "spec", "state") is None
