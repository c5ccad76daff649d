"""What the tests of the proxy say and hear in the protocol, by hand and by psycopg."""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.node.proxy_backend import PASSWORD, USER, Client, Proxy


def refused(proxy: Proxy, **more: Any) -> str:
    with pytest.raises(psycopg.OperationalError) as caught:
        proxy.connect(**more)
    return str(caught.value)


def ended(connection: Client) -> str:
    """The SQLSTATE and message with which the connection was ended, waiting for it a little."""
    until = time.monotonic() + 5
    with pytest.raises(psycopg.OperationalError) as caught:
        while time.monotonic() < until:
            connection.execute("SELECT 1")
            time.sleep(0.02)
    assert connection.closed
    if caught.value.sqlstate:
        return f"{caught.value.sqlstate} {caught.value}"
    assert connection.heard, f"no ErrorResponse: {caught.value}"
    return connection.heard[-1]


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", 4 + len(body)) + body


def startup(parameters: dict[str, str]) -> bytes:
    body = b"".join(w.encode() + b"\0" for pair in parameters.items() for w in pair) + b"\0"
    return struct.pack("!II", 8 + len(body), 3 << 16) + body


def read_all(sock: socket.socket) -> bytes:
    """Until the peer closes; a reset is an error, except on a socket that the test itself has broken."""
    parts: list[bytes] = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def error_of(data: bytes) -> dict[str, str]:
    """The fields of the last message, which has to be an ErrorResponse."""
    at = data.rindex(b"E\x00\x00")
    length = int.from_bytes(data[at + 1 : at + 5], "big")
    assert at + 1 + length == len(data), data
    return {f[:1].decode(): f[1:].decode() for f in data[at + 5 : -2].split(b"\0")}


def sleepers(direct: psycopg.Connection[Any]) -> int:
    sql = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%'"
    row = direct.execute(sql).fetchone()
    assert row
    count: int = row[0]
    return count


def resident_bytes() -> int:
    """Of this process, which the proxy under test is a thread of."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def environment(proxy: Proxy, **more: str) -> dict[str, str]:
    """Of a program that connects through the proxy."""
    return {
        **os.environ,
        "PGHOST": "127.0.0.1",
        "PGPORT": str(proxy.port),
        "PGUSER": USER,
        "PGPASSWORD": PASSWORD,
        "PGDATABASE": "postgres",
        **more,
    }
