"""What the API server refuses: the object is named with the server's sentence, and nothing else waits for it."""

from __future__ import annotations

import base64
from typing import cast

import pytest
from tests.factories import Json, branch, project
from tests.unit.controller.rig import SECRETS, Rig, conditions_of, message_of

from dbranch.api.errors import ApiError, ObjectRefused
from dbranch.api.scram import verifier_of
from dbranch.api.secrets import secret_texts
from dbranch.controller.metrics import ControllerMetrics
from dbranch.controller.owned import OwnedObjects
from dbranch.controller.stale import ProxyChange, stale
from dbranch.kube.client import Cluster, path_of

QUOTA = ApiError(
    403,
    "Forbidden",
    'services "shop-x" is forbidden: exceeded quota: few, requested: services=1, used: services=2, limited: '
    "services=2",
)
WEBHOOK = ApiError(
    400, "BadRequest", 'admission webhook "policy.example.com" denied the request: label team is missing'
)
IMMUTABLE = ApiError(
    422,
    "Invalid",
    'Secret "shop-conn" is invalid: data: Forbidden: field is immutable when `immutable` is set',
)
DEPLOYMENT = path_of("apps/v1", "deployments", "team", "shop-proxy")
POLICY = path_of("networking.k8s.io/v1", "networkpolicies", "dbranch-nodes", "allow-team")


def encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()


@pytest.fixture
def shop() -> Rig:
    """A rig whose project `shop` is Ready."""
    return Rig().ready()


def refuse_writes(rig: Rig, pattern: str, error: ApiError) -> None:
    for verb in ("create", "apply"):
        rig.api.refuse(verb, pattern, error)


# Of a branch.


def test_a_service_that_a_quota_refuses_is_named_and_nothing_is_bound(shop: Rig) -> None:
    refuse_writes(shop, "/services/shop-x", QUOTA)
    shop.put(branch("x"))
    body = shop.reconcile_branch("x")
    assert conditions_of(body)["Scheduled"] == conditions_of(body)["Ready"] == "ObjectRefused"
    message = message_of(body, "Scheduled")
    assert message.startswith("Service shop-x cannot be created: exceeded quota: few, requested: services=1")
    assert "; nothing is bound; " in message and len(message) <= 256
    assert "nodeName" not in body["status"] and "Stalled" not in conditions_of(body)
    assert shop.events == [("Warning", "ObjectRefused")]
    # Nothing says that the quota was raised: it is tried again, less and less often, and writes nothing.
    assert shop.result.unfinished and shop.result.longest is not None and shop.result.longest <= 60
    assert [w for w in shop.writes_of(lambda: shop.reconcile_branch("x")) if "status" in w] == []
    shop.api.answer_again()
    assert conditions_of(shop.reconcile_branch("x"))["Scheduled"] == "Bound"


def test_a_refused_endpointslice_does_not_hold_up_the_connection_secret(shop: Rig) -> None:
    refuse_writes(shop, "/endpointslices/shop-x", WEBHOOK)
    shop.put(branch("x"))
    shop.reconcile_branch("x")
    shop.agent_reports(branch("x").accepting())
    body = shop.reconcile_branch("x")
    assert body["status"]["nodeName"] and conditions_of(body)["Scheduled"] == "ObjectRefused"
    assert "EndpointSlice shop-x cannot be created: admission webhook" in message_of(body, "Scheduled")
    assert shop.exists(f"{SECRETS}/shop-x-conn")


def test_a_long_sentence_of_the_server_leaves_room_for_what_to_do(shop: Rig) -> None:
    refuse_writes(shop, "/services/shop-x", ApiError(422, "Invalid", "spec: " + "very wrong, " * 100))
    shop.put(branch("x"))
    message = message_of(shop.reconcile_branch("x"), "Scheduled")
    assert len(message) <= 256 and "nothing is bound" in message and message.endswith("tried again")


# Of a project.


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("/serviceaccounts/shop", "ServiceAccount shop-proxy"),
        ("/serviceaccounts/node", "ServiceAccount node-n1"),
        ("/roles/node", "Role node-shop-uid"),
        ("/services/shop$", "Service shop"),
        ("/deployments/", "Deployment shop-proxy"),
        ("/networkpolicies/", "NetworkPolicy allow-team"),
        ("/secrets/shop-conn$", "Secret shop-conn"),
        ("/secrets/verifier", "Secret verifier-shop-uid"),
    ],
)
def test_a_refused_object_of_a_project_is_named_and_the_rest_is_made(pattern: str, named: str) -> None:
    rig = Rig()
    refuse_writes(rig, pattern, WEBHOOK)
    rig.put(project())
    body = rig.reconcile_project()
    assert conditions_of(body)["Routed"] == "ObjectRefused" and "Stalled" not in conditions_of(body)
    assert message_of(body, "Routed").startswith(f"{named} cannot be created: admission webhook")
    # What does not depend on it.
    service = path_of("v1", "services", "team", "shop")
    assert rig.exists(service) == (named != "Service shop")
    assert rig.exists(POLICY) == (not named.startswith("NetworkPolicy"))
    assert body["status"]["nodeName"] and body["status"]["branches"] in (0, 1)
    # A password is in force when it is written where it is needed.
    assert ("passwordVersion" in body["status"]) == ("Secret" not in named)


@pytest.mark.parametrize("pattern", ["/deployments/", "/secrets/shop-conn$", "/networkpolicies/"])
def test_a_refused_object_does_not_hold_up_a_switch(shop: Rig, pattern: str) -> None:
    shop.branch_up("x")
    shop.secret("mine", password=encoded(b"pencil"))
    refuse_writes(shop, pattern, IMMUTABLE)
    shop.start()
    changes: Json = {"proxy": {"replicas": 2}, "postgres": {"passwordSecret": {"name": "mine"}}}
    for path in (POLICY,):
        shop.api.merge(path, {"spec": {"policyTypes": ["Egress"]}})
    shop.change_project(activeBranch="x", **changes)
    body = shop.reconcile_project(bypass_cache=True)
    assert body["status"]["route"]["branch"] == "x"
    shop.proxy_obeys()
    body = shop.reconcile_project(bypass_cache=True)
    # `dbranch use` waits for Routed: it is true, and Ready names what was refused.
    assert conditions_of(body)["Routed"] == "Routed" and conditions_of(body)["Ready"] == "ObjectRefused"
    assert "field is immutable" in message_of(body, "Ready")
    shop.reconcile_branch("x")
    assert shop.branch("x")["status"]["active"] is True
    shop.api.answer_again()
    assert conditions_of(shop.reconcile_project(bypass_cache=True))["Ready"] == "Available"


def test_a_refused_root_branch_is_named() -> None:
    rig = Rig()
    rig.api.refuse(
        "create",
        "/dbbranches/",
        ApiError(403, "Forbidden", 'dbbranches.dbranch.io "shop-main" is forbidden: exceeded quota: none'),
    )
    rig.put(project())
    body = rig.reconcile_project()
    assert conditions_of(body)["Routed"] == "ObjectRefused"
    assert "DBBranch shop-main cannot be created: exceeded quota: none" in message_of(body, "Routed")
    assert rig.exists(DEPLOYMENT) and body["status"]["nodeName"]


def test_why_no_pod_of_a_proxy_is_made_is_reported(shop: Rig) -> None:
    """A quota asks every container for limits: the Deployment is taken, and its pods are refused."""
    shop.api.remove_pod(path_of("v1", "pods", "team", "p1"))
    text = "failed quota: compute: must specify limits.cpu for: proxy"
    for pod in ("shop-proxy-7d9f-abcde", "shop-proxy-7d9f-fghij"):
        failure = {
            "type": "ReplicaFailure",
            "status": "True",
            "reason": "FailedCreate",
            "message": f'pods "{pod}" is forbidden: {text}',
        }
        shop.api.merge(f"{DEPLOYMENT}/status", {"status": {"conditions": [failure]}})
        body = shop.reconcile_project()
        assert conditions_of(body)["Routed"] == "ProxyNotReady"
        assert f"is ready: {text}; the connection string" in message_of(body, "Routed")
    # Another pod's name is no change, and what a change of another object makes of it is the same.
    assert shop.writes_of(shop.reconcile_project) == []
    assert stale([ProxyChange("team", "shop")], shop.cache()) == set()


def test_what_was_refused_is_counted_by_kind(shop: Rig) -> None:
    metrics = ControllerMetrics()
    shop.owned = OwnedObjects(cast(Cluster, shop.api), metrics.refused)
    refuse_writes(shop, "/services/", QUOTA)
    for _ in range(2):
        with pytest.raises(ObjectRefused):
            shop.owned.apply(
                "v1", "services", {"kind": "Service", "metadata": {"name": "a", "namespace": "team"}}
            )
    text = metrics.response().body.decode()
    assert 'dbranch_controller_objects_refused_total{kind="Service"} 2.0' in text


# People's Secrets.


def test_a_users_secret_is_read_alone_while_nothing_else_may_have_changed(shop: Rig) -> None:
    shop.secret("mine", password=encoded(b"pencil"))
    shop.change_project(postgres={"passwordSecret": {"name": "mine"}})
    shop.reconcile_project(bypass_cache=True)
    shop.run()
    shop.api.take_requests()
    shop.reconcile_project(bypass_cache=True)
    reads = [str(request) for request in shop.api.take_requests()]
    assert "get secrets/mine" in reads and not [r for r in reads if "deployments" in r or "services" in r]
    shop.api.merge(f"{SECRETS}/mine", {"data": {"password": encoded(b"pen")}})
    shop.reconcile_project(bypass_cache=True)
    assert secret_texts(shop.existing(f"{SECRETS}/shop-conn"))["password"] == "pen"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"", "is empty"),
        (b"pencil\n", "ends with a line break"),
        (b"pencil\r\n", "ends with a line break"),
        (b"pen\0cil", "has a NUL"),
    ],
)
def test_a_password_that_cannot_be_one_is_refused_with_words(shop: Rig, value: bytes, words: str) -> None:
    shop.branch_up("x")
    before = shop.project()["status"]["passwordVersion"]
    shop.secret("mine", password=encoded(value))
    shop.change_project(activeBranch="x", postgres={"passwordSecret": {"name": "mine"}})
    # The switch comes first.
    assert conditions_of(shop.reconcile_project())["Ready"] == "ProxyNotReady"
    body = shop.reconcile_project()
    assert conditions_of(body)["Ready"] == "SecretInvalid" and body["status"]["route"]["branch"] == "x"
    message = message_of(body, "Ready")
    assert 'Secret "mine"' in message and '"password"' in message and words in message
    assert "the password stays as it was" in message and body["status"]["passwordVersion"] == before
    shop.proxies_obey()
    assert conditions_of(shop.reconcile_project())["Routed"] == "Routed"
    shop.api.merge(f"{SECRETS}/mine", {"data": {"password": encoded(b"pencil")}})
    body = shop.reconcile_project(bypass_cache=True)
    assert conditions_of(body)["Ready"] == "Available" and body["status"]["passwordVersion"] != before


def test_a_password_with_a_line_break_that_is_in_force_since_an_earlier_release_stays(shop: Rig) -> None:
    shop.secret("mine", password=encoded(b"pencil\n"))
    verifier = path_of("v1", "secrets", "dbranch-nodes", "verifier-shop-uid")
    shop.api.merge(verifier, {"data": {"verifier": encoded(verifier_of("pencil\n", b"s" * 16).encode())}})
    shop.change_project(postgres={"passwordSecret": {"name": "mine"}})
    assert conditions_of(shop.reconcile_project(bypass_cache=True))["Ready"] == "Available"
    assert secret_texts(shop.existing(f"{SECRETS}/shop-conn"))["password"] == "pencil\n"


@pytest.mark.parametrize("key", ["tls.crt", "tls.key"])
@pytest.mark.parametrize("value", [b"\xff\xfe", b"no PEM", b""])
def test_a_tls_secret_that_holds_no_certificate_is_reported(shop: Rig, key: str, value: bytes) -> None:
    pem = {
        "tls.crt": b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        "tls.key": b"-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n",
    }
    shop.secret("tls", **{k: encoded(v) for k, v in (pem | {key: value}).items()})
    shop.change_project(proxy={"tls": {"secretName": "tls"}})
    body = shop.reconcile_project()
    assert conditions_of(body)["Routed"] == "TLSSecretInvalid" and key in message_of(body, "Routed")
