"""The controller's own objects, against the real API server: what it refuses, and what is put right.

The controller does not run: its reconcilers are called, on objects of a namespace of the test.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dbranch.api import names
from dbranch.api.branch import Branch, BranchNode
from dbranch.api.conditions import Finding, Reason
from dbranch.api.errors import ApiError, BeingDeleted, NameTaken, ObjectRefused
from dbranch.api.project import Project
from dbranch.controller import manifests
from dbranch.controller.failure import refusal_finding
from dbranch.controller.manifests import Credentials, Release
from dbranch.controller.owned import OwnedObjects
from dbranch.kube.client import Cluster, path_of

Json = dict[str, Any]
RELEASE = Release("dbranch", "dbranch-nodes", "dbranch-server:test")
OWNER = "00000000-0000-4000-8000-000000000001"
# It only ends a test that hangs.
TIMEOUT_SECONDS = 120.0


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    assert os.environ.get("KUBECONFIG"), 'no cluster: hack/cluster up, then eval "$(hack/cluster env)"'
    return Cluster(names.CONTROLLER_MANAGER)


@pytest.fixture
def team(cluster: Cluster) -> Iterator[str]:
    name = f"owned-{secrets.token_hex(3)}"
    namespaces = path_of("v1", "namespaces")
    cluster.create(namespaces, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    cluster.delete(f"{namespaces}/{name}")


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "not within the time limit"
        time.sleep(0.2)


def config_map(team: str, **fields: Any) -> Json:
    """Return a manifest without an owner, so that the label says that it is ours."""
    meta = {"name": "mine", "namespace": team, "labels": {names.LABEL_MANAGED_BY: "dbranch"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"a": "1"}, **fields}


def service(team: str, name: str = "shop-x", **spec: Any) -> Json:
    meta = {"name": name, "namespace": team, "labels": {names.LABEL_MANAGED_BY: "dbranch"}}
    ports = [{"name": "postgres", "port": 5432, "protocol": "TCP"}]
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": ports, **spec}}


def refused(apply: Callable[[], None]) -> str:
    with pytest.raises(ObjectRefused) as raised:
        apply()
    return refusal_finding(raised.value, "nothing is bound").message


def test_a_quotas_sentence_is_the_message(cluster: Cluster, team: str) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "few", "namespace": team},
        "spec": {"hard": {"count/services": "0"}},
    }
    cluster.create(path_of("v1", "resourcequotas", team), quota)
    path = path_of("v1", "resourcequotas", team, "few")
    eventually(lambda: bool(((cluster.get(path) or {}).get("status") or {}).get("hard")))
    owned = OwnedObjects(cluster)
    for options in ({"probably_new": True}, {}):
        message = refused(lambda o=options: owned.apply("v1", "services", service(team), **o))  # type: ignore[misc]
        assert message.startswith("Service shop-x cannot be created: exceeded quota: few, requested:"), (
            message
        )
        assert message.endswith("; nothing is bound; it is tried again")
    cluster.delete(path)
    owned.apply("v1", "services", service(team))


def test_a_policys_sentence_is_the_message(cluster: Cluster, team: str) -> None:
    policies = path_of("admissionregistration.k8s.io/v1", "validatingadmissionpolicies")
    bindings = path_of("admissionregistration.k8s.io/v1", "validatingadmissionpolicybindings")
    selector = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": team}}}
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["services"], "operations": ["CREATE"]}
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": team},
        "spec": {
            "matchConstraints": {"resourceRules": [rule], **selector},
            "validations": [{"expression": "false", "message": "every Service needs the label cost-center"}],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": team},
        "spec": {"policyName": team, "validationActions": ["Deny"]},
    }
    cluster.create(policies, policy)
    try:
        cluster.create(bindings, binding)
        owned = OwnedObjects(cluster)

        def is_refused() -> bool:
            try:
                owned.apply("v1", "services", service(team))
            except ObjectRefused:
                return True
            owned.delete("v1", "services", team, "shop-x")
            return False

        # The API server takes some time to compile it.
        eventually(is_refused)
        message = refused(lambda: owned.apply("v1", "services", service(team)))
        assert "every Service needs the label cost-center" in message and len(message) <= 256
    finally:
        cluster.delete(f"{bindings}/{team}")
        cluster.delete(f"{policies}/{team}")


def test_an_immutable_secret_is_named(cluster: Cluster, team: str) -> None:
    project = Project(team, "shop", OWNER)
    owned = OwnedObjects(cluster)
    for password in ("one", "two"):
        secret = manifests.conn_secret(project, RELEASE, Credentials("app", password, "dbranch"))
        del secret["metadata"]["ownerReferences"]
        if password == "one":
            owned.apply("v1", "secrets", secret)
            cluster.merge(path_of("v1", "secrets", team, "shop-conn"), {"immutable": True})
        else:
            message = refused(lambda s=secret: owned.apply("v1", "secrets", s))  # type: ignore[misc]
            assert message.startswith("Secret shop-conn cannot be updated: ")
            assert "data: Forbidden: field is immutable when `immutable` is set" in message


def test_a_field_that_is_left_out_goes_also_from_an_object_that_was_created(
    cluster: Cluster, team: str
) -> None:
    labels = {names.LABEL_MANAGED_BY: "dbranch", "app.kubernetes.io/instance": "dbranch"}
    for probably_new in (True, False):
        with_label = config_map(team)
        with_label["metadata"]["labels"] = labels
        OwnedObjects(cluster).apply("v1", "configmaps", with_label, probably_new=probably_new)
        path = path_of("v1", "configmaps", team, "mine")
        # Another release wrote what this one does not write any more.
        OwnedObjects(cluster).apply("v1", "configmaps", config_map(team))
        body = cluster.get(path)
        assert body and body["metadata"]["labels"] == {names.LABEL_MANAGED_BY: "dbranch"}
        ours = [e for e in body["metadata"]["managedFields"] if e["manager"] == names.CONTROLLER_MANAGER]
        assert [entry["operation"] for entry in ours] == ["Apply"]
        OwnedObjects(cluster).apply("v1", "configmaps", with_label)
        OwnedObjects(cluster).apply("v1", "configmaps", config_map(team))
        body = cluster.get(path)
        assert body and "app.kubernetes.io/instance" not in body["metadata"]["labels"]
        cluster.delete(path)


def test_a_field_that_is_left_out_goes_from_what_the_same_process_created(
    cluster: Cluster, team: str
) -> None:
    owned = OwnedObjects(cluster)
    path = path_of("v1", "configmaps", team, "mine")
    with_key = config_map(team, data={"a": "1", "external-host": "db.example.com"})
    with_key["metadata"]["annotations"] = {"example.com/pool": "one"}
    for probably_new in (True, False):
        owned.apply("v1", "configmaps", with_key, probably_new=probably_new)
        owned.apply("v1", "configmaps", config_map(team))
        body = cluster.get(path)
        assert body and body["data"] == {"a": "1"}
        assert "example.com/pool" not in body["metadata"]["annotations"]
        owned.delete("v1", "configmaps", team, "mine")


def test_what_another_owner_has_is_left_alone(cluster: Cluster, team: str) -> None:
    owned, path = OwnedObjects(cluster), path_of("v1", "services", team, "shop-x")
    owned.apply("v1", "services", service(team))
    cluster.delete(path)
    theirs = service(team)
    theirs["metadata"]["labels"] = {"theirs": "1"}
    cluster.create(path_of("v1", "services", team), theirs)
    with pytest.raises(NameTaken):
        owned.apply("v1", "services", service(team, type="NodePort"))
    body = cluster.get(path)
    assert body and body["metadata"]["labels"] == {"theirs": "1"} and body["spec"]["type"] == "ClusterIP"


def test_an_object_that_is_being_deleted_is_waited_for(cluster: Cluster, team: str) -> None:
    owned, path = OwnedObjects(cluster), path_of("v1", "services", team, "shop-x")
    owned.apply("v1", "services", service(team))
    cluster.merge(path, {"metadata": {"finalizers": ["example.com/balancer"]}})
    cluster.delete(path)
    for options in ({}, {"bypass_cache": True}, {"probably_new": True}):
        with pytest.raises(BeingDeleted):
            owned.apply("v1", "services", service(team, type="NodePort"), **options)
    cluster.merge(path, {"metadata": {"finalizers": []}})
    owned.apply("v1", "services", service(team))
    assert cluster.get(path)


def test_drift_is_put_right(cluster: Cluster, team: str) -> None:
    owned, path = OwnedObjects(cluster), path_of("v1", "services", team, "shop")
    manifest = service(team, "shop", selector={"a": "1"})
    owned.apply("v1", "services", manifest)
    for change in ({"selector": {"also": "2"}}, {"selector": {"a": "3"}}, {"selector": None}):
        cluster.merge(path, {"spec": change})
        owned.apply("v1", "services", manifest, bypass_cache=True)
        body = cluster.get(path)
        assert body and body["spec"]["selector"] == {"a": "1"}, change
    version = body["metadata"]["resourceVersion"]
    owned.apply("v1", "services", manifest, bypass_cache=True)
    unchanged = cluster.get(path)
    assert unchanged and unchanged["metadata"]["resourceVersion"] == version


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_endpoints_have_the_family_of_the_service(cluster: Cluster, team: str, family: str) -> None:
    """Also where an earlier release made them with the other one, which cannot be changed."""
    address = {"IPv4": "10.0.0.9", "IPv6": "fd00::9"}[family]
    project = Project(team, "shop", OWNER)
    postgres = Finding(Reason.ACCEPTING, "")
    branch = Branch(
        team,
        "shop-x",
        OWNER,
        "shop",
        "main",
        node_name="n",
        node=BranchNode(postgres=postgres, address=address),
    )
    other = "IPv4" if family == "IPv6" else "IPv6"
    path = path_of("discovery.k8s.io/v1", "endpointslices", team, "shop-x")
    owned = OwnedObjects(cluster)
    for ip_family, reachable in ((other, False), (family, False), (family, True), (family, False)):
        addresses = (address,) if reachable else ()
        slice_ = manifests.branch_endpoints(project, branch, RELEASE, ip_family, addresses)
        slice_["metadata"].pop("ownerReferences")
        owned.apply("discovery.k8s.io/v1", "endpointslices", slice_)
        body = cluster.get(path)
        assert body and body["addressType"] == ip_family
        assert [e["addresses"] for e in body.get("endpoints") or ()] == ([[address]] if reachable else [])
    owned.apply("v1", "services", service(team))
    # The cluster says which it is.
    assert owned.ip_family(team, "shop-x") in ("IPv4", "IPv6")


def test_a_webhook_that_does_not_answer_refuses_the_object_and_nothing_else(
    cluster: Cluster, team: str
) -> None:
    webhooks = path_of("admissionregistration.k8s.io/v1", "validatingwebhookconfigurations")
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["services"], "operations": ["CREATE"]}
    body = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": team},
        "webhooks": [
            {
                "name": "away.example.com",
                "clientConfig": {"service": {"name": "away", "namespace": team}},
                "rules": [rule],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": team}},
                "failurePolicy": "Fail",
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
                "timeoutSeconds": 1,
            }
        ],
    }
    cluster.create(webhooks, body)
    try:
        owned = OwnedObjects(cluster)

        def is_refused() -> bool:
            try:
                owned.apply("v1", "services", service(team))
            except ObjectRefused as error:
                return "away.example.com" in str(error)
            except ApiError:
                return False
            owned.delete("v1", "services", team, "shop-x")
            return False

        eventually(is_refused)
        owned.apply("v1", "configmaps", config_map(team))
    finally:
        cluster.delete(f"{webhooks}/{team}")
