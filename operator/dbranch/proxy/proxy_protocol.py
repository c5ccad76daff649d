"""The PROXY protocol, version 1 and 2: who the client is, as a load balancer says it. Pure.

Source: HAProxy's `proxy-protocol.txt`, section 2.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V1: Final = b"PROXY "
# Bytes of a whole header: version 1 as the specification bounds it, version 2 with its extensions.
_MOST_V1: Final = 107
_MOST_V2: Final = 4096


@dataclass(frozen=True)
class Header:
    """`peer` is the client as `address:port`; None where the sender speaks for itself or does not know.
    `rest` is what came behind the header."""

    peer: str | None
    rest: bytes = b""


@dataclass(frozen=True)
class NoHeader:
    """What came is none."""

    message: str


def peer_name(host: str, port: int) -> str:
    """`address:port`, an IPv6 address in brackets, an IPv4 one without its `::ffff:`."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def read_header(data: bytes) -> Header | NoHeader | None:
    """Reads the header that `data`, all that came so far, begins with. None: more bytes are needed."""
    if data[:1] == _SIGNATURE[:1]:
        return _version_2(data)
    head = data[: len(_V1)]
    if head != _V1[: len(head)]:
        return NoHeader("no PROXY protocol header")
    end = data.find(b"\r\n", 0, _MOST_V1)
    if end < 0:
        return None if len(data) < _MOST_V1 else NoHeader("a PROXY protocol header without an end")
    return _version_1(data[:end], data[end + 2 :])


def _version_1(line: bytes, rest: bytes) -> Header | NoHeader:
    words = line.decode("ascii", "replace").split(" ")
    if len(words) >= 2 and words[1] == "UNKNOWN":
        return Header(None, rest)
    try:
        _, family, source, _, port, _ = words
        host = {"TCP4": ipaddress.IPv4Address, "TCP6": ipaddress.IPv6Address}[family](source)
        if not 0 <= int(port) <= 65535:
            raise ValueError(port)
        return Header(peer_name(str(host), int(port)), rest)
    except (ValueError, KeyError):
        return NoHeader("a PROXY protocol header that cannot be read")


def _version_2(data: bytes) -> Header | NoHeader | None:
    head = data[: len(_SIGNATURE)]
    if head != _SIGNATURE[: len(head)]:
        return NoHeader("no PROXY protocol header")
    if len(data) < 16:
        return None
    version, command, family = data[12] >> 4, data[12] & 15, data[13]
    length = int.from_bytes(data[14:16], "big")
    if version != 2 or command > 1 or 16 + length > _MOST_V2:
        return NoHeader("a PROXY protocol header that cannot be read")
    if len(data) < 16 + length:
        return None
    body, rest = data[16 : 16 + length], data[16 + length :]
    size = {0x11: 4, 0x21: 16}.get(family)
    if command == 0 or size is None:
        return Header(None, rest)
    if length < 2 * size + 4:
        return NoHeader("a PROXY protocol header that cannot be read")
    host = ipaddress.ip_address(body[:size])
    return Header(peer_name(str(host), int.from_bytes(body[2 * size : 2 * size + 2], "big")), rest)
