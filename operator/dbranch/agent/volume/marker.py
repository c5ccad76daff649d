"""The text of `marker.json`, which says what a subvolume holds. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from dbranch.api import names

# What this release reads and writes. Only a newer release understands a higher number.
FORMAT: Final = 2
# UIDs in `lineage`: enough to see where data came from, however often it was restored.
_MAX_LINEAGE: Final = 32
# What owns the data: a DBBranch or a DBSnapshot.
_OWNER_KIND: Final = "branch"
_SNAPSHOT_KIND: Final = "snapshot"


class Role(StrEnum):
    """What the data is to its owner, wherever it came from: which jobs Postgres may run on it."""

    # Subscriptions, schedulers and background workers run.
    ROOT = "root"
    # They do not: they are jobs of the branch that the data was copied from.
    COPY = "copy"


# How the data came to be: made by initdb, or copied from a branch or a snapshot.
FROM_INITDB: Final = "initdb"
FROM_BRANCH: Final = "branch"
FROM_SNAPSHOT: Final = "snapshot"


@dataclass(frozen=True)
class BranchNames:
    """The names of a branch, for people and for the adoption of a pool; paths are made of UIDs."""

    namespace: str = ""
    project: str = ""
    branch: str = ""

    @property
    def role(self) -> Role:
        """The role that a branch of this name has."""
        return Role.ROOT if self.branch == names.ROOT_BRANCH else Role.COPY


@dataclass(frozen=True)
class Origin:
    """Where the data came from: `kind` is a FROM_…, `uid` that of the branch or snapshot that was copied.

    `time` (RFC 3339) is the moment as of which the data is, `generation` that of the data that was copied.
    """

    kind: str
    uid: str | None
    time: str
    generation: int = 1


# What becomes of the data that a restore replaces.
UNDO_KEEP: Final = "Keep"
UNDO_DISCARD: Final = "Discard"


@dataclass(frozen=True)
class RestoreRef:
    """The DBRestore that made the data, and what becomes of the data that it replaces.

    `undo`: UNDO_KEEP or UNDO_DISCARD. `undo_uid`: the UID of the DBSnapshot that takes the old data; empty with
    UNDO_DISCARD.
    """

    uid: str
    undo: str
    undo_uid: str = ""


@dataclass(frozen=True)
class Marker:
    """`marker.json`: says that the subvolume holds a whole branch, and of which DBBranch.

    `snapshot_time`: RFC 3339. `major`: PG_VERSION. `cleaned`: nothing is left that a copy must not keep. `opened`:
    its pg_hba.conf admits users, and its Postgres has loaded that. `prepared_floor`: the smallest
    max_prepared_transactions with which its prepared transactions can be recovered. `password`: the version of the
    passwords that it has, empty if unknown. `verifiers`: what its roles have of these passwords, if those are a
    branch's own verifiers: their version (`api.scram.joined_version`), and `verifiers_of` the UID of the branch that
    they were set for, which for a copy is its source; else empty: they are the project's. `superuser`: the role that
    initdb made, empty in a marker of the first release (`observe.marker_at` reads it elsewhere). `initdb_settings`:
    what initdb wrote to its own postgresql.conf; they stand below the user's parameters. `image`: the digest of the
    image that its indexes are known to be sorted by, empty if unknown. `alter_system_reset`: the request to undo
    ALTER SYSTEM that was obeyed last, empty before the first. `generation`: 1, and one more with each restore in
    place. `restore`: the restore that made this data, if one did. `lineage`: the UIDs of those that the data was of
    before, oldest first, the last ones if they are many. `quiet`: no job runs on it, even if it is the root's: other
    data still does the work. `expiration_time` (RFC 3339): when it is to go, as far as its agent knew; empty: never.
    `unknown`: keys that this release does not know, as they were read; every rewrite keeps them.
    """

    project_uid: str
    owner_uid: str
    role: Role
    origin: Origin
    snapshot_time: str
    major: int
    cleaned: bool
    prepared_floor: int = 0
    password: str = ""
    opened: bool = False
    names: BranchNames = BranchNames()
    superuser: str = ""
    initdb_settings: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    alter_system_reset: str = ""
    verifiers: str = ""
    verifiers_of: str = ""
    generation: int = 1
    lineage: tuple[str, ...] = ()
    restore: RestoreRef | None = None
    quiet: bool = False
    expiration_time: str = ""
    unknown: Mapping[str, Any] = field(default_factory=dict)

    @property
    def running_role(self) -> Role:
        """The role by which Postgres runs: that of a copy while it is quiet."""
        return Role.COPY if self.quiet else self.role

    @property
    def descent(self) -> tuple[str, ...]:
        """The lineage of what is copied from it."""
        return (*self.lineage, self.owner_uid)[-_MAX_LINEAGE:]

    def with_quiet_ended(self) -> Marker:
        """Return the marker of the same branch, whose jobs run from the next start on."""
        return replace(self, quiet=False)

    def with_cleaned(self) -> Marker:
        """Return the marker of the same branch, cleaned."""
        return replace(self, cleaned=True)

    def with_opened(self) -> Marker:
        """Return the marker of the same branch, open to users."""
        return replace(self, opened=True)

    def with_password_version(self, password: str) -> Marker:
        """Return the marker of the same branch with this version of the passwords, by the project's verifiers."""
        return replace(self, password=password, verifiers="", verifiers_of="")

    @property
    def has_own_verifiers(self) -> bool:
        """True if its roles have verifiers that no other branch has."""
        return bool(self.verifiers) and self.verifiers_of == self.owner_uid

    def with_own_verifiers(self, version: str) -> Marker:
        """Return the marker of the same branch and passwords, with verifiers of its own."""
        return replace(self, verifiers=version, verifiers_of=self.owner_uid)

    def with_image(self, digest: str) -> Marker:
        """Return the marker of the same branch, sorted as the image with this digest sorts."""
        return replace(self, image=digest)

    def with_alter_system_reset(self, requested_at: str) -> Marker:
        """Return the marker of the same branch, in which ALTER SYSTEM was undone as this request asks."""
        return replace(self, alter_system_reset=requested_at)

    def reassigned_to(self, project_uid: str, owner_uid: str, branch: BranchNames) -> Marker:
        """Return the marker of the same data as the branch of another project; its role is the new owner's."""
        return replace(self, project_uid=project_uid, owner_uid=owner_uid, names=branch, role=branch.role)


@dataclass(frozen=True)
class SnapshotMarker:
    """`marker.json` of a read-only subvolume with the data of a branch as of one moment: which DBSnapshot owns it.

    `data`: as the branch's marker described the data then, but owned by the DBSnapshot; its origin is the branch.
    `snapshot`: the name of the DBSnapshot.
    """

    data: Marker
    snapshot: str


@dataclass(frozen=True)
class NewerMarker:
    """A marker that only a newer release understands: its subvolume is neither used, adopted, nor destroyed."""

    format: int
    owner_kind: str = _OWNER_KIND

    def __str__(self) -> str:
        return f"format {self.format}" if self.owner_kind == _OWNER_KIND else f"kind {self.owner_kind}"


def render_marker(marker: Marker) -> str:
    """Render the marker as JSON, a key a line. slot-start.sh looks for the lines with `role` and `quiet`."""
    return _render(marker, _OWNER_KIND)


def render_snapshot_marker(marker: SnapshotMarker) -> str:
    """Render the marker of a snapshot as JSON, a key a line."""
    return _render(marker.data, _SNAPSHOT_KIND, {"names": {"snapshot": marker.snapshot}})


def _render(marker: Marker, kind: str, additions: Mapping[str, Any] | None = None) -> str:
    fields = asdict(marker)
    unknown = fields.pop("unknown")
    if marker.restore is None:
        del fields["restore"]
    understood = _merge(additions or {}, {**fields, "format": FORMAT, "kind": kind})
    return json.dumps(_merge(unknown, understood), indent=1, sort_keys=True) + "\n"


def parse_marker(text: str) -> Marker | SnapshotMarker | NewerMarker | None:
    """Parse a marker; None if it cannot be read (cut off, or of a format that was never released)."""
    try:
        raw: Any = json.loads(text)
        version = raw["format"]
        if isinstance(version, bool) or not isinstance(version, int) or version < FORMAT:
            return None
        if version > FORMAT:
            return NewerMarker(version)
        if raw["kind"] not in (_OWNER_KIND, _SNAPSHOT_KIND):
            return NewerMarker(version, str(raw["kind"]))
        if raw["role"] not in [*Role]:
            return NewerMarker(version, f"role {raw['role']}")
        origin, branch = raw["origin"], raw["names"]
        marker = Marker(
            project_uid=str(raw["project_uid"]),
            owner_uid=str(raw["owner_uid"]),
            role=Role(raw["role"]),
            origin=Origin(
                str(origin["kind"]),
                None if origin["uid"] is None else str(origin["uid"]),
                str(origin["time"]),
                # Data of earlier releases was never restored.
                int(origin.get("generation", 1)),
            ),
            snapshot_time=str(raw["snapshot_time"]),
            major=int(raw["major"]),
            cleaned=bool(raw["cleaned"]),
            prepared_floor=int(raw["prepared_floor"]),
            password=str(raw["password"]),
            # Markers of the first release say nothing: such a branch is opened once more.
            opened=bool(raw.get("opened", False)),
            image=str(raw.get("image", "")),
            alter_system_reset=str(raw.get("alter_system_reset", "")),
            verifiers=str(raw.get("verifiers", "")),
            verifiers_of=str(raw.get("verifiers_of", "")),
            generation=int(raw.get("generation", 1)),
            lineage=tuple(map(str, raw.get("lineage", ()))),
            restore=_parse_restore(raw.get("restore")),
            quiet=raw.get("quiet", False) is True,
            expiration_time=str(raw.get("expiration_time", "")),
            names=BranchNames(str(branch["namespace"]), str(branch["project"]), str(branch["branch"])),
            superuser=str(raw.get("superuser", "")),
            initdb_settings={str(k): str(v) for k, v in dict(raw.get("initdb_settings", {})).items()},
        )
        snapshot = str(branch["snapshot"]) if raw["kind"] == _SNAPSHOT_KIND else None
    except (ValueError, KeyError, TypeError):
        return None
    understood: dict[str, Any] = {**asdict(marker), "format": 0, "kind": ""}
    # A field of Marker, not a key of the file.
    del understood["unknown"]
    if marker.restore is None:
        del understood["restore"]
    if snapshot is not None:
        understood["names"]["snapshot"] = snapshot
    marker = replace(marker, unknown=_without(raw, understood))
    return marker if snapshot is None else SnapshotMarker(marker, snapshot)


def _parse_restore(raw: Any) -> RestoreRef | None:
    if raw is None:
        return None
    return RestoreRef(str(raw["uid"]), str(raw["undo"]), str(raw.get("undo_uid", "")))


def _without(raw: Mapping[str, Any], understood: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of `raw` whose keys are not in `understood`, at any depth."""
    unknown = {key: value for key, value in raw.items() if key not in understood}
    for key, value in raw.items():
        if isinstance(value, dict) and isinstance(understood.get(key), dict):
            nested = _without(value, understood[key])
            unknown |= {key: nested} if nested else {}
    return unknown


def _merge(unknown: Mapping[str, Any], understood: Mapping[str, Any]) -> dict[str, Any]:
    """Return `understood` with the keys of `unknown`, at any depth."""
    merged = {**unknown, **understood}
    for key, value in unknown.items():
        if isinstance(value, dict) and isinstance(understood.get(key), dict):
            merged[key] = _merge(value, understood[key])
    return merged
