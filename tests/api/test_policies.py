"""What the chart's RBAC roles and policies allow each role of dbranch, tried on a real API server.

Nothing else of dbranch runs. The roles are impersonated, with the claims that their pods' tokens carry.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml
from kubernetes import client, config

from dbranch.agent.context import NodeContext, PodDefaults
from dbranch.agent.layout import Layout
from dbranch.agent.slot.pod_spec import branch_pod, claim_patch, initdb_pod, slot_class_of, warm_pod
from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.project import Project, parse_project
from dbranch.controller.manifests import Release, node_access
from dbranch.controller.proxy_manifests import proxy_access
from dbranch.kube.client import branch_path, path_of, project_path

Json = dict[str, Any]
Body = Json | list[Json] | None
NODES = "dbranch-nodes"
NODE = "node-a"
AGENT = f"system:serviceaccount:{NODES}:dbranch-agent"
CONTEXT = NodeContext(NODE, "3b0f1f4e-0000-4000-8000-000000000001", NODES, "dbranch")
LAYOUT = Layout(Path("/var/lib/dbranch"))
SLOT = "b-0123456789ab-1"
OTHER_UID = "3b0f1f4e-0000-4000-8000-0000000000aa"

# It only ends a test that hangs.
TIMEOUT_SECONDS = 180.0
RBAC = "rbac.authorization.k8s.io/v1"


class Api:
    """The API server, as `user` with the token claims `extra`, or as the administrator if no user is given."""

    def __init__(self, user: str = "", **extra: str) -> None:
        settings = client.Configuration()
        config.load_kube_config(client_configuration=settings)  # type: ignore[no-untyped-call]
        self._host = settings.host
        self._pool: urllib3.PoolManager = client.ApiClient(settings).rest_client.pool_manager
        self._impersonation = {"Impersonate-User": user} if user else {}
        for key, value in extra.items():
            header = f"Impersonate-Extra-authentication.kubernetes.io%2f{key.replace('_', '-')}"
            self._impersonation[header] = value

    def request(self, method: str, path: str, body: Body = None, dry: bool = False) -> tuple[int, Json]:
        """Return HTTP status and body of the response. A PATCH with a list is a JSON patch, else a merge patch."""
        content_type = "application/merge-patch+json" if method == "PATCH" else "application/json"
        if isinstance(body, list):
            content_type = "application/json-patch+json"
        response = self._pool.request(
            method,
            self._host + path + ("?dryRun=All" if dry else ""),
            json=body,
            headers={"Content-Type": content_type, **self._impersonation},
        )
        return response.status, response.json()

    def allowed(self, method: str, path: str, body: Body = None, dry: bool = False) -> Json:
        """Send a request that must be allowed; return the response."""
        status, answer = self.request(method, path, body, dry)
        assert status < 300, answer
        return answer

    def rejected(self, method: str, path: str, body: Body = None, dry: bool = True) -> str:
        """Send a request (by default a dry run) that must be rejected; return the message."""
        status, answer = self.request(method, path, body, dry)
        assert status in (403, 422), (status, answer)
        return str(answer["message"])

    def eventually_allowed(self, method: str, path: str, body: Body = None, dry: bool = False) -> None:
        """Repeat the request until it is allowed.

        Policies read their parameters, and the authorizer its roles, from caches of the API server, which lag behind
        the last write by as long as a busy machine needs.
        """
        _repeat(lambda: self.request(method, path, body, dry), lambda status, _: status < 300)

    def eventually_rejected(self, text: str, method: str, path: str, body: Body = None) -> None:
        """Repeat the request, as a dry run, until it is rejected with `text` in the message."""
        _repeat(
            lambda: self.request(method, path, body, dry=True),
            lambda status, answer: status in (403, 422) and text in answer["message"],
        )


def _repeat(request: Callable[[], tuple[int, Json]], is_expected: Callable[[int, Json], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        status, answer = request()
        if is_expected(status, answer):
            return
        assert time.monotonic() < deadline, f"{status}: {answer.get('message')}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def admin() -> Api:
    assert os.environ.get("KUBECONFIG"), 'no cluster: hack/cluster up, then eval "$(hack/cluster env)"'
    return Api()


@pytest.fixture
def team(admin: Api) -> Iterator[str]:
    name = f"policies-{secrets.token_hex(3)}"
    meta = {"name": name}
    admin.allowed(
        "POST", path_of("v1", "namespaces"), {"apiVersion": "v1", "kind": "Namespace", "metadata": meta}
    )
    yield name
    admin.allowed("DELETE", path_of("v1", "namespaces", None, name))


class Shop:
    """A project on NODE with the branches main (root), feature-x and kept, created without the controller."""

    def __init__(self, admin: Api, team: str) -> None:
        self._admin, self.team = admin, team
        self.path, self.status = project_path(team, "shop"), project_path(team, "shop", "status")
        self._create(names.PROJECT_KIND, names.PROJECTS, "shop", {})
        self._create(names.BRANCH_KIND, names.BRANCHES, "shop-main", {"project": "shop"})
        for name, extra_spec in (("feature-x", {}), ("kept", {"protection": "Enabled"})):
            spec = {"project": "shop", "source": "main", **extra_spec}
            self._create(names.BRANCH_KIND, names.BRANCHES, f"shop-{name}", spec)
        self.write_status({"nodeName": NODE, "route": {"generation": 1, "branch": "main"}})
        at_node = {"status": {"nodeName": NODE}}
        admin.allowed("PATCH", branch_path(team, "shop-feature-x", "status"), at_node)

    def _create(self, kind: str, plural: str, name: str, spec: Json) -> None:
        body = {"apiVersion": names.API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}
        self._admin.allowed("POST", path_of(names.API_VERSION, plural, self.team), body)

    def write_status(self, status: Json) -> None:
        self._admin.allowed("PATCH", self.status, {"status": status})

    def write_spec(self, spec: Json) -> None:
        self._admin.allowed("PATCH", self.path, {"spec": spec})

    def read(self) -> Project:
        return parse_project(self._admin.allowed("GET", self.path))

    def branch(self) -> Branch:
        return parse_branch(self._admin.allowed("GET", branch_path(self.team, "shop-feature-x")))


@pytest.fixture
def shop(admin: Api, team: str) -> Shop:
    return Shop(admin, team)


@pytest.fixture
def agent(admin: Api) -> Api:
    return Api(AGENT, node_name=NODE, pod_name="dbranch-agent-aaaaa")


PODS = path_of("v1", "pods", NODES)


def give_secrets_to_node(admin: Api, project: Project, node: str = NODE) -> None:
    """Give the node's account the project's Secrets, as the controller does; wait until the authorizer knows."""
    release = Release("dbranch", NODES, "dbranch-server:test")
    project = replace(project, postgres=replace(project.postgres, image_pull_secrets=("registry", "b")))
    for api, plural, body in node_access(project, node, release):
        status, answer = admin.request("POST", path_of(api, plural, NODES), body)
        assert status in (201, 409), answer
    account = Api(f"system:serviceaccount:{NODES}:{names.node_account_name(node)}")
    path = path_of("v1", "secrets", NODES, names.verifier_secret_name(project.uid))
    _repeat(lambda: account.request("GET", path), lambda status, _: status == 404)


@pytest.fixture
def at_node(admin: Api, shop: Shop) -> Iterator[Shop]:
    """The project, whose Secrets its node's account may read."""
    project = shop.read()
    give_secrets_to_node(admin, project)
    yield shop
    for plural in ("rolebindings", "roles"):
        admin.allowed("DELETE", path_of(RBAC, plural, NODES, names.node_access_name(project.uid)))
    admin.allowed("DELETE", path_of("v1", "serviceaccounts", NODES, names.node_account_name(NODE)))


def test_an_agent_reads_the_secrets_of_its_own_nodes_projects_alone(
    admin: Api, agent: Api, at_node: Shop
) -> None:
    """By one account for all nodes every verifier and pull secret of the cluster was there for each agent."""
    own = path_of("v1", "secrets", NODES, names.verifier_secret_name(at_node.read().uid))
    assert "is forbidden" in agent.rejected("GET", own)
    spec = {"expirationSeconds": 3600}
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}

    def tokens(account: str) -> str:
        return path_of("v1", "serviceaccounts", NODES, account, "token")

    assert agent.allowed("POST", tokens(names.node_account_name(NODE)), request)["status"]["token"]
    text = "a token of its own node's account"
    other = Api(AGENT, node_name="node-b", pod_name="dbranch-agent-bbbbb")
    for refused, account in (
        (other, names.node_account_name(NODE)),
        (Api(AGENT), names.node_account_name(NODE)),
        (agent, "dbranch-agent"),
        (agent, "dbranch-postgres"),
    ):
        assert text in refused.rejected("POST", tokens(account), request)
    account = Api(f"system:serviceaccount:{NODES}:{names.node_account_name(NODE)}")
    assert account.request("GET", own)[0] == 404
    for path in (own.replace("verifier-", "verifier-x"), path_of("v1", "secrets", NODES)):
        assert "is forbidden" in account.rejected("GET", path)
    # Nor does a pod bring it another node's.
    pod = initdb_pod(CONTEXT, LAYOUT, at_node.read(), at_node.branch(), "true")
    agent.allowed("POST", PODS, pod, dry=True)
    pod["spec"]["nodeName"] = "node-b"
    assert "bound to its node" in other.rejected("POST", PODS, pod)


def test_an_agent_creates_the_pods_of_its_branches(agent: Api, at_node: Shop) -> None:
    shop = at_node
    project, branch = shop.read(), shop.branch()
    prioritized = replace(
        CONTEXT, pods=PodDefaults(root_priority="dbranch-root", copy_priority="dbranch-copy")
    )
    for pod in (
        branch_pod(prioritized, LAYOUT, project, branch, SLOT, "true"),
        initdb_pod(prioritized, LAYOUT, project, replace(branch, object_name="shop-main"), "true"),
        branch_pod(CONTEXT, LAYOUT, project, branch, SLOT, "true"),
        branch_pod(CONTEXT, LAYOUT, project, branch, SLOT, "true", "of-a-restore"),
        initdb_pod(CONTEXT, LAYOUT, project, branch, "true"),
        warm_pod(CONTEXT, LAYOUT, slot_class_of(project), SLOT, "true"),
    ):
        agent.allowed("POST", PODS, pod, dry=True)


def _container(pod: Json) -> Json:
    first: Json = pod["spec"]["containers"][0]
    return first


CHANGES: dict[str, tuple[Callable[[Json], object], str]] = {
    "another-node": (lambda p: p["spec"].update(nodeName="node-b"), "own node"),
    "no-node": (lambda p: p["spec"].pop("nodeName"), "own node"),
    "no-slot": (lambda p: p["metadata"]["labels"].pop(names.LABEL_SLOT), "label dbranch.io/slot"),
    "its-own-account": (lambda p: p["spec"].update(serviceAccountName="dbranch-agent"), "dbranch-postgres"),
    "a-token": (lambda p: p["spec"].update(automountServiceAccountToken=True), "no token"),
    "host-network": (lambda p: p["spec"].update(hostNetwork=True), "no namespace of the node"),
    "host-pid": (lambda p: p["spec"].update(hostPID=True), "no namespace of the node"),
    "root": (lambda p: p["spec"]["securityContext"].pop("runAsNonRoot"), "unprivileged"),
    "privileged": (
        lambda p: _container(p).update(securityContext={"privileged": True}),
        "unprivileged",
    ),
    "capability": (
        lambda p: _container(p)["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]),
        "unprivileged",
    ),
    "init-container": (
        lambda p: p["spec"].update(initContainers=[{"name": "extra", "image": "extra"}]),
        "unprivileged",
    ),
    "secret-in-environment": (
        lambda p: _container(p).update(
            env=[{"name": "A", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}]
        ),
        "unprivileged",
    ),
    "the-host": (
        lambda p: p["spec"]["volumes"].append({"name": "host", "hostPath": {"path": "/etc"}}),
        "mounts only its slot",
    ),
    "another-pool": (
        lambda p: p["spec"]["volumes"].append(
            {"name": "host", "hostPath": {"path": "/var/lib/dbranch/slots/../pools"}}
        ),
        "must not contain",
    ),
    "a-critical-priority": (
        lambda p: p["spec"].update(priorityClassName="system-node-critical"),
        "priority of the chart",
    ),
    "pull-secret-of-another-project": (
        lambda p: p["spec"].update(imagePullSecrets=[{"name": names.pull_secret_name(OTHER_UID, "r")}]),
        "pulled with the Secrets of its project",
    ),
    "pull-secret-of-the-namespace": (
        lambda p: p["spec"].update(imagePullSecrets=[{"name": "registry"}]),
        "pulled with the Secrets of its project",
    ),
    "another-secret": (
        lambda p: p["spec"]["volumes"].append({"name": "s", "secret": {"secretName": "verifier-other"}}),
        "mounts only its slot",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_agent_creates_no_other_pods(agent: Api, shop: Shop, change: str) -> None:
    apply, text = CHANGES[change]
    pod = deepcopy(branch_pod(CONTEXT, LAYOUT, shop.read(), shop.branch(), SLOT, "true"))
    apply(pod)
    assert text in agent.rejected("POST", PODS, pod)


def test_the_pull_secrets_of_a_pod_are_of_one_project_and_its_branch_is_of_that(
    admin: Api, agent: Api, at_node: Shop
) -> None:
    shop = at_node
    own, others = (names.pull_secret_name(uid, "registry") for uid in (shop.read().uid, OTHER_UID))

    def with_secrets(pod: Json, *secret_names: str) -> Json:
        pod["spec"]["imagePullSecrets"] = [{"name": name} for name in secret_names]
        return pod

    slot_class = slot_class_of(shop.read())
    warm_slot = warm_pod(CONTEXT, LAYOUT, slot_class, f"b-{secrets.token_hex(6)}-1", "true")
    bound = branch_pod(CONTEXT, LAYOUT, shop.read(), shop.branch(), SLOT, "true")
    agent.allowed(
        "POST", PODS, with_secrets(bound, own, names.pull_secret_name(shop.read().uid, "b")), dry=True
    )
    agent.allowed("POST", PODS, with_secrets(warm_slot, own), dry=True)
    text = "pulled with the Secrets of its project"
    assert text in agent.rejected("POST", PODS, with_secrets(warm_slot, own, others))
    assert text in agent.rejected("POST", PODS, with_secrets(warm_slot, "pull-x"))
    # Of another project's image, this project gets no pod.
    warm_slot["metadata"].pop("ownerReferences")
    warm_slot["metadata"]["finalizers"] = ["example.com/kept"]
    created = admin.allowed("POST", PODS, with_secrets(warm_slot, others))["metadata"]
    path = path_of("v1", "pods", NODES, created["name"])
    try:
        claim = claim_patch(shop.read(), shop.branch(), created["uid"])
        assert "claims a warm one" in agent.rejected("PATCH", path, claim)
    finally:
        admin.request("DELETE", f"{path}?gracePeriodSeconds=0")
        admin.allowed("PATCH", path, {"metadata": {"finalizers": None}})


def test_an_agent_without_the_claim_of_its_node_creates_nothing(admin: Api, shop: Shop) -> None:
    pod = branch_pod(CONTEXT, LAYOUT, shop.read(), shop.branch(), SLOT, "true")
    assert "own node" in Api(AGENT).rejected("POST", PODS, pod)


def test_an_agent_leaves_another_nodes_pods_alone(admin: Api, agent: Api, shop: Shop) -> None:
    pod = branch_pod(CONTEXT, LAYOUT, shop.read(), shop.branch(), f"b-{secrets.token_hex(6)}-1", "true")
    # Bound to no node, and no node has the label, so it never runs. Without an owner, or the garbage collector
    # would delete it.
    pod["spec"].pop("nodeName")
    pod["metadata"].pop("ownerReferences")
    pod["spec"]["nodeSelector"] = {"dbranch.io/none": "here"}
    name = pod["metadata"]["name"]
    path = path_of("v1", "pods", NODES, name)
    admin.allowed("POST", PODS, pod)
    try:
        assert "own node" in agent.rejected("DELETE", path)
        assert "own node" in agent.rejected("PATCH", path, {"metadata": {"annotations": {"a": "b"}}})
    finally:
        admin.allowed("DELETE", path)


@pytest.fixture
def warm(admin: Api, shop: Shop) -> Iterator[Json]:
    """A warm pod on NODE, which does not exist, so it never runs.

    Without an owner, or the garbage collector would delete it; with a finalizer, as the pods of a node that does not
    exist are deleted before long.
    """
    name = f"b-{secrets.token_hex(6)}-1"
    pod = warm_pod(CONTEXT, LAYOUT, slot_class_of(shop.read()), name, "true")
    pod["metadata"].pop("ownerReferences")
    pod["metadata"]["finalizers"] = ["example.com/kept"]
    created = admin.allowed("POST", PODS, pod)
    yield created
    path = path_of("v1", "pods", NODES, name)
    admin.request("DELETE", f"{path}?gracePeriodSeconds=0")
    admin.allowed("PATCH", path, {"metadata": {"finalizers": None}})


def test_an_agent_claims_a_warm_pod_once(agent: Api, shop: Shop, warm: Json) -> None:
    path = path_of("v1", "pods", NODES, warm["metadata"]["name"])
    patch = claim_patch(shop.read(), shop.branch(), warm["metadata"]["uid"], "of-a-restore")
    another = claim_patch(shop.read(), shop.branch(), "3b0f1f4e-0000-4000-8000-00000000ffff")
    agent.rejected("PATCH", path, another)
    claimed = agent.allowed("PATCH", path, patch)
    labels = claimed["metadata"]["labels"]
    assert labels[names.LABEL_NAMESPACE] == shop.team and labels[names.LABEL_BRANCH] == "feature-x"
    assert claimed["metadata"]["annotations"][names.POD_RESTORE] == "of-a-restore"
    # A second claim fails by the test in its patch, and one without a test by the policy.
    assert "rejected our request" in agent.rejected("PATCH", path, patch)
    reclaimed = {"metadata": {"labels": {names.LABEL_BRANCH_UID: "another"}}}
    assert "claims a warm one" in agent.rejected("PATCH", path, reclaimed)
    released = {"metadata": {"labels": {names.LABEL_BRANCH_UID: None}}}
    assert "claims a warm one" in agent.rejected("PATCH", path, released)


CLAIMS: dict[str, Json] = {
    "other-label": {"metadata": {"labels": {names.LABEL_BRANCH_UID: "u", "a": "b"}}},
    "class": {"metadata": {"labels": {names.LABEL_BRANCH_UID: "u", names.LABEL_CLASS: "other"}}},
    "for-no-branch": {"metadata": {"labels": {names.LABEL_PROJECT: "shop"}}},
    "spec": {
        "metadata": {"labels": {names.LABEL_BRANCH_UID: "u"}},
        "spec": {"activeDeadlineSeconds": 60},
    },
}


@pytest.mark.parametrize("patch", CLAIMS.values(), ids=CLAIMS)
def test_a_claim_may_change_nothing_else(agent: Api, warm: Json, patch: Json) -> None:
    path = path_of("v1", "pods", NODES, warm["metadata"]["name"])
    assert "claims a warm one" in agent.rejected("PATCH", path, patch)


def test_an_agent_claims_no_pod_of_another_node(shop: Shop, warm: Json) -> None:
    path = path_of("v1", "pods", NODES, warm["metadata"]["name"])
    patch = claim_patch(shop.read(), shop.branch(), warm["metadata"]["uid"])
    other = Api(AGENT, node_name="node-b", pod_name="dbranch-agent-bbbbb")
    assert "own node" in other.rejected("PATCH", path, patch)


def test_an_agent_reads_no_secrets_and_no_pods_of_other_namespaces(agent: Api, shop: Shop) -> None:
    for path in (
        path_of("v1", "secrets", NODES),
        path_of("v1", "secrets", shop.team),
        path_of("v1", "pods", shop.team),
        path_of("v1", "pods"),
    ):
        assert "is forbidden" in agent.rejected("GET", path)


def test_an_agent_writes_its_facts_and_its_finalizer(agent: Api, shop: Shop) -> None:
    facts = {"status": {"node": {"ready": True}}}
    for path, patch in (
        (shop.status, facts),
        (branch_path(shop.team, "shop-feature-x", "status"), facts),
        (shop.path, {"metadata": {"finalizers": [names.AGENT_FINALIZER]}}),
        (shop.path, {"metadata": {"annotations": {"kopf-state.agent/touched": "1"}}}),
    ):
        agent.allowed("PATCH", path, patch, dry=True)


CRDS = Path(__file__).parents[2] / "crds"


def _status_schema(plural: str) -> Json:
    crd = yaml.safe_load((CRDS / f"{plural}.yaml").read_text())
    schema: Json = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    return schema


def _example(schema: Json) -> Any:
    """Return the smallest value that the schema admits, different from what the tests' objects hold."""
    if "enum" in schema:
        return schema["enum"][-1]
    match schema["type"]:
        case "object":
            fields = schema.get("properties", {})
            return {name: _example(fields[name]) for name in schema.get("required", ())}
        case "array":
            return [_example(schema["items"])]
        case "integer":
            return max(int(schema.get("minimum", 0)), 7)
        case "boolean":
            return True
    return "2026-01-01T00:00:00Z" if schema.get("format") == "date-time" else "other"


# Each key of a status, read from the CRDs, so that a new one is tried without being named here.
STATUS_KEYS = [
    (plural, key, _example(schema))
    for plural in (names.PROJECTS, names.BRANCHES)
    for key, schema in _status_schema(plural)["properties"].items()
]


@pytest.mark.parametrize(
    ("plural", "key", "value"), STATUS_KEYS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_an_agent_writes_no_other_status(
    admin: Api, agent: Api, shop: Shop, plural: str, key: str, value: Any
) -> None:
    path = shop.status if plural == names.PROJECTS else branch_path(shop.team, "shop-feature-x", "status")
    if key == "node":
        agent.allowed("PATCH", path, {"status": {key: value}}, dry=True)
        return
    if key != "nodeName":
        assert "only status.node" in agent.rejected("PATCH", path, {"status": {key: value}})
        # Nor may it change or remove an existing value.
        admin.allowed("PATCH", path, {"status": {key: value}})
    assert "only status.node" in agent.rejected("PATCH", path, {"status": {key: None}})


def test_an_agent_changes_no_spec_label_or_finalizer_of_others(admin: Api, agent: Api, shop: Shop) -> None:
    for patch, text in (
        ({"spec": {"activeBranch": "feature-x"}}, "neither spec nor labels"),
        ({"metadata": {"labels": {"a": "b"}}}, "neither spec nor labels"),
        ({"metadata": {"finalizers": ["dbranch.io/controller"]}}, "no finalizer but its own"),
    ):
        assert text in agent.rejected("PATCH", shop.path, patch)
    admin.allowed("PATCH", shop.path, {"metadata": {"finalizers": ["example.com/kept"]}})
    assert "no finalizer but its own" in agent.rejected("PATCH", shop.path, {"metadata": {"finalizers": []}})
    admin.allowed("PATCH", shop.path, {"metadata": {"finalizers": []}})
    assert "is forbidden" in agent.rejected("DELETE", shop.path)


def test_an_agent_writes_nothing_of_another_node(admin: Api, agent: Api, shop: Shop) -> None:
    patch = {"status": {"node": {"ready": True}}}
    # Bound to no node yet, and bound to another.
    assert "own node" in agent.rejected("PATCH", branch_path(shop.team, "shop-main", "status"), patch)
    shop.write_status({"nodeName": "node-b"})
    assert "own node" in agent.rejected("PATCH", shop.status, patch)
    finalizers = {"metadata": {"finalizers": [names.AGENT_FINALIZER]}}
    assert "own node" in agent.rejected("PATCH", shop.path, finalizers)


def test_a_proxy_writes_its_own_entry_and_nothing_else(admin: Api, shop: Shop) -> None:
    project = shop.read()
    for api, plural, body in proxy_access(project, Release("dbranch", NODES, "none")):
        admin.allowed("POST", path_of(api, plural, shop.team), body)
    user = f"system:serviceaccount:{shop.team}:{names.proxy_name('shop')}"
    one, two = Api(user, pod_name="shop-proxy-1"), Api(user, pod_name="shop-proxy-2")
    mine = {"pod": "shop-proxy-1", "generation": 1, "sessions": 0}
    # The authorizer reads the new Role from a cache, too.
    one.eventually_allowed("PATCH", shop.status, {"status": {"proxies": [mine]}})
    text = "only its own entry"
    assert text in two.rejected("PATCH", shop.status, {"status": {"proxies": []}})
    assert text in two.rejected("PATCH", shop.status, {"status": {"proxies": [{**mine, "generation": 2}]}})
    # A token without a pod claim.
    assert text in Api(user).rejected("PATCH", shop.status, {"status": {"proxies": []}})
    for plural, key, value in STATUS_KEYS:
        if plural == names.PROJECTS and key != "proxies":
            message = one.rejected("PATCH", shop.status, {"status": {key: value}})
            assert "only status.proxies" in message, key
    for method, path in (
        ("PATCH", shop.path),
        ("DELETE", shop.path),
        ("GET", path_of("v1", "secrets", shop.team)),
    ):
        assert "is forbidden" in one.rejected(method, path, {} if method == "PATCH" else None)
    one.allowed("PATCH", shop.status, {"status": {"proxies": []}})


def test_a_proxy_acknowledges_the_branches_of_its_project_and_no_others(admin: Api, shop: Shop) -> None:
    project = shop.read()
    for api, plural, body in proxy_access(project, Release("dbranch", NODES, "none")):
        admin.allowed("POST", path_of(api, plural, shop.team), body)
    user = f"system:serviceaccount:{shop.team}:{names.proxy_name('shop')}"
    one, two = Api(user, pod_name="shop-proxy-1"), Api(user, pod_name="shop-proxy-2")
    path = branch_path(shop.team, "shop-feature-x", "status")
    mine = {"pod": "shop-proxy-1", "generation": 1}
    one.eventually_allowed("PATCH", path, {"status": {"proxies": [mine]}})
    text = "only its own entry"
    assert text in two.rejected("PATCH", path, {"status": {"proxies": []}})
    assert text in two.rejected("PATCH", path, {"status": {"proxies": [{**mine, "generation": 2}]}})
    assert text in Api(user).rejected("PATCH", path, {"status": {"proxies": []}})
    for plural, key, value in STATUS_KEYS:
        if plural == names.BRANCHES and key != "proxies":
            assert "only status.proxies" in one.rejected("PATCH", path, {"status": {key: value}}), key
            # Nor may it change or remove an existing value.
            if key != "nodeName":
                admin.allowed("PATCH", path, {"status": {key: value}})
            assert "only status.proxies" in one.rejected("PATCH", path, {"status": {key: None}}), key
    # It reads the branches of its namespace, and writes nothing else of any.
    one.allowed("GET", path_of(names.API_VERSION, names.BRANCHES, shop.team))
    for method in ("PATCH", "DELETE"):
        path = branch_path(shop.team, "shop-feature-x")
        assert "is forbidden" in one.rejected(method, path, {} if method == "PATCH" else None)
    # A branch of another project in the same namespace.
    spec = {"project": "other"}
    other = {"apiVersion": names.API_VERSION, "kind": names.BRANCH_KIND, "metadata": {"name": "other-main"}}
    admin.allowed("POST", path_of(names.API_VERSION, names.BRANCHES, shop.team), {**other, "spec": spec})
    path = branch_path(shop.team, "other-main", "status")
    assert "is written by dbranch alone" in one.rejected("PATCH", path, {"status": {"proxies": [mine]}})


def test_the_root_an_active_and_a_protected_branch_cannot_be_deleted(admin: Api, shop: Shop) -> None:
    def eventually_rejected(branch: str, text: str) -> None:
        admin.eventually_rejected(text, "DELETE", branch_path(shop.team, f"shop-{branch}"))

    eventually_rejected("main", "main is the root branch of project shop")
    eventually_rejected("kept", "kept is protected")
    admin.eventually_allowed("DELETE", branch_path(shop.team, "shop-feature-x"), dry=True)
    shop.write_spec({"activeBranch": "feature-x"})
    eventually_rejected("feature-x", "feature-x is the active branch of project shop")
    # Not the desired branch any more, but the route still leads there.
    shop.write_status({"route": {"generation": 2, "branch": "feature-x"}})
    shop.write_spec({"activeBranch": "main"})
    eventually_rejected("main", "main is the root branch of project shop")
    eventually_rejected("feature-x", "feature-x is the active branch of project shop")
    shop.write_status({"route": {"generation": 3, "branch": "main"}})
    admin.eventually_allowed("DELETE", branch_path(shop.team, "shop-feature-x"))


def test_a_protected_project_cannot_be_deleted(admin: Api, shop: Shop) -> None:
    shop.write_spec({"protection": "Enabled"})
    assert "project shop is protected" in admin.rejected("DELETE", shop.path)
    shop.write_spec({"protection": "Disabled"})
    admin.allowed("DELETE", shop.path)
    # Without the project, its branches can be deleted.
    for branch in ("main", "kept"):
        admin.eventually_allowed("DELETE", branch_path(shop.team, f"shop-{branch}"))


def test_the_branches_of_a_project_that_is_being_deleted_can_be_deleted(admin: Api, shop: Shop) -> None:
    admin.allowed("PATCH", shop.path, {"metadata": {"finalizers": ["example.com/wait"]}})
    admin.allowed("DELETE", shop.path)
    admin.eventually_allowed("DELETE", branch_path(shop.team, "shop-main"), dry=True)
    admin.eventually_allowed("DELETE", branch_path(shop.team, "shop-kept"), dry=True)
    admin.allowed("PATCH", shop.path, {"metadata": {"finalizers": []}})


def test_the_deletion_of_a_namespace_is_not_rejected(shop: Shop) -> None:
    user = Api("system:serviceaccount:kube-system:namespace-controller")
    user.allowed("DELETE", branch_path(shop.team, "shop-main"), dry=True)


def test_the_garbage_collector_deletes_no_active_branch(admin: Api, shop: Shop) -> None:
    """A branch with an ownerReference to something that is deleted, whoever wrote it."""
    owners = path_of("v1", "configmaps", shop.team)
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "pr-1"}}
    uid = admin.allowed("POST", owners, owner)["metadata"]["uid"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "pr-1", "uid": uid}
    shop.write_spec({"activeBranch": "feature-x"})
    collector = Api("system:serviceaccount:kube-system:generic-garbage-collector")
    branch = branch_path(shop.team, "shop-feature-x")
    collector.eventually_rejected("feature-x is the active branch", "DELETE", branch)
    collector.eventually_rejected("main is the root", "DELETE", branch_path(shop.team, "shop-main"))
    collector.eventually_rejected("kept is protected", "DELETE", branch_path(shop.team, "shop-kept"))
    # The real collector tries again, and takes the branch once it is not active any more.
    admin.allowed("PATCH", branch, {"metadata": {"ownerReferences": [reference]}})
    admin.allowed("DELETE", f"{owners}/pr-1")
    collector.eventually_rejected("feature-x is the active branch", "DELETE", branch)
    assert "deletionTimestamp" not in admin.allowed("GET", branch)["metadata"]
    shop.write_spec({"activeBranch": "main"})
    _repeat(
        lambda: admin.request("GET", branch),
        lambda status, body: status == 404 or "deletionTimestamp" in body["metadata"],
    )


def test_the_spec_of_what_is_being_deleted_cannot_be_changed(admin: Api, shop: Shop) -> None:
    """Else `kubectl apply` of a new state succeeds, and then there is nothing."""
    branch = branch_path(shop.team, "shop-feature-x")
    held = {"metadata": {"finalizers": ["example.com/wait"]}}
    for path, change in ((branch, {"state": "Stopped"}), (shop.path, {"activeBranch": "feature-x"})):
        admin.allowed("PATCH", path, held)
        admin.eventually_allowed("DELETE", path)
        message = admin.rejected("PATCH", path, {"spec": change})
        assert "is being deleted; its spec cannot be changed any more" in message
        # What the parts of dbranch and people write meanwhile.
        admin.allowed("PATCH", path, {"metadata": {"annotations": {names.ABANDON_NODE: NODE}}})
        admin.allowed("PATCH", f"{path}/status", {"status": {"phase": "Deleting"}})
    admin.allowed("PATCH", shop.path, {"spec": {"deletionPolicy": "Retain"}}, dry=True)
    # What becomes of the data can still be said: the deletion may wait for it.
    admin.allowed("PATCH", branch, {"spec": {"undo": "Discard"}}, dry=True)
    for path in (branch, shop.path):
        admin.allowed("PATCH", path, {"metadata": {"finalizers": []}})


@pytest.mark.parametrize("name", ["shop--x", "shop--"])
def test_a_branch_with_a_name_that_can_be_no_label_is_rejected(admin: Api, team: str, name: str) -> None:
    body = {
        "apiVersion": names.API_VERSION,
        "kind": names.BRANCH_KIND,
        "metadata": {"name": name},
        "spec": {"project": "shop", "source": "main"},
    }
    message = admin.rejected("POST", path_of(names.API_VERSION, names.BRANCHES, team), body)
    assert "letter" in message
