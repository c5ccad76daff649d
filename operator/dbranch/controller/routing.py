"""`status.routes`, `status.route` and the condition Routed of a project. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from dbranch.api import names
from dbranch.api.branch import Branch, should_run
from dbranch.api.conditions import MESSAGE_LIMIT, Finding, Reason, clip
from dbranch.api.enums import TargetState
from dbranch.api.project import Project, ProxyEntry, Route, Target
from dbranch.controller.proxy_pods import ProxyPod

# Which targets of too many are left out last.
_LEFT_OUT_LAST: Final = (TargetState.READY, TargetState.STARTING, TargetState.DELETING, TargetState.STOPPED)


def target_of(project: Project, branch: Branch) -> Target | None:
    """Return a branch's entry in `status.routes`; None if the branch is not bound, and so never had one."""
    if branch.node_name is None:
        return None
    if branch.deleting:
        return Target(branch.name, TargetState.DELETING)
    if not should_run(project, branch):
        return Target(branch.name, TargetState.STOPPED)
    node = branch.node
    if node.postgres and node.postgres.admits and node.address and node.port:
        return Target(branch.name, TargetState.READY, node.address, node.port)
    return Target(branch.name, TargetState.STARTING)


def targets_of(project: Project, branches: Iterable[Branch]) -> tuple[Target, ...]:
    """Return `status.routes`, sorted by branch.

    No more than fit: stopped branches are left out first, of which a proxy needs to know nothing to serve the others.
    """
    targets = [target for branch in branches if (target := target_of(project, branch))]
    if len(targets) > names.MAX_BRANCHES:
        routed = {project.active_branch, project.route.branch if project.route else project.active_branch}
        targets.sort(key=lambda t: (t.branch not in routed, _LEFT_OUT_LAST.index(t.state), t.branch))
        del targets[names.MAX_BRANCHES :]
    return tuple(sorted(targets, key=lambda target: target.branch))


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


def laggards(route: Route, pods: Iterable[ProxyPod], entries: Iterable[ProxyEntry]) -> tuple[str, ...]:
    """Return the names of the proxy pods that may obey an older route, as far as `status.proxies` knows.

    A pod that has no entry and is not Ready serves nobody: its container has not run yet, or has taken its entry away
    as the last thing it did. A proxy reads the project before it serves, and writes its entry at once.
    """
    acknowledged = {entry.pod: entry.generation for entry in entries}
    serving = (pod.name for pod in pods if not pod.has_ended and (pod.ready or pod.name in acknowledged))
    return tuple(sorted(name for name in serving if acknowledged.get(name, -1) < route.generation))


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
        trouble = next((pod.trouble for pod in pods if pod.trouble), None)
        return no_proxy_finding(project, trouble)
    if late:
        is_ready = any(pod.ready for pod in pods if pod.name == late[0])
        command = f"kubectl delete pod {late[0]} -n {project.namespace} --force"
        return Finding(
            Reason.PROXY_NOT_READY,
            f"proxy {late[0]} has not taken the route to {active_branch} yet; "
            "a session may still reach another branch"
            + ("" if is_ready else f"; if its node is lost: {command}"),
        )
    if any(entries[pod.name].draining for pod in pods if pod.name in entries):
        text = f"new sessions reach {active_branch}; sessions on other branches drain or are kept"
        return Finding(Reason.DRAINING, text)
    return Finding(Reason.ROUTED, f"every new session reaches {active_branch}")


def no_proxy_finding(project: Project, cause: str | None) -> Finding:
    """Return the finding of Routed while no proxy is Ready. `cause`: in words, where it is known."""
    subject = f"no proxy of project {project.name} is ready"
    effect = "; the connection string does not answer; see the Deployment's pods"
    cause = f": {cause}" if cause else ""
    room = MESSAGE_LIMIT - len(subject) - len(effect)
    return Finding(
        Reason.PROXY_NOT_READY,
        clip(subject + (cause if len(cause) <= room else cause[: room - 1] + "…") + effect),
    )


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
