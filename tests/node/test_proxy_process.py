"""The proxy as a process: probes, metrics, its log, SIGTERM, and an unreachable API server."""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from tests.node.proxy_backend import USER, Backend, branch_of, wait_until
from tests.node.proxy_process import ProxyProcess, connect, proxy_process
from tests.node.proxy_talk import fatal_message


@pytest.fixture
def running(main: Backend, feature: Backend, tmp_path: Path) -> Iterator[ProxyProcess]:
    short_delays = {"DBRANCH_WITHDRAW_SECONDS": "1", "DBRANCH_GRACE_SECONDS": "3"}
    with proxy_process([main, feature], tmp_path / "log", **short_delays) as running:
        yield running


def test_metrics_probes_and_the_log_line_of_a_session(running: ProxyProcess) -> None:
    assert running.get("healthz") == (200, "ok\n")
    assert running.get("readyz") == (200, "ok\n")
    with connect(running, application_name="web") as connection:
        connection.execute("SELECT repeat('x', 100000)").fetchall()
        code, text = running.get("metrics")
        assert code == 200
        assert 'dbranch_proxy_sessions{branch="main",state="open"} 1.0\n' in text
        assert "# TYPE dbranch_proxy_bytes_total counter" in text
    wait_until(lambda: running.logged("dbranch.session"))
    (line,) = running.logged("dbranch.session")
    assert line["client"].startswith("127.0.0.1:")
    assert (line["branch"], line["user"], line["database"]) == ("main", USER, "postgres")
    assert (line["end"], line["message"]) == ("client closed", "session")
    assert line["bytes_out"] > 100_000 > line["bytes_in"]


def test_sigterm_drains_sessions_and_ends_the_others_after_the_grace_period(running: ProxyProcess) -> None:
    idle, busy, stuck = connect(running), connect(running), connect(running)
    for connection in (busy, stuck):
        connection.execute("BEGIN")
    started_at = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    wait_until(lambda: running.get("readyz")[0] == 503, 3)
    # Nodes may still send connections to this pod, so they are accepted.
    with connect(running) as late:
        assert branch_of(late) == "main"
    assert fatal_message(idle).startswith("57P01")
    with pytest.raises(psycopg.OperationalError):
        connect(running)
    assert busy.execute("SELECT 1").fetchone() == (1,)
    busy.execute("COMMIT")
    assert "the proxy is stopping" in fatal_message(busy)
    assert fatal_message(stuck).startswith("57P01")
    assert running.process.wait(10) == 0
    assert time.monotonic() - started_at < 1 + 3 + 3
    assert running.project.entries() == []


def test_the_entry_counts_by_branch_and_is_written_at_once_when_a_drain_ends(
    main: Backend, feature: Backend, tmp_path: Path
) -> None:
    with proxy_process([main, feature], tmp_path / "log", {"onSwitch": "Drain"}) as running:
        entries = running.project.entries
        with connect(running) as busy, connect(running, options="-c dbranch.branch=feature-x"):
            busy.execute("BEGIN")
            running.project.switch("feature-x")
            old = {"branch": "main", "sessions": 0, "draining": 1}
            new = {"branch": "feature-x", "sessions": 1, "draining": 0}
            wait_until(lambda: [e["branches"] for e in entries()] == [[new, old]], 3)
            assert [(e["sessions"], e["draining"]) for e in entries()] == [(1, 1)]
            busy.execute("COMMIT")
            wait_until(lambda: [e["branches"] for e in entries()] == [[new]], 3)


def test_session_counts_are_written_rarely(main: Backend, tmp_path: Path) -> None:
    """At most once in ten seconds, however often sessions change; and that often even if other fields change."""
    with proxy_process([main], tmp_path / "log") as running:
        wait_until(running.project.entries)
        before, deadline = running.project.writes, time.monotonic() + 12
        while time.monotonic() < deadline:
            connect(running).close()
            time.sleep(0.2)
        assert running.project.writes - before <= 2
        with connect(running), connect(running), connect(running):
            deadline = time.monotonic() + 15
            while running.project.entries()[0]["sessions"] != 3:
                assert time.monotonic() < deadline, "writes of other fields delay the counts"
                running.project.touch()
                time.sleep(0.5)


def test_routing_continues_without_an_api_server(running: ProxyProcess) -> None:
    wait_until(lambda: [e["generation"] for e in running.project.entries()] == [1])
    running.project.switch("feature-x")
    wait_until(lambda: [e["generation"] for e in running.project.entries()] == [2])
    running.project.up = False
    time.sleep(1.5)
    with connect(running) as connection:
        assert branch_of(connection) == "feature-x"
    assert running.get("readyz")[0] == 200
    running.project.up = True
    running.project.switch("main")
    wait_until(lambda: [e["generation"] for e in running.project.entries()] == [3], 20)
    with connect(running) as connection:
        assert branch_of(connection) == "main"


def test_the_soft_limit_of_open_files_is_raised(main: Backend, tmp_path: Path) -> None:
    """A session takes two, and containers often start with a soft limit of 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with proxy_process([main], tmp_path / "log") as running:
            limits = Path(f"/proc/{running.process.pid}/limits").read_text()
            (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
            assert line.split()[3] == str(hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
