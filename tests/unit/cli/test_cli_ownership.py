"""Fields that this command line, or Argo CD, Flux and Helm, own."""

from __future__ import annotations

from typing import Any

import pytest

from dbranch.api.gitops import gitops_manager
from dbranch_cli.ownership import merge_maps, owned_fields


def entry(
    manager: str, fields: dict[str, Any], operation: str = "Apply", **attributes: str
) -> dict[str, Any]:
    return {"manager": manager, "operation": operation, "fieldsV1": fields, **attributes}


SPEC = {
    "activeBranch": "main",
    "state": "Running",
    "storage": {"size": "1Gi", "nodeSelector": {}},
    "postgres": {"image": "postgres:17", "imagePullSecrets": [{"name": "a"}, {"name": "b"}]},
}


def body(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"managedFields": list(entries)}, "spec": SPEC}


def test_owned_fields_have_their_present_values() -> None:
    mine = {
        "f:spec": {
            ".": {},
            "f:storage": {"f:size": {}},
            "f:postgres": {"f:imagePullSecrets": {'k:{"name":"b"}': {}}},
            "f:deleted": {},
        }
    }
    live = body(
        entry("dbranch-cli", mine),
        entry("dbranch-cli", {"f:spec": {"f:state": {}}}, operation="Update"),
        entry("dbranch-cli", {"f:spec": {"f:state": {}}}, subresource="status"),
        entry("kubectl", {"f:spec": {"f:activeBranch": {}}}),
    )
    assert owned_fields(live) == {
        "spec": {"storage": {"size": "1Gi"}, "postgres": {"imagePullSecrets": [{"name": "b"}]}}
    }
    assert owned_fields(body()) == {}


def test_merge_maps() -> None:
    base = {"spec": {"a": {"b": 1}, "c": 2}}
    assert merge_maps(base, {"spec": {"a": {"d": 3}, "c": 4}}) == {"spec": {"a": {"b": 1, "d": 3}, "c": 4}}
    assert base == {"spec": {"a": {"b": 1}, "c": 2}}


@pytest.mark.parametrize(
    ("manager", "reverts"),
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
def test_field_managers_that_revert_a_change(manager: str, reverts: bool) -> None:
    live = body(entry(manager, {"f:spec": {"f:activeBranch": {}}}, operation="Update"))
    assert gitops_manager(live, "spec", "activeBranch") == (manager if reverts else None)
    assert gitops_manager(live, "spec", "state") is None


@pytest.mark.parametrize(
    ("operation", "applied", "reverts"),
    [
        ("Update", '{"spec": {"project": "shop"}}', False),
        ("Update", '{"spec": {"project": "shop", "state": "Running"}}', True),
        ("Update", "not JSON", True),
        ("Update", None, True),
        ("Apply", '{"spec": {"project": "shop"}}', True),
    ],
)
def test_a_default_that_the_manifest_does_not_name_is_not_reverted(
    operation: str, applied: str | None, reverts: bool
) -> None:
    live = body(entry("argocd-controller", {"f:spec": {"f:state": {}, "f:project": {}}}, operation=operation))
    if applied:
        annotation = "kubectl.kubernetes.io/last-applied-configuration"
        live["metadata"]["annotations"] = {annotation: applied}
    assert (gitops_manager(live, "spec", "state") == "argocd-controller") is reverts
