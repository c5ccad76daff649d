"""TLS between clients and the proxy."""

from __future__ import annotations

import shutil
import ssl
import struct
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.node.proxy_backend import (
    PASSWORD,
    USER,
    Backend,
    MakeProxy,
    Proxy,
    branch_of,
    make_certificate,
    trusting_context,
)
from tests.node.proxy_talk import (
    await_active,
    build_startup,
    connect_error,
    error_fields,
    fatal_message,
    read_all,
)

from dbranch.proxy import wire


def test_tls_with_a_verified_certificate(
    make_proxy: MakeProxy, main: Backend, tls: Path, threads: ThreadPoolExecutor
) -> None:
    proxy = make_proxy(tls)
    with proxy.connect(sslmode="verify-full", sslrootcert=str(tls / "tls.crt")) as connection:
        assert branch_of(connection) == "main"
        assert connection.execute("SELECT length(repeat('x', 20000000))").fetchone() == (20000000,)
        row = connection.execute("SELECT repeat('x', 20000000)").fetchone()
        assert row and len(row[0]) == 20000000
        running = threads.submit(connection.execute, "SELECT pg_sleep(60)")
        await_active(main, "SELECT pg_sleep(60)")
        connection.cancel_safe(timeout=10)
        with pytest.raises(psycopg.errors.QueryCanceled):
            running.result(5)
        proxy.apply(active="feature-x")
        assert fatal_message(connection).startswith("57P01")
    with proxy.connect(sslmode="disable") as connection:
        assert branch_of(connection) == "feature-x"


def test_required_tls_rejects_unencrypted_connections_with_28000(make_proxy: MakeProxy, tls: Path) -> None:
    proxy = make_proxy(tls, tls_required=True)
    assert "project shop accepts only TLS connections" in connect_error(proxy, sslmode="disable")
    with proxy.raw() as sock:
        sock.sendall(build_startup({"user": USER}))
        assert error_fields(read_all(sock))["C"] == "28000"
    with proxy.connect(sslmode="require") as connection:
        assert branch_of(connection) == "main"


def test_direct_tls(make_proxy: MakeProxy, tls: Path) -> None:
    proxy = make_proxy(tls)
    context = trusting_context(tls)
    with context.wrap_socket(proxy.raw(), server_hostname="shop") as sock:
        assert sock.selected_alpn_protocol() == "postgresql"
        sock.sendall(build_startup({"user": USER, "database": "postgres"}))
        assert sock.recv(1) == b"R"
    context.set_alpn_protocols(["http/1.1"])
    with pytest.raises(OSError), context.wrap_socket(proxy.raw(), server_hostname="shop") as sock:
        sock.sendall(build_startup({"user": USER}))
        assert error_fields(read_all(sock))["C"] == "08P01"
        raise OSError


def test_without_a_certificate_tls_is_declined(proxy: Proxy) -> None:
    assert "server does not support SSL" in connect_error(proxy, sslmode="require")
    with proxy.raw() as sock:
        sock.sendall(struct.pack("!II", 8, wire.GSSENC_REQUEST_CODE))
        assert sock.recv(1) == b"N"
        sock.sendall(struct.pack("!II", 8, wire.SSL_REQUEST_CODE))
        assert sock.recv(1) == b"N"
        sock.sendall(build_startup({"user": USER, "database": "postgres"}))
        assert sock.recv(1) == b"R"


def test_a_renewed_certificate_is_used(make_proxy: MakeProxy, tls: Path, tmp_path_factory: Any) -> None:
    proxy = make_proxy(tls)
    old = tmp_path_factory.mktemp("old")
    shutil.copy(tls / "tls.crt", old)
    proxy.connect(sslmode="verify-ca", sslrootcert=str(old / "tls.crt")).close()
    make_certificate(tls)
    time.sleep(1.1)
    proxy.connect(sslmode="verify-ca", sslrootcert=str(tls / "tls.crt")).close()
    assert "certificate verify failed" in connect_error(
        proxy, sslmode="verify-ca", sslrootcert=str(old / "tls.crt")
    )


def test_a_failed_tls_handshake_leaves_the_proxy_working(make_proxy: MakeProxy, tls: Path) -> None:
    proxy = make_proxy(tls)
    for first in (struct.pack("!II", 8, wire.SSL_REQUEST_CODE), b""):
        with proxy.raw() as sock:
            if first:
                sock.sendall(first)
                assert sock.recv(1) == b"S"
            sock.sendall(b"\x16\x03\x01\x00\x05hello" * 20)
            read_all(sock)
    with proxy.connect(sslmode="require") as connection:
        assert branch_of(connection) == "main"


# SCRAM: the proxy ends TLS, so Postgres cannot use channel binding


@pytest.mark.parametrize("binding", ["prefer", "disable"])
@pytest.mark.parametrize("negotiation", ["postgres", "direct"])
def test_scram_through_tls(make_proxy: MakeProxy, tls: Path, binding: str, negotiation: str) -> None:
    proxy = make_proxy(tls)
    options = {"sslmode": "require", "channel_binding": binding, "sslnegotiation": negotiation}
    with proxy.connect(**options, require_auth="scram-sha-256") as connection:
        assert branch_of(connection) == "main"


@pytest.mark.parametrize("binding", ["prefer", "disable"])
def test_psql_by_scram_through_tls(make_proxy: MakeProxy, tls: Path, main: Backend, binding: str) -> None:
    proxy = make_proxy(tls)
    url = f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{proxy.port}/postgres?sslmode=require"
    process = subprocess.run(
        [str(main.programs / "psql"), "-XAt", "-c", "\\conninfo", f"{url}&channel_binding={binding}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "TLSv1.3" in process.stdout


def test_a_client_that_requires_channel_binding_fails(make_proxy: MakeProxy, tls: Path) -> None:
    """libpq itself gives up, rather than to continue without channel binding."""
    proxy = make_proxy(tls)
    assert "channel binding" in connect_error(proxy, sslmode="require", channel_binding="require")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_only_tls_1_2_and_later_is_accepted(
    make_proxy: MakeProxy, tls: Path, version: ssl.TLSVersion
) -> None:
    proxy, context = make_proxy(tls), trusting_context(tls)
    # Without this the local OpenSSL refuses TLS 1.1 before the proxy can.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with proxy.raw() as sock:
        sock.sendall(struct.pack("!II", 8, wire.SSL_REQUEST_CODE))
        assert sock.recv(1) == b"S"
        if version < ssl.TLSVersion.TLSv1_2:
            with pytest.raises(ssl.SSLError):
                context.wrap_socket(sock, server_hostname="shop")
        else:
            with context.wrap_socket(sock, server_hostname="shop") as tls_sock:
                tls_sock.sendall(build_startup({"user": USER, "database": "postgres"}))
                assert tls_sock.recv(1) == b"R"


def test_unencrypted_bytes_after_an_sslrequest_are_an_error(make_proxy: MakeProxy, tls: Path) -> None:
    """A startup packet injected by a man in the middle is not taken as received through TLS."""
    proxy = make_proxy(tls)
    with proxy.raw() as sock:
        sock.sendall(struct.pack("!II", 8, wire.SSL_REQUEST_CODE) + build_startup({"user": "mallory"}))
        assert error_fields(read_all(sock))["C"] == "08P01"
    assert not proxy.switchboard.sessions
