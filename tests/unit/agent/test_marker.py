"""A marker's text: read back whole, with the keys of others; a newer release's is known as such."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib import resources

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dbranch.agent.volume.marker import (
    FORMAT,
    FROM_BRANCH,
    FROM_INITDB,
    UNDO_KEEP,
    BranchNames,
    Marker,
    NewerMarker,
    Origin,
    RestoreRef,
    Role,
    SnapshotMarker,
    parse_marker,
    render_marker,
    render_snapshot_marker,
)

TAKEN = "2026-01-01T00:00:00Z"
ROOT = Marker(
    "p-uid",
    "r-uid",
    Role.ROOT,
    Origin(FROM_INITDB, None, TAKEN),
    TAKEN,
    17,
    cleaned=True,
    names=BranchNames("team", "shop", "main"),
    superuser="postgres",
    initdb_settings={"timezone": "Etc/UTC"},
)
COPY = replace(
    ROOT,
    owner_uid="x-uid",
    role=Role.COPY,
    origin=Origin(FROM_BRANCH, "r-uid", TAKEN),
    cleaned=False,
    prepared_floor=5,
    password="v1",
    names=BranchNames("team", "shop", "x"),
)
RESTORED = replace(
    COPY,
    generation=7,
    lineage=("r-uid", "x-uid"),
    restore=RestoreRef("restore-uid", UNDO_KEEP, "undo-uid"),
    quiet=True,
    expiration_time=TAKEN,
)
# Keys of a release that this one does not know, beside its own and inside them.
UNKNOWN = {
    "hooks": ["a", "b"],
    "masked": {"since": TAKEN},
    "origin": {"snapshot": 3},
    "names": {"cluster": "c"},
}


@pytest.mark.parametrize("marker", [ROOT, COPY, RESTORED])
def test_a_marker_is_parsed_as_it_was_rendered(marker: Marker) -> None:
    assert parse_marker(render_marker(marker)) == marker


def test_what_a_marker_says_on_disk() -> None:
    assert json.loads(render_marker(COPY)) == {
        "format": 2,
        "kind": "branch",
        "role": "copy",
        "project_uid": "p-uid",
        "owner_uid": "x-uid",
        "names": {"namespace": "team", "project": "shop", "branch": "x"},
        "origin": {"kind": "branch", "uid": "r-uid", "time": TAKEN, "generation": 1},
        "snapshot_time": TAKEN,
        "major": 17,
        "cleaned": False,
        "opened": False,
        "prepared_floor": 5,
        "password": "v1",
        "superuser": "postgres",
        "initdb_settings": {"timezone": "Etc/UTC"},
        "image": "",
        "alter_system_reset": "",
        "verifiers": "",
        "verifiers_of": "",
        "generation": 1,
        "lineage": [],
        "quiet": False,
        "expiration_time": "",
    }
    restored = replace(COPY, restore=RestoreRef("restore-uid", UNDO_KEEP, "undo-uid"))
    raw = json.loads(render_marker(restored))
    assert raw["restore"] == {"uid": "restore-uid", "undo": "Keep", "undo_uid": "undo-uid"}


def merged(marker: Marker, unknown: dict[str, object]) -> str:
    raw = json.loads(render_marker(marker))
    for key, value in unknown.items():
        raw[key] = {**raw[key], **value} if isinstance(value, dict) and key in raw else value
    return json.dumps(raw)


def test_every_rewrite_keeps_the_keys_that_this_release_does_not_know() -> None:
    marker = parse_marker(merged(COPY, UNKNOWN))
    assert isinstance(marker, Marker)
    rewritten = marker.with_cleaned().with_password_version("v2").with_alter_system_reset(TAKEN)
    rewritten = rewritten.reassigned_to("q-uid", "y-uid", BranchNames("team", "other", "main"))
    raw = json.loads(render_marker(rewritten))
    assert raw["hooks"] == ["a", "b"] and raw["masked"] == {"since": TAKEN}
    assert raw["origin"] == {"kind": "branch", "uid": "r-uid", "time": TAKEN, "generation": 1, "snapshot": 3}
    assert raw["names"] == {"namespace": "team", "project": "other", "branch": "main", "cluster": "c"}
    assert (raw["cleaned"], raw["password"], raw["owner_uid"]) == (True, "v2", "y-uid")
    # Who adopts the data with the request of then does not ask again.
    assert raw["alter_system_reset"] == TAKEN and parse_marker(render_marker(rewritten)) == rewritten
    # Its role is that of its owner now, not of where its data came from.
    assert raw["role"] == "root"


def test_a_copy_has_the_verifiers_of_its_source_until_it_has_its_own() -> None:
    source = ROOT.with_password_version("v1").with_own_verifiers("own of main")
    assert source.has_own_verifiers and parse_marker(render_marker(source)) == source
    copy = replace(COPY, verifiers=source.verifiers, verifiers_of=source.verifiers_of)
    assert not copy.has_own_verifiers and copy.with_own_verifiers("own of x").has_own_verifiers
    # With another owner the data's former branch may still have them; with another password they are the project's.
    assert not source.reassigned_to("q-uid", "y-uid", BranchNames()).has_own_verifiers
    assert not source.with_password_version("v2").has_own_verifiers


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=6,
)
unknown_keys = st.dictionaries(st.text(min_size=1, max_size=20), json_values, max_size=5)


# The first is the name of the field that keeps the others.
@given(unknown=unknown_keys)
@example({"unknown": None})
@example({"unknown": {"a": 1}, "b": 2})
def test_any_unknown_key_comes_through(unknown: dict[str, object]) -> None:
    fields = json.loads(render_marker(COPY))
    unknown = {key: value for key, value in unknown.items() if key not in {*fields, "restore"}}
    marker = parse_marker(json.dumps({**fields, **unknown}))
    assert isinstance(marker, Marker)
    assert json.loads(render_marker(marker)) == {**fields, **unknown}


def test_data_of_an_earlier_release_was_never_restored() -> None:
    raw = json.loads(render_marker(COPY))
    for key in ("generation", "lineage", "quiet", "expiration_time"):
        del raw[key]
    del raw["origin"]["generation"]
    marker = parse_marker(json.dumps(raw))
    assert marker == COPY and isinstance(marker, Marker)
    assert marker.generation == marker.origin.generation == 1 and marker.restore is None and not marker.quiet


def test_the_lineage_is_bounded_and_ends_with_the_last_owner() -> None:
    marker = ROOT
    for number in range(100):
        marker = replace(marker, owner_uid=str(number), lineage=marker.descent)
    assert len(marker.descent) == 32 and marker.descent[-2:] == ("98", "99")


def test_what_a_newer_release_adds_to_a_restore_is_kept() -> None:
    raw = json.loads(render_marker(RESTORED))
    raw["restore"]["hooks"] = "done"
    marker = parse_marker(json.dumps(raw))
    assert isinstance(marker, Marker) and marker.restore == RESTORED.restore
    assert json.loads(render_marker(marker.with_quiet_ended()))["restore"] == raw["restore"]


# The first is the name of the field that keeps the others.
@given(unknown=unknown_keys)
@example({"unknown": None})
@example({"unknown": {"a": 1}, "b": 2})
def test_the_marker_of_a_snapshot_comes_back_and_passes_for_no_branch(unknown: dict[str, object]) -> None:
    text = render_snapshot_marker(SnapshotMarker(COPY, "shop-before"))
    assert parse_marker(text) == SnapshotMarker(COPY, "shop-before")
    fields = json.loads(text)
    assert fields["kind"] == "snapshot" and fields["names"]["snapshot"] == "shop-before"
    unknown = {key: value for key, value in unknown.items() if key not in {*fields, "restore"}}
    marker = parse_marker(json.dumps({**fields, **unknown}))
    assert isinstance(marker, SnapshotMarker)
    assert json.loads(render_snapshot_marker(marker)) == {**fields, **unknown}
    # One that does not say which snapshot is no marker.
    del fields["names"]["snapshot"]
    assert parse_marker(json.dumps(fields)) is None


def changed(**keys: object) -> str:
    return json.dumps({**json.loads(render_marker(ROOT)), **keys})


def test_the_marker_of_a_newer_release_is_known_as_such() -> None:
    assert parse_marker(changed(format=FORMAT + 1)) == NewerMarker(3)
    # Whatever else it holds.
    assert parse_marker('{"format": 7}') == NewerMarker(7)
    assert parse_marker(changed(kind="archive")) == NewerMarker(2, "archive")
    # A role that is unknown is no sign that the data is lost.
    assert parse_marker(changed(role="both")) == NewerMarker(2, "role both")
    assert [str(NewerMarker(3)), str(NewerMarker(2, "archive"))] == ["format 3", "kind archive"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        render_marker(ROOT)[:-20],
        "[]",
        "{}",
        changed(format=1),
        changed(format="2"),
        changed(format=True),
        changed(origin=None),
        changed(names={}),
        changed(major=None),
    ],
)
def test_what_cannot_be_read_is_no_marker(text: str) -> None:
    assert parse_marker(text) is None


def test_the_start_script_knows_the_root_by_its_marker() -> None:
    script = (resources.files("dbranch.agent.slot") / "slot-start.sh").read_text()
    match = re.search(r"grep -q '([^']*role[^']*)' \$d/marker.json", script)
    quiet = re.search(r"grep -q '([^']*quiet[^']*)' \$d/marker.json", script)
    assert match and quiet
    is_quiet = re.compile(quiet[1], re.MULTILINE)
    assert is_quiet.search(render_marker(RESTORED)) and not is_quiet.search(render_marker(ROOT))
    assert not is_quiet.search(render_marker(replace(COPY, unknown={"restore": {"quiet": True}})))
    assert replace(ROOT, quiet=True).running_role is Role.COPY and ROOT.running_role is Role.ROOT
    is_root = re.compile(match[1], re.MULTILINE)
    assert is_root.search(render_marker(ROOT)) and not is_root.search(render_marker(COPY))
    # Neither a name nor a key that this release does not know passes for it.
    forged = replace(COPY, names=BranchNames('"role": "root"', '\n "role": "root"', "x"))
    nested = replace(COPY, unknown={"restore": {"role": "root"}})
    assert not is_root.search(render_marker(forged)) and not is_root.search(render_marker(nested))


def test_the_root_is_the_root_by_its_name() -> None:
    assert BranchNames("team", "shop", "main").role is Role.ROOT
    assert BranchNames("team", "shop", "x").role is Role.COPY
