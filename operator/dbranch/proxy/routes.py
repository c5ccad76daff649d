"""Routing decisions: which backend a new session gets, and what a change of the routes means to an open one. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dbranch.api import names
from dbranch.api.enums import OnSwitch, TargetState
from dbranch.api.project import Target
from dbranch.api.proxy_spec import ProxyLimits
from dbranch.proxy import sqlstate

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Table:
    """The routing table: what a DBProject says that concerns its proxy. Times are in seconds.

    `generation` is that of `status.route` (0: no route yet); `targets` maps branch names to where they are reached.
    `restoring` names those whose data is being exchanged by a restore. `is_active_seen`: the active branch was read
    as of the switch to it. `deleted`: the project no longer exists.
    `trusted_proxies`: who has to send a PROXY header under `proxy_protocol`, and nobody else may; None: everybody has
    to.
    """

    project: str
    uid: str = ""
    generation: int = 0
    active: str | None = None
    targets: Mapping[str, Target] = field(default_factory=dict)
    on_switch: OnSwitch = OnSwitch.TERMINATE
    drain_timeout: float = 60.0
    start_timeout: float = 30.0
    tls_required: bool = False
    deleted: bool = False
    handshake_timeout: float = 30.0
    proxy_protocol: bool = False
    trusted_proxies: tuple[Network, ...] | None = None
    limits: ProxyLimits = field(default_factory=ProxyLimits)
    is_active_seen: bool = True
    restoring: frozenset[str] = frozenset()

    @property
    def obeyed_generation(self) -> int:
        """The generation to acknowledge: the one before, while new sessions wait for the branch of this one."""
        return self.generation if self.is_active_seen else max(self.generation - 1, 0)


# Decisions about a new session


@dataclass(frozen=True)
class Dial:
    """Connect the session to this backend."""

    branch: str
    address: str
    port: int


@dataclass(frozen=True)
class Wait:
    """Decide again after the next change of the table. `awaited` completes "waited 30 s for ..."."""

    awaited: str


@dataclass(frozen=True)
class Reject:
    """End the connection with this ErrorResponse. `reason` is its label in `rejections_total`."""

    sqlstate: str
    message: str
    hint: str = ""
    reason: str = ""


Decision = Dial | Wait | Reject


@dataclass(frozen=True)
class Backend:
    """The backend of a session: a branch's pod.

    `requested`: the client named this branch, so a switch does not affect the session.
    """

    branch: str
    address: str
    port: int
    requested: bool


# Fates of an open session


@dataclass(frozen=True)
class Stay:
    """The session continues."""


@dataclass(frozen=True)
class End:
    """The session ends at the next message boundary."""

    message: str
    hint: str = ""


@dataclass(frozen=True)
class Drain:
    """The session ends with its transaction, or like End after `timeout` seconds."""

    timeout: float
    message: str
    hint: str = ""


Fate = Stay | End | Drain


def may_replace(current: Table | None, table: Table) -> bool:
    """Return False if `table` is older than `current`: a lagging API server must not undo a switch."""
    return (
        current is None
        or current.deleted
        or table.uid != current.uid
        or table.generation >= current.generation
    )


def decide(table: Table, requested_branch: str | None) -> Decision:
    """Return what to do with a new session whose client names `requested_branch` (None: the active branch)."""
    if table.deleted:
        return Reject(sqlstate.ADMIN_SHUTDOWN, f"project {table.project} is deleted", reason="deleted")
    branch = requested_branch or table.active
    if branch is None:
        return Wait(f"project {table.project} to have an active branch")
    target = table.targets.get(branch)
    if target is None:
        if not requested_branch:
            return Wait(f'branch "{branch}" of project {table.project} to be reachable')
        existing = ", ".join(sorted(table.targets)) or "none yet"
        return Reject(
            sqlstate.INVALID_CATALOG_NAME,
            f'branch "{branch}" does not exist in project {table.project}',
            f"Branches that exist: {existing}.",
            "unknown_branch",
        )
    if target.state == TargetState.STOPPED:
        return Reject(
            sqlstate.CANNOT_CONNECT_NOW,
            f'branch "{branch}" of project {table.project} is stopped',
            f'Resume it with "dbranch resume {branch}", or set spec.state of DBBranch '
            f"{names.branch_object_name(table.project, branch)} to Running.",
            "stopped",
        )
    if target.state == TargetState.DELETING:
        message = f'branch "{branch}" of project {table.project} is being deleted'
        return Reject(sqlstate.ADMIN_SHUTDOWN, message, reason="deleted")
    if branch in table.restoring:
        return Wait(f'the restore of branch "{branch}" of project {table.project} to end')
    if target.state != TargetState.READY or not target.address or not target.port:
        return Wait(f'branch "{branch}" of project {table.project} to start')
    return Dial(branch, target.address, target.port)


def check_session_limits(table: Table, sessions: int, address: str, address_sessions: int) -> Reject | None:
    """Return a Reject if a new session from `address` exceeds a limit of the proxy pod.

    `sessions` counts the pod's sessions, `address_sessions` those of them from `address`.
    """
    limits = table.limits
    if sessions >= limits.sessions:
        message = (
            f"too many sessions: this proxy of project {table.project} has {sessions} sessions; "
            f"the limit is {limits.sessions}"
        )
        return Reject(sqlstate.TOO_MANY_CONNECTIONS, message, _limits_hint(table), "limit_sessions")
    if limits.sessions_per_address is not None and address_sessions >= limits.sessions_per_address:
        message = (
            f"too many sessions: {address} has {address_sessions} sessions on this proxy; "
            f"the limit per address is {limits.sessions_per_address}"
        )
        return Reject(sqlstate.TOO_MANY_CONNECTIONS, message, _limits_hint(table), "limit_address")
    return None


def check_branch_limit(table: Table, branch: str, branch_sessions: int) -> Reject | None:
    """Return a Reject if a new session on `branch`, which has `branch_sessions`, exceeds the limit."""
    limit = table.limits.sessions_per_branch
    if limit is None or branch_sessions < limit:
        return None
    message = (
        f'too many sessions: branch "{branch}" has {branch_sessions} sessions on this proxy; '
        f"the limit per branch is {limit}"
    )
    return Reject(sqlstate.TOO_MANY_CONNECTIONS, message, _limits_hint(table), "limit_branch")


def _limits_hint(table: Table) -> str:
    return f"Close some, or raise spec.proxy.limits of DBProject {table.project}."


def cancel_candidates(
    table: Table, branches_with_sessions: Sequence[str], limit: int, own_branch: str | None = None
) -> list[Backend]:
    """Return at most `limit` backends that may own a cancel key unknown to this pod.

    Another replica of the proxy may have the key's session. The active branch comes first, then
    `branches_with_sessions` (those with sessions on this pod), then the other branches; but what comes to
    `own_branch`'s own port is for that one alone.
    """
    first = [table.active] if table.active else []
    order = dict.fromkeys([*first, *branches_with_sessions, *sorted(table.targets)])
    if own_branch is not None:
        order = {own_branch: None}
    targets = (table.targets[b] for b in order if b in table.targets)
    backends = [
        Backend(t.branch, t.address, t.port, requested=False) for t in targets if t.address and t.port
    ]
    return backends[:limit]


def check_handshake_limit(table: Table, host: str, handshakes: int) -> Reject | None:
    """Return the rejection if the client's address has as many connections in handshake as it may have."""
    limit = table.limits.handshakes_per_address
    if limit is None or handshakes < limit:
        return None
    return Reject(
        sqlstate.TOO_MANY_CONNECTIONS,
        f"{host} has {handshakes} connections that are not logged in on this proxy; the limit per address is {limit}",
        "Connect again later.",
        reason="limit_handshakes",
    )


def expects_header(table: Table, host: str) -> bool:
    """Return True if a connection from this address has to begin with a PROXY header.

    >>> table = Table("shop", proxy_protocol=True, trusted_proxies=(ipaddress.ip_network("10.0.0.0/24"),))
    >>> expects_header(table, "10.0.0.9"), expects_header(table, "10.0.1.9"), expects_header(table, "[fd00::9]")
    (True, False, False)
    """
    if not table.proxy_protocol or table.trusted_proxies is None:
        return table.proxy_protocol
    address = ipaddress.ip_address(host.strip("[]")) if host else None
    return address is not None and any(address in network for network in table.trusted_proxies)


def is_still_routed(table: Table, backend: Backend) -> bool:
    """Return True if a new session of the same client would be sent to `backend`."""
    decision = decide(table, backend.branch if backend.requested else None)
    return decision == Dial(backend.branch, backend.address, backend.port)


def decide_fate(table: Table, backend: Backend, greeted: bool = True) -> Fate:
    """Return what a session on `backend` has to do under `table`; each new table replaces the last fate.

    `greeted`: Postgres has let the client in. A client that is still logging in counts as new: a switch ends
    its session whatever `onSwitch` says, else it would reach the old branch after the switch; and so does a restore,
    which leaves all others to Postgres.
    """
    target = table.targets.get(backend.branch)
    branch = f'branch "{backend.branch}" of project {table.project}'
    if table.deleted or target is None or target.state == TargetState.DELETING:
        return End(f"terminating connection: {branch} is deleted")
    if backend.branch in table.restoring and not greeted:
        return End(f"terminating connection: {branch} is being restored", "Connect again.")
    moved = (target.address, target.port) != (backend.address, backend.port)
    if target.state == TargetState.READY and target.address and moved:
        return End(f"terminating connection: {branch} was restarted", "Connect again.")
    if backend.requested or table.active in (None, backend.branch):
        return Stay()
    if greeted and table.on_switch == OnSwitch.KEEP:
        return Stay()
    message = f'terminating connection: project {table.project} was switched to branch "{table.active}"'
    hint = "Connect again to reach it."
    if greeted and table.on_switch == OnSwitch.DRAIN:
        return Drain(table.drain_timeout, message, hint)
    return End(message, hint)
