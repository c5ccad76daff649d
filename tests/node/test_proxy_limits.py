"""Limits of sessions and connections, the handshake timeout, the PROXY protocol, and the metrics."""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from tests.node.proxy_backend import USER, Backend, MakeProxy, Proxy, branch_of, trusting_context, wait_until
from tests.node.proxy_talk import build_startup, connect_error, error_fields, read_all

from dbranch.api.project import Target
from dbranch.api.proxy_spec import ProxyLimits
from dbranch.proxy.routes import Network

V2_HEADER_START = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11"


def rejection_sqlstate(proxy: Proxy) -> str:
    """Return the SQLSTATE that a new session is rejected with."""
    with proxy.raw() as sock:
        sock.sendall(build_startup({"user": USER, "database": "postgres"}))
        return error_fields(read_all(sock))["C"]


def test_one_session_too_many_is_rejected_with_53300(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(limits=ProxyLimits(sessions=3))
    with proxy.connect(), proxy.connect(), proxy.connect() as last:
        assert "has 3 sessions; the limit is 3" in connect_error(proxy)
        assert rejection_sqlstate(proxy) == "53300"
        assert branch_of(last) == "main"
    wait_until(lambda: not proxy.switchboard.sessions)
    proxy.connect().close()


def test_one_session_of_an_address_too_many_is_rejected(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(limits=ProxyLimits(sessions_per_address=2))
    with proxy.connect(), proxy.connect():
        assert "127.0.0.1 has 2 sessions on this proxy; the limit per address is 2" in connect_error(proxy)
        assert rejection_sqlstate(proxy) == "53300"
        # Another address counts by itself.
        with socket.create_connection(("::1", proxy.port), timeout=20) as sock:
            sock.sendall(build_startup({"user": USER, "database": "postgres"}))
            assert sock.recv(1) == b"R"
    wait_until(lambda: not proxy.switchboard.sessions)
    assert proxy.switchboard.sessions_by_address == {}


def test_one_session_of_a_branch_too_many_is_rejected(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(limits=ProxyLimits(sessions_per_branch=2))
    with proxy.connect(), proxy.connect():
        assert 'branch "main" has 2 sessions on this proxy; the limit per branch is 2' in connect_error(proxy)
        assert rejection_sqlstate(proxy) == "53300"
        with proxy.connect(options="-c dbranch.branch=feature-x") as other:
            assert branch_of(other) == "feature-x"
    wait_until(lambda: not proxy.switchboard.sessions)
    assert proxy.switchboard.sessions_by_branch == {}


def test_sessions_that_wait_for_a_branch_count(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(limits=ProxyLimits(sessions=2))
    proxy.apply(targets={**proxy.table.targets, "main": Target("main", "Starting")})
    with proxy.raw() as one, proxy.raw() as two:
        for sock in (one, two):
            sock.sendall(build_startup({"user": USER}))
        wait_until(lambda: len(proxy.switchboard.sessions) == 2)
        assert rejection_sqlstate(proxy) == "53300"


def test_a_lowered_limit_leaves_open_sessions_alone(make_proxy: MakeProxy) -> None:
    proxy = make_proxy()
    with proxy.connect() as one, proxy.connect() as two:
        proxy.apply(limits=ProxyLimits(sessions=1))
        assert (branch_of(one), branch_of(two)) == ("main", "main")
        assert rejection_sqlstate(proxy) == "53300"


def test_the_handshake_timeout_without_tls(make_proxy: MakeProxy) -> None:
    """A silent connection is closed; one that has sent part of a packet gets an error."""
    proxy = make_proxy(handshake_timeout=0.5)
    started_at = time.monotonic()
    with proxy.raw() as silent, proxy.raw() as halfway:
        halfway.sendall(build_startup({"user": USER})[:9])
        assert "no startup packet within 0.5 s" in error_fields(read_all(halfway))["M"]
        assert read_all(silent) == b""
    assert 0.4 < time.monotonic() - started_at < 3
    wait_until(lambda: not proxy.switchboard.starting)


def test_the_handshake_timeout_within_tls(make_proxy: MakeProxy, tls: Path) -> None:
    proxy = make_proxy(tls, handshake_timeout=0.5)
    with proxy.raw() as sock:
        sock.sendall(struct.pack("!II", 8, 80877103))
        assert sock.recv(1) == b"S"
        started_at = time.monotonic()
        sock.sendall(b"\x16\x03\x01\x02\x00")
        assert read_all(sock) == b""
        assert time.monotonic() - started_at < 3
    wait_until(lambda: not proxy.switchboard.starting)
    # A client that disconnects within the handshake is removed, too.
    with proxy.raw() as sock:
        sock.sendall(struct.pack("!II", 8, 80877103))
        assert sock.recv(1) == b"S"
        assert proxy.switchboard.starting
    wait_until(lambda: not proxy.switchboard.starting)


def test_a_login_among_five_hundred_silent_connections(make_proxy: MakeProxy) -> None:
    proxy = make_proxy()
    with ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(proxy.raw())
        wait_until(lambda: len(proxy.switchboard.starting) == 500)
        for _ in range(5):
            started_at = time.monotonic()
            with proxy.connect() as connection:
                assert branch_of(connection) == "main"
            assert time.monotonic() - started_at < 1
    wait_until(lambda: not proxy.switchboard.starting)


# The PROXY protocol


@pytest.fixture
def host_address() -> Iterator[str]:
    """An address of this machine other than the loopback's: connections from it need a PROXY header."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("192.0.2.1", 9))
        yield sock.getsockname()[0]


def v2_header() -> bytes:
    addresses = socket.inet_aton("198.51.100.7") + socket.inet_aton("10.0.0.1")
    body = addresses + struct.pack("!HH", 40000, 5432)
    return V2_HEADER_START + struct.pack("!H", len(body)) + body


@pytest.mark.parametrize("sent", [b"PROXY TCP4 198.51.100.7 10.0.0.1 40000 5432\r\n", v2_header()])
def test_the_clients_address_comes_from_the_proxy_header(
    make_proxy: MakeProxy, host_address: str, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    caplog.set_level(logging.INFO, "dbranch.session")
    proxy = make_proxy(proxy_protocol=True, limits=ProxyLimits(sessions_per_address=1))

    packet = build_startup({"user": USER, "database": "postgres"})
    with socket.create_connection((host_address, proxy.port), timeout=20) as sock:
        sock.sendall(sent + packet)
        assert sock.recv(1) == b"R"
        assert proxy.switchboard.sessions_by_address == {"198.51.100.7": 1}
        with socket.create_connection((host_address, proxy.port), timeout=20) as sock:
            # Byte by byte; this address has its one session already.
            for i in range(len(sent)):
                sock.sendall(sent[i : i + 1])
            sock.sendall(packet)
            assert error_fields(read_all(sock))["C"] == "53300"
    wait_until(lambda: [r for r in caplog.records if r.name == "dbranch.session"])
    fields = [r.fields for r in caplog.records if r.name == "dbranch.session"]  # type: ignore[attr-defined]
    assert [f["client"] for f in fields] == ["198.51.100.7:40000"]


@pytest.mark.parametrize("direct", [False, True])
def test_tls_comes_after_the_header(
    make_proxy: MakeProxy, host_address: str, tls: Path, direct: bool
) -> None:
    """The load balancer sends the header unencrypted; direct TLS may be in the same segment."""
    proxy, context = make_proxy(tls, proxy_protocol=True), trusting_context(tls)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls_client = context.wrap_bio(incoming, outgoing, server_hostname="shop")
    with socket.create_connection((host_address, proxy.port), timeout=20) as sock:
        header = v2_header() if direct else b""
        if not direct:
            sock.sendall(v2_header() + struct.pack("!II", 8, 80877103))
            assert sock.recv(1) == b"S"
        while True:
            try:
                tls_client.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(header + outgoing.read())
                header = b""
                incoming.write(sock.recv(65536))
        tls_client.write(build_startup({"user": USER, "database": "postgres"}))
        sock.sendall(outgoing.read())
        while True:
            try:
                assert tls_client.read(1) == b"R"
                break
            except ssl.SSLWantReadError:
                incoming.write(sock.recv(65536))
        assert [s.peer for s in proxy.switchboard.sessions] == ["198.51.100.7:40000"]


def test_a_connection_without_a_required_header_is_rejected(make_proxy: MakeProxy, host_address: str) -> None:
    proxy = make_proxy(proxy_protocol=True)
    with pytest.raises(psycopg.OperationalError):
        proxy.connect(host=host_address, sslmode="disable", gssencmode="disable")
    for sent in (build_startup({"user": USER}), struct.pack("!II", 8, 80877103), b"PROXY TCP4 x\r\n"):
        with socket.create_connection((host_address, proxy.port), timeout=20) as sock:
            sock.sendall(sent)
            assert error_fields(read_all(sock))["C"] == "08P01"
    # A port-forward comes from the pod itself, and sends no header.
    with proxy.connect() as connection:
        assert branch_of(connection) == "main"
    with proxy.raw() as sock:
        sock.sendall(v2_header())
        assert error_fields(read_all(sock))["C"] == "08P01"


def networks(*texts: str) -> tuple[Network, ...]:
    return tuple(map(ipaddress.ip_network, texts))


def test_a_trusted_load_balancer_sends_a_header_and_is_believed(
    make_proxy: MakeProxy, host_address: str
) -> None:
    trusted = networks("203.0.113.0/24", "2001:db8::/32", f"{host_address}/32")
    proxy = make_proxy(proxy_protocol=True, trusted_proxies=trusted)
    with socket.create_connection((host_address, proxy.port), timeout=20) as sock:
        sock.sendall(v2_header() + build_startup({"user": USER, "database": "postgres"}))
        assert sock.recv(1) == b"R"
        assert [s.peer for s in proxy.switchboard.sessions] == ["198.51.100.7:40000"]
    with socket.create_connection((host_address, proxy.port), timeout=20) as sock:
        sock.sendall(build_startup({"user": USER}))
        assert "requires one" in error_fields(read_all(sock))["M"]


def test_anybody_else_sends_no_header_and_is_not_believed(
    make_proxy: MakeProxy, host_address: str, tls: Path
) -> None:
    """Nor does a client of the cluster need one, which uses the Service beside the load balancer."""
    trusted = networks("203.0.113.0/24", "2001:db8::/32")
    proxy = make_proxy(
        tls, proxy_protocol=True, trusted_proxies=trusted, limits=ProxyLimits(sessions_per_address=1)
    )
    with proxy.connect(host=host_address, sslmode="require", gssencmode="disable") as connection:
        assert branch_of(connection) == "main"
        assert proxy.switchboard.sessions_by_address == {host_address: 1}
        for sent in (v2_header(), b"PROXY TCP4 198.51.100.7 10.0.0.1 40000 5432\r\n", b"P", b"\r"):
            with socket.create_connection((host_address, proxy.port), timeout=20) as sock:
                sock.sendall(sent + build_startup({"user": USER}))
                fields = error_fields(read_all(sock))
            assert (
                fields["C"] == "08P01"
                and f"{host_address} is not in spec.proxy.trustedProxies" in fields["M"]
            )
    assert metric(proxy, 'dbranch_proxy_rejections_total{reason="proxy_protocol"}') == 4


def test_a_header_that_is_not_expected_is_rejected(proxy: Proxy, host_address: str) -> None:
    for sent in (v2_header(), b"PROXY TCP4 198.51.100.7 10.0.0.1 40000 5432\r\n"):
        with socket.create_connection((host_address, proxy.port), timeout=20) as sock:
            sock.sendall(sent)
            assert error_fields(read_all(sock))["C"] == "08P01"


# Metrics


def metric(proxy: Proxy, name: str) -> float:
    """Return the value of a metric by its name and labels; 0 if it is not there."""
    lines = proxy.metrics().splitlines()
    values = [line.rpartition(" ")[2] for line in lines if line.rpartition(" ")[0] == name]
    return float(values[0]) if values else 0.0


def test_the_metrics_count_sessions_bytes_rejections_and_switches(
    make_proxy: MakeProxy, main: Backend, threads: ThreadPoolExecutor
) -> None:
    proxy = make_proxy(limits=ProxyLimits(sessions=3), on_switch="Drain")
    with proxy.connect() as one, proxy.connect() as two, proxy.raw():
        row = one.execute("SELECT repeat('x', 1000000)").fetchone()
        assert row
        two.execute("BEGIN")
        assert metric(proxy, 'dbranch_proxy_sessions{branch="main",state="open"}') == 2
        wait_until(lambda: metric(proxy, "dbranch_proxy_starting_connections") == 1)
        assert metric(proxy, 'dbranch_proxy_bytes_total{branch="main",direction="out"}') > 1_000_000
        assert 0 < metric(proxy, 'dbranch_proxy_bytes_total{branch="main",direction="in"}') < 5000
        connect_error(proxy, options="-c dbranch.branch=mian")
        assert metric(proxy, 'dbranch_proxy_rejections_total{reason="unknown_branch"}') == 1
        assert metric(proxy, "dbranch_proxy_connect_wait_seconds_count") == 2
        proxy.apply(active="feature-x")
        wait_until(lambda: one not in proxy.switchboard.sessions and len(proxy.switchboard.sessions) == 1)
        assert metric(proxy, 'dbranch_proxy_sessions{branch="main",state="draining"}') == 1
        assert metric(proxy, "dbranch_proxy_switch_seconds_count") == 0
        time.sleep(0.3)
        two.execute("COMMIT")
        wait_until(lambda: metric(proxy, "dbranch_proxy_switch_seconds_count") == 1)
        assert 0.3 < metric(proxy, "dbranch_proxy_switch_seconds_sum") < 5
        assert metric(proxy, 'dbranch_proxy_session_ends_total{reason="drained"}') == 2
        # The bytes of sessions that have ended stay counted.
        assert metric(proxy, 'dbranch_proxy_bytes_total{branch="main",direction="out"}') > 1_000_000
        assert metric(proxy, 'dbranch_proxy_branch_sessions_total{branch="main"}') == 2
        assert metric(proxy, "dbranch_proxy_route_generation") == 2
    proxy.apply(targets={"feature-x": proxy.table.targets["feature-x"]})
    assert 'branch="main"' not in proxy.metrics()
