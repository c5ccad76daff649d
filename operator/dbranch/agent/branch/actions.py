"""The actions that a plan for a branch consists of. `agent/branch/effect.py` applies them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from dbranch.agent.slot.pod_status import PodFacts


@dataclass(frozen=True)
class DeletePod:
    """Delete one of the branch's pods, with `grace` seconds; None: with the pod's own grace period."""

    pod: PodFacts
    grace: int | None = None


@dataclass(frozen=True)
class RemoveSlot:
    """Unbind a slot and delete its directory."""

    slot: str


@dataclass(frozen=True)
class CreateInitdbArea:
    """Create an empty initdb area and bind it into the initdb pod's slot."""

    slot: str


@dataclass(frozen=True)
class CreateInitdbPod:
    """Create the pod that runs initdb in the area."""

    slot: str


@dataclass(frozen=True)
class PromoteInitdb:
    """Make the initdb area the root branch's subvolume and write status.node.initialized of the project."""


@dataclass(frozen=True)
class TakeSnapshot:
    """Take a snapshot of the source's subvolume. `undeletes`: the UID of the deleted branch whose data comes back."""

    source_uid: str
    undeletes: str | None = None


@dataclass(frozen=True)
class TakeRestore:
    """Take a snapshot of a restore's source, a branch or a snapshot, beside the branch's own subvolume."""

    source_uid: str


@dataclass(frozen=True)
class Adopt:
    """Make the data that the pool holds under another UID this branch's."""

    uid: str


@dataclass(frozen=True)
class Claim:
    """Give a warm pod to the branch; if another branch has claimed it, the branch is planned again without it."""

    pod: PodFacts


@dataclass(frozen=True)
class CreatePod:
    """Create a slot's directory, then its pod."""

    slot: str


@dataclass(frozen=True)
class ResetAlterSystem:
    """Undo what ALTER SYSTEM has set, while no slot has the branch bound, and record the request in the marker."""

    requested_at: str


@dataclass(frozen=True)
class Bind:
    """Write the settings files, then bind the branch's subvolume into a slot, whose script starts Postgres."""

    slot: str


@dataclass(frozen=True)
class Clean:
    """Remove from the running Postgres what a copy must not keep, and record it in the marker."""

    slot: str


@dataclass(frozen=True)
class SetPasswords:
    """Set the passwords in the running Postgres, and record their version in the marker."""

    slot: str


@dataclass(frozen=True)
class SetOwnVerifiers:
    """Give the roles, with the same passwords, verifiers that no other branch has, and record it in the marker."""

    slot: str


@dataclass(frozen=True)
class WriteSettings:
    """Write the settings files from the spec; the running Postgres loads them."""

    slot: str


@dataclass(frozen=True)
class Open:
    """Write the pg_hba.conf that admits users, make Postgres load it, and record it in the marker."""

    slot: str


@dataclass(frozen=True)
class RecordImage:
    """Record in the marker that the data is sorted as the image with this digest sorts it."""

    slot: str
    digest: str


Action = (
    DeletePod
    | RemoveSlot
    | CreateInitdbArea
    | CreateInitdbPod
    | PromoteInitdb
    | TakeSnapshot
    | TakeRestore
    | Adopt
    | Claim
    | CreatePod
    | ResetAlterSystem
    | Bind
    | Clean
    | SetPasswords
    | WriteSettings
    | Open
    | RecordImage
    | SetOwnVerifiers
)
