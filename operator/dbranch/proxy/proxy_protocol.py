"""Parser of the PROXY protocol, versions 1 and 2: the client's address as a load balancer sends it. Pure.

Source: HAProxy's `proxy-protocol.txt`, section 2.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

_V2_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V1_PREFIX: Final = b"PROXY "
# Longest header that is accepted: version 1 as the specification bounds it, version 2 with its extensions.
_MAX_V1_BYTES: Final = 107
_MAX_V2_BYTES: Final = 4096


@dataclass(frozen=True)
class Header:
    """A complete header.

    `peer` is the client's `address:port`, or None if the load balancer speaks for itself (LOCAL) or does not
    know the client (UNKNOWN). `remaining` are the bytes that came after the header.
    """

    peer: str | None
    remaining: bytes = b""


@dataclass(frozen=True)
class InvalidHeader:
    """The bytes do not begin with a PROXY protocol header."""

    message: str


_MISSING: Final = InvalidHeader("no PROXY protocol header")
_UNTERMINATED: Final = InvalidHeader("unterminated PROXY protocol header")
_MALFORMED: Final = InvalidHeader("malformed PROXY protocol header")


def format_peer(host: str, port: int) -> str:
    """Return `address:port`, with an IPv6 address in brackets and an IPv4 address without its `::ffff:`.

    >>> format_peer("2001:db8::7", 40000), format_peer("::ffff:192.0.2.7", 40000)
    ('[2001:db8::7]:40000', '192.0.2.7:40000')
    """
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def may_begin_header(data: bytes) -> bool:
    """Return True if the first byte is that of a header: no packet of a Postgres client begins with it.

    >>> may_begin_header(b"PROXY TCP4"), may_begin_header(bytes(8))
    (True, False)
    """
    return data[:1] in (_V1_PREFIX[:1], _V2_SIGNATURE[:1])


def read_header(data: bytes) -> Header | InvalidHeader | None:
    """Return the header at the start of `data`, all bytes received so far; None if more bytes are needed."""
    if data[:1] == _V2_SIGNATURE[:1]:
        return _read_version_2(data)
    prefix = data[: len(_V1_PREFIX)]
    if prefix != _V1_PREFIX[: len(prefix)]:
        return _MISSING
    end = data.find(b"\r\n", 0, _MAX_V1_BYTES)
    if end < 0:
        return None if len(data) < _MAX_V1_BYTES else _UNTERMINATED
    return _read_version_1(data[:end], data[end + 2 :])


def _read_version_1(line: bytes, remaining: bytes) -> Header | InvalidHeader:
    words = line.decode("ascii", "replace").split(" ")
    if len(words) >= 2 and words[1] == "UNKNOWN":
        return Header(None, remaining)
    try:
        _, family, source, _, port, _ = words
        host = {"TCP4": ipaddress.IPv4Address, "TCP6": ipaddress.IPv6Address}[family](source)
        if not 0 <= int(port) <= 65535:
            raise ValueError(port)
        return Header(format_peer(str(host), int(port)), remaining)
    except (ValueError, KeyError):
        return _MALFORMED


def _read_version_2(data: bytes) -> Header | InvalidHeader | None:
    prefix = data[: len(_V2_SIGNATURE)]
    if prefix != _V2_SIGNATURE[: len(prefix)]:
        return _MISSING
    if len(data) < 16:
        return None
    version, command, family = data[12] >> 4, data[12] & 15, data[13]
    length = int.from_bytes(data[14:16], "big")
    if version != 2 or command > 1 or 16 + length > _MAX_V2_BYTES:
        return _MALFORMED
    if len(data) < 16 + length:
        return None
    body, remaining = data[16 : 16 + length], data[16 + length :]
    address_size = {0x11: 4, 0x21: 16}.get(family)
    if command == 0 or address_size is None:
        return Header(None, remaining)
    if length < 2 * address_size + 4:
        return _MALFORMED
    host = ipaddress.ip_address(body[:address_size])
    port = int.from_bytes(body[2 * address_size : 2 * address_size + 2], "big")
    return Header(format_peer(str(host), port), remaining)
