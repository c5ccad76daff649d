"""What a proxy needs of its project's DBBranches, and the table that project and branches make together. Pure.

The two are read by two watches, so a switch may be read before the branch that it leads to, or after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from dbranch.api import names
from dbranch.api.branch import BranchRoute, parse_acknowledgements, parse_branch_route
from dbranch.api.enums import TargetState
from dbranch.api.errors import InvalidInput
from dbranch.api.project import RouteTarget, Target
from dbranch.proxy.project import ProxyProject
from dbranch.proxy.routes import Table


@dataclass(frozen=True)
class ProxyBranch:
    """A DBBranch. `acknowledged`: the generation of the route in each pod's entry of its `status.proxies`."""

    name: str
    object_name: str
    uid: str
    route: BranchRoute | None
    acknowledged: Mapping[str, int]

    @cached_property
    def target(self) -> Target | None:
        """Where the branch is reached; None if its controller has not said so."""
        route = self.route
        return Target(self.name, route.state, route.address, route.port) if route else None

    @property
    def restoring(self) -> bool:
        """True if new sessions wait for the end of a restore."""
        return bool(self.route and self.route.restore and self.route.state == TargetState.STARTING)

    def awaited_acknowledgement(self) -> int | None:
        """Return the generation of the route that each proxy has to acknowledge; None if nothing waits for it."""
        if self.route and (self.route.state == TargetState.DELETING or self.restoring):
            return self.route.generation
        return None


def read_branch(body: Mapping[str, Any]) -> ProxyBranch:
    """Read a DBBranch. Raise InvalidInput if its name, UID or project cannot be read."""
    try:
        object_name, uid = str(body["metadata"]["name"]), str(body["metadata"]["uid"])
        name = names.branch_name(str(body["spec"]["project"]), object_name)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"a branch of the project cannot be read: {error!r}") from error
    status = body.get("status")
    status = status if isinstance(status, Mapping) else {}
    acknowledged = {entry.pod: entry.generation for entry in parse_acknowledgements(status.get("proxies"))}
    return ProxyBranch(name, object_name, uid, parse_branch_route(status.get("route")), acknowledged)


def is_older(branch: ProxyBranch, current: ProxyBranch | None) -> bool:
    """Return True if the branch is an earlier state of the same object: a lagging API server undoes nothing."""
    if current is None or current.uid != branch.uid or current.route is None:
        return False
    return branch.route is None or branch.route.generation < current.route.generation


def with_last_address(branch: ProxyBranch, current: ProxyBranch | None) -> ProxyBranch:
    """Return a branch that is being restored with the address that its route had before, if it has none now.

    No session is sent there, but there are the open ones, and a cancel may be of one that another proxy has.
    """
    route, last = branch.route, current.route if current and current.uid == branch.uid else None
    if route is None or last is None or route.address or not branch.restoring:
        return branch
    return replace(branch, route=replace(route, address=last.address, port=last.port))


def compose(project: ProxyProject, branches: Mapping[str, ProxyBranch], seen_generation: int = 0) -> Table:
    """Return the table of a project with its branches (by the names of their objects).

    `seen_generation`: the highest of the project's route for which `Table.is_active_seen` was True.

    While the project has a table of its own, that counts, since the controller may be of release 0.1.0 and not write
    the branches' routes; but a branch whose own route says Deleting, or names a restore, gets no session. Otherwise
    the active branch is Starting, so that new sessions wait, until it was read as of the switch.
    """
    routed = {branch.name: branch.target for branch in branches.values() if branch.target}
    restoring = frozenset(branch.name for branch in branches.values() if branch.restoring)
    table = replace(project.table, restoring=restoring)
    if project.has_targets:
        deleting = {name: target for name, target in routed.items() if target.state == TargetState.DELETING}
        return replace(table, targets={**table.targets, **deleting})
    active = table.active
    if active is None or table.generation <= seen_generation:
        return replace(table, targets=routed)
    branch = branches.get(names.branch_object_name(table.project, active))
    if _is_as_switched_to(branch, project.switched_to):
        return replace(table, targets=routed)
    if active in routed:
        routed[active] = Target(active, TargetState.STARTING)
    return replace(table, targets=routed, is_active_seen=False)


def _is_as_switched_to(branch: ProxyBranch | None, named: RouteTarget | None) -> bool:
    """Return True if the branch is the one that the switch names, in that state or a later one."""
    if branch is None or branch.route is None:
        return False
    return named is None or (named.uid == branch.uid and named.generation <= branch.route.generation)
