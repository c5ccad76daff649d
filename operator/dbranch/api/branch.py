"""A DBBranch as frozen dataclasses, parsed from the API server's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dbranch.api import names
from dbranch.api.conditions import Condition, Finding, Reason, find_condition
from dbranch.api.enums import Protection, State, TargetState, Undo
from dbranch.api.owners import foreign_owners
from dbranch.api.project import Project
from dbranch.api.protection import is_protected
from dbranch.api.restore import (
    BranchData,
    BranchRestore,
    NodeRestore,
    RestoreRecord,
    parse_branch_restore,
    parse_data,
    parse_node_restore,
    parse_records,
    parse_undo,
)
from dbranch.api.schedule import (
    Schedule,
    SnapshotsStatus,
    parse_refresh,
    parse_schedules,
    parse_snapshots_status,
)


@dataclass(frozen=True)
class BranchNode:
    """`status.node`: what the branch's agent reports of its subvolume and its Postgres.

    `opened`: users could connect to the data, so that it is whole.
    `pod` is the Postgres pod's name in the nodes' namespace (the slot's name), `address` the pod's IP address.
    `transaction`: of the pool's filesystem, one that has changed the data.
    `generation`: how often its data was exchanged by a restore, and 1.
    """

    source_uid: str | None = None
    snapshot_time: str | None = None
    storage: Finding | None = None
    postgres: Finding | None = None
    observed_generation: int = 0
    slot: str | None = None
    pod: str | None = None
    address: str | None = None
    port: int | None = None
    postgres_version: str | None = None
    image_id: str | None = None
    logical_bytes: int | None = None
    unique_bytes: int | None = None
    written_bytes: int | None = None
    transaction: int | None = None
    generation: int = 1
    restore: NodeRestore | None = None
    deletion: Finding | None = None
    opened: bool = False


@dataclass(frozen=True)
class BranchRoute:
    """`status.route`: where proxies reach the branch. The generation (from 1) rises with each change of the rest.

    `restore`: the UID of the DBRestore that exchanges the branch's data now; new sessions are held.
    """

    generation: int
    state: TargetState
    address: str | None = None
    port: int | None = None
    restore: str | None = None


@dataclass(frozen=True)
class Acknowledgement:
    """An entry of `status.proxies`, written by that proxy pod alone: the generation of `status.route` it obeys."""

    pod: str
    generation: int


@dataclass(frozen=True)
class DeletionCopy:
    """`status.copy`: the DBSnapshot that gets the data of a branch that is being deleted, by its object's name."""

    name: str
    uid: str


@dataclass(frozen=True)
class Branch:
    """A DBBranch. `object_name` is `<project>-<branch>`, `name` what follows the project; `deleted`: RFC 3339.

    `source_snapshot`: the DBSnapshot that it is made from, in place of `source`. `source_uid`: of either.
    `snapshots`, `refresh`: the schedules of its snapshots, and of its refresh; `runs`: `status.snapshots`,
    `refreshes`: `status.refresh`.
    `undeletes`: the UID of the deleted DBBranch whose data it gets back.
    `protected`: by spec.protection, or by spec.protectedUntil. `ttl`, `expires`: of the spec, the latter
    spec.expirationTime; `default_ttl`, `expiration_time`: of the status, the former status.ttl.
    """

    namespace: str
    object_name: str
    uid: str
    project: str
    source: str | None = None
    source_snapshot: str | None = None
    generation: int = 1
    resource_version: str = ""
    deleted: str | None = None
    finalizers: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    created: str | None = None
    foreign_owners: tuple[str, ...] = ()
    state: State = State.RUNNING
    protection: Protection = Protection.DISABLED
    snapshots: tuple[Schedule, ...] = ()
    refresh: Schedule | None = None
    undo: Undo | None = None
    protected_until: str | None = None
    protected: bool = False
    ttl: str | None = None
    expires: str | None = None
    default_ttl: str | None = None
    expiration_time: str | None = None
    observed_generation: int = 0
    parameters: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)
    node_name: str | None = None
    source_uid: str | None = None
    active: bool = False
    route: BranchRoute | None = None
    proxies: tuple[Acknowledgement, ...] = ()
    runs: SnapshotsStatus = field(default_factory=SnapshotsStatus)
    refreshes: SnapshotsStatus = field(default_factory=SnapshotsStatus)
    release: str | None = None
    copy: DeletionCopy | None = None
    undeletes: str | None = None
    restore: BranchRestore | None = None
    restores: tuple[RestoreRecord, ...] = ()
    data: BranchData | None = None
    node: BranchNode = field(default_factory=BranchNode)
    status: Mapping[str, Any] = field(default_factory=dict)

    @property
    def deleting(self) -> bool:
        """True if the object has a deletionTimestamp."""
        return self.deleted is not None

    @property
    def is_released(self) -> bool:
        """True if the controller has let go of a branch that is being deleted, so its agent may remove it.

        A controller of release 0.1.0 writes no `status.release`: it reports the deletion while its finalizer is on
        the branch, and removes that in the end. One of this release never reports a deletion without it.
        """
        if names.CONTROLLER_FINALIZER in self.finalizers:
            return False
        if self.release is not None:
            return self.release == self.deleted
        ready = find_condition(self.status, Condition.READY)
        return (ready or {}).get("reason") == Reason.DELETING.value

    @property
    def name(self) -> str:
        return names.branch_name(self.project, self.object_name)

    @property
    def is_root(self) -> bool:
        return self.name == names.ROOT_BRANCH

    @property
    def source_text(self) -> str | None:
        """What it was made from: a branch's name, or `snapshot/` and a DBSnapshot's; None for the root."""
        return f"snapshot/{self.source_snapshot}" if self.source_snapshot else self.source

    @property
    def running(self) -> bool:
        return self.state == State.RUNNING


def should_run(project: Project, branch: Branch) -> bool:
    """Return True if the branch's Postgres is to run: neither the branch nor its project is Stopped."""
    return branch.running and project.running


def parse_branch(body: Mapping[str, Any]) -> Branch:
    """Parse a DBBranch as the API server returns it. The schema's defaults apply here, too."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    postgres = spec.get("postgres") or {}
    return Branch(
        namespace=meta.get("namespace", ""),
        object_name=meta["name"],
        uid=meta.get("uid", ""),
        project=spec["project"],
        source=spec.get("source"),
        source_snapshot=spec.get("sourceSnapshot"),
        generation=int(meta.get("generation", 1)),
        resource_version=meta.get("resourceVersion", ""),
        deleted=meta.get("deletionTimestamp"),
        finalizers=tuple(meta.get("finalizers") or ()),
        annotations=dict(meta.get("annotations") or {}),
        created=meta.get("creationTimestamp"),
        foreign_owners=foreign_owners(meta),
        state=State(spec.get("state", Branch.state)),
        protection=Protection(spec.get("protection", Branch.protection)),
        snapshots=parse_schedules(spec.get("snapshots")),
        refresh=parse_refresh(spec.get("refresh")),
        undo=parse_undo(spec.get("undo")),
        protected_until=spec.get("protectedUntil"),
        protected=is_protected(
            spec.get("protection"), spec.get("protectedUntil"), status.get("protectionEnded")
        ),
        ttl=spec.get("ttl"),
        expires=spec.get("expirationTime"),
        default_ttl=status.get("ttl"),
        expiration_time=status.get("expirationTime"),
        observed_generation=int(status.get("observedGeneration", 0)),
        parameters=dict(postgres.get("parameters") or {}),
        resources=dict(postgres.get("resources") or {}),
        node_name=status.get("nodeName"),
        source_uid=status.get("sourceUID"),
        active=bool(status.get("active")),
        route=parse_branch_route(status.get("route")),
        proxies=parse_acknowledgements(status.get("proxies")),
        runs=parse_snapshots_status(status.get("snapshots")),
        refreshes=parse_snapshots_status(status.get("refresh")),
        release=status.get("release"),
        copy=_parse_copy(status.get("copy")),
        undeletes=status.get("undeletes"),
        restore=parse_branch_restore(status.get("restore")),
        restores=parse_records(status.get("restores")),
        data=parse_data(status.get("data")),
        node=_parse_node(status.get("node") or {}),
        status=status,
    )


def parse_branch_route(raw: Any) -> BranchRoute | None:
    """Parse `status.route`; None if the branch has none, or one without what this release needs of it."""
    try:
        address, port = raw.get("address"), raw.get("port")
        return BranchRoute(
            int(raw["generation"]),
            TargetState(raw["state"]),
            None if address is None else str(address),
            None if port is None else int(port),
            raw.get("restore"),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def parse_acknowledgements(raw: Any) -> tuple[Acknowledgement, ...]:
    """Parse `status.proxies`; entries without what this release needs of them are left out."""
    entries: list[Acknowledgement] = []
    for entry in raw if isinstance(raw, list) else ():
        try:
            entries.append(Acknowledgement(str(entry["pod"]), int(entry["generation"])))
        except (KeyError, TypeError, ValueError):
            continue
    return tuple(entries)


def _parse_copy(raw: Any) -> DeletionCopy | None:
    try:
        return DeletionCopy(str(raw["name"]), str(raw["uid"]))
    except (KeyError, TypeError):
        return None


def _postgres_finding(raw: Mapping[str, Any]) -> Finding | None:
    """Parse `status.node.postgres`. With an address users can connect, whatever a newer agent's reason says."""
    finding = Finding.from_dict(raw.get("postgres"))
    if finding and not finding.reason.is_known and raw.get("address"):
        return Finding(Reason.ACCEPTING, finding.message)
    return finding


def _parse_node(raw: Mapping[str, Any]) -> BranchNode:
    return BranchNode(
        source_uid=raw.get("sourceUID"),
        snapshot_time=raw.get("snapshotTime"),
        storage=Finding.from_dict(raw.get("storage")),
        postgres=_postgres_finding(raw),
        observed_generation=int(raw.get("observedGeneration", 0)),
        slot=raw.get("slot"),
        pod=raw.get("pod"),
        address=raw.get("address"),
        port=raw.get("port"),
        postgres_version=raw.get("postgresVersion"),
        image_id=raw.get("imageID"),
        logical_bytes=raw.get("logicalBytes"),
        unique_bytes=raw.get("uniqueBytes"),
        written_bytes=raw.get("writtenBytes"),
        transaction=raw.get("transaction"),
        generation=int(raw.get("generation", 1)),
        restore=parse_node_restore(raw.get("restore")),
        deletion=Finding.from_dict(raw.get("deletion")),
        opened=raw.get("opened") is True,
    )
