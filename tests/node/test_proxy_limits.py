"""How many sessions are taken, how long a start may last, and whose address counts."""

from __future__ import annotations

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
from tests.node.proxy_backend import USER, Backend, MakeProxy, Proxy, branch_of, trusting, wait_until
from tests.node.proxy_talk import error_of, read_all, refused, startup

from dbranch.api.project import ProxyLimits, Target
from dbranch.proxy import switchboard

V2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11"


def code_of(proxy: Proxy) -> str:
    with proxy.raw() as sock:
        sock.sendall(startup({"user": USER, "database": "postgres"}))
        return error_of(read_all(sock))["C"]


def test_one_session_too_many_is_refused_with_53300(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(limits=ProxyLimits(sessions=3))
    with proxy.connect(), proxy.connect(), proxy.connect() as last:
        assert "has 3 sessions, as many as it takes" in refused(proxy)
        assert code_of(proxy) == "53300"
        assert branch_of(last) == "main"
    wait_until(lambda: not proxy.board.sessions)
    proxy.connect().close()


def test_one_session_of_an_address_too_many(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(limits=ProxyLimits(sessions_per_address=2))
    with proxy.connect(), proxy.connect():
        assert "127.0.0.1 has 2 sessions" in refused(proxy)
        assert code_of(proxy) == "53300"
        # Another address of the same machine is somebody else.
        with socket.create_connection(("::1", proxy.port), timeout=20) as sock:
            sock.sendall(startup({"user": USER, "database": "postgres"}))
            assert sock.recv(1) == b"R"
    wait_until(lambda: not proxy.board.sessions)
    assert proxy.board.by_address == {}


def test_one_session_of_a_branch_too_many(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(limits=ProxyLimits(sessions_per_branch=2))
    with proxy.connect(), proxy.connect():
        assert 'branch "main" has 2 sessions' in refused(proxy)
        assert code_of(proxy) == "53300"
        with proxy.connect(options="-c dbranch.branch=feature-x") as other:
            assert branch_of(other) == "feature-x"
    wait_until(lambda: not proxy.board.sessions)
    assert proxy.board.by_branch == {}


def test_who_waits_for_a_branch_counts(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(limits=ProxyLimits(sessions=2))
    proxy.apply(targets={**proxy.table.targets, "main": Target("main", "Starting")})
    with proxy.raw() as one, proxy.raw() as two:
        for sock in (one, two):
            sock.sendall(startup({"user": USER}))
        wait_until(lambda: len(proxy.board.sessions) == 2)
        assert code_of(proxy) == "53300"


def test_a_lower_limit_leaves_open_sessions_alone(make_proxy: MakeProxy) -> None:
    proxy = make_proxy()
    with proxy.connect() as one, proxy.connect() as two:
        proxy.apply(limits=ProxyLimits(sessions=1))
        assert (branch_of(one), branch_of(two)) == ("main", "main")
        assert code_of(proxy) == "53300"


def test_a_start_has_its_time(make_proxy: MakeProxy) -> None:
    """Who says nothing is closed, who stays within a packet is told."""
    proxy = make_proxy(handshake_timeout=0.5)
    began = time.monotonic()
    with proxy.raw() as silent, proxy.raw() as halfway:
        halfway.sendall(startup({"user": USER})[:9])
        assert "no startup packet within 0.5 s" in error_of(read_all(halfway))["M"]
        assert read_all(silent) == b""
    assert 0.4 < time.monotonic() - began < 3
    wait_until(lambda: not proxy.board.opening)


def test_a_tls_handshake_has_its_time(make_proxy: MakeProxy, tls: Path) -> None:
    proxy = make_proxy(tls, handshake_timeout=0.5)
    with proxy.raw() as sock:
        sock.sendall(struct.pack("!II", 8, 80877103))
        assert sock.recv(1) == b"S"
        began = time.monotonic()
        sock.sendall(b"\x16\x03\x01\x02\x00")
        assert read_all(sock) == b""
        assert time.monotonic() - began < 3
    wait_until(lambda: not proxy.board.opening)
    # Nor does one stay that goes in the middle of it.
    with proxy.raw() as sock:
        sock.sendall(struct.pack("!II", 8, 80877103))
        assert sock.recv(1) == b"S"
        assert proxy.board.opening
    wait_until(lambda: not proxy.board.opening)


def test_a_login_among_five_hundred_silent_connections(make_proxy: MakeProxy) -> None:
    proxy = make_proxy()
    with ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(proxy.raw())
        wait_until(lambda: len(proxy.board.opening) == 500)
        for _ in range(5):
            began = time.monotonic()
            with proxy.connect() as connection:
                assert branch_of(connection) == "main"
            assert time.monotonic() - began < 1
    wait_until(lambda: not proxy.board.opening)


def test_of_too_many_silent_connections_the_oldest_goes(
    make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switchboard, "MOST_OPENING", 50)
    proxy = make_proxy()
    with ExitStack() as stack:
        socks = [stack.enter_context(proxy.raw()) for _ in range(80)]
        wait_until(lambda: len(proxy.board.opening) == 50)
        assert read_all(socks[0]) == b""
        with proxy.connect() as connection:
            assert branch_of(connection) == "main"
        socks[-1].sendall(startup({"user": USER, "database": "postgres"}))
        assert socks[-1].recv(1) == b"R"
    wait_until(lambda: not proxy.board.opening)


# The PROXY protocol


@pytest.fixture
def outside() -> Iterator[str]:
    """An address of this machine that is not the loopback's, so that a header is expected of it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("192.0.2.1", 9))
        yield sock.getsockname()[0]


def header() -> bytes:
    addresses = socket.inet_aton("198.51.100.7") + socket.inet_aton("10.0.0.1")
    body = addresses + struct.pack("!HH", 40000, 5432)
    return V2 + struct.pack("!H", len(body)) + body


@pytest.mark.parametrize("sent", [b"PROXY TCP4 198.51.100.7 10.0.0.1 40000 5432\r\n", header()])
def test_the_balancers_word_is_the_clients_address(
    make_proxy: MakeProxy, outside: str, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    caplog.set_level(logging.INFO, "dbranch.session")
    proxy = make_proxy(proxy_protocol=True, limits=ProxyLimits(sessions_per_address=1))

    def talk(data: bytes) -> bytes:
        sock.sendall(data)
        return sock.recv(1)

    packet = startup({"user": USER, "database": "postgres"})
    with socket.create_connection((outside, proxy.port), timeout=20) as sock:
        assert talk(sent + packet) == b"R"
        assert proxy.board.by_address == {"198.51.100.7": 1}
        with socket.create_connection((outside, proxy.port), timeout=20) as sock:
            # Byte by byte, and the address counts: it has its one session.
            for i in range(len(sent)):
                sock.sendall(sent[i : i + 1])
            sock.sendall(packet)
            assert error_of(read_all(sock))["C"] == "53300"
    wait_until(lambda: [r for r in caplog.records if r.name == "dbranch.session"])
    fields = [r.fields for r in caplog.records if r.name == "dbranch.session"]  # type: ignore[attr-defined]
    assert [f["client"] for f in fields] == ["198.51.100.7:40000"]


@pytest.mark.parametrize("direct", [False, True])
def test_tls_comes_behind_the_header(make_proxy: MakeProxy, outside: str, tls: Path, direct: bool) -> None:
    """Direct TLS in the same segment as the header, which is the balancer's own and not encrypted."""
    proxy, context = make_proxy(tls, proxy_protocol=True), trusting(tls)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    inside = context.wrap_bio(incoming, outgoing, server_hostname="shop")
    with socket.create_connection((outside, proxy.port), timeout=20) as sock:
        before = header() if direct else b""
        if not direct:
            sock.sendall(header() + struct.pack("!II", 8, 80877103))
            assert sock.recv(1) == b"S"
        while True:
            try:
                inside.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(before + outgoing.read())
                before = b""
                incoming.write(sock.recv(65536))
        inside.write(startup({"user": USER, "database": "postgres"}))
        sock.sendall(outgoing.read())
        while True:
            try:
                assert inside.read(1) == b"R"
                break
            except ssl.SSLWantReadError:
                incoming.write(sock.recv(65536))
        assert [s.peer for s in proxy.board.sessions] == ["198.51.100.7:40000"]


def test_without_a_header_nobody_gets_in(make_proxy: MakeProxy, outside: str) -> None:
    proxy = make_proxy(proxy_protocol=True)
    with pytest.raises(psycopg.OperationalError):
        proxy.connect(host=outside, sslmode="disable", gssencmode="disable")
    for sent in (startup({"user": USER}), struct.pack("!II", 8, 80877103), b"PROXY TCP4 x\r\n"):
        with socket.create_connection((outside, proxy.port), timeout=20) as sock:
            sock.sendall(sent)
            assert error_of(read_all(sock))["C"] == "08P01"
    # A port-forward ends in the pod itself, and sends none.
    with proxy.connect() as connection:
        assert branch_of(connection) == "main"
    with proxy.raw() as sock:
        sock.sendall(header())
        assert error_of(read_all(sock))["C"] == "08P01"


def test_a_header_that_nobody_asked_for_is_no_start(proxy: Proxy, outside: str) -> None:
    for sent in (header(), b"PROXY TCP4 198.51.100.7 10.0.0.1 40000 5432\r\n"):
        with socket.create_connection((outside, proxy.port), timeout=20) as sock:
            sock.sendall(sent)
            assert error_of(read_all(sock))["C"] == "08P01"


# What is counted


def value(proxy: Proxy, name: str) -> float:
    lines = proxy.metrics().splitlines()
    found = [line.rpartition(" ")[2] for line in lines if line.rpartition(" ")[0] == name]
    return float(found[0]) if found else 0.0


def test_what_is_counted(make_proxy: MakeProxy, main: Backend, threads: ThreadPoolExecutor) -> None:
    proxy = make_proxy(limits=ProxyLimits(sessions=3), on_switch="Drain")
    with proxy.connect() as one, proxy.connect() as two, proxy.raw():
        row = one.execute("SELECT repeat('x', 1000000)").fetchone()
        assert row
        two.execute("BEGIN")
        assert value(proxy, 'dbranch_proxy_sessions{branch="main",state="open"}') == 2
        wait_until(lambda: value(proxy, "dbranch_proxy_opening") == 1)
        assert value(proxy, 'dbranch_proxy_bytes_total{branch="main",direction="out"}') > 1_000_000
        assert 0 < value(proxy, 'dbranch_proxy_bytes_total{branch="main",direction="in"}') < 5000
        refused(proxy, options="-c dbranch.branch=mian")
        assert value(proxy, 'dbranch_proxy_refusals_total{reason="unknown_branch"}') == 1
        assert value(proxy, "dbranch_proxy_connect_wait_seconds_count") == 2
        proxy.apply(active="feature-x")
        wait_until(lambda: one not in proxy.board.sessions and len(proxy.board.sessions) == 1)
        assert value(proxy, 'dbranch_proxy_sessions{branch="main",state="draining"}') == 1
        assert value(proxy, "dbranch_proxy_switch_seconds_count") == 0
        time.sleep(0.3)
        two.execute("COMMIT")
        wait_until(lambda: value(proxy, "dbranch_proxy_switch_seconds_count") == 1)
        assert 0.3 < value(proxy, "dbranch_proxy_switch_seconds_sum") < 5
        assert value(proxy, 'dbranch_proxy_session_ends_total{how="drained"}') == 2
        # The bytes of sessions that are over stay counted.
        assert value(proxy, 'dbranch_proxy_bytes_total{branch="main",direction="out"}') > 1_000_000
        assert value(proxy, 'dbranch_proxy_branch_sessions_total{branch="main"}') == 2
        assert value(proxy, "dbranch_proxy_route_generation") == 2
    proxy.apply(targets={"feature-x": proxy.table.targets["feature-x"]})
    assert 'branch="main"' not in proxy.metrics()
