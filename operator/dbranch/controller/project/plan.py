"""The decision of a project's reconcile: facts -> binding, route, findings, status, and what is applied. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.conditions import STALLED_REASONS, Condition, Finding, Reason, find_condition
from dbranch.api.errors import InvalidInput
from dbranch.api.project import Project, Route, Target
from dbranch.api.secrets import secret_text
from dbranch.controller import manifests, proxy_manifests
from dbranch.controller.conditions import held_deletion_status, phase_of, ready_finding, report_conditions
from dbranch.controller.limits import NO_LIMITS, NamespaceLimits, above_finding, refused_finding
from dbranch.controller.manifests import Release
from dbranch.controller.project.status import project_findings
from dbranch.controller.proxy_pods import ProxyPod
from dbranch.controller.routing import (
    needs_table,
    no_proxy_finding,
    plan_route,
    routed_finding,
    table_of,
    targets_of,
)
from dbranch.controller.scheduling import Binding, NodeFacts, bind_project, not_reporting_finding

Json = dict[str, Any]
# What is found only when the project's objects are applied. Routed carries it, or Ready alone if the connection
# string works nevertheless: who waits for a switch waits for Routed.
_BESIDE_THE_ROUTE = frozenset(
    {
        Reason.OBJECT_REFUSED,
        Reason.WAITING_FOR_DELETION,
        Reason.RECONCILE_FAILED,
        Reason.SECRET_NOT_FOUND,
        Reason.SECRET_INVALID,
        Reason.PULL_SECRET_NOT_FOUND,
    }
)
_APPLY_REASONS = _BESIDE_THE_ROUTE | {
    Reason.NAME_TAKEN,
    Reason.TLS_SECRET_NOT_FOUND,
    Reason.TLS_SECRET_INVALID,
}


@dataclass(frozen=True)
class Applied:
    """What came of applying the project's objects.

    `problem`: what could not be applied; `no_proxy`: why no pod of a proxy exists.
    """

    password_version: str | None = None
    problem: Finding | None = None
    no_proxy: Finding | None = None


@dataclass(frozen=True)
class ProjectFacts:
    """What a project's reconcile knows.

    `node`: the one that the project is bound to; `candidates`: all nodes, if it is bound to none yet; `proxies`: the
    pods of its proxy. `limits`: of its namespace; `is_excess`: it comes behind the number of projects that they
    allow.
    """

    project: Project
    branches: tuple[Branch, ...] = ()
    node: NodeFacts | None = None
    candidates: tuple[NodeFacts, ...] = ()
    proxies: tuple[ProxyPod, ...] = ()
    applied: Applied = Applied()
    limits: NamespaceLimits = NO_LIMITS
    is_excess: bool = False

    @property
    def is_refused(self) -> bool:
        """True if the project gets no place in its namespace, so nothing is made for it."""
        return self.is_excess and self.project.node_name is None


@dataclass(frozen=True)
class ProjectPlan:
    """`status` has every field that the controller writes; `gone`: the pods whose entries are to go."""

    ready: Finding
    status: Json
    gone: tuple[str, ...] = ()

    def changes(self, reported: Mapping[str, Any]) -> Json:
        """Return the fields that differ from the reported status."""
        return {key: value for key, value in self.status.items() if reported.get(key) != value}


def reported_applied(project: Project) -> Applied:
    """Return what came of applying the project's objects the last time, as its status has it."""
    conditions = (Condition.ROUTED, Condition.READY)
    reported = [Finding.from_dict(find_condition(project.status, condition)) for condition in conditions]
    problem = next((finding for finding in reported if finding and finding.reason in _APPLY_REASONS), None)
    routed, default = reported[0], no_proxy_finding(project, None)
    subject = default.message.partition(";")[0]
    is_no_proxy = routed and routed.reason == default.reason and routed.message.startswith(subject)
    return Applied(project.password_version, problem, routed if is_no_proxy else None)


def moves_route(project: Project, branches: tuple[Branch, ...]) -> bool:
    """Return True if the desired `status.route` is not the reported one."""
    return plan_route(project, branches) != project.route


def plan_project(facts: ProjectFacts, now: str) -> ProjectPlan:
    """Decide about a project that is not being deleted. `now`: RFC 3339."""
    project, branches = facts.project, facts.branches
    binding, scheduled = _schedule(facts)
    targets = targets_of(project, branches)
    route = plan_route(project, branches)
    table = table_of(project, targets) if needs_table(project, branches) else None
    routed = routed_finding(project, route, targets, facts.proxies, _unbound(branches))
    if routed.reason == Reason.PROXY_NOT_READY and not facts.proxies:
        routed = facts.applied.no_proxy or routed
    problem = facts.applied.problem
    if problem and not (routed.done and problem.reason in _BESIDE_THE_ROUTE):
        routed = problem
    findings = project_findings(project, scheduled, routed, route, branches)
    host = names.service_host(project.name, project.namespace)
    ready = ready_finding(findings, f"project {project.name} answers at {host}")
    if problem and (ready.done or problem.reason in STALLED_REASONS):
        ready = problem
    previous = project.status.get("conditions") or ()
    status: Json = {"nodeName": binding.node} if binding else {}
    status |= {
        "host": host,
        "observedGeneration": project.generation,
        "conditions": report_conditions(previous, findings, ready, project.generation, now),
        "phase": phase_of(ready),
        "branches": len(branches),
        # None removes it.
        "routes": None if table is None else [_target_fields(target) for target in table],
    }
    if facts.applied.password_version:
        status["passwordVersion"] = facts.applied.password_version
    if route:
        status["route"] = _route_fields(route)
    existing = {pod.name for pod in facts.proxies}
    return ProjectPlan(ready, status, tuple(e.pod for e in project.proxies if e.pod not in existing))


def needs_root(branches: tuple[Branch, ...]) -> bool:
    """Return True if the project has no root branch yet."""
    return not any(branch.name == names.ROOT_BRANCH for branch in branches)


def desired_objects(
    project: Project, release: Release, node: str | None = None
) -> list[tuple[str, str, Json]]:
    """Return (API, plural, manifest) of the objects that the project is reached by, but its Secrets.

    `node`: to which it is bound, or is next; what it needs there exists before its agent knows of the project.
    """
    budget = (proxy_manifests.PDB_API, proxy_manifests.PDBS, proxy_manifests.proxy_budget(project, release))
    return [
        *(manifests.node_access(project, node, release) if node else []),
        *proxy_manifests.proxy_access(project, release),
        ("v1", "services", proxy_manifests.project_service(project, release)),
        ("apps/v1", "deployments", proxy_manifests.proxy_deployment(project, release)),
        *([budget] if proxy_manifests.wants_budget(project) else []),
        ("networking.k8s.io/v1", "networkpolicies", manifests.allow_policy(project.namespace, release)),
    ]


def unwanted_objects(project: Project) -> list[tuple[str, str, str]]:
    """Return (API, plural, name) of objects that an earlier spec asked for, and this one does not."""
    if proxy_manifests.wants_budget(project):
        return []
    return [(proxy_manifests.PDB_API, proxy_manifests.PDBS, names.proxy_name(project.name))]


def tls_finding(project: Project, secret: Mapping[str, Any] | None) -> Finding | None:
    """Return the finding of Routed if the TLS Secret, None if it does not exist, has not what the proxy needs."""
    tls = project.proxy.tls
    if tls is None:
        return None
    if secret is None:
        text = f'Secret "{tls.secret_name}" does not exist; the proxy offers no TLS; create it'
        return Finding(Reason.TLS_SECRET_NOT_FOUND, text)
    for key, begin in (("tls.crt", "-----BEGIN CERTIFICATE-----"), ("tls.key", " PRIVATE KEY-----")):
        fault = _pem_fault(secret, key, begin)
        if fault:
            text = f'Secret "{tls.secret_name}" {fault}; a proxy that starts offers no TLS; correct it'
            return Finding(Reason.TLS_SECRET_INVALID, text)
    return None


def held_status(project: Project, now: str) -> Json:
    """Return the changes to the status of a project that its agent is deleting, if that says what holds it up."""
    subject = f"project {project.name}"
    return held_deletion_status(subject, project.node.deletion, project.status, project.generation, now)


def _pem_fault(secret: Mapping[str, Any], key: str, begin: str) -> str | None:
    try:
        text = secret_text(secret, key)
    except InvalidInput:
        text = "not UTF-8"
    if not text:
        return f"has no {key}"
    return None if begin in text else f"holds no PEM in {key}"


def _schedule(facts: ProjectFacts) -> tuple[Binding | None, Finding]:
    """Return a new binding, and the finding of Scheduled."""
    project = facts.project
    if facts.is_refused:
        return None, refused_finding(project, facts.limits)
    if project.node_name is None:
        binding = bind_project(project, facts.candidates)
        if isinstance(binding, Finding):
            return None, binding
        return binding, _bound_finding(project, binding.node)
    not_reporting = not_reporting_finding(facts.node or NodeFacts(project.node_name, exists=False))
    warning = above_finding(project, facts.limits, facts.is_excess)
    return None, not_reporting or warning or _bound_finding(project, project.node_name)


def _bound_finding(project: Project, node: str) -> Finding:
    return Finding(Reason.BOUND, f"project {project.name} is bound to node {node}")


def _unbound(branches: tuple[Branch, ...]) -> frozenset[str]:
    return frozenset(b.name for b in branches if b.node_name is None and not b.deleting)


def _route_fields(route: Route) -> Json:
    fields: Json = {"generation": route.generation, "branch": route.branch}
    target = route.target
    return fields | ({"target": {"uid": target.uid, "generation": target.generation}} if target else {})


def _target_fields(target: Target) -> Json:
    fields: Json = {"branch": target.branch, "state": target.state.value}
    return fields | ({"address": target.address, "port": target.port} if target.address else {})
