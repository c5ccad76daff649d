"""The proxy's manifests: what a project and the chart say of its pods, Service and budget, and what they cannot."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.factories import Json, branch, project
from tests.unit.controller.rig import BRANCHES, PROJECTS, SECRETS, Rig, message_of

from dbranch.api import names
from dbranch.api.branch import parse_branch
from dbranch.api.errors import ApiError, InvalidInput
from dbranch.api.project import Project, parse_project
from dbranch.api.proxy_spec import ProxyPods
from dbranch.api.secrets import secret_texts
from dbranch.controller.main import release_of
from dbranch.controller.manifests import Credentials, Release, conn_secret, superuser_secret
from dbranch.controller.project.plan import desired_objects
from dbranch.controller.proxy_manifests import project_service, proxy_deployment
from dbranch.kube.client import path_of

RELEASE = Release("dbranch", "dbranch-nodes", "dbranch-server:test")
BUDGET = path_of("policy/v1", "poddisruptionbudgets", "team", "shop-proxy")
SERVICE = path_of("v1", "services", "team", "shop")
DEPLOYMENT = path_of("apps/v1", "deployments", "team", "shop-proxy")
CREDENTIALS = Credentials("app", "p/w", "db")


def shop_with(**proxy: Any) -> Project:
    return parse_project(project().spec(proxy=proxy).body())


def template_of(shop: Project, **chart: Any) -> Json:
    release = Release("dbranch", "dbranch-nodes", "x", proxy_pods=ProxyPods.parse(json.dumps(chart)))
    template: Json = proxy_deployment(shop, release)["spec"]["template"]
    return template


# Pods.


def test_a_project_that_says_nothing_gets_requests_and_spreads_over_nodes_if_it_can() -> None:
    spec = template_of(shop_with())["spec"]
    assert spec["containers"][0]["resources"] == {"requests": {"cpu": "25m", "memory": "48Mi"}}
    assert [c["whenUnsatisfiable"] for c in spec["topologySpreadConstraints"]] == ["ScheduleAnyway"]
    assert (
        not {"imagePullSecrets", "nodeSelector", "tolerations", "affinity", "priorityClassName"} & spec.keys()
    )


def test_the_project_comes_before_the_chart_and_the_chart_before_the_default() -> None:
    chart = {
        "imagePullSecrets": [{"name": "charts"}],
        "resources": {"limits": {"memory": "256Mi"}},
        "nodeSelector": {"pool": "chart"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "chart",
        "podAnnotations": {"a": "chart", "b": "chart"},
        "podLabels": {"team": "chart"},
    }
    plain = template_of(shop_with(), **chart)
    assert plain["spec"]["imagePullSecrets"] == [{"name": "charts"}]
    assert (
        plain["spec"]["tolerations"] == chart["tolerations"]
        and plain["spec"]["affinity"] == chart["affinity"]
    )
    assert plain["spec"]["containers"][0]["resources"] == {
        "requests": {"cpu": "25m"},
        "limits": {"memory": "256Mi"},
    }
    own = template_of(
        shop_with(
            imagePullSecrets=[{"name": "own"}],
            resources={"limits": {"cpu": 1}},
            nodeSelector={"pool": "own"},
            priorityClassName="own",
            podAnnotations={"a": "own", "prometheus.io/scrape": "false"},
        ),
        **chart,
    )
    assert own["spec"]["imagePullSecrets"] == [{"name": "own"}] and own["spec"]["nodeSelector"] == {
        "pool": "own"
    }
    assert (plain["spec"]["priorityClassName"], own["spec"]["priorityClassName"]) == ("chart", "own")
    assert own["spec"]["containers"][0]["resources"] == {"limits": {"cpu": 1, "memory": "256Mi"}}
    annotations = own["metadata"]["annotations"]
    assert (annotations["a"], annotations["b"]) == ("own", "chart")
    assert annotations["prometheus.io/scrape"] == "false" and annotations["prometheus.io/port"] == "8080"


def test_no_label_of_a_project_or_the_chart_replaces_one_of_ours() -> None:
    shop = shop_with(podLabels={names.LABEL_COMPONENT: "postgres", "team": "a"})
    deployment = proxy_deployment(shop, RELEASE)
    labels, selector = (
        deployment["spec"]["template"]["metadata"]["labels"],
        deployment["spec"]["selector"]["matchLabels"],
    )
    assert labels["team"] == "a" and selector.items() <= labels.items()
    assert labels[names.LABEL_COMPONENT] == "proxy"


def test_the_charts_values_reach_the_controller_and_others_stop_it() -> None:
    environment = {"DBRANCH_NODES_NAMESPACE": "n", "DBRANCH_SERVER_IMAGE": "i"}
    assert (
        release_of(environment).proxy_pods
        == release_of({**environment, "DBRANCH_PROXY_PODS": "null"}).proxy_pods
    )
    given = release_of({**environment, "DBRANCH_PROXY_PODS": '{"nodeSelector": {"a": "b"}}'})
    assert given.proxy_pods == ProxyPods(node_selector={"a": "b"})
    with pytest.raises(InvalidInput, match="values proxy"):
        release_of({**environment, "DBRANCH_PROXY_PODS": '["a"]'})


# What Argo CD would prune: objects with its label of an application that stand in no Git repository.
@pytest.mark.parametrize("replicas", [1, 2])
def test_nothing_has_a_label_by_which_gitops_tools_prune_and_all_in_the_namespace_has_an_owner(
    replicas: int,
) -> None:
    shop = shop_with(replicas=replicas, podLabels={"team": "a"})
    manifests = [m for _, _, m in desired_objects(shop, RELEASE)]
    manifests += [conn_secret(shop, RELEASE, CREDENTIALS), superuser_secret(shop, RELEASE, CREDENTIALS)]
    for manifest in manifests:
        meta = manifest["metadata"]
        assert "app.kubernetes.io/instance" not in meta["labels"], manifest["kind"]
        assert meta["labels"][names.LABEL_RELEASE] == "dbranch"
        if meta["namespace"] == shop.namespace:
            assert [owner["uid"] for owner in meta["ownerReferences"]] == [shop.uid], manifest["kind"]
    kinds = [manifest["kind"] for manifest in manifests]
    assert ("PodDisruptionBudget" in kinds) == (replicas == 2)


# The budget.


def test_a_budget_is_made_with_the_second_replica_and_goes_with_it() -> None:
    rig = Rig().ready()
    assert not rig.exists(BUDGET)
    rig.change_project(proxy={"replicas": 2})
    assert "create poddisruptionbudgets/shop-proxy" in rig.writes_of(rig.reconcile_project)
    spec = rig.existing(BUDGET)["spec"]
    assert spec["maxUnavailable"] == 1
    assert spec["selector"] == rig.existing(DEPLOYMENT)["spec"]["selector"]
    assert rig.writes_of(rig.reconcile_project) == []
    rig.change_project(proxy={"replicas": 1})
    assert "delete poddisruptionbudgets/shop-proxy" in rig.writes_of(rig.reconcile_project)
    assert not rig.exists(BUDGET)
    # Also one of an earlier process, and not somebody else's.
    rig.change_project(proxy={"replicas": 2})
    rig.reconcile_project()
    rig.change_project(proxy={"replicas": 1})
    rig.start()
    rig.reconcile_project()
    assert not rig.exists(BUDGET)
    rig.api.put(
        BUDGET.rpartition("/")[0], {"kind": "PodDisruptionBudget", "metadata": {"name": "shop-proxy"}}
    )
    rig.reconcile_project(bypass_cache=True)
    assert rig.exists(BUDGET)


def test_a_budget_costs_a_project_with_one_replica_one_look_and_no_more() -> None:
    rig = Rig().ready()
    rig.start()
    rig.reconcile_project()
    rig.api.take_requests()
    rig.reconcile_project()
    assert not any("poddisruptionbudgets" in str(request) for request in rig.api.take_requests())


def test_a_budget_goes_with_its_project() -> None:
    rig = Rig().ready()
    rig.change_project(proxy={"replicas": 2})
    rig.reconcile_project()
    rig.api.delete(f"{PROJECTS}/shop")
    for body in rig.api.find(BRANCHES):
        rig.api.remove_pod(f"{BRANCHES}/{body['metadata']['name']}")
    assert rig.exists(BUDGET) and rig.remove_project()
    assert not rig.exists(BUDGET)


def test_a_refused_budget_is_named_and_holds_up_nothing() -> None:
    rig = Rig().ready()
    rig.api.refuse("create", "/poddisruptionbudgets/", ApiError(403, "Forbidden", "no budgets here"))
    rig.change_project(proxy={"replicas": 2})
    body = rig.reconcile_project()
    assert message_of(body, "Ready").startswith(
        "PodDisruptionBudget shop-proxy cannot be created: no budgets here"
    )
    assert "a drain of nodes may end all proxies at once" in message_of(body, "Ready")
    assert rig.existing(DEPLOYMENT)["spec"]["replicas"] == 2


# The Service.


def test_fields_of_another_service_type_are_not_applied() -> None:
    service = {
        "loadBalancerClass": "c",
        "loadBalancerSourceRanges": ["192.0.2.0/24"],
        "externalTrafficPolicy": "Local",
        "nodePort": 30001,
        "annotations": {"a": "b"},
    }
    specs = {
        kind: project_service(shop_with(serviceType=kind, service=service), RELEASE)["spec"]
        for kind in ("ClusterIP", "NodePort", "LoadBalancer")
    }
    assert specs["ClusterIP"].keys() == {"type", "selector", "ports"}
    assert (
        "nodePort" not in specs["ClusterIP"]["ports"][0]
        and specs["NodePort"]["ports"][0]["nodePort"] == 30001
    )
    assert (
        specs["NodePort"]["externalTrafficPolicy"] == "Local" and "loadBalancerClass" not in specs["NodePort"]
    )
    assert specs["LoadBalancer"]["loadBalancerClass"] == "c"
    assert specs["LoadBalancer"]["loadBalancerSourceRanges"] == ["192.0.2.0/24"]


def test_a_change_of_the_service_heals_and_what_others_add_stays() -> None:
    rig = Rig().ready()
    service = {"annotations": {"pool": "one"}, "loadBalancerSourceRanges": ["192.0.2.0/24"]}
    rig.change_project(proxy={"serviceType": "LoadBalancer", "service": service})
    rig.reconcile_project()
    rig.api.merge(
        SERVICE,
        {
            "metadata": {"annotations": {"cloud/id": "lb-1", "pool": "two"}},
            "spec": {"loadBalancerSourceRanges": ["0.0.0.0/0"]},
        },
    )
    rig.reconcile_project(bypass_cache=True)
    healed = rig.existing(SERVICE)
    assert healed["spec"]["loadBalancerSourceRanges"] == ["192.0.2.0/24"]
    assert healed["metadata"]["annotations"].items() >= {"cloud/id": "lb-1", "pool": "one"}.items()
    assert rig.writes_of(lambda: rig.reconcile_project(bypass_cache=True)) == []


# From outside.


def test_the_secrets_have_the_external_host_in_keys_of_their_own() -> None:
    shop = shop_with(externalHost="db.example.com", externalPort=6432)
    plain = secret_texts(conn_secret(shop_with(), RELEASE, CREDENTIALS))
    assert not any(key.startswith("external") for key in plain)
    texts = secret_texts(conn_secret(shop, RELEASE, CREDENTIALS))
    assert plain.items() <= texts.items()
    assert (texts["external-host"], texts["external-port"]) == ("db.example.com", "6432")
    assert texts["external-uri"] == "postgresql://app:p%2Fw@db.example.com:6432/db"
    x = parse_branch(branch("x").body())
    texts = secret_texts(conn_secret(shop, RELEASE, CREDENTIALS, x))
    assert texts["host"] == "shop-x.team.svc"
    assert texts["external-uri"].endswith("@db.example.com:6432/db?options=-c%20dbranch.branch%3Dx")


@pytest.mark.parametrize(
    ("host", "uri"), [("192.0.2.7", "@192.0.2.7:5433/"), ("2001:db8::7", "@[2001:db8::7]:5433/")]
)
def test_the_port_is_the_services_and_an_ipv6_address_is_in_brackets(host: str, uri: str) -> None:
    texts = secret_texts(superuser_secret(shop_with(externalHost=host, port=5433), RELEASE, CREDENTIALS))
    assert uri in texts["external-uri"] and texts["external-host"] == host


def test_the_external_host_reaches_the_secrets_of_project_and_branches() -> None:
    rig = Rig().ready()
    rig.put(branch("x"))
    rig.reconcile_branch("x")
    rig.change_project(proxy={"externalHost": "db.example.com"})
    rig.reconcile_project()
    rig.reconcile_branch("x")
    for name in ("shop-conn", "shop-superuser-conn", "shop-x-conn"):
        assert secret_texts(rig.existing(f"{SECRETS}/{name}"))["external-host"] == "db.example.com", name
