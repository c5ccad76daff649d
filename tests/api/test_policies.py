"""What the chart's roles and policies let each part do, asked of a real API server as that part.

Nothing else of dbranch runs. The parts are impersonated with the claims that their pods' tokens carry.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml
from kubernetes import client, config

from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.slot.pod_spec import branch_pod, claim_patch, initdb_pod, slot_class_of, warm_pod
from dbranch.api import names
from dbranch.api.branch import Branch, parse_branch
from dbranch.api.project import Project, parse_project
from dbranch.controller.manifests import Release, proxy_access
from dbranch.kube.client import branch_path, path_of, project_path

Json = dict[str, Any]
Body = Json | list[Json] | None
NODES = "dbranch-nodes"
NODE = "node-a"
AGENT = f"system:serviceaccount:{NODES}:dbranch-agent"
HOME = NodeContext(NODE, "3b0f1f4e-0000-4000-8000-000000000001", NODES, "dbranch")
LAYOUT = Layout(Path("/var/lib/dbranch"))
SLOT = "b-0123456789ab-1"


class Api:
    """The API server, asked as `user` with the token claims `extra`; as the administrator without."""

    def __init__(self, user: str = "", **extra: str) -> None:
        settings = client.Configuration()
        config.load_kube_config(client_configuration=settings)  # type: ignore[no-untyped-call]
        self._host = settings.host
        self._pool: urllib3.PoolManager = client.ApiClient(settings).rest_client.pool_manager
        self._who = {"Impersonate-User": user} if user else {}
        for key, value in extra.items():
            claim = f"Impersonate-Extra-authentication.kubernetes.io%2f{key.replace('_', '-')}"
            self._who[claim] = value

    def ask(self, method: str, path: str, body: Body = None, dry: bool = False) -> tuple[int, Json]:
        """The status and the body of the answer. A patch that is a list is a JSON patch, else a merge patch."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        if isinstance(body, list):
            kind = "application/json-patch+json"
        answer = self._pool.request(
            method,
            self._host + path + ("?dryRun=All" if dry else ""),
            json=body,
            headers={"Content-Type": kind, **self._who},
        )
        return answer.status, answer.json()

    def may(self, method: str, path: str, body: Body = None, dry: bool = False) -> Json:
        """The answer, which must be a yes."""
        status, answer = self.ask(method, path, body, dry)
        assert status < 300, answer
        return answer

    def refused(self, method: str, path: str, body: Body = None, dry: bool = True) -> str:
        """The message of a refusal."""
        status, answer = self.ask(method, path, body, dry)
        assert status in (403, 422), (status, answer)
        return str(answer["message"])

    def comes_to_allow(self, method: str, path: str, body: Body = None, dry: bool = False) -> None:
        """Repeat the request until it is allowed: a policy reads its parameters from a cache of the API server's,
        which follows the last write by as long as a busy machine needs."""
        _repeat(lambda: self.ask(method, path, body, dry), lambda status, _: status < 300)

    def comes_to_refuse(self, text: str, method: str, path: str, body: Body = None) -> None:
        """Repeat the request, as a dry run, until it is refused with `text` in the message."""
        _repeat(
            lambda: self.ask(method, path, body, dry=True),
            lambda status, answer: status in (403, 422) and text in answer["message"],
        )


def _repeat(ask: Callable[[], tuple[int, Json]], is_expected: Callable[[int, Json], bool]) -> None:
    deadline = time.monotonic() + 60.0
    while True:
        status, answer = ask()
        if is_expected(status, answer):
            return
        assert time.monotonic() < deadline, (status, answer)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def admin() -> Api:
    assert os.environ.get("KUBECONFIG"), 'no cluster: hack/cluster up, then eval "$(hack/cluster env)"'
    return Api()


@pytest.fixture
def team(admin: Api) -> Iterator[str]:
    name = f"policies-{secrets.token_hex(3)}"
    meta = {"name": name}
    admin.may(
        "POST", path_of("v1", "namespaces"), {"apiVersion": "v1", "kind": "Namespace", "metadata": meta}
    )
    yield name
    admin.may("DELETE", path_of("v1", "namespaces", None, name))


class Shop:
    """A project on NODE with branches main (root), feature-x and kept, made by hand."""

    def __init__(self, admin: Api, team: str) -> None:
        self._admin, self.team = admin, team
        self.path, self.status = project_path(team, "shop"), project_path(team, "shop", "status")
        self._make(names.PROJECT_KIND, names.PROJECTS, "shop", {})
        self._make(names.BRANCH_KIND, names.BRANCHES, "shop-main", {"project": "shop"})
        for name, more in (("feature-x", {}), ("kept", {"protection": "Enabled"})):
            spec = {"project": "shop", "source": "main", **more}
            self._make(names.BRANCH_KIND, names.BRANCHES, f"shop-{name}", spec)
        self.says({"nodeName": NODE, "route": {"generation": 1, "branch": "main"}})
        at_node = {"status": {"nodeName": NODE}}
        admin.may("PATCH", branch_path(team, "shop-feature-x", "status"), at_node)

    def _make(self, kind: str, plural: str, name: str, spec: Json) -> None:
        body = {"apiVersion": names.API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}
        self._admin.may("POST", path_of(names.API_VERSION, plural, self.team), body)

    def says(self, status: Json) -> None:
        self._admin.may("PATCH", self.status, {"status": status})

    def is_now(self, spec: Json) -> None:
        self._admin.may("PATCH", self.path, {"spec": spec})

    def read(self) -> Project:
        return parse_project(self._admin.may("GET", self.path))

    def branch(self) -> Branch:
        return parse_branch(self._admin.may("GET", branch_path(self.team, "shop-feature-x")))


@pytest.fixture
def shop(admin: Api, team: str) -> Shop:
    return Shop(admin, team)


@pytest.fixture
def agent(admin: Api) -> Api:
    return Api(AGENT, node_name=NODE, pod_name="dbranch-agent-aaaaa")


PODS = path_of("v1", "pods", NODES)


def test_an_agent_makes_the_pods_of_its_branches(agent: Api, shop: Shop) -> None:
    project, branch = shop.read(), shop.branch()
    for pod in (
        branch_pod(HOME, LAYOUT, project, branch, SLOT, "true"),
        initdb_pod(HOME, LAYOUT, project, branch, "true"),
        warm_pod(HOME, LAYOUT, slot_class_of(project), SLOT, "true"),
    ):
        agent.may("POST", PODS, pod, dry=True)


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
        lambda p: p["spec"].update(initContainers=[{"name": "more", "image": "more"}]),
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
    "another-secret": (
        lambda p: p["spec"]["volumes"].append({"name": "s", "secret": {"secretName": "verifier-other"}}),
        "mounts only its slot",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_agent_makes_no_other_pods(agent: Api, shop: Shop, change: str) -> None:
    apply, words = CHANGES[change]
    pod = deepcopy(branch_pod(HOME, LAYOUT, shop.read(), shop.branch(), SLOT, "true"))
    apply(pod)
    assert words in agent.refused("POST", PODS, pod)


def test_an_agent_without_its_nodes_claim_makes_nothing(admin: Api, shop: Shop) -> None:
    pod = branch_pod(HOME, LAYOUT, shop.read(), shop.branch(), SLOT, "true")
    assert "own node" in Api(AGENT).refused("POST", PODS, pod)


def test_an_agent_leaves_another_nodes_pods_alone(admin: Api, agent: Api, shop: Shop) -> None:
    pod = branch_pod(HOME, LAYOUT, shop.read(), shop.branch(), f"b-{secrets.token_hex(6)}-1", "true")
    # Bound to no node, and no node has the label: it exists, and never runs. No node owns it, or the
    # collector would take it.
    pod["spec"].pop("nodeName")
    pod["metadata"].pop("ownerReferences")
    pod["spec"]["nodeSelector"] = {"dbranch.io/none": "here"}
    name = pod["metadata"]["name"]
    path = path_of("v1", "pods", NODES, name)
    admin.may("POST", PODS, pod)
    try:
        assert "own node" in agent.refused("DELETE", path)
        assert "own node" in agent.refused("PATCH", path, {"metadata": {"annotations": {"a": "b"}}})
    finally:
        admin.may("DELETE", path)


@pytest.fixture
def waiting(admin: Api, shop: Shop) -> Iterator[Json]:
    """A pod that no branch has claimed, on NODE, which does not exist: it never runs. No node owns it, or the
    collector would take it."""
    name = f"b-{secrets.token_hex(6)}-1"
    pod = warm_pod(HOME, LAYOUT, slot_class_of(shop.read()), name, "true")
    pod["metadata"].pop("ownerReferences")
    made = admin.may("POST", PODS, pod)
    yield made
    admin.ask("DELETE", path_of("v1", "pods", NODES, name) + "?gracePeriodSeconds=0")


def test_an_agent_claims_a_waiting_pod_once(agent: Api, shop: Shop, waiting: Json) -> None:
    path = path_of("v1", "pods", NODES, waiting["metadata"]["name"])
    patch = claim_patch(shop.read(), shop.branch(), waiting["metadata"]["uid"])
    another = claim_patch(shop.read(), shop.branch(), "3b0f1f4e-0000-4000-8000-00000000ffff")
    agent.refused("PATCH", path, another)
    claimed = agent.may("PATCH", path, patch)
    labels = claimed["metadata"]["labels"]
    assert labels[names.LABEL_NAMESPACE] == shop.team and labels[names.LABEL_BRANCH] == "feature-x"
    # The second taker, whoever it is: the API server's own test; and one that does not test at all.
    assert "rejected our request" in agent.refused("PATCH", path, patch)
    taken = {"metadata": {"labels": {names.LABEL_BRANCH_UID: "another"}}}
    assert "claims a waiting one" in agent.refused("PATCH", path, taken)
    freed = {"metadata": {"labels": {names.LABEL_BRANCH_UID: None}}}
    assert "claims a waiting one" in agent.refused("PATCH", path, freed)


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
def test_a_claim_changes_nothing_else(agent: Api, waiting: Json, patch: Json) -> None:
    path = path_of("v1", "pods", NODES, waiting["metadata"]["name"])
    assert "claims a waiting one" in agent.refused("PATCH", path, patch)


def test_an_agent_claims_nothing_of_another_node(shop: Shop, waiting: Json) -> None:
    path = path_of("v1", "pods", NODES, waiting["metadata"]["name"])
    patch = claim_patch(shop.read(), shop.branch(), waiting["metadata"]["uid"])
    other = Api(AGENT, node_name="node-b", pod_name="dbranch-agent-bbbbb")
    assert "own node" in other.refused("PATCH", path, patch)


def test_an_agent_reads_no_secrets_and_no_other_namespaces_pods(agent: Api, shop: Shop) -> None:
    for path in (
        path_of("v1", "secrets", NODES),
        path_of("v1", "secrets", shop.team),
        path_of("v1", "pods", shop.team),
        path_of("v1", "pods"),
    ):
        assert "is forbidden" in agent.refused("GET", path)


def test_an_agent_writes_its_facts_and_its_finalizer(agent: Api, shop: Shop) -> None:
    facts = {"status": {"node": {"ready": True}}}
    for path, patch in (
        (shop.status, facts),
        (branch_path(shop.team, "shop-feature-x", "status"), facts),
        (shop.path, {"metadata": {"finalizers": [names.AGENT_FINALIZER]}}),
        (shop.path, {"metadata": {"annotations": {"kopf-state.agent/touched": "1"}}}),
    ):
        agent.may("PATCH", path, patch, dry=True)


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
        agent.may("PATCH", path, {"status": {key: value}}, dry=True)
        return
    if key != "nodeName":
        assert "only status.node" in agent.refused("PATCH", path, {"status": {key: value}})
        # Nor does it change or take away what is there.
        admin.may("PATCH", path, {"status": {key: value}})
    assert "only status.node" in agent.refused("PATCH", path, {"status": {key: None}})


def test_an_agent_changes_nothing_that_is_anothers(admin: Api, agent: Api, shop: Shop) -> None:
    for patch, words in (
        ({"spec": {"activeBranch": "feature-x"}}, "neither spec nor labels"),
        ({"metadata": {"labels": {"a": "b"}}}, "neither spec nor labels"),
        ({"metadata": {"finalizers": ["dbranch.io/controller"]}}, "no finalizer but its own"),
    ):
        assert words in agent.refused("PATCH", shop.path, patch)
    admin.may("PATCH", shop.path, {"metadata": {"finalizers": ["example.com/kept"]}})
    assert "no finalizer but its own" in agent.refused("PATCH", shop.path, {"metadata": {"finalizers": []}})
    admin.may("PATCH", shop.path, {"metadata": {"finalizers": []}})
    assert "is forbidden" in agent.refused("DELETE", shop.path)


def test_an_agent_writes_nothing_of_another_node(admin: Api, agent: Api, shop: Shop) -> None:
    patch = {"status": {"node": {"ready": True}}}
    # Bound to no node yet, and bound to another.
    assert "own node" in agent.refused("PATCH", branch_path(shop.team, "shop-main", "status"), patch)
    shop.says({"nodeName": "node-b"})
    assert "own node" in agent.refused("PATCH", shop.status, patch)
    finalizers = {"metadata": {"finalizers": [names.AGENT_FINALIZER]}}
    assert "own node" in agent.refused("PATCH", shop.path, finalizers)


def test_a_proxy_writes_its_own_entry_and_nothing_else(admin: Api, shop: Shop) -> None:
    project = shop.read()
    for api, plural, body in proxy_access(project, Release("dbranch", NODES, "none")):
        admin.may("POST", path_of(api, plural, shop.team), body)
    user = f"system:serviceaccount:{shop.team}:{names.proxy_name('shop')}"
    one, two = Api(user, pod_name="shop-proxy-1"), Api(user, pod_name="shop-proxy-2")
    mine = {"pod": "shop-proxy-1", "generation": 1, "sessions": 0}
    one.may("PATCH", shop.status, {"status": {"proxies": [mine]}})
    words = "only its own entry"
    assert words in two.refused("PATCH", shop.status, {"status": {"proxies": []}})
    assert words in two.refused("PATCH", shop.status, {"status": {"proxies": [{**mine, "generation": 2}]}})
    # A token that speaks for no pod.
    assert words in Api(user).refused("PATCH", shop.status, {"status": {"proxies": []}})
    for plural, key, value in STATUS_KEYS:
        if plural == names.PROJECTS and key != "proxies":
            refusal = one.refused("PATCH", shop.status, {"status": {key: value}})
            assert "only status.proxies" in refusal, key
    for method, path in (
        ("PATCH", shop.path),
        ("DELETE", shop.path),
        ("GET", path_of("v1", "secrets", shop.team)),
    ):
        assert "is forbidden" in one.refused(method, path, {} if method == "PATCH" else None)
    one.may("PATCH", shop.status, {"status": {"proxies": []}})


def test_what_cannot_be_deleted(admin: Api, shop: Shop) -> None:
    def comes_to_refuse(branch: str, text: str) -> None:
        admin.comes_to_refuse(text, "DELETE", branch_path(shop.team, f"shop-{branch}"))

    comes_to_refuse("main", "main is the root branch of project shop")
    comes_to_refuse("kept", "kept is protected")
    admin.comes_to_allow("DELETE", branch_path(shop.team, "shop-feature-x"), dry=True)
    shop.is_now({"activeBranch": "feature-x"})
    comes_to_refuse("feature-x", "feature-x is the active branch of project shop")
    # Asked away from, and still where the route goes.
    shop.says({"route": {"generation": 2, "branch": "feature-x"}})
    shop.is_now({"activeBranch": "main"})
    comes_to_refuse("main", "main is the root branch of project shop")
    comes_to_refuse("feature-x", "feature-x is the active branch of project shop")
    shop.says({"route": {"generation": 3, "branch": "main"}})
    admin.comes_to_allow("DELETE", branch_path(shop.team, "shop-feature-x"))


def test_a_protected_project(admin: Api, shop: Shop) -> None:
    shop.is_now({"protection": "Enabled"})
    assert "project shop is protected" in admin.refused("DELETE", shop.path)
    shop.is_now({"protection": "Disabled"})
    admin.may("DELETE", shop.path)
    # With its project gone, nothing holds a branch.
    for branch in ("main", "kept"):
        admin.comes_to_allow("DELETE", branch_path(shop.team, f"shop-{branch}"))


def test_a_project_that_is_being_deleted_lets_go_of_its_branches(admin: Api, shop: Shop) -> None:
    admin.may("PATCH", shop.path, {"metadata": {"finalizers": ["example.com/wait"]}})
    admin.may("DELETE", shop.path)
    admin.comes_to_allow("DELETE", branch_path(shop.team, "shop-main"), dry=True)
    admin.comes_to_allow("DELETE", branch_path(shop.team, "shop-kept"), dry=True)
    admin.may("PATCH", shop.path, {"metadata": {"finalizers": []}})


def test_the_collector_and_the_namespaces_end_are_not_held_up(shop: Shop) -> None:
    for account in ("generic-garbage-collector", "namespace-controller"):
        user = Api(f"system:serviceaccount:kube-system:{account}")
        user.may("DELETE", branch_path(shop.team, "shop-main"), dry=True)
