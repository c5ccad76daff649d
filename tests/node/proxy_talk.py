"""Helpers of the proxy's tests that speak the Postgres protocol, by hand or through psycopg."""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.node.proxy_backend import PASSWORD, USER, Backend, Client, Proxy, wait_until


def connect_error(proxy: Proxy, **options: Any) -> str:
    """Return the message of the error that a connection attempt has to fail with."""
    with pytest.raises(psycopg.OperationalError) as caught:
        proxy.connect(**options)
    return str(caught.value)


def fatal_message(connection: Client) -> str:
    """Return the SQLSTATE and message of the FATAL that ends the connection within five seconds."""
    deadline = time.monotonic() + 5
    with pytest.raises(psycopg.OperationalError) as caught:
        while time.monotonic() < deadline:
            connection.execute("SELECT 1")
            time.sleep(0.02)
    assert connection.closed
    if caught.value.sqlstate:
        return f"{caught.value.sqlstate} {caught.value}"
    assert connection.notices_received, f"no ErrorResponse: {caught.value}"
    return connection.notices_received[-1]


def build_message(message_type: bytes, body: bytes) -> bytes:
    """Return a message of the protocol: type, length, body."""
    return message_type + struct.pack("!I", 4 + len(body)) + body


def build_startup(parameters: dict[str, str]) -> bytes:
    """Return a StartupMessage of protocol 3.0."""
    body = b"".join(w.encode() + b"\0" for pair in parameters.items() for w in pair) + b"\0"
    return struct.pack("!II", 8 + len(body), 3 << 16) + body


def read_all(sock: socket.socket) -> bytes:
    """Read until the peer closes. Raises ConnectionResetError if it resets the connection."""
    parts: list[bytes] = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def error_fields(data: bytes) -> dict[str, str]:
    """Return the fields of the last message, which has to be an ErrorResponse."""
    start = data.rindex(b"E\x00\x00")
    length = int.from_bytes(data[start + 1 : start + 5], "big")
    assert start + 1 + length == len(data), data
    return {f[:1].decode(): f[1:].decode() for f in data[start + 5 : -2].split(b"\0")}


def running_sleeps(direct: psycopg.Connection[Any]) -> int:
    """Return how many backends run pg_sleep."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%'"
    row = direct.execute(sql).fetchone()
    assert row
    count: int = row[0]
    return count


def await_active(backend: Backend, query: str, count: int = 1, wait_event: str = "%") -> None:
    """Wait until so many sessions of the backend execute this query, in such a wait event (a pattern)."""
    active = (
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = %s"
        " AND coalesce(wait_event, '') LIKE %s"
    )
    with backend.direct() as direct:
        wait_until(lambda: direct.execute(active, [query, wait_event]).fetchone() == (count,), 30)


def resident_bytes() -> int:
    """Return the resident memory of this process, in which the proxy under test is a thread."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def environment(proxy: Proxy, **variables: str) -> dict[str, str]:
    """Return the environment of a program that connects through the proxy."""
    return {
        **os.environ,
        "PGHOST": "127.0.0.1",
        "PGPORT": str(proxy.port),
        "PGUSER": USER,
        "PGPASSWORD": PASSWORD,
        "PGDATABASE": "postgres",
        **variables,
    }
