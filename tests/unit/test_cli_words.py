"""Names that the user types: what is refused, what is offered instead."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbranch.api.errors import InvalidInput
from dbranch_cli.words import check_branch, check_project, did_you_mean, suggestion


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("feature/X", "feature-x"),
        ("Feature_X", "feature-x"),
        ("-a-", "a"),
        ("PR #118", "pr-118"),
        ("ä/ö", ""),
    ],
)
def test_a_branch_that_cannot_be_is_refused_with_one_that_can(typed: str, offered: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_branch("shop", typed)
    assert f'"{typed}"' in str(refused.value)
    assert str(refused.value).endswith(f"try {offered}") == bool(offered)


def test_a_branch_is_no_longer_than_its_objects_name_may_be() -> None:
    assert check_branch("shop", "x" * 58) == "x" * 58
    with pytest.raises(InvalidInput, match=r"at most 58 characters in project shop; try x{58}$"):
        check_branch("shop", "x" * 59)


@pytest.mark.parametrize("typed", ["proxy", "conn"])
def test_names_of_the_projects_own_objects_are_refused(typed: str) -> None:
    with pytest.raises(InvalidInput, match=f"try {typed}-branch"):
        check_branch("shop", typed)


@pytest.mark.parametrize(
    ("typed", "offered"), [("Shop", "shop"), ("1shop", "shop"), ("my_shop", "my-shop"), ("s" * 31, "s" * 30)]
)
def test_a_project_that_cannot_be(typed: str, offered: str) -> None:
    with pytest.raises(InvalidInput, match=f"try {offered}$"):
        check_project(typed)


def test_a_project_that_can_be() -> None:
    assert check_project("s" * 30) == "s" * 30


@given(st.text(max_size=80))
def test_what_is_offered_would_do(typed: str) -> None:
    offered = suggestion(typed, 30, "a-z")
    if offered:
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", offered) and len(offered) <= 30
        assert check_project(offered) == offered


def test_did_you_mean() -> None:
    assert did_you_mean("mian", ["main", "feature-x"]) == "; did you mean main?"
    assert did_you_mean("zzz", ["main", "feature-x"]) == "; there are: main, feature-x"
    assert did_you_mean("zzz", ["main"]) == "; there is: main"
    assert did_you_mean("zzz", []) == ""
    assert did_you_mean("zzz", [f"b{n}" for n in range(20)]).endswith("b9, …")
