"""The agent's wiring to kopf: a removal is called again until nothing is left."""

from __future__ import annotations

from typing import Any

import kopf
import pytest

from dbranch.agent.handlers import run_removal
from dbranch.api.errors import Busy, DataLost
from dbranch.runtime.backoff import Backoff
from dbranch.runtime.result import Result

BODY = kopf.Body({"metadata": {"namespace": "team", "name": "shop-x", "uid": "x-uid"}})


def removal(*answers: Result | Exception) -> Any:
    remaining = list(answers)

    def remove(body: dict[str, Any]) -> Result:
        assert body["metadata"]["uid"] == "x-uid"
        answer = remaining.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return remove


def test_a_removal_with_something_left_is_called_again() -> None:
    with pytest.raises(kopf.TemporaryError) as caught:
        run_removal(removal(Result(0.3)), BODY, Backoff(60.0))
    assert caught.value.delay == 0.3
    run_removal(removal(Result()), BODY, Backoff(60.0))


@pytest.mark.parametrize("error", [DataLost("gone"), OSError(5, "I/O error"), ZeroDivisionError("a bug")])
def test_a_removal_that_fails_in_any_way_is_called_again_after_a_delay(error: Exception) -> None:
    backoff = Backoff(60.0)
    with pytest.raises(kopf.TemporaryError) as caught:
        run_removal(removal(error), BODY, backoff)
    assert caught.value.delay == 3.0
    assert backoff.remaining("x-uid", None, 0.0) > 0
    run_removal(removal(Result()), BODY, backoff)
    assert backoff.remaining("x-uid", None, 0.0) == 0


def test_a_removal_that_waits_for_something_busy_is_called_again_soon() -> None:
    with pytest.raises(kopf.TemporaryError) as caught:
        run_removal(removal(Busy("mounted")), BODY, Backoff(60.0))
    assert caught.value.delay == 0.5
