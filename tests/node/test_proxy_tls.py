"""TLS between clients and the proxy."""

from __future__ import annotations

import shutil
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.node.proxy_backend import (
    USER,
    MakeProxy,
    Proxy,
    branch_of,
    make_certificate,
    trusting,
)
from tests.node.proxy_talk import ended, error_of, read_all, refused, startup

from dbranch.proxy import wire


def test_tls_with_a_checked_certificate(
    make_proxy: MakeProxy, tls: Path, threads: ThreadPoolExecutor
) -> None:
    proxy = make_proxy(tls)
    with proxy.connect(sslmode="verify-full", sslrootcert=str(tls / "tls.crt")) as connection:
        assert branch_of(connection) == "main"
        assert connection.execute("SELECT length(repeat('x', 20000000))").fetchone() == (20000000,)
        row = connection.execute("SELECT repeat('x', 20000000)").fetchone()
        assert row and len(row[0]) == 20000000
        running = threads.submit(connection.execute, "SELECT pg_sleep(60)")
        time.sleep(0.5)
        connection.cancel_safe(timeout=10)
        with pytest.raises(psycopg.errors.QueryCanceled):
            running.result(5)
        proxy.apply(active="feature-x")
        assert ended(connection).startswith("57P01")
    with proxy.connect(sslmode="disable") as connection:
        assert branch_of(connection) == "feature-x"


def test_required_tls_refuses_plain_with_28000(make_proxy: MakeProxy, tls: Path) -> None:
    proxy = make_proxy(tls, tls_required=True)
    assert "project shop takes only TLS connections" in refused(proxy, sslmode="disable")
    with proxy.raw() as sock:
        sock.sendall(startup({"user": USER}))
        assert error_of(read_all(sock))["C"] == "28000"
    with proxy.connect(sslmode="require") as connection:
        assert branch_of(connection) == "main"


def test_direct_tls(make_proxy: MakeProxy, tls: Path) -> None:
    proxy = make_proxy(tls)
    context = trusting(tls)
    with context.wrap_socket(proxy.raw(), server_hostname="shop") as sock:
        assert sock.selected_alpn_protocol() == "postgresql"
        sock.sendall(startup({"user": USER, "database": "postgres"}))
        assert sock.recv(1) == b"R"
    context.set_alpn_protocols(["http/1.1"])
    with pytest.raises(OSError), context.wrap_socket(proxy.raw(), server_hostname="shop") as sock:
        sock.sendall(startup({"user": USER}))
        assert error_of(read_all(sock))["C"] == "08P01"
        raise OSError


def test_without_a_certificate_tls_is_declined(proxy: Proxy) -> None:
    assert "server does not support SSL" in refused(proxy, sslmode="require")
    with proxy.raw() as sock:
        sock.sendall(struct.pack("!II", 8, wire.GSS_CODE))
        assert sock.recv(1) == b"N"
        sock.sendall(struct.pack("!II", 8, wire.SSL_CODE))
        assert sock.recv(1) == b"N"
        sock.sendall(startup({"user": USER, "database": "postgres"}))
        assert sock.recv(1) == b"R"


def test_a_renewed_certificate_is_used(make_proxy: MakeProxy, tls: Path, tmp_path_factory: Any) -> None:
    proxy = make_proxy(tls)
    old = tmp_path_factory.mktemp("old")
    shutil.copy(tls / "tls.crt", old)
    proxy.connect(sslmode="verify-ca", sslrootcert=str(old / "tls.crt")).close()
    make_certificate(tls)
    time.sleep(1.1)
    proxy.connect(sslmode="verify-ca", sslrootcert=str(tls / "tls.crt")).close()
    assert "certificate verify failed" in refused(
        proxy, sslmode="verify-ca", sslrootcert=str(old / "tls.crt")
    )


def test_a_tls_handshake_that_fails_leaves_nothing(make_proxy: MakeProxy, tls: Path) -> None:
    proxy = make_proxy(tls)
    for first in (struct.pack("!II", 8, wire.SSL_CODE), b""):
        with proxy.raw() as sock:
            if first:
                sock.sendall(first)
                assert sock.recv(1) == b"S"
            sock.sendall(b"\x16\x03\x01\x00\x05hello" * 20)
            read_all(sock)
    with proxy.connect(sslmode="require") as connection:
        assert branch_of(connection) == "main"
