"""Every limit of the chart on a real API server: below it, at it, beyond it; what was beyond it before; the audit.

The limits of these tests hold in their own namespace: the chart's policies are copied with the limits of that
namespace. What the controller reports of the same objects is compared with what the API server refuses.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
from tests.api.test_network_policies import rendered
from tests.api.test_policies import Api, admin, team
from tests.factories import merged

from dbranch.api import names
from dbranch.api.branch import parse_branch
from dbranch.api.project import parse_project
from dbranch.controller.limits import Limits, exceeded_by_branch, exceeded_by_project
from dbranch.kube.client import path_of

__all__ = ["admin", "team"]

Json = dict[str, Any]
POLICIES = "validatingadmissionpolicies"
BINDINGS = "validatingadmissionpolicybindings"
ADMISSION = "admissionregistration.k8s.io/v1"
VALUES: Json = {
    "storageSize": "2Gi",
    "cpu": 2,
    "memory": "2Gi",
    "ephemeralStorage": "1Gi",
    "proxyReplicas": 2,
    "images": ["postgres:*", "ghcr.io/acme/*", "registry.example:5000/exact:1"],
    "nodeSelectors": ["disk=*", "zone=a"],
    "extendedResources": ["hugepages-*", "example.com/gpu"],
}
# The chart's own default has ephemeral-storage: 512Mi.
BASE: Json = {
    "postgres": {"image": "postgres:17", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}},
    "storage": {"size": "1Gi"},
}


def resources(section: str, **amounts: str | int | None) -> Json:
    return {"postgres": {"resources": {section: {k.replace("_", "-"): v for k, v in amounts.items()}}}}


def image(name: str) -> Json:
    return {"postgres": {"image": name}}


def labels(**labels: str) -> Json:
    return {"storage": {"nodeSelector": labels}}


@dataclass(frozen=True)
class Case:
    """A limit: specs within it and exactly at it; one beyond it, and what is still beyond, more and less of it.

    `shown`: what the message says of what was asked for, and of the limit.
    """

    limit: str
    within: tuple[Json, ...]
    beyond: Json
    shown: tuple[str, str]
    further: tuple[Json, ...] = ()
    less: tuple[Json, ...] = ()


OF_PODS = {
    "cpu-limit": Case(
        "cpu",
        (resources("limits", cpu="2"), resources("limits", cpu="1900m"), resources("limits", cpu=2)),
        resources("limits", cpu="2500m"),
        ("limits.cpu 2500m", "allows 2 "),
        (resources("limits", cpu="2501m"), resources("limits", cpu=None)),
        (resources("limits", cpu="2001m"),),
    ),
    "cpu-request": Case(
        "cpu",
        (resources("requests", cpu="2"),),
        resources("requests", cpu=3),
        ("requests.cpu 3", "allows 2 "),
        (resources("requests", cpu=4),),
        (resources("requests", cpu="2.5"),),
    ),
    "memory-limit": Case(
        "memory",
        (resources("limits", memory="2Gi"), resources("limits", memory="2147483648")),
        resources("limits", memory="3Gi"),
        ("limits.memory 3Gi", "allows 2Gi "),
        (resources("limits", memory="4Gi"),),
        (resources("limits", memory="2049Mi"),),
    ),
    "no-memory-limit": Case(
        "memory",
        (resources("limits", memory="1"),),
        # What is requested and not limited has not even the chart's default.
        resources("limits", memory=None),
        ("sets no spec.postgres.resources.limits.memory, which is needed", "allows 2Gi "),
        (),
        (resources("limits", memory="9Gi"),),
    ),
    "ephemeral-storage": Case(
        "ephemeralStorage",
        (resources("limits", ephemeral_storage="1Gi"), {}),
        resources("limits", ephemeral_storage="1025Mi"),
        ("limits.ephemeral-storage 1025Mi", "allows 1Gi "),
        (resources("limits", ephemeral_storage="2Gi"),),
    ),
    "ephemeral-storage-without-the-default": Case(
        "ephemeralStorage",
        (),
        resources("requests", ephemeral_storage="16Mi"),
        ("sets no spec.postgres.resources.limits.ephemeral-storage", "allows 1Gi "),
    ),
    "extended-resource": Case(
        "extendedResources",
        (
            {"postgres": {"resources": {"limits": {"hugepages-2Mi": "4Mi"}}}},
            {
                "postgres": {
                    "resources": {"requests": {"example.com/gpu": 1}, "limits": {"example.com/gpu": 1}}
                }
            },
        ),
        {"postgres": {"resources": {"limits": {"nvidia.com/gpu": 2}}}},
        ("limits of nvidia.com/gpu", "allows hugepages-* example.com/gpu "),
        ({"postgres": {"resources": {"limits": {"nvidia.com/gpu": 3}}}},),
        ({"postgres": {"resources": {"limits": {"nvidia.com/gpu": 1}}}},),
    ),
    "extended-resource-requested": Case(
        "extendedResources",
        (),
        {"postgres": {"resources": {"requests": {"example.com/gpu-2": 2}}}},
        ("requests of example.com/gpu-2", "allows hugepages-* example.com/gpu "),
        ({"postgres": {"resources": {"requests": {"example.com/other": 2}}}},),
    ),
}
OF_PROJECTS = {
    "size": Case(
        "storageSize",
        ({"storage": {"size": "2Gi"}}, {"storage": {"size": 2147483648}}),
        {"storage": {"size": "2049Mi"}},
        ("spec.storage.size 2049Mi", "allows 2Gi "),
        ({"storage": {"size": "3Gi"}},),
    ),
    "replicas": Case(
        "proxyReplicas",
        ({"proxy": {"replicas": 1}}, {"proxy": {"replicas": 2}}),
        {"proxy": {"replicas": 4}},
        ("spec.proxy.replicas 4", "allows 2 "),
        ({"proxy": {"replicas": 5}},),
        ({"proxy": {"replicas": 3}},),
    ),
    "image": Case(
        "images",
        (
            image("postgres:16-alpine"),
            image("ghcr.io/acme/deep/er@sha256:0"),
            image("registry.example:5000/exact:1"),
        ),
        image("ghcr.io/other/postgres:17"),
        ("spec.postgres.image ghcr.io/other/postgres:17", "allows postgres:* ghcr.io/acme/*"),
        (
            image("registry.example:5000/exact:12"),
            image("postgres"),
            # A registry called postgres.
            image("postgres:5000/postgres:17"),
            image("ghcr.io/acme"),
        ),
    ),
    "node-selector": Case(
        "nodeSelectors",
        (labels(disk="nvme", zone="a"), labels()),
        labels(disk="nvme", zone="b"),
        ("spec.storage.nodeSelector zone=b", "allows disk=* zone=a "),
        (labels(zone="c"), labels(pool="x")),
        (labels(disk="ssd"),),
    ),
    **OF_PODS,
}


def project(name: str, spec: Json) -> Json:
    body = {"apiVersion": names.API_VERSION, "kind": names.PROJECT_KIND, "metadata": {"name": name}}
    return {**body, "spec": pruned(merged(BASE, spec))}


def branch(name: str, spec: Json) -> Json:
    body = {"apiVersion": names.API_VERSION, "kind": names.BRANCH_KIND, "metadata": {"name": f"shop-{name}"}}
    own = {"postgres": {"resources": BASE["postgres"]["resources"]}}
    return {**body, "spec": pruned(merged({**own, "project": "shop", "source": "main"}, spec))}


def pruned(spec: Any) -> Any:
    """Return it without what is None."""
    return {k: pruned(v) for k, v in spec.items() if v is not None} if isinstance(spec, dict) else spec


class Limited:
    """A namespace with limits, in which each case's objects beyond them were made before."""

    def __init__(self, admin: Api, team: str, limits: Json) -> None:
        self._admin, self.team = admin, team
        self.projects = path_of(names.API_VERSION, names.PROJECTS, team)
        self.branches = path_of(names.API_VERSION, names.BRANCHES, team)
        chart = rendered("--set-json", f"limits={json.dumps(limits)}")
        self.data = data_of(chart)
        self._policies = [
            body
            for body in chart
            if body["kind"] == "ValidatingAdmissionPolicy" and body["metadata"]["name"].endswith("-limits")
        ]

    @property
    def limits(self) -> Limits:
        return Limits.parse(json.dumps(self.data))

    def make(self, path: str, body: Json) -> None:
        self._admin.allowed("POST", path, body)

    def begin(self) -> None:
        """Put the limits in force: copies of the chart's policies, for this namespace alone."""
        selector = {"matchLabels": {"kubernetes.io/metadata.name": self.team}}
        for policy in self._bodies():
            name = policy["metadata"]["name"]
            self.make(path_of(ADMISSION, POLICIES), policy)
            spec = {
                "policyName": name,
                "validationActions": ["Deny", "Audit"],
                "matchResources": {"namespaceSelector": selector},
            }
            kind = "ValidatingAdmissionPolicyBinding"
            binding = {"apiVersion": ADMISSION, "kind": kind, "metadata": {"name": name}, "spec": spec}
            self.make(path_of(ADMISSION, BINDINGS), binding)
        too_large = project("probe", {"storage": {"size": "16Ti"}})
        self._admin.eventually_rejected("storageSize", "POST", self.projects, too_large)
        excessive = branch("probe", resources("limits", cpu=1000))
        self._admin.eventually_rejected("limits.cpu", "POST", self.branches, excessive)

    def change(self, **data: str) -> None:
        """Change the limits by their keys, as an upgrade of the chart does."""
        self.data |= data
        for policy in self._bodies():
            path = path_of(ADMISSION, POLICIES, None, policy["metadata"]["name"])
            self._admin.allowed("PATCH", path, {"spec": {"variables": policy["spec"]["variables"]}})

    def _bodies(self) -> list[Json]:
        bodies = deepcopy(self._policies)
        for body in bodies:
            body["metadata"] = {"name": f"{body['metadata']['name']}-{self.team}"}
            data = next(v for v in body["spec"]["variables"] if v["name"] == "data")
            data["expression"] = json.dumps(self.data)
        return bodies

    def end(self) -> None:
        for policy in self._bodies():
            for plural in (BINDINGS, POLICIES):
                self._admin.request("DELETE", path_of(ADMISSION, plural, None, policy["metadata"]["name"]))


def data_of(chart: list[Json]) -> dict[str, str]:
    """Return the limits that the chart's policies hold."""
    for body in chart:
        for variable in (
            body["spec"].get("variables") or ()
            if body["metadata"]["name"] == "dbranch-project-limits"
            else ()
        ):
            if variable["name"] == "data":
                data: dict[str, str] = json.loads(variable["expression"])
                return data
    raise AssertionError("the chart has no limits")


@pytest.fixture(scope="module")
def limited(admin: Api) -> Iterator[Limited]:
    name = f"limits-{secrets.token_hex(3)}"
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    admin.allowed("POST", path_of("v1", "namespaces"), namespace)
    limited = Limited(admin, name, {"storageSize": "1Mi", "namespaces": {name: VALUES}})
    try:
        for case_name, case in OF_PROJECTS.items():
            limited.make(limited.projects, project(short(case_name), case.beyond))
        for case_name, case in OF_PODS.items():
            limited.make(limited.branches, branch(short(case_name), case.beyond))
        limited.make(limited.projects, project("small", {}))
        limited.begin()
        yield limited
    finally:
        limited.end()
        admin.request("DELETE", path_of("v1", "namespaces", None, name))


def short(case: str) -> str:
    return case[:30].rstrip("-")


@pytest.mark.parametrize("name", OF_PROJECTS)
def test_a_project_beyond_a_limit_is_refused(admin: Api, limited: Limited, name: str) -> None:
    case = OF_PROJECTS[name]
    of = limited.limits.of(limited.team)
    for spec in case.within:
        body = project("new", spec)
        assert [*exceeded_by_project(parse_project(body), of)] == []
        admin.allowed("POST", limited.projects, body, dry=True)
    for spec in (case.beyond, *case.further):
        body = project("new", spec)
        assert case.limit in dict(exceeded_by_project(parse_project(body), of))
        message = admin.rejected("POST", limited.projects, body)
        assert f"limits.namespaces.{limited.team}.{case.limit} of the dbranch chart" in message
        assert "project new" in message and "a cluster administrator can raise it" in message
        small = admin.rejected("PATCH", f"{limited.projects}/small", {"spec": spec})
        assert case.limit in small
    message = admin.rejected("POST", limited.projects, project("new", case.beyond))
    assert all(text in message for text in case.shown), message


@pytest.mark.parametrize("name", OF_PODS)
def test_a_branch_with_resources_beyond_a_limit_is_refused(admin: Api, limited: Limited, name: str) -> None:
    case = OF_PODS[name]
    of = limited.limits.of(limited.team)
    for spec in case.within:
        body = branch("new", spec)
        assert [*exceeded_by_branch(parse_branch(body), of)] == []
        admin.allowed("POST", limited.branches, body, dry=True)
    for spec in (case.beyond, *case.further):
        body = branch("new", spec)
        assert case.limit in dict(exceeded_by_branch(parse_branch(body), of))
        message = admin.rejected("POST", limited.branches, body)
        assert f"limits.namespaces.{limited.team}.{case.limit} of the dbranch chart" in message
    message = admin.rejected("POST", limited.branches, branch("new", case.beyond))
    assert "branch shop-new" in message and all(text in message for text in case.shown), message


@pytest.mark.parametrize("name", OF_PROJECTS)
def test_a_project_that_was_beyond_a_limit_before_can_be_changed_to_what_is_no_worse(
    admin: Api, limited: Limited, name: str
) -> None:
    case, path = OF_PROJECTS[name], f"{limited.projects}/{short(name)}"
    unrelated: tuple[Json, ...] = (
        {"activeBranch": "x"},
        {"protection": "Enabled"},
        {"postgres": {"parameters": {"work_mem": "7MB"}}},
    )
    for spec in (*unrelated, *case.less):
        admin.allowed("PATCH", path, {"spec": spec}, dry=True)
    for spec in case.further:
        assert case.limit in admin.rejected("PATCH", path, {"spec": spec})
    admin.allowed("PATCH", path, {"metadata": {"finalizers": ["example.com/x"]}}, dry=True)
    admin.allowed("DELETE", path, dry=True)


@pytest.mark.parametrize("name", OF_PODS)
def test_a_branch_that_was_beyond_a_limit_before_can_be_changed_to_what_is_no_worse(
    admin: Api, limited: Limited, name: str
) -> None:
    case, path = OF_PODS[name], f"{limited.branches}/shop-{short(name)}"
    for spec in ({"state": "Stopped"}, {"protection": "Enabled"}, *case.less):
        admin.allowed("PATCH", path, {"spec": spec}, dry=True)
    for spec in case.further:
        assert case.limit in admin.rejected("PATCH", path, {"spec": spec})
    # Resources of its own may be given up: those of the project are within the limits.
    admin.allowed("PATCH", path, {"spec": {"postgres": {"resources": None}}}, dry=True)


def test_a_branch_without_resources_of_its_own_is_its_projects_matter(admin: Api, limited: Limited) -> None:
    body = branch("plain", {"postgres": {"resources": None}})
    admin.allowed("POST", limited.branches, body, dry=True)
    assert [*exceeded_by_branch(parse_branch(body), limited.limits.of(limited.team))] == []
    # Empty ones are some: of these nothing is limited.
    body = branch("plain", {"postgres": {"resources": {"limits": None, "requests": {}}}})
    assert "limits.cpu" in admin.rejected("POST", limited.branches, body)


def test_by_default_nothing_is_limited(admin: Api, team: str) -> None:
    everything: Json = {}
    for case in OF_PROJECTS.values():
        everything = merged(everything, case.beyond)
    projects = path_of(names.API_VERSION, names.PROJECTS, team)
    admin.allowed("POST", projects, project("shop", everything), dry=True)
    chart = rendered()
    data = data_of(chart)
    limits = Limits(data).of(team)
    assert [*exceeded_by_project(parse_project(project("shop", everything)), limits)] == []
    assert limits.count("projects") is None and limits.count("branches") is None


def test_an_empty_list_allows_nothing_and_an_exception_takes_the_place_of_a_limit(
    admin: Api, team: str
) -> None:
    exception = {"storageSize": "", "images": ["*"], "extendedResources": []}
    limited = Limited(
        admin,
        team,
        {"storageSize": "1Gi", "images": [], "nodeSelectors": [], "cpu": 4, "namespaces": {team: exception}},
    )
    # Without an exception for the size, until the limits are in force.
    del limited.data[f"{team}.storageSize"]
    limited.begin()
    try:
        limited.change(**{f"{team}.storageSize": ""})
        admin.eventually_allowed(
            "POST", limited.projects, project("shop", {"storage": {"size": "16Ti"}}), dry=True
        )
        admin.allowed("POST", limited.projects, project("shop", image("other:1")), dry=True)
        message = admin.rejected("POST", limited.projects, project("shop", labels(disk="a")))
        assert "limits.nodeSelectors of the dbranch chart allows nothing" in message
        gpu: Json = {"postgres": {"resources": {"limits": {"example.com/gpu": 1}}}}
        assert "allows nothing" in admin.rejected("POST", limited.projects, project("shop", gpu))
    finally:
        limited.end()


def test_the_controller_counts_by_the_same_data() -> None:
    chart = rendered("--set-json", f"limits={json.dumps({'projects': 3, 'namespaces': {'team': VALUES}})}")
    data = data_of(chart)
    deployment = next(body for body in chart if body["kind"] == "Deployment")
    environment = {
        variable["name"]: variable.get("value")
        for variable in deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    limits = Limits.parse(environment["DBRANCH_LIMITS"])
    assert limits == Limits(data)
    assert limits.of("other").count("projects") == 3 and limits.of("team").text("memory") == "2Gi"


def audit_annotations() -> list[tuple[str, str, str]]:
    """Return (policy, key, expression) of every annotation that the chart adds to the audit log."""
    return [
        (body["metadata"]["name"], annotation["key"], annotation["valueExpression"])
        for body in rendered()
        if body["kind"] == "ValidatingAdmissionPolicy"
        for annotation in body["spec"].get("auditAnnotations") or ()
    ]


def test_what_is_audited_can_be_evaluated_and_refuses_nothing(admin: Api, team: str) -> None:
    """The audit log is a file of the API server; here a policy that refuses says what it would hold."""
    assert {(policy, key) for policy, key, _ in audit_annotations()} == {
        ("dbranch-audit", "switch"),
        ("dbranch-audit", "protection"),
        ("dbranch-audit", "delete"),
        ("dbranch-project-limits", "exceeded"),
        ("dbranch-branch-limits", "exceeded"),
        ("dbranch-restore", "restored-branch"),
    }
    chart = {
        body["metadata"]["name"]: body for body in rendered() if body["kind"] == "ValidatingAdmissionPolicy"
    }
    audit = chart["dbranch-audit"]
    assert audit["spec"]["failurePolicy"] == "Ignore" and not audit["spec"].get("validations")
    text = " + '|' + ".join(f"({a['valueExpression']})" for a in audit["spec"].pop("auditAnnotations"))
    name = f"audit-{team}"
    validation = {"expression": "false", "messageExpression": f"'audited: ' + {text}"}
    audit["spec"] |= {"failurePolicy": "Fail", "validations": [validation]}
    projects = path_of(names.API_VERSION, names.PROJECTS, team)
    branches = path_of(names.API_VERSION, names.BRANCHES, team)
    admin.allowed("POST", projects, project("shop", {"protection": "Enabled", "activeBranch": "old"}))
    admin.allowed("POST", branches, branch("x", {}))
    admin.allowed("POST", path_of(ADMISSION, POLICIES), {**audit, "metadata": {"name": name}})
    selector = {"matchLabels": {"kubernetes.io/metadata.name": team}}
    binding = {
        "policyName": name,
        "validationActions": ["Deny"],
        "matchResources": {"namespaceSelector": selector},
    }
    body = {"apiVersion": ADMISSION, "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": name}}
    admin.allowed("POST", path_of(ADMISSION, BINDINGS), {**body, "spec": binding})
    try:
        shop, x = f"{projects}/shop", f"{branches}/shop-x"
        change = {"spec": {"activeBranch": "new"}}
        admin.eventually_rejected("audited: project shop from old to new||", "PATCH", shop, change)
        for path, method, patch, expected in (
            (shop, "PATCH", {"spec": {"protection": "Disabled"}}, "|project shop from Enabled to Disabled|"),
            (x, "PATCH", {"spec": {"protection": "Enabled"}}, "|branch shop-x from Disabled to Enabled|"),
            (x, "PATCH", {"spec": {"state": "Stopped"}}, "audited: ||"),
            (x, "DELETE", None, "||branch shop-x with UID "),
            (x, "DELETE", None, ", made from main, protection Disabled"),
        ):
            assert expected in admin.rejected(method, path, patch)
        # The deletion policy of the project speaks first.
        admin.allowed("PATCH", shop, {"metadata": {"annotations": {"a": "b"}}})
    finally:
        admin.allowed("DELETE", path_of(ADMISSION, BINDINGS, None, name))
        admin.allowed("DELETE", path_of(ADMISSION, POLICIES, None, name))
