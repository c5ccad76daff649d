"""Findings and look-ups of conditions."""

from __future__ import annotations

import pytest

from dbranch.api.conditions import (
    MESSAGE_LIMIT,
    STALLED_REASONS,
    TRUE_REASONS,
    UNKNOWN_REASONS,
    Condition,
    Finding,
    Reason,
    clip,
    find_condition,
    is_condition_true,
    is_ready,
)


@pytest.mark.parametrize("reason", list(Reason))
def test_each_reason_has_one_meaning(reason: Reason) -> None:
    finding = Finding(reason, "m")
    assert finding.status in ("True", "False", "Unknown")
    assert not (reason in TRUE_REASONS and reason in UNKNOWN_REASONS | STALLED_REASONS)
    assert Finding.from_dict(finding.as_dict()) == finding


def test_a_message_is_cut_and_put_on_one_line() -> None:
    assert len(clip("x" * 1000)) == MESSAGE_LIMIT
    assert clip("a\n b\tc") == "a b c"


def test_conditions_of_an_object_without_status() -> None:
    status = {"conditions": [{"type": "Ready", "status": "True", "reason": "Available"}]}
    assert is_condition_true(status, Condition.READY) and not is_condition_true(status, Condition.ROUTED)
    assert find_condition(None, Condition.READY) is None and not is_condition_true({}, Condition.READY)


def test_an_object_is_ready_if_its_condition_ready_is_true() -> None:
    assert is_ready({"status": {"conditions": [{"type": "Ready", "status": "True"}]}})
    assert not is_ready({"status": {"conditions": [{"type": "Ready", "status": "False"}]}})
    assert not is_ready({}) and not is_ready({"status": {"phase": "Running"}})
