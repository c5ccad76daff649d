"""The names of subvolumes: what is rendered is parsed back, and nothing else passes for one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbranch.agent.layout import Layout, SubvolumeKind, SubvolumeName
from dbranch.api.errors import InvalidInput

UID = "0f5b3b0c-9d0e-4b52-8d4c-5f8d3c1b2a19"
PROJECT_UID = "7c1d2f3a-0000-4000-8000-000000000001"

subvolume_names = st.builds(
    SubvolumeName,
    owner_uid=st.uuids().map(str),
    # A kind that this release does not know, too.
    kind=st.none() | st.sampled_from(SubvolumeKind).map(str) | st.from_regex(r"[a-z]{1,12}", fullmatch=True),
    suffix=st.none() | st.from_regex(r"[0-9a-z]{1,16}", fullmatch=True),
)


@given(name=subvolume_names)
def test_a_name_is_parsed_as_it_was_rendered(name: SubvolumeName) -> None:
    assert SubvolumeName.parse(str(name)) == name


@given(text=st.text() | st.from_regex(rf"\.?[a-z]*-?{UID}.*", fullmatch=True))
def test_what_is_parsed_is_rendered_as_it_stood(text: str) -> None:
    name = SubvolumeName.parse(text)
    assert name is None or str(name) == text


@pytest.mark.parametrize(
    ("text", "is_data", "is_understood"),
    [
        (UID, True, True),
        (f".new-{UID}", False, True),
        (f".init-{UID}", False, True),
        (f".restore-{UID}", False, True),
        (f".trash-{UID}-0", False, True),
        (f".later-{UID}", False, False),
        # No kind and a suffix: nothing of this release.
        (f"{UID}-1", False, False),
    ],
)
def test_what_a_name_says(text: str, is_data: bool, is_understood: bool) -> None:
    name = SubvolumeName.parse(text)
    assert name and (name.owner_uid, name.is_data, name.is_understood) == (UID, is_data, is_understood)


@pytest.mark.parametrize(
    "text", ["", ".trash", ".new-", f".-{UID}", f"new-{UID}", UID.upper(), f"{UID}/..", f"{UID}\n", f"{UID}-"]
)
def test_other_names_are_not_of_dbranch(text: str) -> None:
    assert SubvolumeName.parse(text) is None


def test_a_path_is_made_of_uids_only() -> None:
    layout = Layout(Path("/base"))
    assert layout.branch(PROJECT_UID, UID) == Path(f"/base/mnt/{PROJECT_UID}/{UID}")
    assert layout.new_snapshot(PROJECT_UID, UID).name == f".new-{UID}"
    for uid in ("..", "shop", f"{UID}-1", ""):
        with pytest.raises(InvalidInput):
            layout.branch(PROJECT_UID, uid)
