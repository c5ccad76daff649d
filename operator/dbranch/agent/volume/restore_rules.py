"""What becomes of `.restore-<uid>` after a restore was cut off anywhere, by its marker and that of `<uid>`. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dbranch.agent.volume.marker import (
    UNDO_DISCARD,
    UNDO_KEEP,
    Marker,
    NewerMarker,
    RestoreRef,
    SnapshotMarker,
)

AnyMarker = Marker | SnapshotMarker | NewerMarker


class VolumeState(StrEnum):
    """What the subvolume `.restore-<uid>` of a branch holds."""

    ABSENT = "absent"
    # What is to become the branch's data, whole or not.
    COMING = "coming"
    # What was the branch's data until a restore replaced it.
    OLD = "old"
    # It cannot be said: nothing is touched.
    UNCLEAR = "unclear"


class Verdict(StrEnum):
    """What is done with the subvolume `.restore-<uid>` of a branch."""

    NOTHING = "nothing"
    DESTROY = "destroy"
    # It is prepared for the desired restore, which goes on with it.
    KEEP_COMING = "keep-coming"
    # It becomes the undo snapshot, or trash: what the restore_ref of the branch's data says.
    FINISH_OLD = "finish-old"
    UNCLEAR = "unclear"


@dataclass(frozen=True)
class RestoreVolume:
    """The subvolume `.restore-<uid>` of a branch.

    `marker`: its own, None if it has none (yet) or it cannot be read. `mark`: of the restore that made the branch's
    data, for OLD. `problem`: what is UNCLEAR.
    """

    state: VolumeState = VolumeState.ABSENT
    marker: Marker | SnapshotMarker | None = None
    restore_ref: RestoreRef | None = None
    problem: str = ""

    @property
    def restore_uid(self) -> str | None:
        """The UID of the DBRestore that it is prepared for, if it is whole."""
        whole = self.state is VolumeState.COMING and isinstance(self.marker, Marker)
        return (
            self.marker.restore.uid
            if whole and isinstance(self.marker, Marker) and self.marker.restore
            else None
        )

    @property
    def undo_uid(self) -> str | None:
        """The UID of the DBSnapshot that has, or is to have, what the restore replaces, if there is to be one."""
        coming = self.marker.restore if self.restore_uid and isinstance(self.marker, Marker) else None
        restore_ref = self.restore_ref or coming
        return restore_ref.undo_uid or None if restore_ref else None


def classify(
    exists: bool, has_marker: bool, marker: AnyMarker | None, branch: AnyMarker | None
) -> RestoreVolume:
    """Say what `.restore-<uid>` holds.

    `exists`: there is such a subvolume. `has_marker`: a marker file is in it; `marker`: what it says, None if it
    cannot be read. `branch`: the marker of `<uid>`, None if there is none that can be read.
    """
    if not exists:
        return RestoreVolume()
    if not isinstance(branch, Marker):
        return _unclear("the data beside it has no branch's marker that this release can read")
    if not has_marker:
        # It never was anybody's data, and the branch has its own.
        return RestoreVolume(VolumeState.COMING)
    if marker is None or isinstance(marker, NewerMarker):
        return _unclear("its marker cannot be read by this release")
    data = marker.data if isinstance(marker, SnapshotMarker) else marker
    if data.generation == branch.generation:
        return _unclear(f"it and the branch's data are both of generation {data.generation}")
    if data.generation > branch.generation:
        if isinstance(marker, SnapshotMarker) or marker.restore is None:
            return _unclear("it is newer than the branch's data, and no restore has prepared it")
        return RestoreVolume(VolumeState.COMING, marker)
    restore_ref = branch.restore
    if restore_ref is None or not (
        restore_ref.undo == UNDO_DISCARD or (restore_ref.undo == UNDO_KEEP and restore_ref.undo_uid)
    ):
        return _unclear("the branch's data does not say what becomes of what it has replaced")
    if isinstance(marker, SnapshotMarker) and data.owner_uid != restore_ref.undo_uid:
        return _unclear("it is another snapshot than the branch's data says")
    return RestoreVolume(VolumeState.OLD, marker, restore_ref)


def judge(volume: RestoreVolume, desired_uid: str | None) -> Verdict:
    """Decide. `desired_uid`: of the DBRestore that the branch is to have now, None if there is none."""
    match volume.state:
        case VolumeState.ABSENT:
            return Verdict.NOTHING
        case VolumeState.OLD:
            return Verdict.FINISH_OLD
        case VolumeState.COMING:
            is_desired = desired_uid is not None and volume.restore_uid == desired_uid
            return Verdict.KEEP_COMING if is_desired else Verdict.DESTROY
        case VolumeState.UNCLEAR:
            return Verdict.UNCLEAR


def _unclear(problem: str) -> RestoreVolume:
    return RestoreVolume(VolumeState.UNCLEAR, problem=problem)
