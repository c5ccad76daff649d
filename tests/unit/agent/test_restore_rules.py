"""What becomes of the data beside a branch's own, from every state in which a restore can be cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbranch.agent.volume.marker import (
    FROM_BRANCH,
    UNDO_DISCARD,
    UNDO_KEEP,
    BranchNames,
    Marker,
    NewerMarker,
    Origin,
    RestoreRef,
    Role,
    SnapshotMarker,
)
from dbranch.agent.volume.restore_rules import (
    AnyMarker,
    RestoreVolume,
    Verdict,
    VolumeState,
    classify,
    judge,
)

KEEP = RestoreRef("r", UNDO_KEEP, "undo")
TIME = "2026-01-01T00:00:00Z"


def marker(generation: int, restore_ref: RestoreRef | None = None) -> Marker:
    origin = Origin(FROM_BRANCH, "main", TIME)
    return Marker(
        *("p", "b", Role.COPY, origin, TIME, 17, True),
        names=BranchNames("team", "shop", "x"),
        generation=generation,
        restore=restore_ref,
    )


def snapshot(uid: str, generation: int) -> SnapshotMarker:
    return SnapshotMarker(replace(marker(generation), owner_uid=uid), "shop-x-undo")


def verdict(
    beside: AnyMarker | None, branch: AnyMarker | None, desired: str | None = None, has_marker: bool = True
) -> Verdict:
    return judge(classify(True, has_marker, beside, branch), desired)


@pytest.mark.parametrize("desired", [None, "r", "other"])
def test_without_a_marker_it_goes_only_beside_data_that_has_one(desired: str | None) -> None:
    assert verdict(None, marker(1), desired, has_marker=False) is Verdict.DESTROY
    for branch in (None, NewerMarker(3), snapshot("undo", 1)):
        assert verdict(None, branch, desired, has_marker=False) is Verdict.UNCLEAR


def test_what_is_newer_stays_for_its_own_restore_alone() -> None:
    assert verdict(marker(2, KEEP), marker(1), "r") is Verdict.KEEP_COMING
    for desired in (None, "other"):
        assert verdict(marker(2, KEEP), marker(1), desired) is Verdict.DESTROY
    # No restore has made it.
    assert verdict(marker(2), marker(1), None) is Verdict.UNCLEAR
    assert verdict(snapshot("undo", 2), marker(1), None) is Verdict.UNCLEAR


@pytest.mark.parametrize("desired", [None, "r", "other"])
def test_what_is_older_was_the_branch_and_becomes_what_the_branch_says(desired: str | None) -> None:
    assert verdict(marker(1), marker(2, KEEP), desired) is Verdict.FINISH_OLD
    assert verdict(marker(1), marker(2, RestoreRef("r", UNDO_DISCARD)), desired) is Verdict.FINISH_OLD
    # Cut off behind the snapshot's marker.
    assert verdict(snapshot("undo", 1), marker(2, KEEP), desired) is Verdict.FINISH_OLD
    assert classify(True, True, marker(1), marker(2, KEEP)).undo_uid == "undo"
    for restore_ref in (None, RestoreRef("r", UNDO_KEEP), RestoreRef("r", "Archive", "undo")):
        assert verdict(marker(1), marker(2, restore_ref), desired) is Verdict.UNCLEAR
    assert verdict(snapshot("another", 1), marker(2, KEEP), desired) is Verdict.UNCLEAR


any_marker = st.one_of(
    st.none(),
    st.builds(NewerMarker, st.integers(3, 5)),
    st.builds(marker, st.integers(1, 4), st.none() | st.just(KEEP) | st.just(RestoreRef("q", UNDO_DISCARD))),
    st.builds(snapshot, st.sampled_from(["undo", "another"]), st.integers(1, 4)),
)


@given(
    beside=any_marker, branch=any_marker, has_marker=st.booleans(), desired=st.none() | st.sampled_from("qr")
)
def test_only_what_the_rule_names_is_destroyed(
    beside: AnyMarker | None, branch: AnyMarker | None, has_marker: bool, desired: str | None
) -> None:
    """The rule as it is written, once more and independently."""
    result = judge(classify(True, has_marker, beside if has_marker else None, branch), desired)
    branch_reads = isinstance(branch, Marker)
    if not has_marker:
        assert result is (Verdict.DESTROY if branch_reads else Verdict.UNCLEAR)
        return
    is_newer = (
        isinstance(beside, Marker) and isinstance(branch, Marker) and beside.generation > branch.generation
    )
    if result is Verdict.DESTROY:
        assert is_newer and isinstance(beside, Marker) and beside.restore and beside.restore.uid != desired
    if result is Verdict.KEEP_COMING:
        assert is_newer and isinstance(beside, Marker) and beside.restore and beside.restore.uid == desired
    if result is Verdict.FINISH_OLD:
        data = beside.data if isinstance(beside, SnapshotMarker) else beside
        assert isinstance(data, Marker) and isinstance(branch, Marker) and data.generation < branch.generation
    if not branch_reads or beside is None or isinstance(beside, NewerMarker):
        assert result is Verdict.UNCLEAR


class Cut(Exception):
    """The agent is killed between two effects."""


@dataclass
class Disk:
    """A pool as the rules see it. Each data has a name of its own; `served`: those that were the branch's.

    `cut_after`: so many effects are left until the agent is killed; negative: it is not.
    """

    branch: tuple[str, Marker] = ("first", marker(1))
    beside: tuple[str, AnyMarker | None] | None = None
    snapshots: dict[str, str] = field(default_factory=dict)
    trashed: set[str] = field(default_factory=set)
    replaced: dict[str, str] = field(default_factory=dict)
    cut_after: int = -1

    def effect(self, change: Callable[[], None]) -> None:
        if self.cut_after == 0:
            raise Cut
        self.cut_after -= 1
        change()

    def volume(self) -> RestoreVolume:
        if self.beside is None:
            return RestoreVolume()
        return classify(True, self.beside[1] is not None, self.beside[1], self.branch[1])

    def set_beside(self, beside: tuple[str, AnyMarker | None] | None) -> None:
        self.beside = beside

    def take(self, data: str, restore_ref: RestoreRef) -> None:
        self.effect(lambda: self.set_beside((data, None)))
        self.effect(lambda: self.set_beside((data, marker(self.branch[1].generation + 1, restore_ref))))

    def exchange(self) -> None:
        assert self.beside and isinstance(self.beside[1], Marker) and self.beside[1].restore
        self.replaced[self.beside[1].restore.uid] = self.branch[0]
        self.branch, self.beside = (self.beside[0], self.beside[1]), self.branch

    def finish(self) -> None:
        assert self.beside
        restore_ref, (data, present) = self.volume().restore_ref, self.beside
        assert restore_ref
        if restore_ref.undo == UNDO_DISCARD:
            self.effect(lambda: (self.trashed.add(data), self.set_beside(None))[1])
            return
        if isinstance(present, Marker):
            self.effect(lambda: self.set_beside((data, snapshot(restore_ref.undo_uid, present.generation))))
        self.effect(
            lambda: (self.snapshots.__setitem__(restore_ref.undo_uid, data), self.set_beside(None))[1]
        )

    def run(self, desired: RestoreRef | None, data: str) -> None:
        """Reconcile until nothing is left to do, as the agent does: look, judge, one step."""
        for _ in range(20):
            verdict = judge(self.volume(), desired.uid if desired else None)
            is_done = desired is None or (
                self.branch[1].restore is not None and self.branch[1].restore.uid == desired.uid
            )
            match verdict:
                case Verdict.DESTROY:
                    assert self.beside and self.beside[0] not in {"first", *self.replaced.values()}
                    self.effect(lambda: self.set_beside(None))
                case Verdict.KEEP_COMING:
                    self.effect(self.exchange)
                case Verdict.FINISH_OLD:
                    self.finish()
                case Verdict.NOTHING if is_done:
                    return
                case Verdict.NOTHING:
                    assert desired
                    self.take(data, desired)
                case Verdict.UNCLEAR:
                    raise AssertionError((self.branch, self.beside))
        raise AssertionError("it does not end")


def restores(draws: list[tuple[str, int, bool]]) -> Iterator[tuple[RestoreRef, int, bool]]:
    for number, (undo, cut, goes_on) in enumerate(draws):
        undo_uid = f"undo-{number}" if undo == UNDO_KEEP else ""
        yield RestoreRef(f"restore-{number}", undo, undo_uid), cut, goes_on


@given(
    draws=st.lists(
        st.tuples(st.sampled_from([UNDO_KEEP, UNDO_DISCARD]), st.integers(0, 8), st.booleans()),
        min_size=1,
        max_size=5,
    )
)
def test_restores_cut_off_anywhere_lose_nothing_and_do_nothing_twice(
    draws: list[tuple[str, int, bool]],
) -> None:
    disk = Disk()
    kept = set()
    for restore_ref, cut, goes_on in restores(draws):
        data = f"data of {restore_ref.uid}"
        disk.cut_after = cut
        try:
            disk.run(restore_ref, data)
        except Cut:
            disk.cut_after = -1
            # The next agent goes on, or the restore was canceled meanwhile.
            disk.run(restore_ref if goes_on else None, f"{data}, anew")
        was_done = restore_ref.uid in disk.replaced
        if was_done and restore_ref.undo == UNDO_KEEP:
            assert disk.snapshots[restore_ref.undo_uid] == disk.replaced[restore_ref.uid]
            kept.add(restore_ref.undo_uid)
        if was_done and restore_ref.undo == UNDO_DISCARD:
            assert disk.replaced[restore_ref.uid] in disk.trashed
        assert disk.beside is None and disk.branch[1].generation == len(disk.replaced) + 1
    # Each data that was the branch's is its present one, or is where its restore said, once.
    assert set(disk.snapshots) == kept
    served = {"first", *disk.replaced.values(), disk.branch[0]}
    places = [disk.branch[0], *disk.snapshots.values(), *disk.trashed]
    assert sorted(places) == sorted(served)


def test_what_is_absent_needs_nothing() -> None:
    assert classify(False, False, None, None) == RestoreVolume(VolumeState.ABSENT)
    assert judge(RestoreVolume(), "r") is Verdict.NOTHING
