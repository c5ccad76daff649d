"""The benchmarks' figures, page and parsers."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pytest
from tests.bench import audit, counts, figures, meter, sizes
from tests.bench.audit import Request
from tests.bench.before import missing_for, runs_before
from tests.bench.counts import durations, line_time, tps, writes
from tests.bench.expiry import rows_of as rows_of_expiry
from tests.bench.figures import Result, Row, as_json, from_json
from tests.bench.follow import is_ready
from tests.bench.meter import Meter, added
from tests.bench.page import page, summary
from tests.bench.room import Room, rows_of
from tests.bench.trace import Trace, steps_of

CREATE = Row("apply → Ready", "bare pod", [300, 200, 250], [1000, 900, 2000], goal=0.5)


def test_the_examples_in_the_code() -> None:
    for module in (figures, counts, sizes, meter, audit):
        assert doctest.testmod(module).failed == 0


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


RUN = {"mode": "full", "at": "2026-01-01 00:00 UTC", "load": "1.0"}
COMMIT = "5de9bfc5de9bfc5de9bfc"


def test_the_page_shows_an_earlier_release_beside_the_present_one() -> None:
    slower = Row("apply → Ready", "bare pod", [600], [1000], goal=0.5)
    only_now = Row("delete → gone", "-", [10])
    raw = {
        "machine": {},
        "runs": {"create": RUN},
        "before": {"commit": COMMIT, "measures": {}, "runs": {"create": RUN}},
    }
    said = page(raw, {"create": Result([CREATE, only_now])}, {"create": Result([slower])}).splitlines()
    columns = next(line for line in said if line.startswith("| measure"))
    assert columns.endswith("| result | before: median (min to max) | before: ratio |")
    assert next(line for line in said if "apply → Ready" in line).endswith("| met | 600 ms | 0.6 |")
    assert next(line for line in said if "delete → gone" in line).endswith("| - | - |")
    assert any(COMMIT[:12] in line for line in said)
    assert "| create, before | full | 2026-01-01 00:00 UTC | 1.0 | 1 |" in said


def test_results_of_an_earlier_release_go_when_another_one_is_measured() -> None:
    raw: dict[str, Any] = {"measures": {"create": 1}}
    runs_before(raw, "one")["measures"]["create"] = 2
    assert runs_before(raw, "one")["measures"] == {"create": 2} and raw["measures"] == {"create": 1}
    assert runs_before(raw, "two") == raw["before"] == {"commit": "two", "measures": {}, "runs": {}}


def test_a_measure_that_a_release_cannot_do_is_named(tmp_path: Path) -> None:
    assert missing_for("create", tmp_path) == ""
    assert missing_for("snapshots", tmp_path) == "its chart has no dbsnapshots.yaml"
    assert missing_for("room", tmp_path) == "it measures this tree's controller"
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "dbsnapshots.yaml").touch()
    assert missing_for("snapshots", tmp_path) == ""
    branches = tmp_path / "templates" / "dbbranches.yaml"
    branches.write_text("source: {}")
    assert missing_for("expiry", tmp_path) == "its dbbranches.yaml has no expirationTime"
    branches.write_text("expirationTime: {}")
    assert missing_for("expiry", tmp_path) == ""


def test_a_meter_leaves_the_measure_out_and_adds_spans_up() -> None:
    spent = Meter()
    spent.add({"agent": 2.0, "the measure": 1.0}, {"GET pods": (1, 0.01)})
    spent.add({"agent": 3.0, "etcd": 1.0}, {"GET pods": (3, 0.03), "PATCH pods": (2, 0.1)})
    assert (spent.totals, spent.requests) == ([2.0, 4.0], [1, 5])
    assert spent.processor_text() == "agent 2.5, the measure 0.5, etcd 0.5"
    assert spent.requests_text() == "1 PATCH pods of 50 ms, 2 GET pods of 10 ms"


def audit_line(**changes: Any) -> str:
    event = {
        "kind": "Event",
        "stage": "ResponseComplete",
        "verb": "patch",
        "user": {"username": "system:serviceaccount:shop:shop-proxy"},
        "objectRef": {"resource": "dbbranches", "apiGroup": "dbranch.io", "subresource": "status"},
        "requestReceivedTimestamp": "2026-01-01T00:00:01.000500Z",
        "stageTimestamp": "2026-01-01T00:00:01.013000Z",
    }
    return json.dumps(event | changes, separators=(",", ":"))


def test_requests_come_from_the_audit_log_within_the_api_servers() -> None:
    lines = [
        "I0101 00:00:00.000000       1 controller.go:1] started",
        audit_line(),
        audit_line(stage="RequestReceived"),
        audit_line(objectRef={"resource": "nodes", "subresource": "status"}),
        audit_line(verb="list", objectRef={"resource": "pods"}, user={"username": "system:node:n1"}),
    ]
    patch, listing = audit.parse(lines)
    assert (patch.key, patch.at) == (("proxy", "patch", "dbbranches.dbranch.io/status"), 1767225601.0005)
    assert patch.ms == pytest.approx(12.5, rel=1e-3) and listing.key == ("kubelet", "list", "pods")


def test_a_trace_has_the_requests_between_its_apply_and_ready() -> None:
    log = [Request(at, 2.0, "agent", "get", "pods") for at in (99.9, 100.1, 100.3)]
    trace = Trace({"Ready": 200.0}, {}, 100.0).with_requests(log)
    assert [request["at"] for request in trace.requests] == [pytest.approx(100.0)]
    asked = [trace.as_dict() for _ in range(3)]
    said = page({"machine": {}, "runs": {}}, {"trace": Result([], {"requests": asked})})
    assert "| agent | 1 | 2 |" in said and "| 100 | agent | get | pods | 2.0 |" in said


def test_requests_and_their_seconds_are_counted_without_the_clusters_own() -> None:
    labels = 'group="dbranch.io",resource="dbbranches",subresource="status"'
    lease = 'group="coordination.k8s.io",resource="leases",subresource="",verb="PUT"'
    name = "apiserver_request_duration_seconds"
    metrics = "".join(
        f'{name}_{part}{{{labels},verb="{verb}"}} {value}\n'
        for verb in ("PATCH", "WATCH")
        for part, value in (("count", 4), ("sum", 0.1))
    )
    now = durations(f"{metrics}{name}_count{{{lease}}} 9\n")
    assert now == {"PATCH dbbranches.dbranch.io/status": (4, 0.1)}
    assert added(now, now) == {}


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


def test_expiry_compares_creates_beside_it_and_deletion_by_hand() -> None:
    creates, gone, left = rows_of_expiry(200, [400, 500], [900, 800, 700, 600], 300.0, 150.0, 0)
    assert (creates.figure, creates.met) == (750 / 450, False)
    assert (gone.figure, gone.met) == (2, None) and "4 creates beside it" in gone.note
    assert left.met and not rows_of_expiry(200, [1], [1], 1.0, 1.0, 2)[2].met
