"""Who is admitted to dbranch's pods: the chart's NetworkPolicies against the labels that pods have. No API server."""

from __future__ import annotations

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
    assert spec["policyTypes"] == ["Ingress"]
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
