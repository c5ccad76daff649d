"""Connections whose bytes are not the Postgres protocol."""

from __future__ import annotations

import random
import socket
import struct
from pathlib import Path

import pytest
from tests.node.proxy_backend import (
    USER,
    MakeProxy,
    Proxy,
    branch_of,
    wait_until,
)
from tests.node.proxy_talk import build_startup, error_fields, read_all

from dbranch.proxy import wire


@pytest.mark.parametrize(
    "sent, sqlstate",
    [
        (b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n", "08P01"),
        (b"\x00\x00\x00\x07", "08P01"),
        (struct.pack("!II", 8, 2 << 16), "0A000"),
        (struct.pack("!II", 8, wire.SSL_REQUEST_CODE) + b"user", "08P01"),
        (b"\x16\x03\x01\x00\x05hello", "08P01"),
    ],
)
def test_malformed_first_bytes_get_an_error(proxy: Proxy, sent: bytes, sqlstate: str) -> None:
    with proxy.raw() as sock:
        sock.sendall(sent)
        assert error_fields(read_all(sock))["C"] == sqlstate


def test_random_bytes_do_not_end_the_proxy(make_proxy: MakeProxy, tls: Path) -> None:
    proxy = make_proxy(tls)
    chance = random.Random(20)
    prefixes = [
        b"",
        b"\x16\x03\x01",
        struct.pack("!II", 100, 3 << 16),
        struct.pack("!II", 8, wire.SSL_REQUEST_CODE),
        struct.pack("!II", 16, wire.CANCEL_REQUEST_CODE),
        build_startup({"user": USER}),
    ]
    for _ in range(3000):
        with proxy.raw() as sock:
            sock.sendall(chance.choice(prefixes) + chance.randbytes(chance.randrange(200)))
            if chance.random() < 0.2:
                sock.shutdown(socket.SHUT_WR)
    with proxy.connect() as connection:
        assert branch_of(connection) == "main"
    wait_until(lambda: not proxy.switchboard.sessions, 30)
