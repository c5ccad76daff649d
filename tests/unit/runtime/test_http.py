"""HTTP for kubelet and Prometheus, and what the controller serves by it."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus

import pytest

from dbranch.controller.metrics import ControllerMetrics
from dbranch.runtime.http import CONNECTIONS_LIMIT, Response, serve_http


@contextmanager
def serving(routes: Mapping[str, Callable[[], Response]]) -> Iterator[str]:
    server = serve_http(0, routes)
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_path_is_answered_by_its_function_each_time_anew() -> None:
    answers = iter([Response(b"first"), Response(b"not now", HTTPStatus.SERVICE_UNAVAILABLE)])
    with serving({"/readyz": lambda: next(answers)}) as url:
        with urllib.request.urlopen(f"{url}/readyz", timeout=30) as answer:
            assert answer.read() == b"first" and answer.headers["Content-Type"] == "text/plain"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{url}/readyz", timeout=30)
        assert refused.value.code == 503 and refused.value.read() == b"not now"


def test_both_ip_families_are_served() -> None:
    """Kubelet and Prometheus ask at the pod's address, which is of IPv6 where the cluster's first family is that."""
    with serving({"/readyz": lambda: Response(b"ready")}) as url:
        hosts = ["127.0.0.1", "[::1]"] if socket.has_dualstack_ipv6() else ["127.0.0.1"]
        for host in hosts:
            with urllib.request.urlopen(url.replace("127.0.0.1", host) + "/readyz", timeout=30) as answer:
                assert answer.read() == b"ready"


def test_another_path_is_not_found_and_names_those_that_are() -> None:
    with serving({"/readyz": lambda: Response(b""), "/metrics": lambda: Response(b"")}) as url:
        with pytest.raises(urllib.error.HTTPError) as missing:
            urllib.request.urlopen(url, timeout=30)
        assert missing.value.code == 404 and missing.value.read() == b"/metrics and /readyz\n"


def test_the_controller_counts_reconciles_and_failures_by_kind() -> None:
    metrics = ControllerMetrics()
    with metrics.reconcile("DBBranch"):
        pass
    with pytest.raises(ValueError), metrics.reconcile("DBBranch"):
        raise ValueError
    with (
        serving({"/metrics": metrics.response}) as url,
        urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer,
    ):
        lines = answer.read().decode().splitlines()
    assert 'dbranch_controller_reconcile_seconds_count{kind="DBBranch"} 2.0' in lines
    assert 'dbranch_controller_reconcile_errors_total{kind="DBBranch"} 1.0' in lines


def test_slow_connections_take_no_threads_and_keep_nobody_out() -> None:
    threads = threading.active_count()
    with serving({"/readyz": lambda: Response(b"ready")}) as url, ExitStack() as held:
        address = "127.0.0.1", int(url.rpartition(":")[2])
        for _ in range(200):
            slow = held.enter_context(socket.create_connection(address, timeout=30))
            slow.sendall(b"GET /readyz HTTP/1.1\r\nX-Slow: ")
            assert threading.active_count() <= threads + CONNECTIONS_LIMIT + 2
            with suppress(OSError):
                slow.sendall(b"x")
        for _ in range(20):
            with urllib.request.urlopen(f"{url}/readyz", timeout=30) as answer:
                assert answer.read() == b"ready"


def test_a_connection_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dbranch.runtime.http._REQUEST_SECONDS", 0.2)
    with (
        serving({"/readyz": lambda: Response(b"ready")}) as url,
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=60) as silent,
    ):
        assert silent.recv(1) == b""
