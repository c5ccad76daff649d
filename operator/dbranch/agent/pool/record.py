"""The text of the record beside a pool's image, which says whose pool it is. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from dbranch.api.enums import DeletionPolicy
from dbranch.api.errors import PoolLost, StorageUnclear

# What this release writes. Records of release 0.1.0 have none, and only the first four fields of PoolRecord.
FORMAT: Final = 1


@dataclass(frozen=True)
class PoolRecord:
    """`pools/<project-uid>.json`. An empty text is what is not known.

    `pool_uuid`: of the filesystem, empty before it is made. `namespace_uid`: of the project's namespace. `cluster`:
    UID of the namespace kube-system. `deletion_policy`: as the project's spec had it. `machine_id`: of the disk on
    which the pool was made. `initialized`: it may hold data; written before a root branch is made. `lineage`: the
    UIDs of the projects whose pool it was before, the oldest first. `quotas`: its filesystem has simple quotas,
    and only Linux 6.7 or later mounts it. `allowed_namespace_uid`: of the namespace that an
    administrator has given the pool to. `unknown`: keys that this release does not know; every rewrite keeps them.
    """

    project_uid: str
    pool_uuid: str = ""
    namespace: str = ""
    project: str = ""
    namespace_uid: str = ""
    cluster: str = ""
    deletion_policy: str = ""
    machine_id: str = ""
    initialized: bool = False
    lineage: tuple[str, ...] = ()
    allowed_namespace_uid: str = ""
    quotas: bool = False
    unknown: Mapping[str, Any] = field(default_factory=dict)

    @property
    def retained(self) -> bool:
        """True if the project asked for its pool to be kept. Release 0.1.0 wrote records for no other reason."""
        return self.deletion_policy in ("", DeletionPolicy.RETAIN)

    def adopted_by(self, record: PoolRecord) -> PoolRecord:
        """Return the record of the project that adopts this pool, with all that is known of the pool."""
        return replace(
            record,
            pool_uuid=self.pool_uuid,
            initialized=True,
            lineage=(*self.lineage, self.project_uid),
            quotas=self.quotas,
            unknown={**self.unknown, **record.unknown},
        )


@dataclass(frozen=True)
class NewerRecord:
    """A record that only a newer release understands: its pool is neither used, adopted, nor removed."""

    format: int

    def __str__(self) -> str:
        return f"format {self.format}"


def render_record(record: PoolRecord) -> str:
    """Render the record as JSON, a key a line."""
    fields = asdict(record)
    unknown = fields.pop("unknown")
    return json.dumps({**unknown, **fields, "format": FORMAT}, indent=1, sort_keys=True) + "\n"


def parse_record(text: str) -> PoolRecord | NewerRecord | None:
    """Parse a record, also one of release 0.1.0; None if it cannot be read."""
    try:
        raw: Any = json.loads(text)
        version = raw.get("format", 0)
        if isinstance(version, int) and version > FORMAT:
            return NewerRecord(version)
        record = PoolRecord(
            project_uid=str(raw["project_uid"]),
            pool_uuid=str(raw["pool_uuid"]),
            namespace=str(raw["namespace"]),
            project=str(raw["project"]),
            namespace_uid=str(raw.get("namespace_uid", "")),
            cluster=str(raw.get("cluster", "")),
            deletion_policy=str(raw.get("deletion_policy", "")),
            machine_id=str(raw.get("machine_id", "")),
            # Release 0.1.0 did not say: there may be data.
            initialized=bool(raw.get("initialized", True)),
            lineage=tuple(str(uid) for uid in raw.get("lineage", ())),
            allowed_namespace_uid=str(raw.get("allowed_namespace_uid", "")),
            quotas=bool(raw.get("quotas", False)),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    # `unknown` is a field of PoolRecord, not a key of the file.
    understood = {*asdict(record), "format"} - {"unknown"}
    return replace(record, unknown={key: value for key, value in raw.items() if key not in understood})


def check_adoptable(
    record: PoolRecord | NewerRecord | None, uid: str, namespace: str, namespace_uid: str, cluster: str
) -> PoolRecord:
    """Return the record of pool `uid` if a project of this namespace may adopt it.

    The namespace is known by its UID, where the record has it and is of this `cluster`: one that was made again under
    its name may not take the data of the one before. Raises PoolLost if it may not, StorageUnclear if a newer release
    wrote the record.
    """
    if isinstance(record, NewerRecord):
        raise StorageUnclear(
            f"pool {uid} has a record of a newer release of dbranch ({record}); nothing is adopted; "
            "upgrade the agent of this node"
        )
    if record is None or not record.initialized:
        raise PoolLost(
            f"this node has no pool {uid} that can be adopted; nothing is created; "
            "create a project with the right spec.storage.adopt"
        )
    if record.allowed_namespace_uid:
        allowed = record.allowed_namespace_uid == namespace_uid
    elif record.namespace_uid and record.cluster == cluster:
        allowed = record.namespace_uid == namespace_uid
    else:
        allowed = bool(record.namespace) and record.namespace == namespace
    if not allowed:
        raise PoolLost(
            f"pool {uid} is not of this namespace {namespace}; nothing is adopted; "
            f"an administrator can give it: dbranch orphan allow {uid} {namespace}"
        )
    return record
