"""What becomes of what no object names, and the record that says whose a pool is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from dbranch.agent.housekeeping.orphans import Existing, Fate, Rounds, StoredPool, is_adoptable, unnamed
from dbranch.agent.layout import SubvolumeKind, SubvolumeName
from dbranch.agent.pool.record import NewerRecord, PoolRecord, check_adoptable, parse_record, render_record
from dbranch.agent.volume.marker import (
    FROM_BRANCH,
    BranchNames,
    Marker,
    NewerMarker,
    Origin,
    Role,
    SnapshotMarker,
)
from dbranch.agent.volume.observe import SubvolumesFacts
from dbranch.agent.volume.origins.adopt import retained_branch
from dbranch.api.errors import PoolLost, StorageUnclear

POOL, OTHER, BRANCH = (f"{n}0000000-0000-4000-8000-000000000000" for n in (1, 2, 3))
RECORD = PoolRecord(POOL, "fs", "team", "shop", "ns-uid", "c1", "Delete", "m1", initialized=True)
DATA = Marker(
    POOL,
    BRANCH,
    Role.COPY,
    Origin(FROM_BRANCH, "r", "t"),
    "t",
    17,
    True,
    names=BranchNames("team", "shop", "x"),
)
NOTHING = Existing(frozenset(), frozenset(), "c1")


def fates(pool: StoredPool, existing: Existing = NOTHING) -> list[Fate]:
    return [item.fate for item in unnamed([pool], existing)]


@pytest.mark.parametrize(
    ("changes", "fate"),
    [
        ({}, Fate.KEEP),
        ({"initialized": False}, Fate.REMOVE_POOL),
        ({"initialized": False, "cluster": "c2"}, Fate.KEEP),
        ({"initialized": False, "cluster": ""}, Fate.KEEP),
    ],
)
def test_only_a_pool_of_this_cluster_that_never_held_data_goes(changes: dict[str, Any], fate: Fate) -> None:
    record = replace(RECORD, **changes)
    assert fates(StoredPool(POOL, record, {}, pool_uuid="fs")) == [fate]
    # Not if the cluster cannot say which it is.
    assert fates(StoredPool(POOL, record, {}), replace(NOTHING, cluster="")) == [Fate.KEEP]


def test_a_pool_with_a_record_that_is_missing_newer_or_of_another_filesystem_is_kept() -> None:
    empty = replace(RECORD, initialized=False)
    for pool in (
        StoredPool(POOL, None, {}),
        StoredPool(POOL, NewerRecord(9), {}),
        StoredPool(POOL, empty, {}, pool_uuid="other"),
        StoredPool(POOL, empty, {SubvolumeName(BRANCH): None}, pool_uuid="fs"),
    ):
        assert fates(pool) == [Fate.KEEP]
    assert fates(StoredPool(POOL, empty, {}, tombstoned=True)) == []


def test_in_a_pool_that_is_named_only_what_was_being_made_goes() -> None:
    existing = replace(NOTHING, projects=frozenset({POOL}))
    markers = {SubvolumeName(BRANCH): None, SubvolumeName(BRANCH, SubvolumeKind.NEW): None}
    assert fates(StoredPool(POOL, RECORD, markers), existing) == [Fate.KEEP]
    expected = {
        SubvolumeKind.NEW: [Fate.REMOVE_TEMPORARY],
        SubvolumeKind.INIT: [Fate.REMOVE_TEMPORARY],
        # It may be all that is left of the branch.
        SubvolumeKind.RESTORE: [Fate.KEEP],
    }
    for kind in SubvolumeKind:
        pool = StoredPool(POOL, RECORD, {SubvolumeName(BRANCH, kind): None})
        assert fates(pool, existing) == expected.get(kind, [])
        assert fates(pool, replace(existing, branches=frozenset({BRANCH}))) == []


def test_what_a_restore_left_beside_the_data_of_a_branch_that_is_gone_is_finished() -> None:
    existing = replace(NOTHING, projects=frozenset({POOL}))
    name = SubvolumeName(BRANCH)
    markers: dict[SubvolumeName, Any] = {name: DATA, SubvolumeName(BRANCH, SubvolumeKind.RESTORE): None}
    assert fates(StoredPool(POOL, RECORD, markers), existing) == [Fate.KEEP, Fate.FINISH_RESTORE]
    # While the branch exists it is the branch's own.
    assert fates(StoredPool(POOL, RECORD, markers), replace(existing, branches=frozenset({BRANCH}))) == []
    # Beside data that cannot be read, or that only a newer release understands, nothing is touched.
    unreadable = StoredPool(POOL, RECORD, {**markers, name: None})
    assert fates(unreadable, existing) == [Fate.KEEP]
    assert fates(StoredPool(POOL, RECORD, {**markers, name: NewerMarker(3)}), existing) == []
    assert fates(StoredPool(OTHER, RECORD, markers), NOTHING) == [Fate.KEEP]


def test_the_data_of_the_highest_generation_is_adopted_and_never_a_snapshot() -> None:
    def data(generation: int, time: str, **changes: Any) -> Marker:
        return replace(DATA, project_uid="old", generation=generation, snapshot_time=time, **changes)

    markers: dict[str, Any] = {"a": data(2, "1"), "b": data(1, "9"), "c": None, "d": NewerMarker(3)}
    assert retained_branch(markers, {"old"}, "x", "new") == "a"
    # Among equals, such as those of earlier releases, that which was made last.
    assert retained_branch({"a": data(1, "1"), "b": data(1, "2")}, {"old"}, "x", "new") == "b"
    undo = SnapshotMarker(data(9, "9"), "shop-x-undo-abcde")
    facts = SubvolumesFacts({SubvolumeName(BRANCH): undo, SubvolumeName(OTHER): data(1, "1")})
    assert retained_branch(facts.branches, {"old"}, "x", "new") == OTHER


def test_rounds_are_consecutive() -> None:
    rounds = Rounds()
    for seen in (["a"], ["a", "b"], ["b"], ["a", "b"]):
        rounds.count(seen)
    assert (rounds.of("a"), rounds.of("b"), rounds.of("c")) == (1, 3, 0)


def test_only_pools_without_a_project_are_offered() -> None:
    pool = StoredPool(POOL, RECORD, {})
    assert is_adoptable(pool, NOTHING)
    assert not is_adoptable(pool, replace(NOTHING, projects=frozenset({POOL})))
    for changed in (
        replace(pool, tombstoned=True),
        replace(pool, record=None),
        replace(pool, record=NewerRecord(2)),
    ):
        assert not is_adoptable(changed, NOTHING)


def test_a_record_is_read_as_it_was_written_and_keeps_unknown_keys() -> None:
    text = render_record(RECORD)
    assert parse_record(text) == RECORD
    future = json.dumps({**json.loads(text), "key_of_later": {"a": 1}, "unknown": {"b": 2}})
    parsed = parse_record(future)
    assert isinstance(parsed, PoolRecord)
    rewritten = json.loads(render_record(replace(parsed, deletion_policy="Retain")))
    assert rewritten["key_of_later"] == {"a": 1} and rewritten["unknown"] == {"b": 2}
    assert parse_record(json.dumps({"format": 2})) == NewerRecord(2)
    for damaged in ("", "{", "[]", "{}", text[:-20]):
        assert parse_record(damaged) is None


def test_a_record_of_release_0_1_0_is_of_a_retained_pool_with_data() -> None:
    old = {"project_uid": POOL, "pool_uuid": "fs", "namespace": "team", "project": "shop"}
    record = parse_record(json.dumps(old))
    assert isinstance(record, PoolRecord) and record.initialized and record.retained
    assert check_adoptable(record, POOL, "team", "any", "c1") == record
    with pytest.raises(PoolLost):
        check_adoptable(record, POOL, "others", "any", "c1")


@pytest.mark.parametrize(
    ("changes", "namespace", "namespace_uid", "allowed"),
    [
        ({}, "team", "ns-uid", True),
        ({}, "team", "made again", False),
        ({"cluster": "c2"}, "team", "made again", True),
        ({"cluster": "c2"}, "others", "ns-uid", False),
        ({"namespace_uid": ""}, "team", "any", True),
        ({"allowed_namespace_uid": "given"}, "others", "given", True),
        ({"allowed_namespace_uid": "given"}, "team", "ns-uid", False),
        ({"namespace": "", "namespace_uid": ""}, "", "any", False),
        ({"initialized": False}, "team", "ns-uid", False),
    ],
)
def test_who_may_adopt(changes: dict[str, Any], namespace: str, namespace_uid: str, allowed: bool) -> None:
    record = replace(RECORD, **changes)
    if allowed:
        assert check_adoptable(record, POOL, namespace, namespace_uid, "c1") == record
    else:
        with pytest.raises(PoolLost):
            check_adoptable(record, POOL, namespace, namespace_uid, "c1")


def test_nobody_adopts_what_is_not_understood() -> None:
    with pytest.raises(StorageUnclear):
        check_adoptable(NewerRecord(9), POOL, "team", "ns-uid", "c1")
    with pytest.raises(PoolLost):
        check_adoptable(None, POOL, "team", "ns-uid", "c1")


def test_the_record_of_an_adopted_pool_names_its_former_projects() -> None:
    new = PoolRecord(OTHER, namespace="team", project="next")
    adopted = replace(RECORD, lineage=("0",)).adopted_by(new)
    assert adopted.lineage == ("0", POOL) and adopted.pool_uuid == "fs" and adopted.initialized
    assert (adopted.project_uid, adopted.project) == (OTHER, "next")
