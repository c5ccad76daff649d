"""Names of projects and branches: which are invalid, and which ones are suggested instead."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbranch.api.errors import InvalidInput
from dbranch_cli.naming import check_branch_name, check_project_name, did_you_mean, suggest_name


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("feature/X", "feature-x"),
        ("Feature_X", "feature-x"),
        ("-a-", "a"),
        ("PR #118", "pr-118"),
        ("ä/ö", ""),
    ],
)
def test_an_invalid_branch_name_is_refused_with_a_valid_one(name: str, suggested: str) -> None:
    with pytest.raises(InvalidInput) as error:
        check_branch_name("shop", name)
    assert f'"{name}"' in str(error.value)
    assert str(error.value).endswith(f"try {suggested}") == bool(suggested)


def test_the_greatest_length_of_a_branch_name() -> None:
    assert check_branch_name("shop", "x" * 58) == "x" * 58
    with pytest.raises(InvalidInput, match=r"at most 58 characters in project shop; try x{58}$"):
        check_branch_name("shop", "x" * 59)


@pytest.mark.parametrize("name", ["proxy", "conn"])
def test_reserved_branch_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"try {name}-branch"):
        check_branch_name("shop", name)


@pytest.mark.parametrize(
    ("name", "suggested"), [("Shop", "shop"), ("1shop", "shop"), ("my_shop", "my-shop"), ("s" * 31, "s" * 30)]
)
def test_an_invalid_project_name_is_refused_with_a_valid_one(name: str, suggested: str) -> None:
    with pytest.raises(InvalidInput, match=f"try {suggested}$"):
        check_project_name(name)


def test_the_greatest_length_of_a_project_name() -> None:
    assert check_project_name("s" * 30) == "s" * 30


@given(st.text(max_size=80))
def test_every_suggestion_is_valid(name: str) -> None:
    suggested = suggest_name(name, 30, "a-z")
    if suggested:
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", suggested) and len(suggested) <= 30
        assert check_project_name(suggested) == suggested


def test_did_you_mean() -> None:
    assert did_you_mean("mian", ["main", "feature-x"]) == "; did you mean main?"
    assert did_you_mean("zzz", ["main", "feature-x"]) == "; available: main, feature-x"
    assert did_you_mean("zzz", ["main"]) == "; available: main"
    assert did_you_mean("zzz", []) == ""
    assert did_you_mean("zzz", [f"b{n}" for n in range(20)]).endswith("b9, …")
