"""A DBProject as frozen dataclasses, parsed from the API server's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from dbranch.api import names
from dbranch.api.conditions import Finding
from dbranch.api.enums import (
    DeletionPolicy,
    LocaleProvider,
    OnSwitch,
    Protection,
    ProxyProtocol,
    ServiceType,
    State,
    TargetState,
    TlsMode,
)
from dbranch.api.errors import InvalidInput
from dbranch.api.owners import foreign_owners
from dbranch.api.quantity import parse_bytes


@dataclass(frozen=True)
class SecretKey:
    name: str
    key: str = "password"


@dataclass(frozen=True)
class Initdb:
    """`spec.postgres.initdb`: what initdb is given; None: the script's default (initdb.sh)."""

    locale: str | None = None
    encoding: str | None = None
    provider: LocaleProvider | None = None
    args: tuple[str, ...] = ()


@dataclass(frozen=True)
class Postgres:
    """`spec.postgres`: the image and UID that Postgres runs with, and what is created with the project.

    `user`: the application's role, which owns `database`; it is no superuser unless it is names.SUPERUSER.
    """

    image: str = "postgres:17"
    run_as_user: int = 999
    user: str = "app"
    database: str = "dbranch"
    initdb: Initdb = field(default_factory=Initdb)
    password_secret: SecretKey | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)
    image_pull_secrets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tls:
    secret_name: str
    mode: TlsMode = TlsMode.OPTIONAL


@dataclass(frozen=True)
class ProxyLimits:
    """`spec.proxy.limits`: how many sessions each proxy pod admits; None: no limit."""

    sessions: int = 1000
    sessions_per_address: int | None = None
    sessions_per_branch: int | None = None


@dataclass(frozen=True)
class Proxy:
    """`spec.proxy`. Timeouts are in seconds."""

    replicas: int = 1
    port: int = names.POSTGRES_PORT
    service_type: ServiceType = ServiceType.CLUSTER_IP
    on_switch: OnSwitch = OnSwitch.TERMINATE
    drain_timeout: float = 60.0
    start_timeout: float = 30.0
    handshake_timeout: float = 30.0
    proxy_protocol: ProxyProtocol = ProxyProtocol.DISABLED
    limits: ProxyLimits = field(default_factory=ProxyLimits)
    tls: Tls | None = None


@dataclass(frozen=True)
class Route:
    """`status.route`: the branch that proxies must send new sessions to, and the route's generation (from 1)."""

    generation: int
    branch: str


@dataclass(frozen=True)
class Target:
    """An entry of `status.routes`: the address of a branch's pod and the port of its Postgres, None unless Ready."""

    branch: str
    state: TargetState
    address: str | None = None
    port: int | None = None


@dataclass(frozen=True)
class BranchSessions:
    """The sessions that a proxy pod has on one branch: `sessions` that stay, and `draining` that are to end."""

    branch: str
    sessions: int = 0
    draining: int = 0


@dataclass(frozen=True)
class ProxyEntry:
    """An entry of `status.proxies`, written by that proxy pod alone. `branches`: those with sessions."""

    pod: str
    generation: int
    sessions: int = 0
    draining: int = 0
    branches: tuple[BranchSessions, ...] = ()


@dataclass(frozen=True)
class ProjectNode:
    """`status.node`: what the project's agent reports of its pool. `superuser`: the role that initdb made."""

    machine_id: str | None = None
    pool_uuid: str | None = None
    initialized: bool = False
    storage: Finding | None = None
    observed_generation: int = 0
    password_version: str | None = None
    superuser: str | None = None
    image: str | None = None
    image_id: str | None = None
    image_digest: str | None = None
    postgres_version: str | None = None
    total_bytes: int | None = None
    used_bytes: int | None = None
    free_bytes: int | None = None
    host_free_bytes: int | None = None
    warm_slots: int | None = None
    slots: Finding | None = None
    deletion: Finding | None = None


@dataclass(frozen=True)
class Project:
    """A DBProject. `size` is in bytes."""

    namespace: str
    name: str
    uid: str
    generation: int = 1
    resource_version: str = ""
    deleting: bool = False
    finalizers: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    foreign_owners: tuple[str, ...] = ()
    created: str | None = None
    active_branch: str = names.ROOT_BRANCH
    state: State = State.RUNNING
    protection: Protection = Protection.DISABLED
    deletion_policy: DeletionPolicy = DeletionPolicy.DELETE
    postgres: Postgres = field(default_factory=Postgres)
    size: int = 10 * 2**30
    node_selector: Mapping[str, str] = field(default_factory=dict)
    adopt: str | None = None
    proxy: Proxy = field(default_factory=Proxy)
    node_name: str | None = None
    host: str | None = None
    password_version: str | None = None
    route: Route | None = None
    routes: tuple[Target, ...] = ()
    proxies: tuple[ProxyEntry, ...] = ()
    node: ProjectNode = field(default_factory=ProjectNode)
    status: Mapping[str, Any] = field(default_factory=dict)

    @property
    def running(self) -> bool:
        return self.state == State.RUNNING

    @property
    def superuser(self) -> str | None:
        """The superuser's role; None until the agent has reported that of data that exists already.

        The first release made `spec.postgres.user` the superuser, so a project may have no names.SUPERUSER.
        """
        if self.node.superuser or self.node.initialized or self.adopt:
            return self.node.superuser
        return names.SUPERUSER

    @property
    def keeps_pool(self) -> bool:
        """True if the pool outlives the project: also under a policy that only a newer release knows."""
        return self.deletion_policy != DeletionPolicy.DELETE


def parse_seconds(text: str | int | float) -> float:
    """Parse a duration: `60s`, `2m`, `1m30s`, `500ms` or a plain number of seconds. Raises InvalidInput.

    >>> parse_seconds("1m30s"), parse_seconds("500ms")
    (90.0, 0.5)
    """
    if isinstance(text, int | float):
        return float(text)
    if not isinstance(text, str):
        raise InvalidInput(f"{text!r} is not a duration; write it as 500ms, 60s or 2m")
    remaining, total = text, 0.0
    while remaining:
        digits = len(remaining) - len(remaining.lstrip("0123456789."))
        number, tail = remaining[:digits], remaining[digits:]
        unit = next((u for u in ("ms", "s", "m", "h") if tail.startswith(u)), "")
        if unit == "m" and tail.startswith("ms"):
            unit = "ms"
        if not number or (not unit and (tail or total)):
            raise InvalidInput(f"{text!r} is not a duration; write it as 500ms, 60s or 2m")
        try:
            total += float(number) * {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}[unit]
        except ValueError as error:
            raise InvalidInput(f"{text!r} is not a duration; write it as 500ms, 60s or 2m") from error
        remaining = tail[len(unit) :]
    return total


_ROUTE: Final = ("generation", "branch")


def _seconds(text: str | int | float | None, default: float) -> float:
    """Parse a duration; `default` for none, and for one in a form that only a newer release knows."""
    try:
        return default if text is None else parse_seconds(text)
    except InvalidInput:
        return default


def _bytes(text: str | int | None, default: int) -> int:
    """Parse a quantity; `default` for none, and for one in a form that only a newer release knows."""
    try:
        return default if text is None else parse_bytes(text)
    except InvalidInput:
        return default


def parse_project(body: Mapping[str, Any]) -> Project:
    """Parse a DBProject as the API server returns it. The schema's defaults apply here, too.

    What another release wrote stops nobody: what has an unknown form gets the default, and entries without what this
    release needs of them are left out.
    """
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    raw_pg, storage, proxy = (spec.get(k) or {} for k in ("postgres", "storage", "proxy"))
    secret, tls, route = raw_pg.get("passwordSecret"), proxy.get("tls"), status.get("route")
    base = Project("", "", "")
    return Project(
        namespace=meta.get("namespace", ""),
        name=meta["name"],
        uid=meta.get("uid", ""),
        generation=int(meta.get("generation", 1)),
        resource_version=meta.get("resourceVersion", ""),
        deleting=bool(meta.get("deletionTimestamp")),
        finalizers=tuple(meta.get("finalizers") or ()),
        annotations=dict(meta.get("annotations") or {}),
        foreign_owners=foreign_owners(meta),
        created=meta.get("creationTimestamp"),
        active_branch=spec.get("activeBranch") or names.ROOT_BRANCH,
        state=State(spec.get("state", base.state)),
        protection=Protection(spec.get("protection", base.protection)),
        deletion_policy=DeletionPolicy(spec.get("deletionPolicy", base.deletion_policy)),
        postgres=Postgres(
            image=raw_pg.get("image", base.postgres.image),
            run_as_user=int(raw_pg.get("runAsUser", base.postgres.run_as_user)),
            user=raw_pg.get("user", base.postgres.user),
            database=raw_pg.get("database", base.postgres.database),
            initdb=_parse_initdb(raw_pg.get("initdb") or {}),
            password_secret=SecretKey(secret.get("name", ""), secret.get("key", "password"))
            if secret
            else None,
            parameters=dict(raw_pg.get("parameters") or {}),
            resources=dict(raw_pg.get("resources") or {}),
            image_pull_secrets=tuple(s["name"] for s in raw_pg.get("imagePullSecrets") or () if "name" in s),
        ),
        size=_bytes(storage.get("size"), base.size),
        node_selector=dict(storage.get("nodeSelector") or {}),
        adopt=storage.get("adopt"),
        proxy=Proxy(
            replicas=int(proxy.get("replicas", base.proxy.replicas)),
            port=int(proxy.get("port", base.proxy.port)),
            service_type=ServiceType(proxy.get("serviceType", base.proxy.service_type)),
            on_switch=OnSwitch(proxy.get("onSwitch", base.proxy.on_switch)),
            drain_timeout=_seconds(proxy.get("drainTimeout"), base.proxy.drain_timeout),
            start_timeout=_seconds(proxy.get("startTimeout"), base.proxy.start_timeout),
            handshake_timeout=_seconds(proxy.get("handshakeTimeout"), base.proxy.handshake_timeout),
            proxy_protocol=ProxyProtocol(proxy.get("proxyProtocol", base.proxy.proxy_protocol)),
            limits=_parse_limits(proxy.get("limits") or {}),
            tls=Tls(tls.get("secretName", ""), TlsMode(tls.get("mode", Tls.mode))) if tls else None,
        ),
        node_name=status.get("nodeName"),
        host=status.get("host"),
        password_version=status.get("passwordVersion"),
        route=Route(int(route["generation"]), route["branch"]) if route and {*route} >= {*_ROUTE} else None,
        routes=tuple(
            Target(r["branch"], TargetState(r["state"]), r.get("address"), r.get("port"))
            for r in status.get("routes") or ()
            if "branch" in r and "state" in r
        ),
        proxies=tuple(_parse_entry(p) for p in status.get("proxies") or () if "pod" in p),
        node=_parse_node(status.get("node") or {}),
        status=status,
    )


def _parse_entry(raw: Mapping[str, Any]) -> ProxyEntry:
    return ProxyEntry(
        raw["pod"],
        int(raw.get("generation", 0)),
        int(raw.get("sessions", 0)),
        int(raw.get("draining", 0)),
        tuple(
            BranchSessions(b["branch"], int(b.get("sessions", 0)), int(b.get("draining", 0)))
            for b in raw.get("branches") or ()
            if "branch" in b
        ),
    )


def _parse_initdb(raw: Mapping[str, Any]) -> Initdb:
    provider = LocaleProvider(raw["provider"]) if raw.get("provider") else None
    return Initdb(raw.get("locale"), raw.get("encoding"), provider, tuple(raw.get("args") or ()))


def _parse_limits(raw: Mapping[str, Any]) -> ProxyLimits:
    return ProxyLimits(
        sessions=int(raw.get("sessions", ProxyLimits.sessions)),
        sessions_per_address=raw.get("sessionsPerAddress"),
        sessions_per_branch=raw.get("sessionsPerBranch"),
    )


def _parse_node(raw: Mapping[str, Any]) -> ProjectNode:
    return ProjectNode(
        machine_id=raw.get("machineID"),
        pool_uuid=raw.get("poolUUID"),
        initialized=bool(raw.get("initialized")),
        storage=Finding.from_dict(raw.get("storage")),
        observed_generation=int(raw.get("observedGeneration", 0)),
        password_version=raw.get("passwordVersion"),
        superuser=raw.get("superuser"),
        image=raw.get("image"),
        image_id=raw.get("imageID"),
        image_digest=raw.get("imageDigest"),
        postgres_version=raw.get("postgresVersion"),
        total_bytes=raw.get("totalBytes"),
        used_bytes=raw.get("usedBytes"),
        free_bytes=raw.get("freeBytes"),
        host_free_bytes=raw.get("hostFreeBytes"),
        warm_slots=raw.get("warmSlots"),
        slots=Finding.from_dict(raw.get("slots")),
        deletion=Finding.from_dict(raw.get("deletion")),
    )
