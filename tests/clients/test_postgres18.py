"""A real Postgres 18 behind the proxy: protocol 3.2, its long cancel keys, direct TLS negotiation."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.node.proxy_backend import Backend, MakeProxy, Proxy, branch_of


@pytest.fixture
def eighteen(make_proxy: MakeProxy, postgres18: Backend, tls: Path) -> Proxy:
    """A proxy whose active branch `eighteen` is a Postgres 18."""
    proxy = make_proxy(tls)
    proxy.apply(active="eighteen", targets={**proxy.table.targets, "eighteen": postgres18.target()})
    return proxy


@pytest.mark.parametrize("options", [{}, {"sslmode": "require", "sslnegotiation": "direct"}])
def test_protocol_3_2(eighteen: Proxy, threads: ThreadPoolExecutor, options: dict[str, Any]) -> None:
    with eighteen.connect(min_protocol_version="3.2", max_protocol_version="3.2", **options) as connection:
        assert branch_of(connection) == "eighteen"
        assert connection.info.server_version >= 180000
        assert connection.pgconn.full_protocol_version == 30002
        (key,) = eighteen.switchboard.cancel_keys
        assert len(key) > 8, "the cancel key is of protocol 3.0"
        running = threads.submit(connection.execute, "SELECT pg_sleep(60)")
        time.sleep(0.5)
        connection.cancel_safe(timeout=10)
        with pytest.raises(psycopg.errors.QueryCanceled):
            running.result(5)


def test_a_newer_protocol_version_is_negotiated_by_the_backend(eighteen: Proxy) -> None:
    with eighteen.connect(max_protocol_version="latest") as connection:
        assert connection.pgconn.full_protocol_version == 30002


def test_a_cancel_with_protocol_3_2_through_another_replica(
    eighteen: Proxy, make_proxy: MakeProxy, threads: ThreadPoolExecutor
) -> None:
    other = make_proxy()
    other.apply(active="eighteen", targets=eighteen.table.targets)
    with eighteen.connect(max_protocol_version="3.2") as connection:
        running = threads.submit(connection.execute, "SELECT pg_sleep(60)")
        time.sleep(0.5)
        (key,) = eighteen.switchboard.cancel_keys
        with other.raw() as sock:
            sock.sendall(b"\x00\x00" + (8 + len(key)).to_bytes(2, "big") + b"\x04\xd2\x16\x2e" + key)
            assert sock.recv(1) == b""
        with pytest.raises(psycopg.errors.QueryCanceled):
            running.result(5)
