from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbranch.api import names

LABEL = st.from_regex(r"[a-z]([-a-z0-9]{0,14}[a-z0-9])?", fullmatch=True)


@given(LABEL, LABEL)
def test_the_branch_name_is_parsed_from_its_objects_name(project: str, branch: str) -> None:
    assert names.branch_name(project, names.branch_object_name(project, branch)) == branch


@pytest.mark.parametrize("name", ["other-x", "shop", "shop-", "shopx"])
def test_another_name_is_rejected(name: str) -> None:
    with pytest.raises(ValueError, match="not <project>-<branch>"):
        names.branch_name("shop", name)


@given(st.uuids().map(str))
def test_a_branch_port_is_stable_and_never_the_standard_one(uid: str) -> None:
    port = names.branch_port(uid)
    assert port == names.branch_port(uid)
    assert 20000 <= port < 30000


@given(st.uuids().map(str))
def test_two_attempts_have_two_slot_names_that_are_valid_pod_names(uid: str) -> None:
    first, second = names.slot_name(uid, "1"), names.slot_name(uid, "2")
    assert first != second
    assert len(first) <= 63 and first.replace("-", "").isalnum()


def test_labels_include_the_recommended_ones() -> None:
    labels = names.labels(names.COMPONENT_POSTGRES, "shop", **{names.LABEL_BRANCH: "main"})
    assert labels["app.kubernetes.io/part-of"] == "dbranch"
    assert labels["app.kubernetes.io/component"] == "postgres"
    assert labels["dbranch.io/branch"] == "main"
