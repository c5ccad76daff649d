"""A restart into settings that Postgres does not take is refused: it would not start."""

from __future__ import annotations

from typing import Any

import pytest

from dbranch.api.conditions import Reason
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.lifecycle import check_restart


def branch(reason: Reason) -> dict[str, Any]:
    condition = {
        "type": "PostgresReady",
        "status": "True",
        "reason": reason.value,
        "message": "no x; correct it",
    }
    return {"status": {"conditions": [condition]}}


def test_a_restart_into_rejected_settings_is_refused() -> None:
    with pytest.raises(Failure, match="no x; correct it; --force") as failure:
        check_restart(branch(Reason.SETTINGS_REJECTED))
    assert failure.value.code == ExitCode.REFUSED


def test_any_other_restart_is_not() -> None:
    for body in (branch(Reason.ACCEPTING), branch(Reason.RESTART_PENDING), {}):
        check_restart(body)
