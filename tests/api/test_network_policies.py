"""Who is admitted to dbranch's pods: the chart's NetworkPolicies against the labels that pods have. No API server."""

from __future__ import annotations

import ipaddress
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests import factories

from dbranch.agent.context import NodeContext
from dbranch.agent.layout import Layout
from dbranch.agent.slot.pod_spec import branch_pod, initdb_pod, slot_class_of, warm_pod
from dbranch.controller.manifests import Release, allow_policy
from dbranch.controller.proxy_manifests import proxy_deployment

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]
RELEASE, NODES = "other-release", "nodes"


def rendered(*options: str) -> list[Json]:
    """Return the chart's objects, of a release and in namespaces that are not the default ones."""
    argv = ("helm", "template", RELEASE, str(ROOT / "helm" / "dbranch"), "--namespace", "system")
    values = ("--kube-version", "1.35.0", "--set", f"nodesNamespace.name={NODES}", *options)
    output = subprocess.run([*argv, *values], check=True, capture_output=True, text=True).stdout
    return [body for body in yaml.safe_load_all(output) if body]


CONTEXT, LAYOUT = NodeContext("node-a", "node-uid", NODES, RELEASE), Layout(Path("/var/lib/dbranch"))
SHOP = factories.project().parsed()
MAIN, COPY = factories.branch().parsed(), factories.branch("copy").parsed()
OF_ROLES = Release(RELEASE, NODES, "dbranch-server:test")


def pods(chart: list[Json]) -> dict[str, tuple[str, dict[str, str]]]:
    """Return `{name: (namespace, labels)}` of every kind of pod that dbranch has."""
    workloads = {"controller": "Deployment", "agent": "DaemonSet"}
    of_chart = {
        role: next(body for body in chart if body["kind"] == kind) for role, kind in workloads.items()
    }
    slot_pods = {
        "warm": warm_pod(CONTEXT, LAYOUT, slot_class_of(SHOP), "slot-a", "true"),
        "branch": branch_pod(CONTEXT, LAYOUT, SHOP, COPY, "slot-b", "true"),
        "initdb": initdb_pod(CONTEXT, LAYOUT, SHOP, MAIN, "true"),
    }
    templates = {**of_chart, "proxy": proxy_deployment(SHOP, OF_ROLES)}
    labels = {name: body["spec"]["template"]["metadata"]["labels"] for name, body in templates.items()}
    result = {name: (body["metadata"]["namespace"], labels[name]) for name, body in templates.items()}
    return result | {
        name: (body["metadata"]["namespace"], body["metadata"]["labels"]) for name, body in slot_pods.items()
    }


def is_selected(labels: dict[str, str], selector: Json) -> bool:
    """True if a label selector of a NetworkPolicy matches the labels."""
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "Exists" for expression in expressions)
    desired = selector.get("matchLabels", {}).items()
    return desired <= labels.items() and all(expression["key"] in labels for expression in expressions)


def admitted(policies: list[Json]) -> dict[str, set[tuple[str, int | None]] | None]:
    """Return for each pod which (namespace, port) is let in; None: everybody, since no policy selects it."""
    result: dict[str, set[tuple[str, int | None]] | None] = {}
    for pod, (namespace, labels) in pods(rendered()).items():
        selecting = [
            policy["spec"]
            for policy in policies
            if policy["metadata"]["namespace"] == namespace
            and is_selected(labels, policy["spec"]["podSelector"])
        ]
        result[pod] = {source for spec in selecting for source in sources_of(spec)} if selecting else None
    return result


def sources_of(spec: Json) -> set[tuple[str, int | None]]:
    assert "Ingress" in spec["policyTypes"]
    sources = set()
    for rule in spec.get("ingress", []):
        # An empty list of sources, or of labels, would be everybody.
        assert rule["from"]
        ports = [entry["port"] for entry in rule.get("ports", [])] or [None]
        for peer in rule["from"]:
            assert list(peer) == ["namespaceSelector"]
            (namespace,) = peer["namespaceSelector"]["matchLabels"].values()
            sources |= {(namespace, port) for port in ports}
    return sources


def policies_of(chart: list[Json]) -> list[Json]:
    return [body for body in chart if body["kind"] == "NetworkPolicy"]


@pytest.mark.parametrize("allowed", [[], ["monitoring"], ["a", "b"]])
def test_nobody_but_the_allowed_namespaces_reaches_controller_and_agents(allowed: list[str]) -> None:
    policies = policies_of(rendered("--set-json", f"metrics.allowedNamespaces={json.dumps(allowed)}"))
    metrics: set[tuple[str, int | None]] = {(namespace, 8081) for namespace in allowed}
    of_pods = admitted(policies)
    assert of_pods["controller"] == of_pods["agent"] == metrics


def test_a_postgres_pod_admits_nobody_but_its_projects_namespace() -> None:
    policies = policies_of(rendered())
    before = admitted(policies)
    assert before["warm"] == before["branch"] == before["initdb"] == set()
    after = admitted([*policies, allow_policy(SHOP.namespace, OF_ROLES), allow_policy("other", OF_ROLES)])
    assert after["branch"] == {(SHOP.namespace, None)}
    assert after["warm"] == set()
    assert {name: before[name] for name in ("controller", "agent")} == {
        name: after[name] for name in ("controller", "agent")
    }
    # Clients may be anywhere.
    assert after["proxy"] is None


def egress_values(**egress: Any) -> tuple[str, str]:
    return "--set-json", f"postgres.egress={json.dumps(egress)}"


def egress_of(chart: list[Json]) -> dict[str, list[Json] | None]:
    """Return for each pod the egress rules that hold for it; None: it may connect to everything."""
    result: dict[str, list[Json] | None] = {}
    for pod, (namespace, labels) in pods(chart).items():
        specs = [
            policy["spec"]
            for policy in policies_of(chart)
            if policy["metadata"]["namespace"] == namespace
            and is_selected(labels, policy["spec"]["podSelector"])
            and "Egress" in policy["spec"]["policyTypes"]
        ]
        result[pod] = [rule for spec in specs for rule in spec.get("egress", [])] if specs else None
    return result


def reaches(rules: list[Json] | None, address: str, port: int = 443) -> bool:
    """True if a rule of the list lets a pod connect to an address outside of the cluster's pods."""
    if rules is None:
        return True
    ip = ipaddress.ip_address(address)
    for rule in rules:
        # An empty list of destinations would be all.
        assert rule["to"]
        if rule.get("ports") and port not in [entry["port"] for entry in rule["ports"]]:
            continue
        blocks = [peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer]
        for block in blocks:
            excepted = any(ip in ipaddress.ip_network(part) for part in block.get("except", []))
            if ip in ipaddress.ip_network(block["cidr"]) and not excepted:
                return True
    return False


API_SERVER = ["10.96.0.1/32", "192.0.2.7/32", "fd00:10::1/128"]
NEVER = ["169.254.169.254", "169.254.0.1", "fe80::1", "10.96.0.1", "192.0.2.7", "fd00:10::1"]


def test_a_postgres_pod_connects_to_nothing_by_default() -> None:
    of_pods = egress_of(rendered())
    assert of_pods["warm"] == of_pods["branch"] == of_pods["initdb"] == []
    # Controller, agents and proxies speak with the API server.
    assert of_pods["controller"] is of_pods["agent"] is of_pods["proxy"] is None


@pytest.mark.parametrize(
    ("cidr", "reached"),
    [
        ("0.0.0.0/0", "203.0.113.9"),
        ("128.0.0.0/1", "203.0.113.9"),
        ("160.0.0.0/3", "170.1.1.1"),
        ("169.0.0.0/8", "169.253.255.255"),
        ("169.254.0.0/15", "169.255.0.1"),
        ("10.0.0.0/8", "10.96.0.2"),
        ("10.96.0.0/31", "10.96.0.0"),
        ("192.0.2.0/24", "192.0.2.8"),
        ("203.0.113.9/32", "203.0.113.9"),
        ("::/0", "2001:db8::1"),
        ("2001:db8::/32", "2001:db8::1"),
        ("2000::/3", "2001:db8::1"),
    ],
)
def test_what_is_allowed_is_reached_less_what_never_is(cidr: str, reached: str) -> None:
    api_server = [block for block in API_SERVER if ":" not in block or cidr != "2000::/3"]
    options = egress_values(allow=[{"cidr": cidr, "ports": [443]}], apiServer=api_server)
    rules = egress_of(rendered(*options))["branch"]
    assert reaches(rules, reached) and not reaches(rules, reached, port=22)
    assert [address for address in NEVER if reaches(rules, address)] == []
    for block in [peer["ipBlock"] for rule in rules or () for peer in rule["to"]]:
        for part in block.get("except", []):
            # The API server takes only what lies in the block.
            outer, inner = ipaddress.ip_network(block["cidr"], strict=False), ipaddress.ip_network(part)
            assert outer.version == inner.version and outer.prefixlen < inner.prefixlen
            assert inner.network_address in outer


@pytest.mark.parametrize(
    ("egress", "message"),
    [
        ({"allow": [{"cidr": "169.254.169.254/32"}], "apiServer": API_SERVER}, "never allowed"),
        ({"allow": [{"cidr": "10.96.0.1/32"}], "apiServer": API_SERVER}, "never allowed"),
        ({"allow": [{"cidr": "10.0.0.0/8"}]}, "needs postgres.egress.apiServer"),
        ({"allow": [{"cidr": "fd00:10::/32"}], "apiServer": API_SERVER}, "may contain the API server"),
        ({"allow": [{"cidr": "fe80::/10"}], "apiServer": API_SERVER}, "cidr"),
        ({"allow": [{"cidr": "fc00::/6"}], "apiServer": API_SERVER}, "cidr"),
        ({"allow": [{"cidr": "10.0.0.0"}], "apiServer": API_SERVER}, "cidr"),
        ({"allow": [{"cidr": "010.0.0.0/8"}], "apiServer": API_SERVER}, "cidr"),
        ({"allow": [{}]}, "cidr"),
    ],
)
def test_what_can_never_be_allowed_fails_the_installation(egress: Json, message: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as raised:
        rendered(*egress_values(**egress))
    assert message in raised.value.stderr


def test_the_rules_of_egress_as_they_are_installed() -> None:
    """The golden manifest: a kind cluster's network enforces no policies, so this is all that is tested."""
    options = egress_values(
        allow=[{"cidr": "0.0.0.0/0", "ports": [5432]}],
        apiServer=API_SERVER,
        namespaces=["warehouse"],
        dns=True,
    )
    (policy,) = [
        p for p in policies_of(rendered(*options)) if p["metadata"]["name"] == "dbranch-default-deny"
    ]
    name = "kubernetes.io/metadata.name"
    assert policy["metadata"]["namespace"] == NODES
    assert policy["spec"] == {
        "podSelector": {"matchExpressions": [{"key": "dbranch.io/slot", "operator": "Exists"}]},
        "policyTypes": ["Ingress", "Egress"],
        "egress": [
            {
                "to": [
                    {
                        "ipBlock": {
                            "cidr": "0.0.0.0/0",
                            "except": ["169.254.0.0/16", "10.96.0.1/32", "192.0.2.7/32"],
                        }
                    }
                ],
                "ports": [{"protocol": "TCP", "port": 5432}],
            },
            {"to": [{"namespaceSelector": {"matchLabels": {name: "warehouse"}}}]},
            {
                "to": [
                    {
                        "namespaceSelector": {"matchLabels": {name: "kube-system"}},
                        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
                    }
                ],
                "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}],
            },
        ],
    }
