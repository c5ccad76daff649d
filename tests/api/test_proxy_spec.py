"""`spec.proxy` at the real API server: what the CRD refuses, and what becomes of it in the proxy's own objects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.api.test_owned import RELEASE, cluster
from tests.api.test_owned import team as owned_team
from tests.api.test_policies import Api, admin, team

from dbranch.api import names
from dbranch.api.errors import ObjectRefused
from dbranch.api.project import Project, parse_project
from dbranch.api.proxy_spec import parse_proxy
from dbranch.controller.failure import refusal_finding
from dbranch.controller.owned import OwnedObjects
from dbranch.controller.proxy_manifests import (
    PDB_API,
    PDBS,
    project_service,
    proxy_budget,
    proxy_deployment,
)
from dbranch.kube.client import Cluster, path_of

__all__ = ["admin", "cluster", "owned_team", "team"]

Json = dict[str, Any]
FULL: Json = {
    "replicas": 2,
    "serviceType": "LoadBalancer",
    "service": {
        "annotations": {"external-dns.alpha.kubernetes.io/hostname": "db.example.com"},
        "loadBalancerClass": "example.com/internal",
        "loadBalancerSourceRanges": ["192.0.2.0/24", "2001:db8::/32"],
        "externalTrafficPolicy": "Local",
    },
    "externalHost": "db.example.com",
    "externalPort": 6432,
    "proxyProtocol": "Required",
    "trustedProxies": ["10.0.0.0/8", "fd00::/8"],
    "limits": {"handshakes": 100, "handshakesPerAddress": 10},
    "imagePullSecrets": [{"name": "registry"}],
    "resources": {"requests": {"cpu": "50m"}, "limits": {"cpu": 1, "memory": "128Mi"}},
    "nodeSelector": {"pool": "apps"},
    "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "db", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}
                ]
            }
        },
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 5,
                    "podAffinityTerm": {
                        "topologyKey": "kubernetes.io/hostname",
                        "labelSelector": {"matchLabels": {"app": "noisy"}},
                    },
                }
            ]
        },
    },
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}
    ],
    "priorityClassName": "important",
    "podAnnotations": {"sidecar.istio.io/inject": "false"},
    "podLabels": {"team": "shop"},
}


def body_of(**proxy: Any) -> Json:
    kind = {"apiVersion": names.API_VERSION, "kind": names.PROJECT_KIND}
    return {**kind, "metadata": {"name": "fitted"}, "spec": {"proxy": proxy}}


@pytest.fixture
def shop(cluster: Cluster, owned_team: str) -> Project:
    """A DBProject that exists, since the garbage collector deletes what belongs to another."""
    return parse_project(cluster.create(projects(owned_team), body_of()))


def saying(shop: Project, **proxy: Any) -> Project:
    """Return the project with another `spec.proxy`."""
    return replace(shop, proxy=parse_proxy(proxy))


def projects(namespace: str) -> str:
    return path_of(names.API_VERSION, names.PROJECTS, namespace)


def test_every_field_is_kept_as_it_is_written(admin: Api, team: str) -> None:
    made = admin.allowed("POST", projects(team), body_of(**FULL), dry=True)["spec"]["proxy"]
    assert {key: made[key] for key in FULL if key != "limits"} == {
        k: v for k, v in FULL.items() if k != "limits"
    }
    assert made["limits"] == {"sessions": 1000, **FULL["limits"]}


LOAD_BALANCER: Json = {"serviceType": "LoadBalancer"}


@pytest.mark.parametrize(
    ("proxy", "named"),
    [
        ({"service": {"loadBalancerClass": "x"}}, "serviceType: LoadBalancer"),
        (
            {"serviceType": "NodePort", "service": {"loadBalancerSourceRanges": ["192.0.2.0/24"]}},
            "LoadBalancer",
        ),
        ({"service": {"nodePort": 30001}}, "serviceType: NodePort"),
        ({"service": {"externalTrafficPolicy": "Local"}}, "serviceType: NodePort"),
        ({**LOAD_BALANCER, "service": {"loadBalancerSourceRanges": ["192.0.2.7"]}}, "CIDR"),
        ({"service": {"annotations": {"dbranch.io/applied": "x"}}}, "dbranch's own"),
        ({"trustedProxies": ["10.0.0.0/8"]}, "proxyProtocol: Required"),
        ({"proxyProtocol": "Required", "trustedProxies": ["10.0.0.0/33"]}, "CIDR"),
        ({"proxyProtocol": "Required", "trustedProxies": []}, "trustedProxies"),
        ({"externalPort": 5432}, "externalHost"),
        ({"externalHost": "db.example.com/x"}, "externalHost"),
        ({"tolerations": [{"operator": "Sometimes", "key": "a"}]}, "operator"),
        ({"tolerations": [{"key": "a", "effect": "NoSleep"}]}, "effect"),
        ({"tolerations": [{"value": "a"}]}, "operator: Exists"),
        ({"tolerations": [{"key": "a", "operator": "Exists", "value": "a"}]}, "no value"),
        ({"tolerations": [{"key": "a", "effect": "NoSchedule", "tolerationSeconds": 5}]}, "NoExecute"),
        ({"resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}}, "at most the limit"),
        ({"podLabels": {"dbranch.io/project-uid": "other"}}, "dbranch's own"),
        ({"podLabels": {"app.kubernetes.io/component": "postgres"}}, "dbranch's own"),
        ({"podAnnotations": {"controller.dbranch.io/x": ""}}, "dbranch's own"),
        ({"priorityClassName": "system-node-critical"}, "for the parts of the cluster"),
        ({"limits": {"handshakes": 1}}, "handshakes"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_write(admin: Api, team: str, proxy: Json, named: str) -> None:
    assert named in admin.rejected("POST", projects(team), body_of(**proxy))


def test_the_class_of_a_load_balancer_is_not_changed(admin: Api, team: str) -> None:
    admin.allowed("POST", projects(team), body_of(**FULL))
    change = {"spec": {"proxy": {"service": {"loadBalancerClass": "example.com/other"}}}}
    assert "set serviceType: ClusterIP" in admin.rejected("PATCH", f"{projects(team)}/fitted", change)


def test_the_controllers_account_may_manage_budgets(admin: Api) -> None:
    for verb in ("get", "create", "patch", "delete"):
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": "system:serviceaccount:dbranch-system:dbranch-controller",
                "resourceAttributes": {
                    "verb": verb,
                    "group": "policy",
                    "resource": PDBS,
                    "namespace": "default",
                },
            },
        }
        path = path_of("authorization.k8s.io/v1", "subjectaccessreviews")
        assert admin.allowed("POST", path, review)["status"]["allowed"], verb


def test_the_api_server_takes_a_deployment_with_all_that_a_project_may_say(
    cluster: Cluster, owned_team: str, shop: Project
) -> None:
    project = saying(shop, **FULL)
    OwnedObjects(cluster).apply("apps/v1", "deployments", proxy_deployment(project, RELEASE))
    made = cluster.get(path_of("apps/v1", "deployments", owned_team, "fitted-proxy"))
    assert made
    template = made["spec"]["template"]
    for field in ("imagePullSecrets", "nodeSelector", "tolerations", "affinity"):
        assert template["spec"][field] == FULL[field]
    spread = template["spec"]["topologySpreadConstraints"][0]
    assert spread["labelSelector"]["matchLabels"] == made["spec"]["selector"]["matchLabels"]
    resources = template["spec"]["containers"][0]["resources"]
    assert resources == {
        "requests": {"cpu": "50m"},
        "limits": {"cpu": "1", "memory": "128Mi"},
    }
    assert template["metadata"]["labels"]["team"] == "shop"


def test_what_only_the_api_server_knows_to_be_wrong_is_said_in_its_words(
    cluster: Cluster, owned_team: str, shop: Project
) -> None:
    term = {"matchExpressions": [{"key": "zone", "operator": "Near", "values": ["a"]}]}
    affinity = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    }
    project = saying(shop, affinity=affinity)
    with pytest.raises(ObjectRefused) as raised:
        OwnedObjects(cluster).apply("apps/v1", "deployments", proxy_deployment(project, RELEASE))
    message = refusal_finding(raised.value, "the proxies stay as they were").message
    assert (
        message.startswith("Deployment fitted-proxy cannot be created: ")
        and 'operator: Invalid value: "Near"' in message
    )


def test_a_service_heals_and_keeps_what_a_cloud_controller_wrote(
    cluster: Cluster, owned_team: str, shop: Project
) -> None:
    owned, path = OwnedObjects(cluster), path_of("v1", "services", owned_team, "fitted")

    def apply(bypass_cache: bool = False, **proxy: Any) -> Json:
        service = project_service(saying(shop, **proxy), RELEASE)
        owned.apply("v1", "services", service, bypass_cache)
        body = cluster.get(path)
        assert body
        return body

    full: Json = {"serviceType": "LoadBalancer", "service": {**FULL["service"], "nodePort": 32417}}
    made = apply(**full)
    assert made["spec"]["loadBalancerClass"] == "example.com/internal"
    assert made["spec"]["ports"][0]["nodePort"] == 32417 and made["spec"]["externalTrafficPolicy"] == "Local"
    # A cloud controller's part, and somebody's change of ours.
    cloud = Cluster("cloud-controller")
    theirs = {
        "finalizers": ["service.kubernetes.io/load-balancer-cleanup"],
        "annotations": {"cloud/id": "lb-1"},
    }
    cloud.merge(path, {"metadata": theirs, "spec": {"loadBalancerSourceRanges": ["0.0.0.0/0"]}})
    cloud.merge(f"{path}/status", {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}})
    healed = apply(bypass_cache=True, **full)
    assert healed["spec"]["loadBalancerSourceRanges"] == FULL["service"]["loadBalancerSourceRanges"]
    assert healed["metadata"]["annotations"]["cloud/id"] == "lb-1"
    assert healed["metadata"]["finalizers"] == theirs["finalizers"]
    assert healed["status"]["loadBalancer"]["ingress"][0]["ip"] == "192.0.2.1"
    assert (
        apply(bypass_cache=True, **full)["metadata"]["resourceVersion"]
        == healed["metadata"]["resourceVersion"]
    )
    # What is left out goes; what the API server chose stays.
    plain = apply(serviceType="LoadBalancer", service={"loadBalancerClass": "example.com/internal"})
    assert "external-dns.alpha.kubernetes.io/hostname" not in plain["metadata"]["annotations"]
    assert plain["metadata"]["annotations"]["cloud/id"] == "lb-1"
    assert (
        plain["spec"]["externalTrafficPolicy"] == "Cluster"
        and "loadBalancerSourceRanges" not in plain["spec"]
    )
    inside = apply()
    assert inside["spec"]["type"] == "ClusterIP" and "nodePort" not in inside["spec"]["ports"][0]
    assert inside["spec"]["clusterIP"] == made["spec"]["clusterIP"]
    cloud.merge(path, {"metadata": {"finalizers": None}})


def test_a_budget_comes_with_two_replicas_and_goes_with_one(
    cluster: Cluster, owned_team: str, shop: Project
) -> None:
    owned, path = OwnedObjects(cluster), path_of(PDB_API, PDBS, owned_team, "fitted-proxy")
    project = saying(shop, replicas=2)
    owned.apply(PDB_API, PDBS, proxy_budget(project, RELEASE))
    made = cluster.get(path)
    assert made and made["spec"]["maxUnavailable"] == 1
    cluster.merge(path, {"spec": {"maxUnavailable": 0}})
    owned.apply(PDB_API, PDBS, proxy_budget(replace(project, generation=2), RELEASE), bypass_cache=True)
    healed = cluster.get(path)
    assert healed and healed["spec"]["maxUnavailable"] == 1
    owned.ensure_absent(PDB_API, PDBS, owned_team, "fitted-proxy", shop.uid)
    assert cluster.get(path) is None
