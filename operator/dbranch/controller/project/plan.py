"""The decision of a project's reconcile: facts -> binding, route, findings, status, and what is applied. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dbranch.api import names
from dbranch.api.branch import Branch
from dbranch.api.conditions import Condition, Finding, Reason, find_condition
from dbranch.api.project import Project, Target
from dbranch.controller import manifests
from dbranch.controller.conditions import held_deletion_status, phase_of, ready_finding, report_conditions
from dbranch.controller.manifests import Release
from dbranch.controller.project.status import project_findings
from dbranch.controller.routing import ProxyPod, plan_route, routed_finding, targets_of
from dbranch.controller.scheduling import Binding, NodeFacts, bind_project, not_reporting_finding

Json = dict[str, Any]
# What is found only when the project's objects are applied; Routed carries it.
_APPLY_REASONS = frozenset(
    {
        Reason.NAME_TAKEN,
        Reason.RECONCILE_FAILED,
        Reason.SECRET_NOT_FOUND,
        Reason.TLS_SECRET_NOT_FOUND,
        Reason.TLS_SECRET_INVALID,
    }
)


@dataclass(frozen=True)
class Applied:
    """What came of applying the project's objects: the password's version, and what prevents that it is reached."""

    password_version: str | None = None
    problem: Finding | None = None


@dataclass(frozen=True)
class ProjectFacts:
    """What a project's reconcile knows.

    `node`: the one that the project is bound to; `candidates`: all nodes, if it is bound to none yet; `proxies`: the
    pods of its proxy.
    """

    project: Project
    branches: tuple[Branch, ...] = ()
    node: NodeFacts | None = None
    candidates: tuple[NodeFacts, ...] = ()
    proxies: tuple[ProxyPod, ...] = ()
    applied: Applied = Applied()


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
    routed = find_condition(project.status, Condition.ROUTED)
    problem = Finding.from_dict(routed)
    return Applied(
        project.password_version, problem if problem and problem.reason in _APPLY_REASONS else None
    )


def moves_route(project: Project, branches: tuple[Branch, ...]) -> bool:
    """Return True if the desired `status.route` is not the reported one."""
    return plan_route(project, targets_of(project, branches)) != project.route


def plan_project(facts: ProjectFacts, now: str) -> ProjectPlan:
    """Decide about a project that is not being deleted. `now`: RFC 3339."""
    project, branches = facts.project, facts.branches
    binding, scheduled = _schedule(facts)
    targets = targets_of(project, branches)
    route = plan_route(project, targets)
    routed = facts.applied.problem or routed_finding(
        project, route, targets, facts.proxies, _unbound(branches)
    )
    findings = project_findings(project, scheduled, routed, route, branches)
    host = names.service_host(project.name, project.namespace)
    ready = ready_finding(findings, f"project {project.name} answers at {host}")
    previous = project.status.get("conditions") or ()
    status: Json = {"nodeName": binding.node} if binding else {}
    status |= {
        "host": host,
        "observedGeneration": project.generation,
        "conditions": report_conditions(previous, findings, ready, project.generation, now),
        "phase": phase_of(ready),
        "branches": len(branches),
        "routes": [_target_fields(target) for target in targets],
    }
    if facts.applied.password_version:
        status["passwordVersion"] = facts.applied.password_version
    if route:
        status["route"] = {"generation": route.generation, "branch": route.branch}
    existing = {pod.name for pod in facts.proxies}
    return ProjectPlan(ready, status, tuple(e.pod for e in project.proxies if e.pod not in existing))


def needs_root(branches: tuple[Branch, ...]) -> bool:
    """Return True if the project has no root branch yet."""
    return not any(branch.name == names.ROOT_BRANCH for branch in branches)


def desired_objects(project: Project, release: Release) -> list[tuple[str, str, Json]]:
    """Return (API, plural, manifest) of the objects that the project is reached by, but its Secrets."""
    return [
        *manifests.proxy_access(project, release),
        ("v1", "services", manifests.project_service(project, release)),
        ("apps/v1", "deployments", manifests.proxy_deployment(project, release)),
        ("networking.k8s.io/v1", "networkpolicies", manifests.allow_policy(project.namespace, release)),
    ]


def tls_finding(project: Project, secret: Mapping[str, Any] | None) -> Finding | None:
    """Return the finding of Routed if the TLS Secret, None if it does not exist, has not what the proxy needs."""
    tls = project.proxy.tls
    if tls is None:
        return None
    if secret is None:
        text = f'Secret "{tls.secret_name}" does not exist; the proxy offers no TLS; create it'
        return Finding(Reason.TLS_SECRET_NOT_FOUND, text)
    missing = [key for key in ("tls.crt", "tls.key") if not (secret.get("data") or {}).get(key)]
    if missing:
        text = f'Secret "{tls.secret_name}" has no {missing[0]}; the proxy offers no TLS; add it'
        return Finding(Reason.TLS_SECRET_INVALID, text)
    return None


def held_status(project: Project, now: str) -> Json:
    """Return the changes to the status of a project that its agent is deleting, if that says what holds it up."""
    subject = f"project {project.name}"
    return held_deletion_status(subject, project.node.deletion, project.status, project.generation, now)


def _schedule(facts: ProjectFacts) -> tuple[Binding | None, Finding]:
    """Return a new binding, and the finding of Scheduled."""
    project = facts.project
    if project.node_name is None:
        binding = bind_project(project, facts.candidates)
        if isinstance(binding, Finding):
            return None, binding
        return binding, _bound_finding(project, binding.node)
    not_reporting = not_reporting_finding(facts.node or NodeFacts(project.node_name, exists=False))
    return None, not_reporting or _bound_finding(project, project.node_name)


def _bound_finding(project: Project, node: str) -> Finding:
    return Finding(Reason.BOUND, f"project {project.name} is bound to node {node}")


def _unbound(branches: tuple[Branch, ...]) -> frozenset[str]:
    return frozenset(b.name for b in branches if b.node_name is None and not b.deleting)


def _target_fields(target: Target) -> Json:
    fields: Json = {"branch": target.branch, "state": target.state.value}
    return fields | ({"address": target.address, "port": target.port} if target.address else {})
