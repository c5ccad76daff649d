"""What the controller's account may write, and who may write a status, tried on a real API server.

The controller does not run: its account is impersonated, and sends what the controller's manifests are.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.api.test_access import RBAC
from tests.api.test_policies import AGENT, NODE, NODES, OTHER_UID, STATUS_KEYS, Api, Shop, admin, shop, team

from dbranch.api import names
from dbranch.api.snapshot import parse_snapshot
from dbranch.controller import manifests
from dbranch.controller.branch.deletion import copy_manifest
from dbranch.controller.manifests import Credentials, Release
from dbranch.controller.project.deletion import deletion_record, record_binding
from dbranch.controller.project.plan import desired_objects
from dbranch.kube.client import branch_path, path_of

__all__ = ["admin", "shop", "team"]

Json = dict[str, Any]
CONTROLLER = "system:serviceaccount:dbranch-system:dbranch-controller"
RELEASE = Release("dbranch", NODES, "dbranch-server:test")
CREDENTIALS = Credentials("app", "pencil", "dbranch")


@pytest.fixture(scope="module")
def controller() -> Api:
    return Api(CONTROLLER)


def objects_of(shop: Shop) -> dict[str, tuple[str, str, Json]]:
    """Return all that the controller makes for a project and a branch: {name: (API, plural, manifest)}."""
    project, branch = shop.read(), shop.branch()
    made = [
        *desired_objects(project, RELEASE, NODE),
        ("v1", "secrets", manifests.conn_secret(project, RELEASE, CREDENTIALS)),
        ("v1", "secrets", manifests.superuser_secret(project, RELEASE, CREDENTIALS)),
        ("v1", "secrets", manifests.conn_secret(project, RELEASE, CREDENTIALS, branch)),
        ("v1", "secrets", manifests.verifier_secret(project, RELEASE, "SCRAM-SHA-256$x")),
        (
            "v1",
            "secrets",
            manifests.pull_secret(
                project,
                RELEASE,
                "registry",
                "kubernetes.io/dockerconfigjson",
                {".dockerconfigjson": base64.b64encode(b'{"auths": {}}').decode()},
            ),
        ),
        ("v1", "services", manifests.branch_service(project, branch, RELEASE)),
        (
            "discovery.k8s.io/v1",
            "endpointslices",
            manifests.branch_endpoints(project, branch, RELEASE, "IPv4", ()),
        ),
    ]
    return {f"{body['kind']} {body['metadata']['name']}": (api, plural, body) for api, plural, body in made}


def collection(api: str, plural: str, body: Json) -> str:
    return path_of(api, plural, body["metadata"]["namespace"])


def test_the_controller_makes_changes_and_deletes_its_objects(
    admin: Api, controller: Api, shop: Shop
) -> None:
    objects = objects_of(shop).values()
    paths = [f"{collection(api, plural, body)}/{body['metadata']['name']}" for api, plural, body in objects]
    for path in paths:
        # The account of a node is left when its projects go: an earlier run's may be there.
        status, answer = admin.request("DELETE", path)
        assert status in (200, 404), answer
    for api, plural, body in objects:
        # A RoleBinding needs its Role, which the API server reads from a cache.
        controller.eventually_allowed("POST", collection(api, plural, body), body)
    for path in reversed(paths):
        controller.allowed("PATCH", path, {"metadata": {"annotations": {"a": "b"}}})
        controller.allowed("DELETE", path)


def _container(deployment: Json) -> Json:
    first: Json = deployment["spec"]["template"]["spec"]["containers"][0]
    return first


def _pod(deployment: Json) -> Json:
    spec: Json = deployment["spec"]["template"]["spec"]
    return spec


CHANGES: dict[str, tuple[str, Callable[[Json], object], str]] = {
    "no-owner": ("Secret", lambda o: o["metadata"].pop("ownerReferences"), "DBProject or DBBranch owns"),
    "another-owner": (
        "Secret",
        lambda o: o["metadata"]["ownerReferences"][0].update(apiVersion="v1", kind="ConfigMap"),
        "DBProject or DBBranch owns",
    ),
    "no-label": ("Service", lambda o: o["metadata"].pop("labels"), "has the label"),
    "a-token": (
        "Secret",
        lambda o: (
            o.update(type="kubernetes.io/service-account-token"),
            o["metadata"].update(annotations={"kubernetes.io/service-account.name": "default"}),
        ),
        "an account's token",
    ),
    "a-pull-secret": (
        "Secret",
        lambda o: o.update(type="kubernetes.io/dockerconfigjson", data={".dockerconfigjson": "e30="}),
        "an account's token",
    ),
    "external-ip": (
        "Service",
        lambda o: o["spec"].update(externalIPs=["192.0.2.1"]),
        "addresses that are not its own",
    ),
    "external-name": (
        "Service",
        lambda o: o.update(spec={"type": "ExternalName", "externalName": "example.com"}),
        "addresses that are not its own",
    ),
    "a-role-on-secrets": (
        "Role",
        lambda o: o["rules"][0].update(apiGroups=[""], resources=["secrets"]),
        "a Role of dbranch is a proxy's",
    ),
    "another-projects-secrets": (
        "Role of a node",
        lambda o: o["rules"][0]["resourceNames"].append(f"verifier-{OTHER_UID}"),
        "the Secrets of one project, by name",
    ),
    "all-secrets": (
        "Role of a node",
        lambda o: o["rules"][0].pop("resourceNames"),
        "the Secrets of one project, by name",
    ),
    "more-than-get": (
        "Role of a node",
        lambda o: o["rules"][0].update(verbs=["get", "patch"]),
        "the Secrets of one project, by name",
    ),
    "to-the-agents": (
        "RoleBinding of a node",
        lambda o: o["subjects"][0].update(name="dbranch-agent"),
        "to the account of a node",
    ),
    "a-role-on-every-project": (
        "Role",
        lambda o: o["rules"][0].pop("resourceNames"),
        "a Role of dbranch is a proxy's",
    ),
    "a-role-that-changes-branches": (
        "Role",
        lambda o: o["rules"].append(
            {"apiGroups": ["dbranch.io"], "resources": ["dbbranches"], "verbs": ["list", "patch"]}
        ),
        "a Role of dbranch is a proxy's",
    ),
    "a-role-on-all-statuses": (
        "Role",
        lambda o: o["rules"].append(
            {
                "apiGroups": ["dbranch.io"],
                "resources": ["dbbranches/status", "dbprojects/status"],
                "verbs": ["patch"],
            }
        ),
        "a Role of dbranch is a proxy's",
    ),
    "a-cluster-role": (
        "RoleBinding",
        lambda o: o["roleRef"].update(kind="ClusterRole", name="dbranch-controller"),
        "a RoleBinding of dbranch",
    ),
    "another-subject": (
        "RoleBinding",
        lambda o: o["subjects"][0].update(name="default"),
        "a RoleBinding of dbranch",
    ),
    "another-account": (
        "Deployment",
        lambda o: _pod(o).update(serviceAccountName="default"),
        "a Deployment of dbranch",
    ),
    "host-network": ("Deployment", lambda o: _pod(o).update(hostNetwork=True), "a Deployment of dbranch"),
    "host-path": (
        "Deployment",
        lambda o: _pod(o)["volumes"].append({"name": "h", "hostPath": {"path": "/"}}),
        "a Deployment of dbranch",
    ),
    "privileged": (
        "Deployment",
        lambda o: _container(o).update(securityContext={"privileged": True}),
        "a Deployment of dbranch",
    ),
    "root": (
        "Deployment",
        lambda o: _pod(o)["securityContext"].update(runAsNonRoot=False),
        "a Deployment of dbranch",
    ),
    "another-name": ("Deployment", lambda o: o["metadata"].update(name="shop"), "a Deployment of dbranch"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_controller_makes_nothing_else(controller: Api, shop: Shop, change: str) -> None:
    subject, apply, text = CHANGES[change]
    kind, objects = subject.removesuffix(" of a node"), objects_of(shop)
    of_kind = [deepcopy(o) for n, o in objects.items() if n.startswith(f"{kind} ")]
    api, plural, body = next(
        o for o in of_kind if (o[2]["metadata"]["namespace"] == NODES) == (kind != subject)
    )
    path, is_binding = collection(api, plural, body), kind == "RoleBinding"
    if is_binding:
        # RBAC itself asks for the Role.
        api, plural, role = objects[f"Role {body['roleRef']['name']}"]
        controller.allowed("POST", collection(api, plural, role), role)
        controller.eventually_allowed("POST", path, body, dry=True)
    apply(body)
    message = controller.rejected("POST", path, body)
    # RBAC forbids by itself to give away what the controller has not.
    assert text in message or "attempting to grant RBAC permissions" in message


@pytest.mark.parametrize("namespace", ["kube-system", NODES])
def test_the_controller_makes_no_object_of_a_project_elsewhere(
    controller: Api, shop: Shop, namespace: str
) -> None:
    texts = {
        "kube-system": "namespaces of Kubernetes itself",
        NODES: "only verifiers, copies of pull secrets",
    }
    for api, plural, body in objects_of(shop).values():
        moved = {**body, "metadata": {**body["metadata"], "namespace": namespace}}
        # RBAC itself refuses a RoleBinding to a Role that does not exist there.
        if body["metadata"]["namespace"] != NODES and plural != "rolebindings":
            message = controller.rejected("POST", collection(api, plural, moved), moved)
            assert texts[namespace] in message or "is forbidden" in message


def test_the_controller_leaves_the_objects_of_others_alone(admin: Api, controller: Api, team: str) -> None:
    secrets = path_of("v1", "secrets", team)
    meta = {"name": "theirs", "labels": {names.LABEL_MANAGED_BY: "dbranch"}}
    admin.allowed("POST", secrets, {"apiVersion": "v1", "kind": "Secret", "metadata": meta})
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": "DBProject",
        "name": "x",
        "uid": "u",
        "controller": True,
    }
    for patch in ({"stringData": {"a": "b"}}, {"metadata": {"ownerReferences": [owner]}}):
        message = controller.rejected("PATCH", f"{secrets}/theirs", patch)
        assert "DBProject or DBBranch owns" in message
    assert "DBProject or DBBranch owns" in controller.rejected("DELETE", f"{secrets}/theirs")
    in_nodes = path_of("v1", "secrets", NODES)
    name = f"theirs-{team}"
    admin.allowed(
        "POST", in_nodes, {"apiVersion": "v1", "kind": "Secret", "metadata": {**meta, "name": name}}
    )
    assert "only verifiers" in controller.rejected("DELETE", f"{in_nodes}/{name}")
    admin.allowed("DELETE", f"{in_nodes}/{name}")


def test_the_controller_changes_no_spec_and_makes_only_root_branches(controller: Api, shop: Shop) -> None:
    branches = path_of(names.API_VERSION, names.BRANCHES, shop.team)
    root = manifests.root_branch(replace(shop.read(), name="other"))
    controller.allowed("POST", branches, root, dry=True)
    root["metadata"]["name"], root["spec"]["source"] = "other-x", "main"
    assert "root branch" in controller.rejected("POST", branches, root)
    branch = branch_path(shop.team, "shop-feature-x")
    for path, spec in ((shop.path, {"activeBranch": "kept"}), (branch, {"state": "Stopped"})):
        assert "neither spec nor labels" in controller.rejected("PATCH", path, {"spec": spec})
        assert "neither spec" in controller.rejected("PATCH", path, {"metadata": {"labels": {"a": "b"}}})
        controller.allowed("PATCH", path, {"metadata": {"annotations": {"a": "b"}}}, dry=True)
    for plural, key, value in STATUS_KEYS:
        path = shop.status if plural == names.PROJECTS else f"{branch}/status"
        if key == "node":
            message = controller.rejected("PATCH", path, {"status": {"node": value}})
            assert "which is the agent's" in message
        elif key != "nodeName":
            controller.allowed("PATCH", path, {"status": {key: value}}, dry=True)


def test_nobody_but_dbranch_writes_a_status(admin: Api, shop: Shop) -> None:
    """A tenant with a wide role would make Services lead to any address, and bind data to any node."""
    role = {
        "apiVersion": RBAC,
        "kind": "Role",
        "metadata": {"name": "wide"},
        "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}],
    }
    person = f"{shop.team}-person"
    binding = {
        "apiVersion": RBAC,
        "kind": "RoleBinding",
        "metadata": {"name": "wide"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "wide"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": person}],
    }
    admin.allowed("POST", path_of(RBAC, "roles", shop.team), role)
    admin.allowed("POST", path_of(RBAC, "rolebindings", shop.team), binding)
    user = Api(person)
    user.eventually_allowed("PATCH", shop.path, {"spec": {"activeBranch": "feature-x"}}, dry=True)
    branch = branch_path(shop.team, "shop-feature-x", "status")
    for plural, key, value in STATUS_KEYS:
        path = shop.status if plural == names.PROJECTS else branch
        assert "is written by dbranch alone" in user.rejected("PATCH", path, {"status": {key: value}}), key
    # Those whose part it is can write theirs, and a cluster's administrator repairs by hand.
    facts = {"status": {"node": {"ready": True}}}
    Api(AGENT, node_name=NODE, pod_name="dbranch-agent-aaaaa").allowed("PATCH", branch, facts, dry=True)
    Api(CONTROLLER).allowed("PATCH", branch, {"status": {"phase": "Ready"}}, dry=True)
    admin.allowed("PATCH", branch, {"status": {"phase": "Ready"}}, dry=True)


def test_of_snapshots_it_makes_only_the_records_of_what_it_does(controller: Api, shop: Shop) -> None:
    project, branch = shop.read(), shop.branch()
    collection = path_of(names.API_VERSION, names.SNAPSHOTS, project.namespace)
    record = copy_manifest(
        project, branch, {"project": project.name, "source": "main", "later": {"field": 1}}
    )
    controller.allowed("POST", collection, record, dry=True)
    assert record["spec"]["origin"]["branchSpec"]["later"] == {"field": 1}
    requested = deepcopy(record)
    del requested["spec"]["origin"]
    assert "makes no DBSnapshot but" in controller.rejected("POST", collection, requested)


def test_it_makes_the_record_of_a_deleted_project(controller: Api, admin: Api, shop: Shop) -> None:
    project = shop.read()
    collection = path_of(names.API_VERSION, names.SNAPSHOTS, project.namespace)
    bodies = [admin.allowed("GET", branch_path(shop.team, f"shop-{name}")) for name in ("main", "feature-x")]
    spec = admin.allowed("GET", shop.path)["spec"]
    record = deletion_record(project, spec, bodies, [])
    made = controller.allowed("POST", collection, record)
    assert made["spec"]["origin"] == record["spec"]["origin"]
    status = f"{collection}/{made['metadata']['name']}/status"
    fields = record_binding(project, parse_snapshot(made), datetime.now(UTC))
    written = controller.allowed("PATCH", status, {"status": fields})["status"]
    assert written["expirationTime"] == fields["expirationTime"]
    kept = {"keptUntil": fields["expirationTime"]}
    assert (
        controller.allowed("PATCH", shop.status, {"status": kept}, dry=True)["status"].items() >= kept.items()
    )
    # Nobody else makes one.
    copied = {**record, "metadata": {**record["metadata"], "name": "another"}}
    message = admin.rejected("POST", collection, copied)
    assert "origin" in message
    admin.allowed("DELETE", f"{collection}/{made['metadata']['name']}")
