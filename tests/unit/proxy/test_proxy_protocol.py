from __future__ import annotations

import ipaddress
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbranch.proxy.proxy_protocol import Header, InvalidHeader, format_peer, read_header

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def version_2(family: int, body: bytes, command: int = 1, version: int = 2) -> bytes:
    return SIGNATURE + struct.pack("!BBH", version << 4 | command, family, len(body)) + body


V4 = ipaddress.IPv4Address("192.0.2.7").packed + ipaddress.IPv4Address("10.0.0.1").packed
V6 = ipaddress.IPv6Address("2001:db8::7").packed + ipaddress.IPv6Address("2001:db8::1").packed
PORTS = struct.pack("!HH", 40000, 5432)


@pytest.mark.parametrize(
    "data, peer",
    [
        (b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 5432\r\n", "192.0.2.7:40000"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 5432\r\n", "[2001:db8::7]:40000"),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN what ever it is\r\n", None),
        (version_2(0x11, V4 + PORTS), "192.0.2.7:40000"),
        (version_2(0x21, V6 + PORTS), "[2001:db8::7]:40000"),
        (version_2(0x11, V4 + PORTS + b"\x03\x00\x04crc!"), "192.0.2.7:40000"),
        (version_2(0x00, b""), None),
        (version_2(0x31, b"/unix" * 40), None),
        (version_2(0x11, V4 + PORTS, command=0), None),
    ],
)
def test_a_header_is_read_in_any_parts(data: bytes, peer: str | None) -> None:
    for end in range(len(data)):
        assert read_header(data[:end]) is None
    assert read_header(data) == Header(peer)
    assert read_header(data + b"behind") == Header(peer, b"behind")


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
        b"\x16\x03\x01",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 40000\r\n",
        b"PROXY TCP4 192.0.2.777 10.0.0.1 40000 5432\r\n",
        b"PROXY TCP4 2001:db8::7 2001:db8::1 40000 5432\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 99999 5432\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 -1 5432\r\n",
        b"PROXY UDP4 192.0.2.7 10.0.0.1 40000 5432\r\n",
        b"PROXY " + b"x" * 200,
        b"\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        version_2(0x11, V4),
        version_2(0x11, V4 + PORTS, version=1),
        version_2(0x11, V4 + PORTS, command=2),
        SIGNATURE + b"\x21\x11\xff\xff",
    ],
)
def test_an_invalid_header_is_recognized(data: bytes) -> None:
    assert isinstance(read_header(data), InvalidHeader)


@given(st.binary(max_size=300), st.sampled_from([b"", b"PROXY ", SIGNATURE, SIGNATURE + b"\x21\x11"]))
def test_no_bytes_break_it_or_are_kept_for_ever(data: bytes, prefix: bytes) -> None:
    parts = itertools.accumulate(bytes([b]) for b in prefix + data)
    assert not any(read_header(p) is None and len(p) > 4096 + 16 for p in parts)


def test_format_peer() -> None:
    assert format_peer("::ffff:192.0.2.7", 1) == "192.0.2.7:1"
    assert format_peer("fe80::1%eth0", 1) == "[fe80::1]:1"
