from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbranch.api import names

LABEL = st.from_regex(r"[a-z]([-a-z0-9]{0,14}[a-z0-9])?", fullmatch=True)


@given(LABEL, LABEL)
def test_a_branch_is_found_again_in_its_objects_name(project: str, branch: str) -> None:
    assert names.branch_name(project, names.branch_object_name(project, branch)) == branch


@pytest.mark.parametrize("name", ["other-x", "shop", "shop-", "shopx"])
def test_a_foreign_name_is_no_branch(name: str) -> None:
    with pytest.raises(ValueError, match="not <project>-<branch>"):
        names.branch_name("shop", name)


@given(st.uuids().map(str))
def test_a_branch_keeps_its_port_and_never_has_the_standard_one(uid: str) -> None:
    port = names.branch_port(uid)
    assert port == names.branch_port(uid)
    assert 20000 <= port < 30000


@given(st.uuids().map(str))
def test_two_uses_of_a_slot_have_two_names_that_fit_a_pod(uid: str) -> None:
    first, second = names.slot_name(uid, "1"), names.slot_name(uid, "2")
    assert first != second
    assert len(first) <= 63 and first.replace("-", "").isalnum()


def test_labels_hold_the_recommended_ones() -> None:
    made = names.labels(names.COMPONENT_POSTGRES, "shop", **{names.LABEL_BRANCH: "main"})
    assert made["app.kubernetes.io/part-of"] == "dbranch"
    assert made["app.kubernetes.io/component"] == "postgres"
    assert made["dbranch.io/branch"] == "main"
