"""Connections that do not get beyond their handshake: they hold up nobody, and their number is bounded."""

from __future__ import annotations

import socket
import ssl
import struct
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.node.proxy_backend import USER, MakeProxy, Proxy, branch_of, trusting_context, wait_until
from tests.node.proxy_talk import build_startup, error_fields, read_all

from dbranch.api.proxy_spec import ProxyLimits

SSL_REQUEST = struct.pack("!II", 8, 80877103)
# More than are let in at once, and longer than any login below takes.
CROWD, HANDSHAKE_SECONDS = 60, 600.0


def request_tls(proxy: Proxy, stack: ExitStack) -> socket.socket:
    sock = stack.enter_context(proxy.raw())
    sock.sendall(SSL_REQUEST)
    assert sock.recv(1) == b"S"
    return sock


def client_hello(directory: Path) -> bytes:
    outgoing = ssl.MemoryBIO()
    client = trusting_context(directory).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="shop")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("sends_hello", [False, True])
def test_tls_clients_that_fall_silent_hold_up_no_login(
    make_proxy: MakeProxy, tls: Path, sends_hello: bool
) -> None:
    proxy = make_proxy(tls, handshake_timeout=HANDSHAKE_SECONDS)
    with ExitStack() as stack:
        for _ in range(CROWD):
            sock = request_tls(proxy, stack)
            if sends_hello:
                sock.sendall(client_hello(tls))
        with proxy.connect(sslmode="require", connect_timeout=20) as connection:
            assert branch_of(connection) == "main"
    wait_until(lambda: not proxy.switchboard.starting)


def test_the_oldest_of_too_many_handshakes_is_refused_with_53300(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(limits=ProxyLimits(handshakes=50))
    with ExitStack() as stack:
        socks = [stack.enter_context(proxy.raw()) for _ in range(80)]
        wait_until(lambda: len(proxy.switchboard.starting) == 50)
        fields = error_fields(read_all(socks[0]))
        assert fields["C"] == "53300" and "limit is 50" in fields["M"]
        with proxy.connect() as connection:
            assert branch_of(connection) == "main"
        socks[-1].sendall(build_startup({"user": USER, "database": "postgres"}))
        assert socks[-1].recv(1) == b"R"
        assert 'rejections_total{reason="crowd_out"} 31' in proxy.metrics()
    wait_until(lambda: not proxy.switchboard.starting)


def test_one_handshake_of_an_address_too_many_is_refused_with_53300(make_proxy: MakeProxy, tls: Path) -> None:
    proxy = make_proxy(tls, limits=ProxyLimits(handshakes_per_address=3))
    with ExitStack() as stack:
        request_tls(proxy, stack)
        for _ in range(2):
            stack.enter_context(proxy.raw())
        wait_until(lambda: len(proxy.switchboard.starting) == 3)
        with proxy.raw() as sock:
            fields = error_fields(read_all(sock))
        assert fields["C"] == "53300" and "127.0.0.1 has 3 connections" in fields["M"]
        assert 'rejections_total{reason="limit_handshakes"} 1' in proxy.metrics()
        # Another address counts by itself.
        with socket.create_connection(("::1", proxy.port), timeout=20) as sock:
            sock.sendall(build_startup({"user": USER, "database": "postgres"}))
            assert sock.recv(1) == b"R"
    wait_until(lambda: not proxy.switchboard.starting)
    assert proxy.switchboard.starting_by_address == {}
    # Sessions do not count.
    with ExitStack() as stack:
        for _ in range(5):
            assert branch_of(stack.enter_context(proxy.connect())) == "main"
