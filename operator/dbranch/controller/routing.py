"""`status.route` of branches and projects, the condition Routed, and which proxies obey. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Final

from dbranch.api import names
from dbranch.api.branch import Branch, BranchRoute, should_run
from dbranch.api.conditions import MESSAGE_LIMIT, Finding, Reason, clip
from dbranch.api.enums import NodeRestoreState, RestoreState, TargetState
from dbranch.api.project import Project, ProxyEntry, Route, RouteTarget, Target
from dbranch.controller.proxy_pods import ProxyPod

# Which targets of too many are left out last.
_LEFT_OUT_LAST: Final = (TargetState.READY, TargetState.STARTING, TargetState.DELETING, TargetState.STOPPED)


def exchanging(project: Project, branch: Branch) -> str | None:
    """Return the UID of the restore that exchanges the branch's data now; None if none does.

    That is from the moment that its new data is prepared until the agent says that it has it, or keeps the old: then
    nobody is to reach it. A branch that does not run has no sessions to hold.
    """
    order, answer = branch.restore, branch.node.restore
    if order is None or answer is None or answer.uid != order.uid:
        return None
    if branch.deleting or not should_run(project, branch):
        return None
    is_prepared = answer.state == NodeRestoreState.PREPARED
    if order.state == RestoreState.PREPARING:
        return order.uid if is_prepared and not branch.protected else None
    is_switching = order.state == RestoreState.SWITCHING
    return order.uid if is_switching and (is_prepared or answer.state == NodeRestoreState.PREPARING) else None


def target_of(project: Project, branch: Branch) -> Target | None:
    """Return where a branch is reached; None if the branch is not bound, and so never was."""
    if branch.node_name is None:
        return None
    if branch.deleting:
        return Target(branch.name, TargetState.DELETING)
    if not should_run(project, branch):
        return Target(branch.name, TargetState.STOPPED)
    if exchanging(project, branch):
        return Target(branch.name, TargetState.STARTING)
    node = branch.node
    if node.postgres and node.postgres.admits and node.address and node.port:
        return Target(branch.name, TargetState.READY, node.address, node.port)
    return Target(branch.name, TargetState.STARTING)


def targets_of(project: Project, branches: Iterable[Branch]) -> tuple[Target, ...]:
    """Return where the branches are reached, sorted by branch."""
    targets = (target for branch in branches if (target := target_of(project, branch)))
    return tuple(sorted(targets, key=lambda target: target.branch))


def plan_branch_route(project: Project, branch: Branch) -> BranchRoute | None:
    """Return the desired `status.route` of a branch: the reported one, or one of the next generation."""
    target, current = target_of(project, branch), branch.route
    if target is None:
        return current
    desired = BranchRoute(
        current.generation if current else 0,
        target.state,
        target.address,
        target.port,
        exchanging(project, branch),
    )
    return current if desired == current else replace(desired, generation=desired.generation + 1)


def needs_table(project: Project, branches: Iterable[Branch]) -> bool:
    """Return True if a proxy of the project needs `status.routes`.

    One of release 0.1.0 does; and every one while branches that 0.1.0 has bound have no route of their own yet, since
    a proxy takes a branch that is in no table for deleted.
    """
    if not all(entry.follows_branches for entry in project.proxies):
        return True
    return bool(project.routes) and any(b.node_name is not None and b.route is None for b in branches)


def table_of(project: Project, all_targets: Iterable[Target]) -> tuple[Target, ...]:
    """Return `status.routes`, sorted by branch.

    No more than fit: stopped branches are left out first, of which a proxy needs to know nothing to serve the others.
    """
    targets = list(all_targets)
    if len(targets) > names.MAX_BRANCHES:
        routed = {project.active_branch, project.route.branch if project.route else project.active_branch}
        targets.sort(key=lambda t: (t.branch not in routed, _LEFT_OUT_LAST.index(t.state), t.branch))
        del targets[names.MAX_BRANCHES :]
    return tuple(sorted(targets, key=lambda target: target.branch))


def plan_route(project: Project, branches: Collection[Branch]) -> Route | None:
    """Return the desired `status.route` of a project; None while there never was one.

    It moves only to a branch whose own `status.route` says Ready, and names that: a proxy may read the two in any
    order. A branch made again under the name of the active one is a switch, too.
    """
    current = project.route
    target = next((_switch_target(project, b) for b in branches if b.name == project.active_branch), None)
    if current is None:
        return Route(1, project.active_branch, target) if target else None
    is_same_object = current.target is None or target is None or current.target.uid == target.uid
    if target and (project.active_branch != current.branch or not is_same_object):
        return Route(current.generation + 1, project.active_branch, target)
    if needs_table(project, branches) and _newly_deleting(project, branches):
        # A proxy of release 0.1.0 acknowledges nothing else.
        return replace(current, generation=current.generation + 1)
    return current


def _switch_target(project: Project, branch: Branch) -> RouteTarget | None:
    """Return what a switch to the branch names; None if it is not Ready."""
    route = branch.route
    if route is None or route.state != TargetState.READY or plan_branch_route(project, branch) != route:
        return None
    return RouteTarget(branch.uid, route.generation)


def _newly_deleting(project: Project, branches: Iterable[Branch]) -> set[str]:
    """Return the branches that `status.routes` has, and not as Deleting yet, though they are being deleted."""
    reported = {t.branch for t in project.routes if t.state == TargetState.DELETING}
    return {b.name for b in branches if b.deleting and b.node_name is not None} - reported


def laggards(route: Route, pods: Iterable[ProxyPod], entries: Iterable[ProxyEntry]) -> tuple[str, ...]:
    """Return the names of the proxy pods that may obey an older route, as far as `status.proxies` knows.

    A pod that has no entry and is not Ready serves nobody: its container has not run yet, or has taken its entry away
    as the last thing it did. A proxy reads the project before it serves, and writes its entry at once.
    """
    acknowledged = {entry.pod: entry.generation for entry in entries}
    serving = (pod.name for pod in pods if not pod.has_ended and (pod.ready or pod.name in acknowledged))
    return tuple(sorted(name for name in serving if acknowledged.get(name, -1) < route.generation))


def is_withdrawn(project: Project, branch: Branch, pods: Iterable[ProxyPod]) -> bool:
    """Return True if no proxy sends a session to a branch that is being deleted, or has one there.

    Each proxy acknowledges the generation of the branch's route; one of release 0.1.0 that of the project's.
    """
    pods = tuple(pods)
    if branch.node_name is None or not (project.proxies or pods):
        return True
    if branch.route is None or branch.route.state != TargetState.DELETING:
        return False
    terminated = {pod.name for pod in pods if pod.has_ended}
    acknowledged = {entry.pod: entry.generation for entry in branch.proxies}
    target = next((t for t in project.routes if t.branch == branch.name), None)
    in_table = target is None or target.state == TargetState.DELETING

    def obeys(entry: ProxyEntry) -> bool:
        if entry.follows_branches:
            return branch.route is not None and acknowledged.get(entry.pod, 0) >= branch.route.generation
        return in_table and (project.route is None or entry.generation >= project.route.generation)

    return all(obeys(entry) for entry in project.proxies if entry.pod not in terminated)


def is_held(project: Project, branch: Branch, pods: Iterable[ProxyPod]) -> bool:
    """Return True if the branch's data is being exchanged, and no proxy sends it a session.

    A proxy that cannot hold sessions is not waited for: it takes the branch for one that starts.
    """
    route = branch.route
    if route is None or route.restore is None:
        return False
    terminated = {pod.name for pod in pods if pod.has_ended}
    acknowledged = {entry.pod: entry.generation for entry in branch.proxies}
    return all(
        acknowledged.get(entry.pod, 0) >= route.generation
        for entry in project.proxies
        if entry.holds_for_restores and entry.pod not in terminated
    )


def service_addresses(
    project: Project, branch: Branch, route: BranchRoute | None, pods: Iterable[ProxyPod]
) -> tuple[str, ...]:
    """Return the addresses that the branch's own Service leads to, with the `route` that is desired.

    While the branch's data is exchanged that is the proxies', which hold who comes; its Postgres before they do.
    """
    if route is not None and route.restore is not None:
        if route != branch.route or not is_held(project, branch, pods):
            return (branch.node.address,) if branch.node.address else ()
        holding = {entry.pod for entry in project.proxies if entry.holds_for_restores}
        held = [address for pod in pods if pod.ready and pod.name in holding for address in pod.addresses]
        return tuple(sorted(held))
    is_reached = route is not None and route.state == TargetState.READY and route.address
    return (route.address,) if route is not None and is_reached and route.address else ()


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
