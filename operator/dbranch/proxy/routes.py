"""Where a session goes, and what a change of the routes means to one: decisions only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dbranch.api import names
from dbranch.api.enums import OnSwitch, ProxyProtocol, TargetState, TlsMode
from dbranch.api.project import Project, ProxyLimits, Target

SHUTDOWN = "57P01"
CANNOT_CONNECT_NOW = "57P03"
NO_SUCH_BRANCH = "3D000"
TOO_MANY = "53300"


@dataclass(frozen=True)
class Table:
    """What the proxy obeys. `generation` is that of `status.route` (0: none yet); times in seconds.

    `gone`: the project is deleted.
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
    gone: bool = False
    handshake_timeout: float = 30.0
    proxy_protocol: bool = False
    limits: ProxyLimits = field(default_factory=ProxyLimits)


@dataclass(frozen=True)
class Go:
    branch: str
    address: str
    port: int


@dataclass(frozen=True)
class Wait:
    """The branch is on its way; `what` completes "waited 30 s for …"."""

    what: str


@dataclass(frozen=True)
class Reject:
    """`reason` is the word under which refusals are counted."""

    code: str
    message: str
    hint: str = ""
    reason: str = ""


Decision = Go | Wait | Reject


@dataclass(frozen=True)
class Backend:
    """Where a session is. `named`: its client asked for this branch, so a switch does not touch it."""

    branch: str
    address: str
    port: int
    named: bool


@dataclass(frozen=True)
class Stay:
    """The session goes on."""


@dataclass(frozen=True)
class End:
    """The session ends as soon as no message is under way."""

    message: str
    hint: str = ""


@dataclass(frozen=True)
class Drain:
    """The session ends with its transaction, or after `timeout` seconds as End does."""

    timeout: float
    message: str
    hint: str = ""


Fate = Stay | End | Drain


def table_of(project: Project) -> Table:
    """The table of a DBProject as the API server has it."""
    return Table(
        project=project.name,
        uid=project.uid,
        generation=project.route.generation if project.route else 0,
        active=project.route.branch if project.route else None,
        targets={t.branch: t for t in project.routes},
        on_switch=project.proxy.on_switch,
        drain_timeout=project.proxy.drain_timeout,
        start_timeout=project.proxy.start_timeout,
        tls_required=project.proxy.tls is not None and project.proxy.tls.mode == TlsMode.REQUIRED,
        handshake_timeout=project.proxy.handshake_timeout,
        proxy_protocol=project.proxy.proxy_protocol == ProxyProtocol.REQUIRED,
        limits=project.proxy.limits,
    )


def is_newer(table: Table, than: Table | None) -> bool:
    """Whether `table` may replace `than`: a server that lags must not take a switch back."""
    return than is None or than.gone or table.uid != than.uid or table.generation >= than.generation


def decide(table: Table, named: str | None) -> Decision:
    """Where a new session goes; `named` is the branch that its client asked for, if it did."""
    if table.gone:
        return Reject(SHUTDOWN, f"project {table.project} is deleted", reason="deleted")
    branch = named or table.active
    if branch is None:
        return Wait(f"project {table.project} to have an active branch")
    target = table.targets.get(branch)
    if target is None:
        if not named:
            return Wait(f'branch "{branch}" of project {table.project} to be reachable')
        there = ", ".join(sorted(table.targets)) or "none yet"
        return Reject(
            NO_SUCH_BRANCH,
            f'branch "{branch}" does not exist in project {table.project}',
            f"Branches that exist: {there}.",
            "unknown_branch",
        )
    if target.state == TargetState.STOPPED:
        return Reject(
            CANNOT_CONNECT_NOW,
            f'branch "{branch}" of project {table.project} is stopped',
            f'Resume it with "dbranch resume {branch}", or set spec.state of DBBranch '
            f"{names.branch_object_name(table.project, branch)} to Running.",
            "stopped",
        )
    if target.state == TargetState.DELETING:
        message = f'branch "{branch}" of project {table.project} is being deleted'
        return Reject(SHUTDOWN, message, reason="deleted")
    if target.state != TargetState.READY or not target.address or not target.port:
        return Wait(f'branch "{branch}" of project {table.project} to start')
    return Go(branch, target.address, target.port)


def reject_session(table: Table, sessions: int, address: str, of_address: int) -> Reject | None:
    """Whether one more session from `address` is too many beside those that are there."""
    limits = table.limits
    if sessions >= limits.sessions:
        text = f"this proxy of project {table.project} has {sessions} sessions, as many as it takes"
        return Reject(TOO_MANY, text, _see_limits(table), "limit_sessions")
    if limits.sessions_per_address is not None and of_address >= limits.sessions_per_address:
        text = f"{address} has {of_address} sessions, as many as this proxy takes of one address"
        return Reject(TOO_MANY, text, _see_limits(table), "limit_address")
    return None


def reject_branch(table: Table, branch: str, of_branch: int) -> Reject | None:
    """Whether one more session on `branch` is too many."""
    most = table.limits.sessions_per_branch
    if most is None or of_branch < most:
        return None
    text = f'branch "{branch}" has {of_branch} sessions, as many as this proxy takes of one branch'
    return Reject(TOO_MANY, text, _see_limits(table), "limit_branch")


def _see_limits(table: Table) -> str:
    return f"Close some, or raise spec.proxy.limits of DBProject {table.project}."


def cancel_candidates(table: Table, known: Sequence[str], most: int) -> list[Backend]:
    """Where a cancel whose key is not known here may belong: a replica of the proxy may have its session.

    The active branch first, then those of `known` (where sessions are here), then the others; at most `most`.
    """
    first = [table.active] if table.active else []
    order = dict.fromkeys([*first, *known, *sorted(table.targets)])
    there = (table.targets[b] for b in order if b in table.targets)
    places = [Backend(t.branch, t.address, t.port, named=False) for t in there if t.address and t.port]
    return places[:most]


def still_leads(table: Table, place: Backend) -> bool:
    """Whether a client that asks now would be sent to `place`."""
    go = decide(table, place.branch if place.named else None)
    return go == Go(place.branch, place.address, place.port)


def decide_fate(table: Table, place: Backend, greeted: bool = True) -> Fate:
    """What a session at `place` has to do under `table`. Asked at each change; an older answer is void.

    `greeted`: its client has been let in. One that is still on the way counts as new: it ends at a
    switch whatever `onSwitch` says, or it would reach the old branch after the switch.
    """
    target = table.targets.get(place.branch)
    where = f'branch "{place.branch}" of project {table.project}'
    if table.gone or target is None or target.state == TargetState.DELETING:
        return End(f"terminating connection: {where} is deleted")
    elsewhere = (target.address, target.port) != (place.address, place.port)
    if target.state == TargetState.READY and target.address and elsewhere:
        return End(f"terminating connection: {where} was restarted", "Connect again.")
    if place.named or table.active in (None, place.branch):
        return Stay()
    if greeted and table.on_switch == OnSwitch.KEEP:
        return Stay()
    message = f'terminating connection: project {table.project} was switched to branch "{table.active}"'
    hint = "Connect again to reach it."
    if greeted and table.on_switch == OnSwitch.DRAIN:
        return Drain(table.drain_timeout, message, hint)
    return End(message, hint)
