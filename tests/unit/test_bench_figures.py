"""What the benchmarks make of their samples."""

from __future__ import annotations

import doctest

from tests.bench import figures
from tests.bench.figures import Result, Row, as_json, from_json
from tests.bench.follow import is_ready
from tests.bench.page import page, summary
from tests.bench.trace import steps_of

CREATE = Row("apply → Ready", "bare pod", [300, 200, 250], [1000, 900, 2000], goal=0.5)


def test_the_examples_in_the_code() -> None:
    assert doctest.testmod(figures).failed == 0


def test_a_goal_is_held_against_the_ratio_of_medians_or_the_part_that_is_named() -> None:
    assert CREATE.figure == 0.25 and CREATE.met
    worst = Row("the same", "bare pod", [300, 200, 2500], [1000], goal=0.8, part="p95")
    assert worst.figure == 2.5 and worst.met is False
    assert Row("bytes", "-", [0.4], unit="MiB", goal=1.0).met
    assert Row("told", "-", [1]).met is None


def test_raw_numbers_come_back_as_they_were_and_make_the_page() -> None:
    result = Result([CREATE], {})
    again = from_json(as_json(result))
    assert again == result
    run = {"mode": "quick", "at": "2026-01-01 00:00 UTC", "load": "1.0"}
    said = page({"machine": {"memory": "24 GiB"}, "runs": {"create": run}}, {"create": again})
    line = "| apply → Ready | 250 ms (200 to 300) | bare pod | 1000 ms (900 to 2000) | 0.25 | ≤ 0.5 | met |"
    assert line in said.splitlines() and "* memory: 24 GiB" in said
    assert summary(again) == [
        "apply → Ready: 250 ms (200 to 300) | bare pod: 1000 ms (900 to 2000) | ratio 0.25 | goal ≤ 0.5: met"
    ]


def test_the_steps_of_a_branch_that_is_becoming_ready() -> None:
    body = {"metadata": {"finalizers": ["dbranch.io/controller"]}, "status": {"nodeName": "n1"}}
    assert steps_of(body) == ["created", "finalizer of the controller", "bound"]
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    assert is_ready(ready) and not is_ready(body) and "Ready" in steps_of({**body, **ready})
