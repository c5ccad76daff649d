"""The benchmarks' figures, page and parsers."""

from __future__ import annotations

import doctest

import pytest
from tests.bench import counts, figures, sizes
from tests.bench.counts import line_time, tps, writes
from tests.bench.figures import Result, Row, as_json, from_json
from tests.bench.follow import is_ready
from tests.bench.page import page, summary
from tests.bench.room import Room, rows_of
from tests.bench.trace import steps_of

CREATE = Row("apply → Ready", "bare pod", [300, 200, 250], [1000, 900, 2000], goal=0.5)


def test_the_examples_in_the_code() -> None:
    assert doctest.testmod(figures).failed == 0
    assert doctest.testmod(counts).failed == 0
    assert doctest.testmod(sizes).failed == 0


def test_a_goal_is_held_against_the_ratio_of_medians_or_the_part_that_is_named() -> None:
    assert CREATE.figure == 0.25 and CREATE.met
    worst = Row("the same", "bare pod", [300, 200, 2500], [1000], goal=0.8, part="p95")
    assert worst.figure == 2.5 and worst.met is False
    assert Row("bytes", "-", [0.4], unit="MiB", goal=1.0).met
    assert Row("informational", "-", [1]).met is None


def test_a_goal_may_be_the_least() -> None:
    rate = Row("pgbench", "ext4", [95.0], [100.0], "tps", 0.9, at_least=True)
    assert rate.met and rate.goal_text == "≥ 0.9" and CREATE.goal_text == "≤ 0.5"
    assert Row("pgbench", "ext4", [80.0], [100.0], "tps", 0.9, at_least=True).met is False
    assert summary(Result([rate])) == [
        "pgbench: 95 tps | ext4: 100 tps | ratio 0.95 | goal ≥ 0.9: met",
    ]


def test_raw_numbers_come_back_as_they_were_and_make_the_page() -> None:
    result = Result([CREATE], {})
    second_run = from_json(as_json(result))
    assert second_run == result
    run = {"mode": "quick", "at": "2026-01-01 00:00 UTC", "load": "1.0"}
    said = page({"machine": {"memory": "24 GiB"}, "runs": {"create": run}}, {"create": second_run})
    line = "| apply → Ready | 250 ms (200 to 300) | bare pod | 1000 ms (900 to 2000) | 0.25 | ≤ 0.5 | met |"
    assert line in said.splitlines() and "* memory: 24 GiB" in said
    assert summary(second_run) == [
        "apply → Ready: 250 ms (200 to 300) | bare pod: 1000 ms (900 to 2000) | ratio 0.25 | goal ≤ 0.5: met"
    ]


def test_the_steps_of_a_branch_that_is_becoming_ready() -> None:
    body = {"metadata": {"finalizers": ["dbranch.io/agent"]}, "status": {"nodeName": "n1"}}
    assert steps_of(body) == ["created", "finalizer of the agent", "bound"]
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    assert is_ready(ready) and not is_ready(body) and "Ready" in steps_of({**body, **ready})


METRICS = """\
# TYPE apiserver_request_total counter
apiserver_request_total{code="200",component="apiserver",dry_run="",group="dbranch.io",resource="dbbranches",\
scope="resource",subresource="status",verb="PATCH",version="v1alpha1"} 3
apiserver_request_total{code="409",component="apiserver",dry_run="",group="dbranch.io",resource="dbbranches",\
scope="resource",subresource="status",verb="APPLY",version="v1alpha1"} 2
apiserver_request_total{code="200",component="apiserver",dry_run="",group="",resource="pods",\
scope="resource",subresource="",verb="GET",version="v1"} 50
apiserver_request_total{code="201",component="apiserver",dry_run="",group="",resource="pods",\
scope="namespace",subresource="",verb="POST",version="v1"} 1.2e+06
apiserver_request_total{code="200",component="apiserver",dry_run="",group="coordination.k8s.io",resource="leases",\
scope="resource",subresource="",verb="PUT",version="v1"} 900
apiserver_request_total{code="201",component="apiserver",dry_run="",group="",resource="serviceaccounts",\
scope="resource",subresource="token",verb="POST",version="v1"} 4
apiserver_request_total{code="201",component="apiserver",dry_run="",group="",resource="serviceaccounts",\
scope="namespace",subresource="",verb="POST",version="v1"} 1
apiserver_request_sli_duration_seconds_count{verb="PATCH"} 7
"""


def test_writes_are_counted_by_resource_without_the_clusters_own() -> None:
    assert writes(METRICS) == {"dbbranches.dbranch.io/status": 5, "pods": 1200000, "serviceaccounts": 1}


def test_a_run_of_pgbench_without_a_transaction_is_no_figure() -> None:
    with pytest.raises(AssertionError, match="first transaction"):
        tps("tps = 0.000000 (without initial connection time)")


def test_a_log_without_the_line_has_no_time() -> None:
    assert line_time("2026-01-01T00:00:01.500Z INFO a b\n", "reconciled") is None


def test_room_compares_what_one_branch_takes() -> None:
    empty, small, large = Room(1, 70, 1, 0.5, 0), Room(101, 75, 4, 1.5, 0), Room(1001, 120, 31, 10.5, 3)
    memory, each, start, processor, writes_of_start = rows_of(empty, small, large)
    assert (memory.ours, memory.theirs, memory.met) == ([120], [75], None)
    assert (each.ours, each.theirs, each.met) == ([50], [50], True)
    assert start.figure == 31 / 4 and (processor.ours, processor.theirs) == ([10], [10])
    assert writes_of_start.met is False
