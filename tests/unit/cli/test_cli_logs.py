"""`dbranch logs`: every line once, across lost connections and restarts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from click.testing import CliRunner

from dbranch.api.errors import ApiError, ClusterUnreachable
from dbranch_cli import logs as module
from dbranch_cli.connection import Connection
from dbranch_cli.failure import ExitCode, Failure
from dbranch_cli.invocation import Invocation
from dbranch_cli.logs import PodLogs, parse_line
from dbranch_cli.main import cli
from dbranch_cli.objects import Store

STAMPS = [
    f"2030-01-13T12:00:0{n}.{fraction}Z" for n, fraction in ((0, "1"), (0, "10000001"), (1, "2"), (2, "3"))
]
Answer = list[str] | Exception


class FakeConnection:
    """Answers each request for a log with the next of `answers`; an exception in it ends the lines."""

    def __init__(self, *answers: Answer) -> None:
        self.answers, self.asked = list(answers), list[tuple[str, dict[str, str]]]()

    def lines(self, path: str, params: Mapping[str, str], _: float) -> Iterator[str]:
        self.asked.append((path, dict(params)))
        answer = self.answers.pop(0)
        for line in [answer] if isinstance(answer, Exception) else answer:
            if isinstance(line, Exception):
                raise line
            yield line


def source(*answers: Any) -> tuple[PodLogs, FakeConnection]:
    connection = FakeConnection(*answers)
    return PodLogs(connection, "dbranch-nodes"), connection  # type: ignore[arg-type]


def test_a_line_has_the_time_to_the_nanosecond() -> None:
    line = parse_line("2030-01-13T13:00:00.000000019+01:00 LOG:  ready  now")
    assert line.text == "LOG:  ready  now" and line.moment[1] == 19
    assert line.moment[0].isoformat() == "2030-01-13T12:00:00+00:00"
    assert parse_line("2030-01-13T12:00:00Z ").text == ""
    with pytest.raises(ValueError, match="isoformat"):
        parse_line("unable to retrieve container logs")


def test_after_a_lost_connection_no_line_comes_twice_and_none_is_left_out() -> None:
    first, second = [f"{STAMPS[n]} {n}" for n in (0, 1)], [f"{STAMPS[n]} {n}" for n in (0, 1, 2, 3)]
    logs, connection = source([*first, ClusterUnreachable("reset")], second)
    read: list[str] = []
    with pytest.raises(ClusterUnreachable):
        for line in logs.read("slot-1", {"tailLines": "5"}):
            read.append(line.text)
    read += [line.text for line in logs.read("slot-1", {"tailLines": "5"})]
    assert read == ["0", "1", "2", "3"]
    assert connection.asked[0][1]["tailLines"] == "5" and "sinceTime" not in connection.asked[0][1]
    assert connection.asked[1][1]["sinceTime"] == "2030-01-13T12:00:00Z"
    assert "tailLines" not in connection.asked[1][1]


def test_another_pod_is_read_from_its_beginning() -> None:
    logs, connection = source([f"{STAMPS[2]} old"], [f"{STAMPS[0]} new"])
    assert [line.text for line in logs.read("slot-1", {})] == ["old"]
    assert [line.text for line in logs.read("slot-2", {})] == ["new"]
    assert "sinceTime" not in connection.asked[1][1] and connection.asked[1][0].endswith("/pods/slot-2/log")


def test_what_the_kubelet_says_instead_of_a_log_is_an_error() -> None:
    logs, _ = source(["failed to try resolving symlinks in path"])
    with pytest.raises(Failure, match="failed to try resolving"):
        list(logs.read("slot-1", {}))


def branch(pod: str | None, reason: str = "Available") -> dict[str, Any]:
    return {
        "kind": "DBBranch",
        "metadata": {"name": "shop-x", "namespace": "team", "uid": "u"},
        "spec": {"project": "shop"},
        "status": {
            "conditions": [{"type": "Ready", "status": "False", "reason": reason}],
            "node": {"pod": pod} if pod else {},
        },
    }


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a run of `dbranch logs x` with the versions of the branch (the last is for ever) and the logs."""

    def runner(bodies: list[Any], answers: list[Answer], *arguments: str) -> Any:
        connection = FakeConnection(*answers)

        def find_branch(*_: str) -> Any:
            return bodies.pop(0) if len(bodies) > 1 else bodies[0]

        store = Store(connection, "team")  # type: ignore[arg-type]
        monkeypatch.setattr(store, "find_branch", find_branch)
        monkeypatch.setattr(Invocation, "store", store)
        monkeypatch.setattr(module, "_POLL_SECONDS", 0.0)
        return CliRunner().invoke(cli, ["logs", "x", "-p", "shop", *arguments])

    return runner


def test_the_log_of_a_branch(run: Callable[..., Any]) -> None:
    done = run([branch("slot-1")], [[f"{STAMPS[0]} hello", f"{STAMPS[1]} \x1b[2J"]])
    assert (done.exit_code, done.stdout) == (0, "hello\n\x1b[2J\n")
    done = run([branch("slot-1")], [[f"{STAMPS[0]} hello"]], "--timestamps")
    assert done.stdout == f"{STAMPS[0]} hello\n"


def test_following_goes_on_across_restarts_and_stops(run: Callable[..., Any]) -> None:
    bodies = [branch("slot-1"), branch(None, "Stopped"), branch("slot-2"), branch("slot-2"), None]
    waiting = ApiError(400, "BadRequest", "container is waiting to start")
    done = run(bodies, [[f"{STAMPS[2]} one"], waiting, [f"{STAMPS[3]} two"]], "--follow")
    assert (done.exit_code, done.stdout) == (0, "one\ntwo\n")
    assert done.stderr.splitlines() == [
        "branch x: pod slot-1",
        "branch x has no pod (Stopped); waiting for its pod",
        "branch x: pod slot-2",
        "branch x is deleted",
    ]


def test_a_branch_without_a_pod_and_a_user_without_the_right(run: Callable[..., Any]) -> None:
    done = run([branch(None, "Stopped")], [])
    assert isinstance(done.exception, Failure) and done.exception.code == ExitCode.NOT_FOUND
    assert str(done.exception) == "branch x has no pod (Stopped); there is no log"
    done = run([branch("slot-1")], [ApiError(403, "Forbidden", "pods is forbidden")], "-f")
    assert isinstance(done.exception, Failure) and done.exception.code == ExitCode.FORBIDDEN
    assert "nodes' namespace dbranch-nodes" in str(done.exception)


def test_a_finished_container_cannot_be_followed(run: Callable[..., Any]) -> None:
    done = run([branch("slot-1")], [], "-f", "--previous")
    assert isinstance(done.exception, Failure) and done.exception.code == ExitCode.USAGE


def test_a_silent_connection_ends_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    import requests
    from urllib3.exceptions import ReadTimeoutError

    class Response:
        def __enter__(self) -> Response:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def iter_content(self, _: None) -> Iterator[bytes]:
            yield b"a\nb"
            yield b"c\n"
            raise requests.ConnectionError(ReadTimeoutError(None, "", "Read timed out."))  # type: ignore[arg-type]

    connection = Connection.__new__(Connection)
    monkeypatch.setattr(connection, "_send", lambda *_, **__: Response())
    assert list(connection.lines("/log", {}, 1.0)) == ["a", "bc"]
