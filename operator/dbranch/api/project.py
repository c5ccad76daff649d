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
    Protection,
    State,
    TargetState,
)
from dbranch.api.errors import InvalidInput
from dbranch.api.owners import foreign_owners
from dbranch.api.proxy_spec import Proxy, parse_proxy
from dbranch.api.quantity import parse_bytes, parse_seconds


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
class UndoPolicy:
    """`spec.undo`: how long the data that a branch lost is kept, and how many copies of restores a branch has."""

    keep: str = "24h"
    copies: int = 3

    @property
    def keeps(self) -> bool:
        """True unless `keep` is no time at all. One in a form that only a newer release knows keeps."""
        try:
            return parse_seconds(self.keep) > 0
        except InvalidInput:
            return True

    @property
    def ttl(self) -> str:
        """`spec.ttl` of a copy: the default where a branch or restore keeps one though the project does not."""
        return self.keep if self.keeps else UndoPolicy.keep


@dataclass(frozen=True)
class RouteTarget:
    """`status.route.target`: the DBBranch that the switch was made to, and its `status.route.generation` then."""

    uid: str
    generation: int


@dataclass(frozen=True)
class Route:
    """`status.route`: the branch that proxies must send new sessions to, and the route's generation (from 1).

    `target` is None if release 0.1.0 made the switch.
    """

    generation: int
    branch: str
    target: RouteTarget | None = None


@dataclass(frozen=True)
class Target:
    """Where a branch is reached: the address of its pod and the port of its Postgres, None unless Ready."""

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
    """An entry of `status.proxies`, written by that proxy pod alone. `branches`: those with sessions.

    `features`: what the proxy can; none for one of release 0.1.0.
    """

    pod: str
    generation: int
    sessions: int = 0
    draining: int = 0
    branches: tuple[BranchSessions, ...] = ()
    features: tuple[str, ...] = ()

    @property
    def follows_branches(self) -> bool:
        """True if the proxy reads `status.route` of the DBBranches; otherwise it needs `status.routes`."""
        return names.PROXY_FOLLOWS_BRANCHES in self.features

    @property
    def holds_for_restores(self) -> bool:
        """True if the proxy holds new sessions while a branch's data is exchanged, and says so."""
        return names.PROXY_RESTORES in self.features


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
    """A DBProject. `size` is in bytes. `default_ttl`, `max_ttl`: of its branches.

    `kept_until`: RFC 3339; of one that is being deleted and has a record of that: so long its pool stays.
    """

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
    undo: UndoPolicy = field(default_factory=UndoPolicy)
    default_ttl: str | None = None
    max_ttl: str | None = None
    postgres: Postgres = field(default_factory=Postgres)
    size: int = 10 * 2**30
    node_selector: Mapping[str, str] = field(default_factory=dict)
    adopt: str | None = None
    proxy: Proxy = field(default_factory=Proxy)
    node_name: str | None = None
    host: str | None = None
    password_version: str | None = None
    kept_until: str | None = None
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


_ROUTE: Final = ("generation", "branch")


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
    raw_pg, storage = (spec.get(k) or {} for k in ("postgres", "storage"))
    secret, route = raw_pg.get("passwordSecret"), status.get("route")
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
        undo=_parse_undo(spec.get("undo") or {}),
        default_ttl=(spec.get("branchDefaults") or {}).get("ttl"),
        max_ttl=(spec.get("branchPolicy") or {}).get("maxTTL"),
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
        proxy=parse_proxy(spec.get("proxy") or {}),
        node_name=status.get("nodeName"),
        host=status.get("host"),
        password_version=status.get("passwordVersion"),
        kept_until=status.get("keptUntil"),
        route=_parse_route(route) if route and {*route} >= {*_ROUTE} else None,
        routes=tuple(
            Target(r["branch"], TargetState(r["state"]), r.get("address"), r.get("port"))
            for r in status.get("routes") or ()
            if "branch" in r and "state" in r
        ),
        proxies=tuple(_parse_entry(p) for p in status.get("proxies") or () if "pod" in p),
        node=_parse_node(status.get("node") or {}),
        status=status,
    )


def _parse_route(raw: Mapping[str, Any]) -> Route:
    return Route(int(raw["generation"]), raw["branch"], parse_route_target(raw.get("target")))


def parse_route_target(raw: Any) -> RouteTarget | None:
    """Parse `status.route.target`; None if it is not as this release writes it."""
    try:
        return RouteTarget(str(raw["uid"]), int(raw["generation"]))
    except (KeyError, TypeError, ValueError):
        return None


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
        tuple(map(str, raw.get("features") or ())),
    )


def _parse_undo(raw: Mapping[str, Any]) -> UndoPolicy:
    return UndoPolicy(str(raw.get("keep", UndoPolicy.keep)), int(raw.get("copies", UndoPolicy.copies)))


def _parse_initdb(raw: Mapping[str, Any]) -> Initdb:
    provider = LocaleProvider(raw["provider"]) if raw.get("provider") else None
    return Initdb(raw.get("locale"), raw.get("encoding"), provider, tuple(raw.get("args") or ()))


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
