"""`status.routes`, `status.route` and the condition Routed of a project. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dbranch.api.branch import Branch, should_run
from dbranch.api.conditions import Finding, Reason, is_ready
from dbranch.api.enums import TargetState
from dbranch.api.project import Project, ProxyEntry, Route, Target


def target_of(project: Project, branch: Branch) -> Target | None:
    """Return a branch's entry in `status.routes`; None if the branch is not bound yet."""
    if branch.deleting:
        return Target(branch.name, TargetState.DELETING)
    if branch.node_name is None:
        return None
    if not should_run(project, branch):
        return Target(branch.name, TargetState.STOPPED)
    node = branch.node
    if node.postgres and node.postgres.admits and node.address and node.port:
        return Target(branch.name, TargetState.READY, node.address, node.port)
    return Target(branch.name, TargetState.STARTING)


def targets_of(project: Project, branches: Iterable[Branch]) -> tuple[Target, ...]:
    """Return `status.routes`, sorted by branch."""
    targets = (target_of(project, branch) for branch in branches)
    return tuple(sorted((target for target in targets if target), key=lambda target: target.branch))


def plan_route(project: Project, targets: Sequence[Target]) -> Route | None:
    """Return the desired `status.route`; it moves only to a branch that is Ready. None while there never was one.

    The generation is raised when the route moves, and when a branch begins to be deleted: the branch's deletion
    waits until every proxy obeys a route that knows of it.
    """
    ready = {t.branch for t in targets if t.state == TargetState.READY}
    current, active_branch = project.route, project.active_branch
    if current is None:
        return Route(1, active_branch) if active_branch in ready else None
    already_deleting = {t.branch for t in project.routes if t.state == TargetState.DELETING}
    newly_deleting = {t.branch for t in targets if t.state == TargetState.DELETING} - already_deleting
    branch = active_branch if active_branch in ready else current.branch
    if branch != current.branch or newly_deleting:
        return Route(current.generation + 1, branch)
    return current


@dataclass(frozen=True)
class ProxyPod:
    """A proxy's pod that exists, also while it is Terminating (then it is not `ready`)."""

    name: str
    ready: bool


def proxy_pod_of(body: Mapping[str, Any]) -> ProxyPod | None:
    """Parse a proxy's pod; None if its containers have ended for good."""
    meta = body["metadata"]
    if (body.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return None
    return ProxyPod(meta["name"], is_ready(body) and not meta.get("deletionTimestamp"))


def laggards(route: Route, pods: Iterable[ProxyPod], entries: Iterable[ProxyEntry]) -> tuple[str, ...]:
    """Return the names of the proxy pods that have not acknowledged the route in `status.proxies`."""
    acknowledged = {entry.pod: entry.generation for entry in entries}
    return tuple(sorted(pod.name for pod in pods if acknowledged.get(pod.name, -1) < route.generation))


def routed_finding(
    project: Project,
    route: Route | None,
    targets: Sequence[Target],
    pods: Sequence[ProxyPod],
    unbound: Collection[str] = (),
) -> Finding:
    """Return the finding of Routed: whether every new session reaches the branch that `spec.activeBranch` names.

    `unbound`: the names of the branches that exist and are in no route yet.
    """
    active_branch, states = project.active_branch, {t.branch: t.state for t in targets}
    if route is None or route.branch != active_branch:
        effect = (
            f"new sessions still reach {route.branch}"
            if route
            else "the connection string does not answer yet"
        )
        if active_branch in unbound:
            return _not_moved_finding(project, TargetState.STARTING, effect)
        return _not_moved_finding(project, states.get(active_branch), effect)
    entries = {entry.pod: entry for entry in project.proxies}
    late = laggards(route, pods, project.proxies)
    if not any(pod.ready for pod in pods):
        return Finding(
            Reason.PROXY_NOT_READY,
            f"no proxy of project {project.name} is ready; the connection string does not answer; "
            "see the pods of its Deployment",
        )
    if late:
        return Finding(
            Reason.PROXY_NOT_READY,
            f"proxy {late[0]} has not taken the route to {active_branch} yet; "
            "a session may still reach another branch",
        )
    if any(entries[pod.name].draining for pod in pods if pod.name in entries):
        text = f"new sessions reach {active_branch}; sessions on other branches drain or are kept"
        return Finding(Reason.DRAINING, text)
    return Finding(Reason.ROUTED, f"every new session reaches {active_branch}")


def _not_moved_finding(project: Project, state: TargetState | None, effect: str) -> Finding:
    """Return why the route has not moved to the active branch, whose state is `state` (None: it is in no route)."""
    name, subject = project.active_branch, f"branch {project.active_branch}"
    if state is None:
        text = f'activeBranch "{name}" does not exist in project {project.name}; {effect}; name one that does'
        return Finding(Reason.BRANCH_NOT_FOUND, text)
    if state == TargetState.DELETING:
        text = f"{subject} is being deleted; {effect}; name another as activeBranch"
        return Finding(Reason.BRANCH_DELETING, text)
    if state == TargetState.STOPPED:
        return Finding(Reason.BRANCH_STOPPED, f"{subject} is stopped; {effect}; resume it")
    return Finding(Reason.BRANCH_NOT_READY, f"{subject} is not ready yet; {effect}; it moves by itself")
