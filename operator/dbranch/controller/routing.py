"""Where each branch is reached, which one is active, and whether every proxy obeys. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dbranch.api.branch import Branch, should_run
from dbranch.api.conditions import Condition, Finding, Reason, find_condition
from dbranch.api.enums import ConditionStatus, TargetState
from dbranch.api.project import Project, ProxyEntry, Route, Target


def target_of(project: Project, branch: Branch) -> Target | None:
    """A branch's entry in `status.routes`; None for one that nothing was made of."""
    if branch.deleting:
        return Target(branch.name, TargetState.DELETING)
    if branch.node_name is None:
        return None
    if not should_run(project, branch):
        return Target(branch.name, TargetState.STOPPED)
    node = branch.node
    if node.postgres and node.postgres.done and node.address and node.port:
        return Target(branch.name, TargetState.READY, node.address, node.port)
    return Target(branch.name, TargetState.STARTING)


def targets_of(project: Project, branches: Iterable[Branch]) -> tuple[Target, ...]:
    """`status.routes`, by branch."""
    found = (target_of(project, branch) for branch in branches)
    return tuple(sorted((t for t in found if t), key=lambda t: t.branch))


def plan_route(project: Project, targets: Sequence[Target]) -> Route | None:
    """`status.route`: moved only to a branch that is Ready, with a new generation at each change.

    A branch that begins to be deleted makes a new generation too: its deletion waits until no proxy sends
    anybody there.
    """
    ready = {t.branch for t in targets if t.state == TargetState.READY}
    now, wanted = project.route, project.active_branch
    before = {t.branch for t in project.routes if t.state == TargetState.DELETING}
    leaving = {t.branch for t in targets if t.state == TargetState.DELETING} - before
    branch = wanted if wanted in ready or now is None else now.branch
    if now is None:
        return Route(1, branch) if branch in ready else None
    if branch != now.branch or leaving:
        return Route(now.generation + 1, branch)
    return now


@dataclass(frozen=True)
class ProxyPod:
    """A proxy's pod that exists, also while it is Terminating."""

    name: str
    ready: bool


def laggards(route: Route, pods: Iterable[ProxyPod], entries: Iterable[ProxyEntry]) -> tuple[str, ...]:
    """The proxy pods that do not say yet that they obey the route."""
    said = {entry.pod: entry.generation for entry in entries}
    return tuple(sorted(pod.name for pod in pods if said.get(pod.name, -1) < route.generation))


def needs_reconcile(project: Project, pod: ProxyPod) -> bool:
    """Whether the project would say something else of Routed now that this proxy pod is so."""
    route, told = project.route, find_condition(project.status, Condition.ROUTED) or {}
    obeys = route is not None and not laggards(route, (pod,), project.proxies)
    return not (pod.ready and obeys and told.get("status") == ConditionStatus.TRUE)


def routed_finding(
    project: Project, route: Route | None, targets: Sequence[Target], pods: Sequence[ProxyPod]
) -> Finding:
    """The condition Routed: whether every new session reaches the branch that `activeBranch` names."""
    wanted, states = project.active_branch, {t.branch: t.state for t in targets}
    if route is None or route.branch != wanted:
        stays = (
            f"new sessions still reach {route.branch}"
            if route
            else "the connection string does not answer yet"
        )
        return _not_moved(project, wanted, states.get(wanted), stays)
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
            f"proxy {late[0]} has not taken the route to {wanted} yet; a session may still reach another branch",
        )
    if any(entries[pod.name].draining for pod in pods if pod.name in entries):
        text = f"new sessions reach {wanted}; sessions on other branches drain or are kept"
        return Finding(Reason.DRAINING, text)
    return Finding(Reason.ROUTED, f"every new session reaches {wanted}")


def _not_moved(project: Project, wanted: str, state: str | None, stays: str) -> Finding:
    who = f"branch {wanted}"
    if state is None:
        text = (
            f'activeBranch "{wanted}" does not exist in project {project.name}; {stays}; name one that does'
        )
        return Finding(Reason.BRANCH_NOT_FOUND, text)
    if state == TargetState.DELETING:
        return Finding(
            Reason.BRANCH_DELETING, f"{who} is being deleted; {stays}; name another as activeBranch"
        )
    if state == TargetState.STOPPED:
        return Finding(Reason.BRANCH_STOPPED, f"{who} is stopped; {stays}; resume it")
    return Finding(Reason.BRANCH_NOT_READY, f"{who} is not ready yet; {stays}; it moves by itself")
